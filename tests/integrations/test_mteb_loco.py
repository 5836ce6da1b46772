"""LoCo through mteb.evaluate, offline: two tasks of made files, a stub encoder.

The scores are compared with pytrec_eval on a ranking computed here from the encoder's vectors.
"""

import hashlib
from importlib.util import find_spec

import numpy as np
import pytest

# Not importorskip: a package that is there and does not import is a failure.
if find_spec("mteb") is None:
    pytest.skip("make test-integrations has mteb", allow_module_level=True)

import mteb
import pytrec_eval
from m2_bert.loco.catalog import LOCO_V1
from m2_bert.loco.data import save_task
from m2_bert.loco.mteb import mteb_benchmark, mteb_task
from m2_bert.loco.task import RetrievalTask
from mteb.models import ModelMeta

pytestmark = pytest.mark.integration

KEYS = ("2wikimqa", "stackoverflow")
DIMENSION = 16


def vector(text: str) -> np.ndarray:
    """Sum of random directions, one per word: no two of the made texts are equally similar."""
    seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) for word in text.split()]
    total = sum(np.random.RandomState(seed).standard_normal(DIMENSION) for seed in seeds)
    return (total / np.linalg.norm(total)).astype(np.float32)


class WordEncoder:
    """An encoder by MTEB's protocol that needs no weights."""

    mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "stub/word-encoder"})

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs):
        return np.stack([vector(text) for batch in inputs for text in batch["text"]])

    def similarity(self, embeddings1, embeddings2):
        return np.asarray(embeddings1) @ np.asarray(embeddings2).T

    def similarity_pairwise(self, embeddings1, embeddings2):
        return (np.asarray(embeddings1) * np.asarray(embeddings2)).sum(axis=1)


def made_task(key: str, answers: int, seed: int) -> RetrievalTask:
    generator = np.random.RandomState(seed)
    words = [f"w{i}" for i in range(200)]
    documents = {f"{key}_Passage_{j}": " ".join(generator.choice(words, 12)) for j in range(40)}
    queries, qrels = {}, {}
    for i in range(15):
        named = [f"{key}_Passage_{j}" for j in generator.choice(40, answers, replace=False)]
        # A few words of the answer, fewer than decide alone: the ranks spread over 1 to 40.
        own = documents[named[0]].split()[:4]
        queries[f"{key}_Query_{i}"] = " ".join([*own, *generator.choice(words, 4)])
        qrels[f"{key}_Query_{i}"] = dict.fromkeys(named, 1)
    return RetrievalTask(key, documents, queries, qrels)


@pytest.fixture(scope="module")
def tasks() -> dict[str, RetrievalTask]:
    return {
        key: made_task(key, answers, seed)
        for seed, (key, answers) in enumerate(zip(KEYS, (1, 3), strict=True))
    }


@pytest.fixture(scope="module")
def folder(tasks, tmp_path_factory):
    path = tmp_path_factory.mktemp("loco")
    for task in tasks.values():
        save_task(task, path)
    return path


def ndcg_at_10(task: RetrievalTask) -> float:
    """Mean over the queries, by pytrec_eval on the full ranking by cosine."""
    vectors = {pid: vector(text) for pid, text in task.documents.items()}
    run = {
        qid: {pid: float(vector(text) @ document) for pid, document in vectors.items()}
        for qid, text in task.queries.items()
    }
    evaluator = pytrec_eval.RelevanceEvaluator(task.qrels, {"ndcg_cut.10"})
    return float(np.mean([scores["ndcg_cut_10"] for scores in evaluator.evaluate(run).values()]))


def test_scores_are_those_of_pytrec_eval(tasks, folder):
    result = mteb.evaluate(
        WordEncoder(),
        [mteb_task(key, data=folder) for key in KEYS],
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
    )
    scores = {r.task_name: r.scores["test"][0] for r in result.task_results}
    assert scores.keys() == {f"LoCo-{key}" for key in KEYS}
    for key in KEYS:
        expected = ndcg_at_10(tasks[key])
        assert 0.2 < expected < 0.95  # neither a perfect ranking nor an empty one
        # MTEB rounds to five decimals.
        assert scores[f"LoCo-{key}"]["ndcg_at_10"] == pytest.approx(expected, abs=1e-5)
        assert scores[f"LoCo-{key}"]["main_score"] == scores[f"LoCo-{key}"]["ndcg_at_10"]


def test_benchmark_has_the_tasks_of_the_catalog():
    benchmark = mteb_benchmark()
    assert [task.metadata.name for task in benchmark.tasks] == [f"LoCo-{t.key}" for t in LOCO_V1]
    assert {task.metadata.main_score for task in benchmark.tasks} == {"ndcg_at_10"}
    assert len({task.metadata.revision for task in benchmark.tasks}) == 1
    assert not any(task.data_loaded for task in benchmark.tasks)


def test_local_files_do_not_claim_the_pinned_revision(folder):
    assert mteb_task("2wikimqa", data=folder).metadata.revision == "local files"


def test_missing_files_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="task qmsum: no documents in"):
        mteb_task("qmsum", data=tmp_path).load_data()
    with pytest.raises(ValueError, match="unknown task 'nq'"):
        mteb_task("nq")
