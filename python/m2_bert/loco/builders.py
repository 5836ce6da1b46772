"""LoCo tasks from the rows of their public sources, for tests and, which the Hub lacks, training.

    from datasets import load_dataset
    rows = load_dataset("THUDM/LongBench", "2wikimqa_e", split="test")
    save_task(build_task("2wikimqa", rows, split="train"), "loco-data", split="train")

Which of a source's splits is which side: SCROLLS train and validation (its test has no answers),
QASPER train and test. LongBench has one split, of which the builder takes the side itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from m2_bert.loco.catalog import LocoTask, find_task
from m2_bert.loco.data import make_task
from m2_bert.loco.task import RetrievalTask

Row = Mapping[str, object]
# Document (None if the row has none) and query of one row.
Pair = tuple[str | None, str]

TEST_FRACTION = 0.2
SPLIT_SEED = 42


def build_task(key: str, rows: Iterable[Row], *, split: str = "test") -> RetrievalTask:
    """A task from the rows of its source.

    Args:
        key: key of the catalog.
        rows: the source's rows, in the source's order: of the right split for SCROLLS and QASPER,
            all rows for LongBench.
        split: "test" or "train": the side that `rows` are, or for LongBench the side to take.

    Returns:
        The task, with ids KEY_Query_i and KEY_Passage_j. As on the Hub, i is the number of the
        row: one without a document is left out, and one whose query is empty keeps its document
        only, without renumbering the others.

    Raises:
        ValueError: the key is unknown, the construction is not public (CourtListener, Legal Case
            Reports, StackOverflow), or a row lacks a column or a text.
    """
    entry = find_task(key)
    makers = {"SCROLLS": _scrolls_pairs, "QASPER": _qasper_pairs, "LongBench": _longbench_pairs}
    if entry.source not in makers:
        raise ValueError(
            f"task {key}: how it was made from {entry.source} is not published; take ready files "
            f"with load_task({key!r}, data=DIR) or from the Hub"
        )
    if split not in ("test", "train"):
        raise ValueError(f"split {split!r}: expected one of test, train")
    pairs = makers[entry.source](entry, list(rows), split)
    if key == "qmsum":
        passages, answers = _meetings(pairs)
    else:
        passages = [document for document, _ in pairs]
        answers = list(range(len(pairs)))
    asked = [i for i, (_, query) in enumerate(pairs) if query.strip()]
    return make_task(
        key,
        split,
        {f"{key}_Passage_{j}": passage for j, passage in enumerate(passages)},
        {f"{key}_Query_{i}": pairs[i][1] for i in asked},
        {f"{key}_Query_{i}": [f"{key}_Passage_{answers[i]}"] for i in asked},
        {"data": f"built from {entry.source_url}", "construction": entry.construction},
    )


def split_indices(count: int, split: str) -> list[int]:
    """Rows of one side of LongBench: sklearn's train_test_split(test_size=0.2, random_state=42).

    Args:
        count: number of rows.
        split: "test" (the first fifth of the permutation, rounded up) or "train" (the rest).
    """
    order = np.random.RandomState(SPLIT_SEED).permutation(count).tolist()
    tests = int(np.ceil(TEST_FRACTION * count))
    return order[:tests] if split == "test" else order[tests:]


def _scrolls_pairs(entry: LocoTask, rows: Sequence[Row], split: str) -> list[Pair]:
    return [
        (_column(entry, row, i, "input"), _column(entry, row, i, "output"))
        for i, row in enumerate(rows)
    ]


def _qasper_pairs(entry: LocoTask, rows: Sequence[Row], split: str) -> list[Pair]:
    column = entry.key.removeprefix("qasper_")
    return [
        (_sections(entry, row, i), _column(entry, row, i, column)) for i, row in enumerate(rows)
    ]


def _longbench_pairs(entry: LocoTask, rows: Sequence[Row], split: str) -> list[Pair]:
    return [
        (_column(entry, rows[i], i, "context"), _column(entry, rows[i], i, "input"))
        for i in split_indices(len(rows), split)
    ]


def _meetings(pairs: Sequence[Pair]) -> tuple[list[str], list[int]]:
    """Documents of LoCoV1's qmsum, and which of them answers each row.

    SCROLLS puts the question, a blank line and the transcript into one text. Rows are of one
    meeting if what follows the first blank line is equal, and that is the document: whether
    upstream left a question in it is unknown. (LoCoV0, qmsum_v0, has the rows as they are.)
    """
    meetings: dict[str, int] = {}
    answers = []
    for text, _ in pairs:
        _, blank_line, transcript = text.partition("\n\n")
        answers.append(meetings.setdefault(transcript if blank_line else text, len(meetings)))
    return list(meetings), answers


def _sections(entry: LocoTask, row: Row, index: int) -> str | None:
    """Sections of a paper, from the columns of the Hub's form or the list of the source's JSON."""
    text = row.get("full_text")
    try:
        if isinstance(text, Mapping):
            sections = list(zip(text["section_name"], text["paragraphs"], strict=True))
        else:
            sections = [(part["section_name"], part["paragraphs"]) for part in text]
        joined = "".join(f"{name or ''}\n{' '.join(lines)}\n" for name, lines in sections)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"task {entry.key}: row {index} has no full_text of section_name and paragraphs"
        ) from error
    return joined.strip() or None


def _column(entry: LocoTask, row: Row, index: int, column: str) -> str:
    text = row.get(column)
    if not isinstance(text, str):
        raise ValueError(
            f"task {entry.key}: row {index} has no text in column {column!r} (a split of the "
            f"source without answers?); its columns are {', '.join(map(str, row))}"
        )
    return text
