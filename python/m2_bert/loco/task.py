"""A retrieval task in memory, and what a system answers to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# query id -> document ids, best first, with their scores.
Ranking = Mapping[str, Sequence[tuple[str, float]]]


@dataclass(frozen=True)
class RetrievalTask:
    """Documents, queries, and which documents answer which query.

    Args:
        name: key of the task, unique within a suite.
        documents: document id -> text.
        queries: query id -> text.
        qrels: query id -> {relevant document id: gain}; gains are positive integers.
        metadata: what a report shows beside the scores (source, revision, licence, counts).

    Raises:
        ValueError: the task has no documents or queries, a text is empty, a query has no relevant
            document, or the qrels name a query or document that does not exist (they are listed).
    """

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part, texts in (("documents", self.documents), ("queries", self.queries)):
            if not texts:
                raise ValueError(f"task {self.name}: it has no {part}")
            empty = [key for key, text in texts.items() if not text.strip()]
            self._refuse(empty, f"{part} with an empty text")
        self._refuse([q for q in self.qrels if q not in self.queries], "qrels of unknown queries")
        self._refuse(
            [q for q in self.queries if not self.qrels.get(q)], "queries without an answer"
        )
        named = {d for gains in self.qrels.values() for d in gains}
        self._refuse(sorted(named - self.documents.keys()), "qrels that name missing documents")
        wrong = [q for q, gains in self.qrels.items() if any(gain < 1 for gain in gains.values())]
        self._refuse(wrong, "qrels with a gain below 1")

    def _refuse(self, found: Sequence[str], what: str) -> None:
        if found:
            shown = ", ".join(map(repr, found[:5])) + (", ..." if len(found) > 5 else "")
            raise ValueError(f"task {self.name}: {len(found)} {what}: {shown}")
