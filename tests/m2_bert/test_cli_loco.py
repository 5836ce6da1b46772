"""The benchmark from the command line, offline, on files in the schema of LoCoV1's Hub pages."""

import json
import math
from pathlib import Path

import pytest
from m2_bert.folder import save_folder
from m2_bert.loco.data import save_task
from m2_bert.loco.task import RetrievalTask

from tests.m2_bert.makers import small_model, text_of
from tests.m2_bert.test_cli import fails, run

SECOND_PLACE = 1 / math.log2(3)  # nDCG@10 of the only answer at rank 2


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tasks; by BM25 every answer of the first is at rank 1, one of the second's at rank 2."""
    documents = {
        "d0": "harbor harbor lantern",
        "d1": "violin meadow copper",
        "d2": "violin garden marble",
        "d3": "engine desert falcon",
    }
    first = RetrievalTask(
        "2wikimqa",
        documents,
        {"q0": "harbor lantern", "q1": "engine falcon"},
        {"q0": {"d0": 1}, "q1": {"d3": 1}},
    )
    second = RetrievalTask(
        "multifieldqa",
        documents,
        {"q0": "violin meadow copper", "q1": "desert"},
        {"q0": {"d2": 1}, "q1": {"d3": 1}},
    )
    for task in (first, second):
        save_task(task, tmp_path / "data")
    return tmp_path / "data"


def evaluate(model: object, data: Path, out: Path, *options: object) -> dict:
    tasks = ("--tasks", "2wikimqa,multifieldqa", "--data", data)
    cache = ("--cache", out.with_suffix(".cache"))
    run("loco", model, *tasks, "--out", out, *cache, *options)
    return json.loads(out.read_text())


def test_scores_are_those_computed_by_hand(data: Path, tmp_path: Path) -> None:
    record = evaluate("bm25", data, tmp_path / "bm25.json", "--markdown", tmp_path / "bm25.md")
    scores = {name: task["scores"] for name, task in record["tasks"].items()}
    assert scores["2wikimqa"]["ndcg_at_10"] == pytest.approx(1)
    assert scores["multifieldqa"]["ndcg_at_10"] == pytest.approx((SECOND_PLACE + 1) / 2)
    assert scores["multifieldqa"]["mrr"] == pytest.approx(0.75)
    assert scores["multifieldqa"]["recall_at_10"] == pytest.approx(1)
    assert record["average"]["ndcg_at_10"] == pytest.approx((3 + SECOND_PLACE) / 4)
    assert record["average"]["label"] == "mean of 2 tasks"
    text = (tmp_path / "bm25.md").read_text()
    assert "81.5" in text  # the second task's
    assert "60 documents, but" not in text
    assert "4 documents, but 60 by the paper" in text


def test_a_model_and_a_comparison(data: Path, tmp_path: Path) -> None:
    model = save_folder(small_model(padding="invariant"), tmp_path / "model")
    evaluate(model, data, tmp_path / "model.json")
    evaluate("bm25", data, tmp_path / "bm25.json")
    plot = tmp_path / "plot.png"
    runs = (tmp_path / "bm25.json", tmp_path / "model.json")
    shown = run("loco", "report", *runs, "--plot", plot).stdout
    assert "2wikimqa" in shown
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_failing_task_loses_no_other(data: Path, tmp_path: Path) -> None:
    (data / "queries" / "2wikimqa_test.jsonl").write_text('{"qid": "q0"}\n')
    out = tmp_path / "run.json"
    tasks = ("--tasks", "2wikimqa,multifieldqa", "--data", data, "--out", out)
    told = run("loco", "bm25", *tasks, "--cache", tmp_path / "cache", code=1)
    assert "2wikimqa failed" in told.stdout
    record = json.loads(out.read_text())
    assert "scores" in record["tasks"]["multifieldqa"]
    assert "columns" in record["tasks"]["2wikimqa"]["error"]


def test_needles_are_tasks_of_their_own(tmp_path: Path) -> None:
    texts = {f"d{i}": f"{text_of(5, seed=i)} unique{i}" for i in range(60)}
    queries = {f"q{i}": f"unique{i}" for i in range(3)}
    task = RetrievalTask("words", texts, queries, {f"q{i}": {f"d{i}": 1} for i in range(3)})
    save_task(task, tmp_path / "data")
    out = tmp_path / "needles.json"
    places = ("--tasks", "words", "--data", tmp_path / "data", "--needle", "0,39", "--out", out)
    run("loco", "bm25", *places, "--cache", tmp_path / "cache")
    record = json.loads(out.read_text())
    assert list(record["tasks"]) == ["words-needle-0", "words-needle-39"]
    # Each needle's word is in its own haystack alone.
    assert record["average"]["ndcg_at_10"] == pytest.approx(1)


def test_errors_are_one_line(data: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x.json")
    assert "nonsense" in fails("loco", "bm25", "--tasks", "nonsense", *out)
    assert "v7" in run("loco", "bm25", "--suite", "v7", *out, code=2).stderr
    assert "bm25:0" in fails("loco", "bm25:0", "--tasks", "2wikimqa", "--data", data, *out)
    assert "nowhere.json" in fails("loco", "report", tmp_path / "nowhere.json")
    assert "needle" in fails("loco", "bm25", "--tasks", "stdlib", "--needle", "first", *out)


def test_tasks_lists_all_of_locov1() -> None:
    shown = run("loco", "tasks").stdout
    for name in ("summ_screen_fd", "stackoverflow", "stdlib"):
        assert name in shown
