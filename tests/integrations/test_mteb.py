"""mteb.evaluate takes the SentenceTransformer of m2_bert.load as it is."""

from importlib.util import find_spec

import pytest
from m2_bert.folder import load, save_folder

from tests.m2_bert.makers import small_model, text_of

# Not importorskip: a package that is there and does not import is a failure.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_spec("mteb") is None, reason="make test-integrations has it"),
]

TEXTS = {f"d{i}": text_of(40, seed=i) for i in range(10)}


def _task(relevant: dict[str, str]):
    """Retrieval of ten texts; each query is a text, word for word."""
    import datasets
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Words(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Words",
            description="Made words.",
            dataset={"path": "made/words", "revision": "1"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, num_proc=None, **kwargs):
            corpus = [{"id": id, "title": "", "text": text} for id, text in TEXTS.items()]
            queries = [{"id": f"q-{id}", "text": TEXTS[id]} for id in relevant]
            split = {
                "corpus": datasets.Dataset.from_list(corpus),
                "queries": datasets.Dataset.from_list(queries),
                "relevant_docs": {f"q-{id}": {want: 1} for id, want in relevant.items()},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Words()


@pytest.mark.parametrize(
    ("relevant", "recall"),
    [
        ({id: id for id in TEXTS}, 1.0),
        ({"d0": "d0", "d1": "d2", "d3": "d4", "d5": "d5"}, 0.5),
    ],
    ids=["own text", "half of them another's"],
)
def test_mteb_evaluates_the_model(tmp_path, relevant, recall):
    import mteb

    model = load(save_folder(small_model(), tmp_path / "model"), device="cpu")
    result = mteb.evaluate(model, _task(relevant), cache=None, show_progress_bar=False)
    scores = result.task_results[0].scores["test"][0]
    assert scores["recall_at_1"] == pytest.approx(recall)
    assert scores["recall_at_10"] == 1.0
