"""An approximate index over unit vectors: faiss's HNSW graph by inner product, kept in a file."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from m2_bert.search.disk import write_atomically

NEIGHBOURS = 32  # of a node of the graph, on each of its upper levels
BUILD_BREADTH = 200
SEARCH_BREADTH = 128  # at least: candidates looked at for a query


class ApproximateIndex:
    """Finds the nearest of n unit vectors in about log n steps, now and then missing one.

    Args:
        folder: where the graph is kept, as ann-<digest>.faiss; one of other vectors is removed.
        key: tells the vectors apart from those of another state of the index.
        shape: (n, D) of all vectors. vectors: arrays (n_i, D), whose rows are numbered through;
            read only if the graph is to be made.
        progress: called with (rows done, n) while it is made.

    Raises:
        ImportError: faiss is not installed.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        shape: tuple[int, int],
        vectors: Iterable[np.ndarray],
        progress: Callable[[int, int], Any] | None = None,
    ) -> None:
        try:
            import faiss
        except ImportError:
            raise ImportError(
                "engine 'faiss' needs faiss: pip install monarch-kernels[faiss]"
            ) from None
        digest = hashlib.sha256(f"{key} {NEIGHBOURS} {BUILD_BREADTH}".encode()).hexdigest()[:16]
        path = folder / f"ann-{digest}.faiss"
        self.count, dimension = shape
        self._graph = self._load(faiss, path)
        if self._graph is None and self.count:
            self._graph = faiss.IndexHNSWFlat(dimension, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
            self._graph.hnsw.efConstruction = BUILD_BREADTH
            for rows in vectors:
                self._graph.add(np.ascontiguousarray(rows))
                if progress is not None:
                    progress(self._graph.ntotal, self.count)
            self._save(faiss, path)

    def _load(self, faiss, path: Path):
        """The graph in the file, or None if there is no good one."""
        if not path.exists():
            return None
        try:
            graph = faiss.read_index(str(path))
        except RuntimeError:  # faiss's errors of reading
            return None
        return graph if graph.ntotal == self.count else None

    def _save(self, faiss, path: Path) -> None:
        try:
            write_atomically(path, lambda to: faiss.write_index(self._graph, str(to)))
            for old in path.parent.glob("ann-*.faiss"):
                if old != path:
                    old.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            why = " ".join(str(error).split())
            warnings.warn(f"{why}; the faiss graph is made again next time", stacklevel=4)

    def nearest(self, queries: np.ndarray, top_k: int) -> list[list[int]]:
        """Numbers of about the `top_k` nearest rows of each query (Q, D), unordered."""
        if not self.count:
            return [[] for _ in queries]
        # More than asked for, since the caller orders equal scores by path.
        wanted = min(self.count, top_k + 16)
        self._graph.hnsw.efSearch = max(SEARCH_BREADTH, 2 * wanted)
        _, found = self._graph.search(np.ascontiguousarray(queries), wanted)
        return [[int(i) for i in row if i >= 0] for row in found]
