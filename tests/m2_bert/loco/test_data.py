"""Tasks from files in the schema of the Hub: what is read, what is dropped, what is refused."""

import json

import pytest
from m2_bert.loco.catalog import DOCUMENTS_DATASET, QUERIES_DATASET, REVISIONS
from m2_bert.loco.data import load_task, make_task, save_task
from m2_bert.loco.task import RetrievalTask

KEY = "qasper_title"
DOCUMENTS = [
    {"dataset": KEY, "pid": f"{KEY}_Passage_0", "passage": "Monarch matrices — a study"},
    {"dataset": KEY, "pid": f"{KEY}_Passage_1", "passage": None},
    {"dataset": KEY, "pid": f"{KEY}_Passage_2", "passage": "line one\u2028line two"},
]
QUERIES = [
    {"dataset": KEY, "qid": f"{KEY}_Query_{i}", "query": query, "answer_pids": [answer]}
    for i, (query, answer) in enumerate(
        [("matrices", f"{KEY}_Passage_0"), ("gone", f"{KEY}_Passage_1")]
    )
]
OTHER = {"dataset": "qmsum", "pid": "qmsum_Passage_0", "passage": "A meeting."}


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder, documents=DOCUMENTS, queries=QUERIES, *, names=None):
    """A folder of LoCo data; rows may be given as ready text."""
    names = names or (f"documents/{KEY}_test.jsonl", f"queries/{KEY}_test.jsonl")
    for name, rows in zip(names, (documents, queries), strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rows if isinstance(rows, str) else lines(rows), encoding="utf-8")
    return folder


def check(task):
    assert task.name == KEY
    assert task.documents == {
        f"{KEY}_Passage_0": "Monarch matrices — a study",
        f"{KEY}_Passage_2": "line one\u2028line two",
    }
    assert task.queries == {f"{KEY}_Query_0": "matrices"}
    assert task.qrels == {f"{KEY}_Query_0": {f"{KEY}_Passage_0": 1}}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(None, id="one-folder"),
        pytest.param(
            (
                f"LoCoV1-Documents/documents/{KEY}_test.jsonl",
                f"LoCoV1-Queries/documents/{KEY}_test.jsonl",
            ),
            id="two-repositories",
        ),
        pytest.param(("documents.jsonl", "queries.jsonl"), id="all-tasks"),
        pytest.param(("documents_test.jsonl", "queries_test.jsonl"), id="all-tasks-of-split"),
    ],
)
def test_layouts(tmp_path, names):
    write(tmp_path, [OTHER, *DOCUMENTS], names=names)
    check(load_task(KEY, data=tmp_path))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param((f"documents/{KEY}_test", f"queries/{KEY}_test"), id="per-task"),
        pytest.param(("documents", "queries"), id="all-tasks"),
    ],
)
def test_parquet(tmp_path, names):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    for name, rows in zip(names, ([OTHER, *DOCUMENTS], QUERIES), strict=True):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    check(load_task(KEY, data=tmp_path))


