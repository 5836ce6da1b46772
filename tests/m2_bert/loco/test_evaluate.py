"""Evaluation end to end on made tasks, with vectors whose nDCG is computed by hand."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from m2_bert.loco import cache as cache_module
from m2_bert.loco.cache import CacheWarning, Embeddings, embed, plan_shards, token_lengths
from m2_bert.loco.encoders import Encoded
from m2_bert.loco.evaluate import LazyTask, evaluate
from m2_bert.loco.published import V1_TASKS
from m2_bert.loco.result import METRICS, mean_over_tasks, read_result, to_json
from m2_bert.loco.systems import first_copies, rank
from m2_bert.loco.task import RetrievalTask

from tests.m2_bert.makers import text_of

pytest.importorskip("pytrec_eval")
pytest.importorskip("safetensors")

ROOT = Path(__file__).parents[3]
MODULE = "tests.m2_bert.loco.test_evaluate"
SECOND = 1 / math.log2(3)  # gain of the second rank
FOURTH = 1 / math.log2(5)


class AngleEncoder:
    """Embeds "angle 30 ..." as the unit vector of 30 degrees."""

    name = "angles"
    revision = None
    max_length = 512

    def __init__(self, *, long="truncate", fingerprint="0123", kill_at=None):
        self.settings = {"long": long, "max_length": self.max_length}
        self.fingerprint = fingerprint
        self.texts = []
        self.calls = 0
        self._kill_at = kill_at

    def encode_queries(self, texts, progress=None):
        return self._encode(texts, progress)

    def encode_documents(self, texts, progress=None):
        return self._encode(texts, progress)

    def _encode(self, texts, progress):
        self.calls += 1
        if self.calls == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.texts += texts
        angles = np.radians([float(text.split()[1]) for text in texts])
        if progress is not None:
            progress(len(texts), len(texts))
        return Encoded(self.vectors(angles), np.arange(len(texts)))

    def vectors(self, angles):
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def first_task():
    """By distance of angles: q0 finds d1 first, q1 finds d2 second, q2 its two at 2 and 4."""
    return RetrievalTask(
        "first",
        {key: f"angle {angle}" for key, angle in (("d0", 0), ("d1", 20), ("d2", 50), ("d3", 90))},
        {"q0": "angle 22", "q1": "angle 30", "q2": "angle 0"},
        {"q0": {"d1": 1}, "q1": {"d2": 1}, "q2": {"d1": 1, "d3": 1}},
        {"differences": ["4 documents, but 5 by the paper"], "path": Path("somewhere")},
    )


def second_task():
    """Twins at the same angle: "twin-a" comes before "twin-b", which is the answer."""
    texts = {"twin-b": "angle 10", "far": "angle 80", "twin-a": "angle 10"}
    return RetrievalTask("second", texts, {"q": "angle 12"}, {"q": {"twin-b": 1}})


FIRST = {"q0": 1.0, "q1": SECOND, "q2": (SECOND + FOURTH) / (1 + SECOND)}


def without_timing(result):
    return to_json({**result.record, "timing": None})


def test_scores_equal_those_computed_by_hand(tmp_path):
    result = evaluate(AngleEncoder(), [first_task(), second_task()], out=tmp_path / "run.json")
    first, second = result.done["first"], result.done["second"]
    assert first["per_query"] == pytest.approx(FIRST)
    assert first["scores"]["ndcg_at_10"] == pytest.approx(sum(FIRST.values()) / 3)
    assert first["scores"]["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert first["scores"]["recall_at_10"] == 1.0
    assert second["scores"]["ndcg_at_10"] == pytest.approx(SECOND)
    average = (sum(FIRST.values()) / 3 + SECOND) / 2
    assert result.average["ndcg_at_10"] == pytest.approx(average)
    assert result.average["label"] == "mean of 2 tasks"
    assert first["counts"]["queries"] == 3
    assert first["counts"]["documents"] == first["counts"]["vectors"] == 4
    assert first["counts"]["document_tokens"] == 8
    assert first["metadata"]["differences"] == ["4 documents, but 5 by the paper"]
    assert sum(row["queries"] for row in first["by_length"].values()) == 3


def test_the_file_holds_the_result(tmp_path):
    result = evaluate(AngleEncoder(), [first_task()], out=tmp_path / "new" / "run.json")
    again = read_result(tmp_path / "new" / "run.json")
    assert again.record == result.record
    assert {"python", "torch", "transformers", "m2_bert"} <= again.record["versions"].keys()
    assert again.record["model"] == {"name": "angles", "revision": None, "fingerprint": "0123"}
    assert again.record["timing"]["tasks"]["first"]["seconds"] >= 0


def test_bm25_ranks_and_counts_what_it_cuts(tmp_path):
    pytest.importorskip("bm25s")
    documents = {
        "whale": "the whale swims in the ocean " + "water " * 20 + "harpoon",
        "desert": "camel and sand in the dry desert " + "sand " * 20,
        "city": "tram and street in the old city " + "street " * 20,
    }
    task = RetrievalTask("animals", documents, {"q": "harpoon"}, {"q": {"whale": 1}})
    full = evaluate("bm25", [task], out=tmp_path / "full.json").done["animals"]
    assert full["scores"]["ndcg_at_10"] == 1.0
    assert full["counts"]["cut_documents"] == 0
    head = evaluate("bm25:6", [task], out=tmp_path / "head.json")
    lengths = token_lengths(documents, None)
    cut = head.done["animals"]["counts"]
    assert cut["cut_documents"] == 3
    assert cut["cut_document_tokens"] == sum(lengths.values()) - 18
    assert head.record["settings"]["first_tokens"] == 6
    # Nothing matches any more, so the ids decide: city, desert, whale.
    assert head.done["animals"]["scores"]["mrr"] < 1.0


@pytest.mark.parametrize("spec", ["bm25:", "bm25:0", "bm25:-3", "bm25:x", "bm25:٣"])
def test_wrong_bm25_specs_are_refused(spec, tmp_path):
    with pytest.raises(ValueError, match=r"bm25:N"):
        evaluate(spec, [first_task()], out=tmp_path / "run.json")


# Calls of the encoder: 1-2 queries and 3-4 documents of "first", 5 queries and 6 documents of
# "second", in shards of two texts.
@pytest.mark.parametrize(("kill_at", "finished"), [(4, None), (6, ["first"])])
def test_a_run_killed_and_started_again_gives_the_same_json(
    kill_at, finished, tmp_path, monkeypatch
):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    call = f"from {MODULE} import run; run({str(killed)!r}, {kill_at})"
    code = subprocess.run([sys.executable, "-c", call], cwd=ROOT, check=False).returncode
    assert code == -signal.SIGKILL
    assert (killed / "run.json").exists() == (finished is not None)
    if finished:
        assert list(read_result(killed / "run.json").done) == finished

    monkeypatch.setattr(cache_module, "SHARD_TOKENS", 4)
    assert run(killed) == 6 - (kill_at - 1)
    assert run(whole) == 6
    results = [read_result(folder / "run.json") for folder in (killed, whole)]
    assert without_timing(results[0]) == without_timing(results[1])
    assert list(results[0].done) == ["first", "second"]


def run(folder, kill_at=None):
    """Two tasks with an encoder that may kill its process; returns how often it was called."""
    cache_module.SHARD_TOKENS = 4
    encoder = AngleEncoder(kill_at=kill_at)
    tasks = [first_task(), second_task()]
    evaluate(encoder, tasks, out=Path(folder) / "run.json", cache=Path(folder) / "cache")
    return encoder.calls


def test_the_cache_serves_another_run_of_the_same_model(tmp_path):
    first, second = AngleEncoder(), AngleEncoder()
    options = {"cache": tmp_path / "cache"}
    a = evaluate(first, [first_task()], out=tmp_path / "a.json", **options)
    b = evaluate(second, [first_task()], out=tmp_path / "b.json", **options)
    assert (first.calls, second.calls) == (2, 0)
    assert without_timing(a) == without_timing(b)
    assert a.record["timing"]["tasks"]["first"]["encode_seconds"] == pytest.approx(
        b.record["timing"]["tasks"]["first"]["encode_seconds"], abs=0.002
    )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"fingerprint": "4567"}, id="other weights"),
        pytest.param({"long": "chunk-mean"}, id="other settings"),
    ],
)
def test_the_cache_does_not_serve_another_model(change, tmp_path):
    evaluate(AngleEncoder(), [first_task()], out=tmp_path / "a.json", cache=tmp_path)
    other = AngleEncoder(**change)
    evaluate(other, [first_task()], out=tmp_path / "b.json", cache=tmp_path)
    assert other.calls == 2


def test_changed_texts_are_embedded_again(tmp_path):
    evaluate(AngleEncoder(), [first_task()], out=tmp_path / "run.json", cache=tmp_path / "cache")
    task = first_task()
    changed = RetrievalTask(
        task.name, {**task.documents, "d1": "angle 85"}, task.queries, task.qrels
    )
    encoder = AngleEncoder()
    result = evaluate(encoder, [changed], out=tmp_path / "run.json", cache=tmp_path / "cache")
    assert "angle 85" in encoder.texts
    assert result.done["first"]["per_query"]["q0"] == pytest.approx(1 / 2)  # now third


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "nan", "owner"])
def test_damaged_cache_files_are_made_again(damage, tmp_path):
    from safetensors.numpy import load_file, save_file

    evaluate(AngleEncoder(), [first_task()], out=tmp_path / "a.json", cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*/document-*/*.safetensors")
    content = path.read_bytes()
    if damage in ("nan", "owner"):
        tensors = load_file(path)
        tensors["vectors"][0, 0] = np.nan if damage == "nan" else 0
        tensors["owner"] = tensors["owner"] + (damage == "owner")
        save_file(tensors, path)
    else:
        path.write_bytes({"cut": content[:-9], "empty": b"", "noise": b"x" * 100}[damage])
    with pytest.warns(CacheWarning, match="computed again"):
        again = evaluate(
            AngleEncoder(), [first_task()], out=tmp_path / "b.json", cache=tmp_path / "cache"
        )
    assert again.done["first"]["per_query"] == pytest.approx(FIRST)
    assert path.stat().st_size == len(content)


class NanEncoder(AngleEncoder):
    name = "broken"

    def vectors(self, angles):
        return np.where(np.degrees(angles)[:, None] > 85, np.nan, super().vectors(angles))


class WideningEncoder(AngleEncoder):
    name = "widening"

    def vectors(self, angles):
        vectors = super().vectors(angles)
        return vectors if self.calls < 4 else np.concatenate([vectors, vectors], axis=1)


class UnevenEncoder(AngleEncoder):
    name = "uneven"

    def vectors(self, angles):
        vectors = super().vectors(angles)
        return vectors if self.calls < 3 else np.concatenate([vectors, vectors], axis=1)


class ShortEncoder(AngleEncoder):
    name = "short"

    def vectors(self, angles):
        return super().vectors(angles)[:-1]


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        pytest.param(NanEncoder, r"model broken returned NaN .* document 'd3'", id="NaN"),
        pytest.param(WideningEncoder, r"model widening .* width 4 .* width 2", id="width in parts"),
        pytest.param(
            UnevenEncoder, r"model uneven .* width 2 for queries and 4 for documents", id="width"
        ),
        pytest.param(ShortEncoder, r"model short .* expected one row for each text", id="rows"),
    ],
)
def test_a_failing_task_is_recorded_and_the_next_goes_on(encoder, message, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_TOKENS", 4)
    result = evaluate(encoder(), [first_task(), second_task()], out=tmp_path / "run.json")
    error = result.failed["first"]
    assert re.search(message, error)
    assert "\n" not in error
    assert ("second" in result.done) == (encoder is not ShortEncoder)


def test_a_missing_task_does_not_lose_the_finished_ones(tmp_path):
    def missing():
        raise FileNotFoundError("no file documents/missing_test.jsonl:\n give data=")

    tasks = [first_task, LazyTask("missing", missing), LazyTask("second", second_task)]
    result = evaluate(AngleEncoder(), tasks, out=tmp_path / "run.json")
    assert list(result.done) == ["first_task", "second"]
    assert result.failed == {"missing": "no file documents/missing_test.jsonl: give data="}
    assert result.average["label"] == "mean of 2 tasks"

    # Once the files are there, the same call fills the gap and keeps the rest.
    encoder = AngleEncoder()
    tasks[1] = LazyTask("missing", second_task)
    result = evaluate(encoder, tasks, out=tmp_path / "run.json")
    assert not result.failed
    assert len(result.done) == 3
    assert encoder.texts == ["angle 12", "angle 80", "angle 10"]  # of the missing task alone


def test_finished_tasks_are_written_before_an_error_that_ends_the_run(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    tasks = [first_task(), LazyTask("later", interrupted)]
    with pytest.raises(KeyboardInterrupt):
        evaluate(AngleEncoder(), tasks, out=tmp_path / "run.json")
    assert list(read_result(tmp_path / "run.json").done) == ["first"]


def test_a_missing_package_ends_the_run(tmp_path):
    def unpackaged():
        raise ImportError("pip install monarch-kernels[eval]")

    with pytest.raises(ImportError, match="monarch-kernels"):
        evaluate(AngleEncoder(), [LazyTask("x", unpackaged)], out=tmp_path / "run.json")


def test_another_run_is_not_overwritten(tmp_path):
    out = tmp_path / "run.json"
    evaluate(AngleEncoder(), [first_task()], out=out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"another run: model differ in fingerprint"):
        evaluate(AngleEncoder(fingerprint="4567"), [first_task()], out=out)
    with pytest.raises(ValueError, match=r"another run: settings differ in top_k"):
        evaluate(AngleEncoder(), [first_task()], out=out, top_k=50)
    out.write_text("{}")
    with pytest.raises(ValueError, match="not a result"):
        evaluate(AngleEncoder(), [first_task()], out=out)
    assert out.read_text() == "{}" != before


def test_wrong_arguments_are_refused(tmp_path):
    out = tmp_path / "run.json"
    with pytest.raises(ValueError, match="top_k: got 9"):
        evaluate(AngleEncoder(), [first_task()], out=out, top_k=9)
    with pytest.raises(ValueError, match="'first' comes twice"):
        evaluate(AngleEncoder(), [first_task(), first_task()], out=out)
    with pytest.raises(TypeError, match="expected a RetrievalTask"):
        evaluate(AngleEncoder(), ["first"], out=out)
    with pytest.raises(ValueError, match="ready encoder: max_length"):
        evaluate(AngleEncoder(), [first_task()], out=out, max_length=3)
    with pytest.raises(ValueError, match=r"write bm25:N"):
        evaluate("bm25", [first_task()], out=out, long="chunk-max")


def test_progress_ends_at_the_total_of_each_task(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_TOKENS", 4)
    seen = {}
    evaluate(
        AngleEncoder(),
        [first_task(), second_task()],
        out=tmp_path / "run.json",
        progress=lambda task, done, total: seen.setdefault(task, []).append((done, total)),
    )
    assert list(seen) == ["first", "second"]
    for steps, tokens in zip(seen.values(), (14, 6), strict=True):
        done = [step for step, _ in steps]
        assert done == sorted(done)
        assert {total for _, total in steps} == {tokens}
        assert done[-1] == tokens


def test_rank_equals_brute_force_over_several_vectors_per_document():
    generator = np.random.default_rng(0)
    owner = np.repeat(np.arange(30), generator.integers(1, 5, size=30))
    vectors = generator.normal(size=(len(owner), 8)).astype(np.float32)
    queries = generator.normal(size=(7, 8)).astype(np.float32)
    ids = [f"d{i}" for i in generator.permutation(30)]
    ranking = rank(
        Embeddings([f"q{i}" for i in range(7)], Encoded(queries, np.arange(7)), 0.0),
        Embeddings(ids, Encoded(vectors, owner), 0.0),
        12,
    )
    for number, query in enumerate(queries):
        best = {}
        for vector, text in zip(vectors, owner, strict=True):
            cosine = query @ vector / np.linalg.norm(query) / np.linalg.norm(vector)
            best[ids[text]] = max(best.get(ids[text], -1.0), cosine)
        expected = sorted(best, key=lambda key: (-best[key], key))[:12]
        found = ranking[f"q{number}"]
        assert [key for key, _ in found] == expected
        assert [score for _, score in found] == pytest.approx([best[key] for key in expected])


def test_rank_is_the_same_in_blocks_and_keeps_ties_in_the_order_of_ids(monkeypatch):
    vectors = np.array([[1, 0], [0, 1], [2, 0], [0, 0]], dtype=np.float32)
    queries = Embeddings(["p", "q"], Encoded(vectors[:2], np.arange(2)), 0.0)
    documents = Embeddings(["z", "m", "a", "zero"], Encoded(vectors, np.arange(4)), 0.0)
    whole = rank(queries, documents, 10)
    assert whole["p"] == [("a", 1.0), ("z", 1.0), ("m", 0.0), ("zero", 0.0)]
    assert [key for key, _ in whole["q"]] == ["m", "a", "z", "zero"]
    monkeypatch.setattr("m2_bert.loco.systems.BLOCK_BYTES", 1)
    assert rank(queries, documents, 10) == whole


def test_copies_of_a_text_tie_whatever_the_rounding():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(3, 384)).astype(np.float32)
    queries = Embeddings(["q"], Encoded(vectors[:1] + vectors[1:2], np.arange(1)), 0.0)
    documents = Embeddings(["d000", "d001", "d002"], Encoded(vectors, np.arange(3)), 0.0)
    texts = {f"d{i:03d}": f"text {i % 3}" for i in reversed(range(300))}
    copies = first_copies(texts)
    assert copies == {f"d{i:03d}": f"d{i % 3:03d}" for i in range(300)}
    found = [key for key, _ in rank(queries, documents, 300, copies)["q"]]
    groups = [sorted({int(key[1:]) % 3 for key in found[i : i + 100]}) for i in (0, 100, 200)]
    assert sorted(groups) == [[0], [1], [2]]
    assert all(found[i : i + 100] == sorted(found[i : i + 100]) for i in (0, 100, 200))


def test_shards_hold_every_text_once_within_the_budget():
    costs = {f"t{i}": 1 + i % 13 for i in range(100)} | {"giant": 1000}
    shards = plan_shards(costs, 40)
    assert sorted(key for shard in shards for key in shard) == sorted(costs)
    assert shards[0] == ["giant"]
    assert all(sum(costs[key] for key in shard) <= 40 for shard in shards[1:])
    assert shards == plan_shards(dict(reversed(costs.items())), 40)


def test_token_lengths_are_cached_and_count_the_uncased_vocabulary(tmp_path):
    texts = {"b": "Embedding words", "a": "one"}
    assert token_lengths(texts, tmp_path) == {"a": 1, "b": 4 - 1 + 1}
    (path,) = tmp_path.rglob("*.safetensors")
    stamp = path.stat().st_mtime_ns
    assert token_lengths(texts, tmp_path) == token_lengths(texts, None)
    assert path.stat().st_mtime_ns == stamp


def test_embed_without_a_cache_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = {"x": "angle 90", "y": "angle 0"}
    found = embed(AngleEncoder(), texts, "document", cache=None, costs={"x": 2, "y": 2})
    np.testing.assert_allclose(found.encoded.vectors, [[0, 1], [1, 0]], atol=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_the_published_average_needs_all_twelve_tasks():
    scores = {key: {"scores": dict.fromkeys(METRICS, 0.5)} for key in V1_TASKS}
    extra = {"scores": dict.fromkeys(METRICS, 0.0)}
    whole = mean_over_tasks({"other": extra, **scores})
    assert (whole["label"], whole["ndcg_at_10"]) == ("LoCoV1 average", 0.5)
    del scores["qmsum"]
    part = mean_over_tasks({"other": extra, **scores})
    assert part["label"] == "mean of 12 tasks"
    assert part["ndcg_at_10"] == pytest.approx(0.5 * 11 / 12)
    assert mean_over_tasks({"failed": {"error": "x"}}) is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"format": "other"}', '{"format": "m2_bert.loco.evaluation/1"}', "\x00"],
)
def test_files_that_are_no_results_are_refused(content, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="not a result of an evaluation"):
        read_result(path)


def test_a_result_with_a_task_of_another_shape_is_refused(tmp_path):
    path = tmp_path / "run.json"
    record = evaluate(AngleEncoder(), [first_task()], out=path).record
    for part in ("scores", "per_query", "by_length", "counts", "digest"):
        task = {key: value for key, value in record["tasks"]["first"].items() if key != part}
        path.write_text(json.dumps({**record, "tasks": {"first": task}}))
        with pytest.raises(ValueError, match="'first' has neither scores nor an error"):
            read_result(path)


@pytest.mark.parametrize("long", ["truncate", "chunk-mean", "chunk-max"])
def test_an_m2_checkpoint_with_random_weights_runs_end_to_end(long, tmp_path):
    texts = {f"d{i}": text_of(20 + 30 * i, seed=i) for i in range(4)}
    # Identical texts have identical vectors whatever the weights, so the scores are known. Only
    # with the maximum over chunks does a part of a text do as well as the whole.
    whole = RetrievalTask("whole", texts, {"q": texts["d0"]}, {"q": {"d0": 1}})
    end = RetrievalTask("end", texts, {"q": " ".join(texts["d2"].split()[60:])}, {"q": {"d2": 1}})
    options = {"max_length": 32, "device": "cpu", "long": long, "cache": tmp_path / "cache"}
    result = evaluate("random:small", [whole, end], out=tmp_path / "run.json", **options)
    assert not result.failed
    assert result.done["whole"]["scores"]["ndcg_at_10"] == pytest.approx(1.0)
    counts = result.done["whole"]["counts"]
    assert counts["vectors"] == (4 if long != "chunk-max" else 1 + 2 + 3 + 4)
    assert counts["cut_document_tokens"] == (20 + 50 + 80 if long == "truncate" else 0)
    if long == "chunk-max":
        assert result.done["end"]["scores"]["ndcg_at_10"] == pytest.approx(1.0)
    assert result.record["settings"] == {
        "long": long,
        "max_length": 32,
        "backend": "torch",
        "dtype": "float32",
        "top_k": 100,
    }
    again = evaluate("random:small", [whole, end], out=tmp_path / "again.json", **options)
    assert without_timing(again) == without_timing(result)
