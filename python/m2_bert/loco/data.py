"""Tasks from files: LoCoV1 on the Hub, or a local folder in the same schema.

Documents have the columns `pid` (str), `passage` (str or null) and `dataset` (the task's key);
queries have `qid` (str), `query` (str), `answer_pids` (list of str) and `dataset`. A local folder
may hold, as JSON lines or as parquet, and looked for in this order (SPLIT is test or train):

    documents/KEY_SPLIT.jsonl                    queries/KEY_SPLIT.jsonl      what save_task writes
    LoCoV1-Documents/documents/KEY_SPLIT.jsonl   LoCoV1-Queries/documents/KEY_SPLIT.jsonl
                                                 copies of the Hub's two repositories
    documents_SPLIT.jsonl                        queries_SPLIT.jsonl
    documents.jsonl                              queries.jsonl                test only

The last two hold any number of tasks and need the column `dataset`; in the others it may be
missing. Documents without text are dropped, and so are the queries that only they answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path

from m2_bert.loco.catalog import (
    DATASET_LICENCE,
    DOCUMENTS_DATASET,
    QUERIES_DATASET,
    REVISIONS,
    TASKS,
    Counts,
    find_task,
)
from m2_bert.loco.task import RetrievalTask

_REPOSITORIES = {"documents": DOCUMENTS_DATASET, "queries": QUERIES_DATASET}
_COLUMNS = {"documents": ("pid", "passage"), "queries": ("qid", "query", "answer_pids")}
_ENDINGS = ("jsonl", "parquet")
_SPLITS = ("test", "train")
# A key becomes a file name: no separators, no leading dot.
_KEY = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


def load_task(
    key: str,
    *,
    data: str | PathLike[str] | None = None,
    revision: str | None = None,
    split: str = "test",
) -> RetrievalTask:
    """A task of the catalog, from the Hub or from a local folder.

    Args:
        key: key of the catalog; with `data`, any name that the folder has files of.
        data: folder in one of the layouts above; None downloads from the Hub, which has tests only.
        revision: commit or branch of both Hub repositories; None means the pinned ones.
        split: "test" or "train".

    Returns:
        The task. Its metadata names the source, the revision, what was dropped, and under
        "differences" where the counts are not the published ones.

    Raises:
        ValueError: the key is unknown, or the files have another schema, an id twice, an empty
            query, or answers that are not among the documents.
        FileNotFoundError: the files are not there, or the Hub cannot be reached.
        ImportError: a parquet file without pyarrow.
    """
    _check_names(key, split)
    if data is None:
        paths = _download(key, split, revision)
        revisions = {repo: revision or REVISIONS[repo] for repo in REVISIONS}
        origin = {"data": "Hugging Face Hub", "revision": revisions, "licence": DATASET_LICENCE}
    else:
        paths = {part: _find(Path(data), part, key, split) for part in _COLUMNS}
        origin = {"data": str(data), "revision": None}

    passages: dict[str, str | None] = {}
    for place, row in _unique(_rows(paths["documents"], "documents", key), "pid"):
        passages[row["pid"]] = _text(row, "passage", place, null=True)
    queries: dict[str, str] = {}
    answers: dict[str, Sequence[str]] = {}
    for place, row in _unique(_rows(paths["queries"], "queries", key), "qid"):
        queries[row["qid"]] = _text(row, "query", place)
        answers[row["qid"]] = _answers(row["answer_pids"], place)
    return make_task(key, split, passages, queries, answers, origin)


def make_task(
    key: str,
    split: str,
    passages: Mapping[str, str | None],
    queries: Mapping[str, str],
    answers: Mapping[str, Sequence[str]],
    origin: Mapping[str, object],
) -> RetrievalTask:
    """A task without the documents that have no text and the queries that only they answer.

    Args:
        key, split: name of the task and side of it, compared with the catalog if it is there.
        passages: document id -> text, or None.
        queries: query id -> text.
        answers: query id -> ids of the documents that answer it.
        origin: entries of the metadata that say where the texts come from.

    Raises:
        ValueError: as RetrievalTask.
    """
    documents = {pid: text for pid, text in passages.items() if text and text.strip()}
    dropped = passages.keys() - documents.keys()
    qrels = {qid: {pid: 1 for pid in pids if pid not in dropped} for qid, pids in answers.items()}
    unanswerable = {qid for qid, pids in answers.items() if pids and not qrels[qid]}
    kept = {qid: text for qid, text in queries.items() if qid not in unanswerable}

    counts = Counts(len(kept), len(documents))
    metadata: dict[str, object] = {
        "split": split,
        "counts": asdict(counts),
        "dropped": {
            "documents": [pid for pid in passages if pid in dropped],
            "queries": [qid for qid in queries if qid in unanswerable],
        },
        "differences": [],
    }
    if entry := TASKS.get(key):
        metadata |= {
            "title": entry.title,
            "source": entry.source,
            "source_url": entry.source_url,
            "source_licence": entry.licence,
            "citation": entry.citation,
            "differences": entry.differences(split, counts),
        }
    return RetrievalTask(
        name=key,
        documents=documents,
        queries=kept,
        qrels={qid: gains for qid, gains in qrels.items() if qid not in unanswerable},
        metadata={**metadata, **origin},
    )


def save_task(task: RetrievalTask, folder: str | PathLike[str], *, split: str = "test") -> Path:
    """Writes a task as JSON lines in the first layout above, for load_task(data=folder).

    Returns:
        The folder.

    Raises:
        ValueError: the task's name cannot be a file name, or a gain is not 1: the schema has none.
    """
    _check_names(task.name, split)
    graded = [qid for qid, gains in task.qrels.items() if set(gains.values()) != {1}]
    if graded:
        raise ValueError(
            f"task {task.name}: query {graded[0]!r} has gains other than 1, which the schema of "
            "LoCoV1 cannot hold"
        )
    documents = ({"pid": pid, "passage": text} for pid, text in task.documents.items())
    queries = (
        {"qid": qid, "query": text, "answer_pids": list(task.qrels[qid])}
        for qid, text in task.queries.items()
    )
    for part, rows in (("documents", documents), ("queries", queries)):
        path = Path(folder) / part / f"{task.name}_{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                line = json.dumps({"dataset": task.name, **row}, ensure_ascii=False)
                file.write(line + "\n")
    return Path(folder)


def _check_names(key: str, split: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"task {key!r}: expected letters, digits, '_', '-' and '.' only")
    if split not in _SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(_SPLITS)}")


def _find(folder: Path, part: str, key: str, split: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of LoCo data")
    stems = [
        f"{part}/{key}_{split}",
        f"{_REPOSITORIES[part].split('/')[1]}/documents/{key}_{split}",
        f"{part}_{split}",
    ]
    if split == "test":
        stems.append(part)
    paths = [folder / f"{stem}.{ending}" for stem in stems for ending in _ENDINGS]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        names = ", ".join(stems)
        known = "" if key in TASKS else f"; known tasks: {', '.join(TASKS)}"
        raise FileNotFoundError(
            f"task {key}: no {part} in {folder}: expected {names}, as .jsonl or .parquet{known}"
        )
    return found


def _download(key: str, split: str, revision: str | None) -> dict[str, Path]:
    if find_task(key).hub_test is None or split != "test":
        raise ValueError(
            f"task {key}: its {split} side is not on the Hub; make it with "
            "m2_bert.loco.builders and save_task, then pass data=DIR (--data DIR)"
        )
    from huggingface_hub import hf_hub_download

    paths = {}
    for part, repo in _REPOSITORIES.items():
        name = f"documents/{key}_test.jsonl"  # the folder is called so in both repositories
        pinned = revision or REVISIONS[repo]
        try:
            path = hf_hub_download(repo, name, repo_type="dataset", revision=pinned)
        except Exception as error:  # the Hub's client has no common base class of its errors
            reason = (str(error).strip().splitlines() or [""])[0]
            raise FileNotFoundError(
                f"{repo}@{pinned}: {name} cannot be downloaded ({type(error).__name__}: {reason}); "
                "offline, pass a folder that has it: data=DIR (--data DIR)"
            ) from error
        paths[part] = Path(path)
    return paths


def _rows(path: Path, part: str, key: str) -> Iterator[tuple[str, dict]]:
    """Rows of one task with the place of each, for messages."""
    expected = set(_COLUMNS[part])
    if path.stem in (part, *(f"{part}_{split}" for split in _SPLITS)):
        expected.add("dataset")
    read = _parquet_rows if path.suffix == ".parquet" else _json_rows
    found, others = False, set()
    for place, row in read(path):
        if not expected <= row.keys():
            raise ValueError(
                f"{place}: columns {', '.join(sorted(map(str, row)))}; "
                f"expected {', '.join(sorted(expected))}"
            )
        if row.get("dataset", key) == key:
            found = True
            yield place, row
        else:
            others.add(repr(row["dataset"]))
    if not found:
        held = f"rows of {', '.join(sorted(others)[:20])}" if others else "no rows"
        raise ValueError(f"{path}: no rows of dataset {key!r}; it holds {held}")


def _json_rows(path: Path) -> Iterator[tuple[str, dict]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            if line.startswith(b"version https://git-lfs"):
                raise ValueError(f"{place}: a Git LFS pointer, not the data; run `git lfs pull`")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place}: not a line of JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{place}: JSON of type {type(row).__name__}; expected an object")
            yield place, row


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{path}: parquet needs pyarrow: pip install monarch-kernels[eval]"
        ) from error
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a readable parquet file ({reason})") from error


def _unique(rows: Iterator[tuple[str, dict]], column: str) -> Iterator[tuple[str, dict]]:
    seen: set[str] = set()
    repeated: dict[str, str] = {}
    for place, row in rows:
        name = _text(row, column, place)
        if name in seen:
            repeated.setdefault(name, place)
        seen.add(name)
        yield place, row
    if repeated:
        shown = ", ".join(f"{name!r} ({place})" for name, place in list(repeated.items())[:5])
        more = ", ..." if len(repeated) > 5 else ""
        raise ValueError(f"{len(repeated)} values of {column} twice: {shown}{more}")


def _text(row: Mapping[str, object], column: str, place: str, *, null: bool = False) -> str | None:
    text = row[column]
    if text is None and null:
        return None
    if not isinstance(text, str):
        raise ValueError(f"{place}: {column} is of type {type(text).__name__}; expected str")
    try:
        text.encode()  # JSON may hold half a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: {column} is not valid Unicode ({error.reason})") from error
    return text


def _answers(pids: object, place: str) -> list[str]:
    if not isinstance(pids, list) or not all(isinstance(pid, str) for pid in pids):
        raise ValueError(f"{place}: answer_pids is {str(pids)[:40]!r}; expected a list of str")
    return pids
