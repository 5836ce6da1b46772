"""What a search finds, with the passage as the file has it now."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2_bert.search.documents import Document, read_document
from m2_bert.search.files import Skipped
from m2_bert.search.shards import Record


@dataclass(frozen=True)
class Hit:
    """One document found.

    Args:
        rank: from 1. score: cosine of the query and the document's embedding.
        path: relative to the index's `root`.
        span: characters (start, end) of the best passage in the document's text, None if the
            document has none. span_score: its cosine with the query.
        line: line of the file the span starts in, from 1; None for text extracted from HTML or PDF.
        snippet: the passage. Both None if the file cannot be read as it was when it was indexed;
            `note` then says why.
    """

    rank: int
    score: float
    path: str
    span: tuple[int, int] | None
    span_score: float | None
    line: int | None
    snippet: str | None
    note: str | None

    def to_dict(self) -> dict[str, Any]:
        """What json.dumps takes."""
        return asdict(self)


def read_again(root: Path, record: Record) -> Document | str:
    """A document as it was when it was indexed, or why it cannot be shown."""
    found = read_document(root, record.path, max_bytes=record.size)
    changed = "the file has changed since it was indexed: run `m2-bert index` again"
    if isinstance(found, Skipped):
        return changed if found.reason.startswith("too large") else found.reason
    if found.digest != record.sha256:
        return changed
    if len(found.text) != record.characters:
        return "its text is extracted otherwise now: index it again with --rebuild"
    return found