def test_damaged_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    names = ("documents.parquet", "queries.parquet")
    write(tmp_path, "PAR1 and nothing more", "", names=names)
    with pytest.raises(ValueError, match=r"documents.parquet: not a readable parquet file \(.+\)$"):
        load_task(KEY, data=tmp_path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    write(tmp_path, "", "", names=("documents.parquet", "queries.parquet"))
    with pytest.raises(ImportError, match=r"pip install monarch-kernels\[eval\]"):
        load_task(KEY, data=tmp_path)


def test_dropped_and_differences(tmp_path):
    metadata = load_task(KEY, data=write(tmp_path)).metadata
    assert metadata["dropped"] == {
        "documents": [f"{KEY}_Passage_1"],
        "queries": [f"{KEY}_Query_1"],
    }
    assert metadata["counts"] == {"queries": 1, "documents": 2}
    assert metadata["differences"] == [
        "1 queries, but 416 by the paper",
        "1 queries, but 416 by the Hub",
        "2 documents, but 416 by the paper",
        "2 documents, but 416 by the Hub",
    ]
    assert metadata["source_licence"] == "CC-BY-4.0"
    json.dumps(metadata)


def test_counts_of_the_hub_differ_from_the_paper_only():
    documents = {f"d{i}": "text" for i in range(35)}
    queries = {f"q{i}": "text" for i in range(272)}
    task = make_task("qmsum", "test", documents, queries, {q: ["d0"] for q in queries}, {})
    assert task.metadata["differences"] == ["35 documents, but 272 by the paper"]


def test_a_query_keeps_its_remaining_answers():
    task = make_task(
        "stackoverflow",
        "test",
        {"a": "text", "b": " \n", "c": None},
        {"q": "text", "r": "text"},
        {"q": ["b", "a"], "r": ["b", "c"]},
        {},
    )
    assert task.qrels == {"q": {"a": 1}}


def test_any_name_with_local_files(tmp_path):
    task = RetrievalTask("own-corpus", {"d": "text"}, {"q": "text"}, {"q": {"d": 1}})
    loaded = load_task("own-corpus", data=save_task(task, tmp_path))
    assert loaded.documents == task.documents
    assert loaded.metadata["differences"] == []


@pytest.mark.parametrize("split", ["test", "train"])
def test_round_trip(tmp_path, split):
    task = RetrievalTask(
        KEY,
        {"p0": "one\ntwo é \u2028 \u0000", "p1": "three"},
        {"q0": "first?", "q1": "second?"},
        {"q1": {"p1": 1, "p0": 1}, "q0": {"p0": 1}},
    )
    loaded = load_task(KEY, data=save_task(task, tmp_path, split=split), split=split)
    assert (loaded.documents, loaded.queries) == (task.documents, task.queries)
    assert loaded.qrels == task.qrels
    assert loaded.metadata["split"] == split


def test_gains_are_not_saved(tmp_path):
    task = RetrievalTask(KEY, {"d": "text"}, {"q": "text"}, {"q": {"d": 2}})
    with pytest.raises(ValueError, match="query 'q' has gains other than 1"):
        save_task(task, tmp_path)


DOCUMENT, QUERY = DOCUMENTS[0], QUERIES[0]


@pytest.mark.parametrize(
    ("part", "rows", "message"),
    [
        pytest.param(
            0, [DOCUMENT, DOCUMENT], r"1 values of pid twice: 'qasper_title_Passage_0'", id="pid"
        ),
        pytest.param(1, [QUERY, QUERY], r"1 values of qid twice: 'qasper_title_Query_0'", id="qid"),
        pytest.param(1, [{**QUERY, "query": " "}], "1 queries with an empty text", id="no-query"),
        pytest.param(1, [{**QUERY, "answer_pids": []}], "1 queries without an answer", id="bare"),
        pytest.param(
            1,
            [{**QUERY, "answer_pids": ["x", f"{KEY}_Passage_0"]}],
            "1 qrels that name missing documents: 'x'",
            id="missing-document",
        ),
        pytest.param(
            0,
            [{"_id": "1", "text": "a"}],
            r"test.jsonl:1: columns _id, text; expected passage, pid$",
            id="beir-schema",
        ),
        pytest.param(
            0, lines([DOCUMENT]) + "{,}\n", r"test.jsonl:2: not a line of JSON", id="json"
        ),
        pytest.param(0, "[" * 100_000, r"test.jsonl:1: not a line of JSON", id="deep"),
        pytest.param(0, "[1]\n", r"test.jsonl:1: JSON of type list; expected an object", id="list"),
        pytest.param(0, [{**DOCUMENT, "pid": 7}], "pid is of type int; expected str", id="int-id"),
        pytest.param(
            0, [{**DOCUMENT, "passage": ["a"]}], "passage is of type list", id="list-text"
        ),
        pytest.param(
            0, [{**DOCUMENT, "passage": "\ud800"}], "passage is not valid Unicode", id="surrogate"
        ),
        pytest.param(1, [{**QUERY, "query": None}], "query is of type NoneType", id="null-query"),
        pytest.param(
            1, [{**QUERY, "answer_pids": "x"}], "answer_pids is 'x'; expected a list", id="answers"
        ),
        pytest.param(
            0, [OTHER], r"no rows of dataset 'qasper_title'; it holds .*'qmsum'", id="else"
        ),
        pytest.param(0, "\n", "no rows of dataset 'qasper_title'; it holds no rows", id="empty"),
        pytest.param(
            0,
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a Git LFS pointer, not the data",
            id="lfs-pointer",
        ),
    ],
)
def test_bad_files(tmp_path, part, rows, message):
    content = [DOCUMENTS, QUERIES]
    content[part] = rows
    with pytest.raises(ValueError, match=message) as caught:
        load_task(KEY, data=write(tmp_path, *content))
    assert "\n" not in str(caught.value)


def test_a_file_of_all_tasks_needs_the_column_dataset(tmp_path):
    bare = [{"pid": "p", "passage": "text"}]
    write(tmp_path, bare, names=("documents.jsonl", "queries.jsonl"))
    with pytest.raises(ValueError, match=r"columns passage, pid; expected dataset, passage, pid"):
        load_task(KEY, data=tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such: no such folder"):
        load_task(KEY, data=tmp_path / "no-such")
    with pytest.raises(FileNotFoundError, match=f"no documents in .*documents/{KEY}_test, "):
        load_task(KEY, data=tmp_path)
    with pytest.raises(FileNotFoundError, match="known tasks: summ_screen_fd"):
        load_task("own-corpus", data=tmp_path)
    write(tmp_path, names=("documents.jsonl", "queries.jsonl"))
    with pytest.raises(FileNotFoundError, match="documents_train, as"):
        load_task(KEY, data=tmp_path, split="train")


@pytest.mark.parametrize("key", ["../qmsum", "a/b", "..", "", "a\\b", "é"])
def test_no_path_escape(tmp_path, key):
    with pytest.raises(ValueError, match="expected letters, digits"):
        load_task(key, data=tmp_path)
    task = RetrievalTask(key, {"d": "text"}, {"q": "text"}, {"q": {"d": 1}})
    with pytest.raises(ValueError, match="expected letters, digits"):
        save_task(task, tmp_path)


@pytest.mark.parametrize(
    ("key", "split", "message"),
    [
        pytest.param("nonsense", "test", "unknown task 'nonsense'; expected one of", id="unknown"),
        pytest.param("qmsum", "train", "its train side is not on the Hub", id="train"),
        pytest.param("qmsum_v0", "test", "its test side is not on the Hub", id="v0"),
        pytest.param("qmsum", "dev", "split 'dev': expected one of test, train", id="split"),
    ],
)
def test_what_the_hub_does_not_have(key, split, message):
    with pytest.raises(ValueError, match=message):
        load_task(key, split=split)


def test_hub(tmp_path, monkeypatch):
    """Which files of which repositories are asked for; the Hub itself is not reachable here."""
    write(tmp_path)
    asked = []

    def download(repo, name, *, repo_type, revision):
        asked.append((repo, name, repo_type, revision))
        part = "documents" if repo == DOCUMENTS_DATASET else "queries"
        return str(tmp_path / part / f"{KEY}_test.jsonl")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    task = load_task(KEY)
    check(task)
    assert task.metadata["revision"] == REVISIONS
    assert load_task(KEY, revision="main").metadata["revision"] == dict.fromkeys(REVISIONS, "main")
    name = f"documents/{KEY}_test.jsonl"
    assert asked == [
        (repo, name, "dataset", revision)
        for revisions in (REVISIONS, dict.fromkeys(REVISIONS, "main"))
        for repo, revision in ((r, revisions[r]) for r in (DOCUMENTS_DATASET, QUERIES_DATASET))
    ]


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded .*data=DIR") as caught:
        load_task(KEY)
    assert "\n" not in str(caught.value)
