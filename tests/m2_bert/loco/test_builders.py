"""Tasks from rows in the schemas of their sources."""

import pytest
from m2_bert.loco.builders import build_task, split_indices
from m2_bert.loco.catalog import LOCO_V1, TASKS
from m2_bert.loco.data import load_task, save_task


def scrolls_row(number: int, text: str) -> dict:
    return {"id": f"x{number}", "pid": f"x{number}_0", "input": text, "output": f"summary {number}"}


def longbench_rows(count: int) -> list[dict]:
    return [
        {"input": f"question {i}", "context": f"context {i}", "answers": ["x"], "length": 1}
        for i in range(count)
    ]


@pytest.mark.parametrize("key", ["summ_screen_fd", "gov_report", "qmsum_v0"])
def test_scrolls_row_by_row(key):
    rows = [scrolls_row(0, "which?\n\nsame text"), scrolls_row(1, "what?\n\nsame text")]
    task = build_task(key, rows)
    assert task.documents == {
        f"{key}_Passage_0": "which?\n\nsame text",
        f"{key}_Passage_1": "what?\n\nsame text",
    }
    assert task.queries == {f"{key}_Query_0": "summary 0", f"{key}_Query_1": "summary 1"}
    assert task.qrels == {f"{key}_Query_{i}": {f"{key}_Passage_{i}": 1} for i in (0, 1)}


def test_qmsum_is_one_document_per_meeting():
    rows = [
        scrolls_row(0, "Who spoke?\n\nA: hello\n\nB: bye"),
        scrolls_row(1, "Who was late?\n\nC: sorry"),
        scrolls_row(2, "What was said?\n\nA: hello\n\nB: bye"),
        scrolls_row(3, "no question"),
    ]
    task = build_task("qmsum", iter(rows), split="train")
    assert task.documents == {
        "qmsum_Passage_0": "A: hello\n\nB: bye",
        "qmsum_Passage_1": "C: sorry",
        "qmsum_Passage_2": "no question",
    }
    assert [list(task.qrels[f"qmsum_Query_{i}"]) for i in range(4)] == [
        ["qmsum_Passage_0"],
        ["qmsum_Passage_1"],
        ["qmsum_Passage_0"],
        ["qmsum_Passage_2"],
    ]
    assert "unknown" in task.metadata["construction"]
    assert task.metadata["differences"] == [
        "4 queries, but 1257 by the paper",
        "3 documents, but 1257 by the paper",
    ]


SECTIONS = [("Introduction", ["First.", "Second."]), ("Results", []), (None, ["Third."])]
PAPER = {"id": "1909.00694", "title": "A title", "abstract": "An abstract."}


@pytest.mark.parametrize(
    "full_text",
    [
        pytest.param(
            {
                "section_name": [name for name, _ in SECTIONS],
                "paragraphs": [lines for _, lines in SECTIONS],
            },
            id="columns",
        ),
        pytest.param(
            [{"section_name": name, "paragraphs": lines} for name, lines in SECTIONS], id="list"
        ),
    ],
)
@pytest.mark.parametrize(
    ("key", "query"), [("qasper_title", "A title"), ("qasper_abstract", "An abstract.")]
)
def test_qasper(key, query, full_text):
    empty = {**PAPER, "full_text": {"section_name": [], "paragraphs": []}}
    task = build_task(key, [empty, {**PAPER, "full_text": full_text}])
    # The row without a text is left out, and the next keeps its number.
    text = "Introduction\nFirst. Second.\nResults\n\n\nThird."
    assert task.documents == {f"{key}_Passage_1": text}
    assert task.queries == {f"{key}_Query_1": query}
    assert task.metadata["dropped"]["queries"] == [f"{key}_Query_0"]


def test_a_row_with_an_empty_query_keeps_its_document():
    rows = [{**scrolls_row(0, "text 0"), "output": " "}, scrolls_row(1, "text 1")]
    task = build_task("gov_report", rows)
    assert list(task.documents) == ["gov_report_Passage_0", "gov_report_Passage_1"]
    assert task.queries == {"gov_report_Query_1": "summary 1"}
    assert task.qrels == {"gov_report_Query_1": {"gov_report_Passage_1": 1}}


@pytest.mark.parametrize(
    ("key", "rows"), [("multifieldqa", 150), ("2wikimqa", 300), ("passage_retrieval", 300)]
)
def test_longbench_sides(key, rows):
    test, train = (build_task(key, longbench_rows(rows), split=side) for side in ("test", "train"))
    assert test.metadata["differences"] == train.metadata["differences"] == []
    assert sorted([*test.documents.values(), *train.documents.values()]) == sorted(
        f"context {i}" for i in range(rows)
    )
    for task in (test, train):
        for i in range(len(task.queries)):
            number = task.queries[f"{key}_Query_{i}"].removeprefix("question ")
            assert task.documents[f"{key}_Passage_{i}"] == f"context {number}"
            assert task.qrels[f"{key}_Query_{i}"] == {f"{key}_Passage_{i}": 1}


def test_split_is_the_known_one():
    # What train_test_split(range(10), test_size=0.2, random_state=42) of scikit-learn 1.9 gives.
    assert split_indices(10, "test") == [8, 1]
    assert split_indices(10, "train") == [5, 0, 7, 2, 9, 4, 3, 6]


@pytest.mark.parametrize("count", [2, 7, 149, 150, 300, 301])
def test_split_is_that_of_sklearn(count):
    selection = pytest.importorskip("sklearn.model_selection")
    train, test = selection.train_test_split(range(count), test_size=0.2, random_state=42)
    assert split_indices(count, "test") == test
    assert split_indices(count, "train") == train


def test_built_tasks_load_again(tmp_path):
    task = build_task("2wikimqa", longbench_rows(20), split="train")
    loaded = load_task("2wikimqa", data=save_task(task, tmp_path, split="train"), split="train")
    assert (loaded.documents, loaded.queries) == (task.documents, task.queries)
    assert loaded.qrels == task.qrels


def test_every_task_has_a_builder_or_says_why_not():
    unpublished = [key for key, task in TASKS.items() if task.construction == "unknown"]
    assert len(unpublished) == 4
    for key in unpublished:
        with pytest.raises(ValueError, match=rf"{key}: how it was .* not published; take ready"):
            build_task(key, [])
    for task in LOCO_V1:
        if task.key not in unpublished:
            with pytest.raises(ValueError, match=f"task {task.key}: it has no documents"):
                build_task(task.key, [])


@pytest.mark.parametrize(
    ("key", "row", "message"),
    [
        pytest.param(
            "gov_report",
            {"input": "text", "output": None},
            r"row 0 has no text in column 'output' \(a split of the source without answers\?\)",
            id="scrolls-test",
        ),
        pytest.param("2wikimqa", {"text": "x"}, "no text in column 'context'.*text$", id="schema"),
        pytest.param("qasper_title", PAPER, "row 0 has no full_text", id="no-full-text"),
        pytest.param(
            "qasper_title",
            {**PAPER, "full_text": {"section_name": ["a"], "paragraphs": []}},
            "row 0 has no full_text of section_name and paragraphs",
            id="ragged",
        ),
    ],
)
def test_rows_of_another_schema(key, row, message):
    with pytest.raises(ValueError, match=message):
        build_task(key, [row])


def test_unknown_split_and_key():
    with pytest.raises(ValueError, match="split 'validation': expected one of test, train"):
        build_task("gov_report", [], split="validation")
    with pytest.raises(ValueError, match="unknown task 'squality'"):
        build_task("squality", [])
