"""Searching an index: exact cosine similarity, or candidates of an approximate index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from m2_bert.checkpoint import fingerprint
from m2_bert.embedder import Embedder
from m2_bert.search.ann import ApproximateIndex
from m2_bert.search.files import check_utf8
from m2_bert.search.hits import Hit, read_again
from m2_bert.search.shards import DamagedShardError, OpenShard, open_shard
from m2_bert.search.store import Manifest, read_manifest
from m2_bert.search.vectors import unit

ENGINES = ("exact", "faiss")
# Above the float32 rounding of a dot product of unit vectors: what is this close to the last of the
# top k is scored again in float64, so that neither shards nor blocking decide between equals.
MARGIN = 1e-5
LARGEST_COSINE = 1.01  # of unit vectors rounded to float16; beyond it, a vector is damaged
BLOCK = 1024  # rows added to a graph between two calls of `progress`


class SearchIndex:
    """An index made by `build_index`, open for searching; made by `SearchIndex.open`.

    Attributes:
        settings: the model and how it was used (`m2_bert.search.store.Settings`).
        root: the folder of documents. complete: False if the latest run was interrupted.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        shards: Sequence[OpenShard],
        engine: str,
        progress: Callable[[int, int], Any] | None = None,
    ) -> None:
        self.folder = folder
        self.settings = manifest.settings
        self.root = Path(manifest.root)
        self.complete = manifest.complete
        self._shards = shards
        # An interrupted run may leave a document in two shards: the later one counts.
        latest = {
            record.path: (number, row)
            for number, shard in enumerate(shards)
            for row, record in enumerate(shard.records)
        }
        self._rows = [np.zeros(len(shard.records), dtype=bool) for shard in shards]
        for number, row in latest.values():
            self._rows[number][row] = True
        self._embedder: Embedder | None = None
        self._ann: ApproximateIndex | None = None
        if engine == "faiss":
            # The records decide which of the vectors count.
            key = "".join(shard.vectors_sha256 + shard.records_sha256 for shard in manifest.shards)
            shape = (len(self), self.settings.dimension)
            self._ann = ApproximateIndex(folder, key, shape, self._live(), progress)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        engine: str = "exact",
        progress: Callable[[int, int], Any] | None = None,
    ) -> SearchIndex:
        """Open the index in a folder.

        Args:
            engine: "exact", or "faiss" for an approximate index (HNSW), which is made at the first
                opening after a change (minutes for tens of thousands of documents) and kept in
                the folder.
            progress: called with (documents done, documents in all) while that is made.

        Raises:
            FileNotFoundError: there is no index. ValueError: a file of it is damaged, or `engine`
                is none of these. ImportError: faiss is not installed.
        """
        if engine not in ENGINES:
            raise ValueError(f"engine: got {engine!r}, expected {' or '.join(map(repr, ENGINES))}")
        folder = Path(path)
        check_utf8("path", folder)
        while True:
            manifest = read_manifest(folder)
            dimension = manifest.settings.dimension
            try:
                shards = [open_shard(folder, shard, dimension) for shard in manifest.shards]
                return cls(folder, manifest, shards, engine, progress)
            except ValueError:
                # A run that ended meanwhile may have merged the shards.
                if read_manifest(folder) == manifest:
                    raise

    def __len__(self) -> int:
        return sum(int(rows.sum()) for rows in self._rows)

    def open_embedder(self, **options: Any) -> Embedder:
        """The model that made the index, with its settings; `options` as Embedder's.

        `model` among them is where the model lies now, if it was moved.

        Raises:
            ValueError: the model is not the one it was. And what loading it raises.
        """
        settings = self.settings
        found = Embedder(
            **{
                "model": settings.model,
                "max_length": settings.max_length,
                "long_documents": settings.long_documents,
                "dtype": settings.dtype,
                **options,
            },
        )
        self._check(found)
        return found

    @overload
    def search(
        self, query: str, *, top_k: int = ..., embedder: Embedder | None = ...
    ) -> list[Hit]: ...

    @overload
    def search(
        self, query: Sequence[str], *, top_k: int = ..., embedder: Embedder | None = ...
    ) -> list[list[Hit]]: ...

    def search(
        self, query: str | Sequence[str], *, top_k: int = 10, embedder: Embedder | None = None
    ) -> list[Hit] | list[list[Hit]]:
        """The documents most similar to a query, best first; a list of them for several queries.

        Args:
            top_k: how many documents. Equal scores are ordered by path.
            embedder: the model; None opens the one the index names, and keeps it.

        Raises:
            ValueError: an empty query, top_k below 1, a model that did not make the index, or
                damaged vectors in it.
        """
        queries = [query] if isinstance(query, str) else list(query)
        for text in queries:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"query: got {text!r}, expected words to search for")
        _check_top_k(top_k)
        if not len(self) or not queries:
            hits: list[list[Hit]] = [[] for _ in queries]
        else:
            if embedder is None:
                embedder = self._embedder or self.open_embedder()
            self._check(embedder)
            hits = self.search_vectors(embedder.encode(queries), top_k=top_k)
        return hits[0] if isinstance(query, str) else hits

    def search_vectors(
        self, vectors: np.ndarray, *, top_k: int = 10, snippets: bool = True
    ) -> list[list[Hit]]:
        """`search` with the embeddings of queries, (Q, D).

        Args:
            snippets: read the passages from the files; else `line` and `snippet` are None.

        Raises:
            ValueError: the shape is not (Q, D), a number is not finite, top_k is below 1, or
                vectors of the index are damaged.
        """
        _check_top_k(top_k)
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.settings.dimension:
            expected = f"(queries, {self.settings.dimension})"
            raise ValueError(f"vectors: got shape {vectors.shape}, expected {expected}")
        if not np.isfinite(vectors).all():
            raise ValueError("vectors: got a number that is not finite")
        queries = unit(vectors)
        candidates = (
            self._exact(queries, top_k) if self._ann is None else self._near(queries, top_k)
        )
        return [
            [
                self._hit(rank, *place, query, snippets)
                for rank, place in enumerate(self._ranked(query, places, top_k), 1)
            ]
            for query, places in zip(queries, candidates, strict=True)
        ]

    # ---- Candidates: (shard, row) of each query --------------------------------------------------

    def _exact(self, queries: np.ndarray, top_k: int) -> list[list[tuple[int, int]]]:
        """All that may be among the top k, by a running threshold over the shards."""
        scores = [np.zeros(0, np.float32) for _ in queries]
        places = [np.zeros((0, 2), np.int64) for _ in queries]
        for number, (shard, live) in enumerate(zip(self._shards, self._rows, strict=True)):
            rows = np.flatnonzero(live)
            of_shard = np.stack([np.full(len(rows), number), rows], axis=1)
            products = _cosines(shard, queries @ shard.embeddings.T)  # (Q, n)
            for i, product in enumerate(products):
                values = np.concatenate([scores[i], product[rows]])
                both = np.concatenate([places[i], of_shard])
                if len(values) > top_k:
                    best = values >= np.partition(values, -top_k)[-top_k] - MARGIN
                    values, both = values[best], both[best]
                scores[i], places[i] = values, both
        return [[(int(s), int(r)) for s, r in found] for found in places]

    def _near(self, queries: np.ndarray, top_k: int) -> list[list[tuple[int, int]]]:
        places = [
            (number, int(row))
            for number, rows in enumerate(self._rows)
            for row in np.flatnonzero(rows)
        ]
        return [[places[i] for i in ids] for ids in self._ann.nearest(queries, top_k)]

    def _live(self) -> Iterator[np.ndarray]:
        """The vectors that count, in blocks (at most BLOCK, D)."""
        for shard, live in zip(self._shards, self._rows, strict=True):
            for start in range(0, len(live), BLOCK):
                part = slice(start, start + BLOCK)
                yield _cosines(shard, shard.embeddings[part][live[part]])

    def _ranked(
        self, query: np.ndarray, places: Sequence[tuple[int, int]], top_k: int
    ) -> list[tuple[float, int, int]]:
        """(score, shard, row) of the top k; scores are float64 sums, the same in any shard."""
        scored = []
        for number, row in places:
            shard = self._shards[number]
            product = np.sum(shard.embeddings[row].astype(np.float64) * query)
            score = float(_cosines(shard, product))
            scored.append((-score, shard.records[row].path, number, row))
        return [(-score, number, row) for score, _, number, row in sorted(scored)[:top_k]]

    # ---- Hits ------------------------------------------------------------------------------------

    def _hit(
        self, rank: int, score: float, number: int, row: int, query: np.ndarray, snippets: bool
    ) -> Hit:
        shard = self._shards[number]
        record = shard.records[row]
        span = span_score = line = snippet = note = None
        if record.spans:
            scores = _cosines(shard, shard.spans_of(row).astype(np.float32) @ query)
            best = int(scores.argmax())
            span, span_score = record.spans[best], float(scores[best])
        if snippets:
            found = read_again(self.root, record)
            if isinstance(found, str):
                note = found
            elif span is not None:
                snippet = found.text[span[0] : span[1]]
                line = found.text.count("\n", 0, span[0]) + 1 if found.verbatim else None
        return Hit(rank, score, record.path, span, span_score, line, snippet, note)

    def _check(self, embedder: Embedder) -> None:
        """Whether the model made the index; once for each, as it reads all the weights."""
        if embedder is self._embedder:
            return
        found, expected = fingerprint(embedder.model), self.settings.fingerprint
        if found != expected:
            raise ValueError(
                f"embedder: got a model of fingerprint {found}, but {self.folder} was made with "
                f"{self.settings.model} ({expected}): pass that model, or index again with "
                "--rebuild"
            )
        self._embedder = embedder


def _cosines(shard: OpenShard, values: np.ndarray) -> np.ndarray:
    """The values, if they can be cosines, or coordinates, of unit vectors; NaN cannot."""
    for value in (values.max(initial=0), values.min(initial=0)):
        if not abs(value) <= LARGEST_COSINE:
            raise DamagedShardError(shard.path, f"a cosine of {value}")
    return values


def _check_top_k(top_k: int) -> None:
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"top_k: got {top_k!r}, expected an integer of at least 1")
