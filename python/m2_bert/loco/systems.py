"""What can answer a task: an encoder with exact search over its vectors, or BM25."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from m2_bert.loco.cache import Embeddings, embed, encoding_costs, token_lengths
from m2_bert.loco.encoders import TextEncoder, open_encoder
from m2_bert.loco.task import Ranking, RetrievalTask

# Bytes of the similarities that one block of queries may take.
BLOCK_BYTES = 1 << 28

# Called with (tokens done, tokens in all) of one task.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """Ranking of a task, what a report counts beside it, and the seconds it took to encode."""

    ranking: Ranking
    counts: Mapping[str, int]
    seconds: float


class System(Protocol):
    """Something that ranks documents; `model` and `settings` are its entries in the JSON."""

    model: Mapping[str, Any]
    settings: Mapping[str, Any]

    def answer(
        self,
        task: RetrievalTask,
        lengths: Mapping[str, int],
        top_k: int,
        progress: Progress | None,
    ) -> Answer: ...


@contextlib.contextmanager
def open_system(
    model: str | TextEncoder, cache: Path | None, options: Mapping[str, Any]
) -> Iterator[System]:
    """Open "bm25", "bm25:N", a model that `open_encoder` knows, or take an encoder as it is.

    Raises:
        ValueError: N is no positive number, or options are given to what takes none.
        FileNotFoundError, ImportError: from `open_encoder`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(model, str) and model.split(":")[0] == "bm25":
        if given.get("long", "truncate") != "truncate" or given.get("max_length"):
            raise ValueError("bm25 has no long or max_length: write bm25:N for the first N tokens")
        yield Bm25(model)
    elif isinstance(model, str):
        encoder = open_encoder(model, **given)
        with contextlib.closing(encoder):
            yield Dense(encoder, cache)
    elif given:
        raise ValueError(
            f"options for a ready encoder: {', '.join(given)}; give them when it opens"
        )
    else:
        yield Dense(model, cache)


class Bm25:
    """BM25 over the whole documents, or over the first N tokens of each."""

    def __init__(self, spec: str) -> None:
        _, _, number = spec.partition(":")
        if spec != "bm25" and not (number.isascii() and number.isdigit() and int(number) > 0):
            raise ValueError(f"got {spec!r}, expected bm25 or bm25:N with a positive number N")
        first_tokens = int(number) if number else None
        self.model = {"name": spec, "revision": None, "fingerprint": spec}
        self.settings = {"first_tokens": first_tokens}

    def answer(
        self,
        task: RetrievalTask,
        lengths: Mapping[str, int],
        top_k: int,
        progress: Progress | None,
    ) -> Answer:
        from m2_bert.loco.baselines import bm25_ranking

        first = self.settings["first_tokens"]
        ranking = bm25_ranking(task, first_tokens=first, top_k=top_k)
        cut = [length - first for length in lengths.values() if first and length > first]
        if progress is not None:
            progress(sum(lengths.values()), sum(lengths.values()))
        return Answer(ranking, {"cut_documents": len(cut), "cut_document_tokens": sum(cut)}, 0.0)


class Dense:
    """An encoder, its cache, and exact search by cosine."""

    def __init__(self, encoder: TextEncoder, cache: Path | None) -> None:
        self._encoder = encoder
        self._cache = cache
        self.model = {
            "name": encoder.name,
            "revision": encoder.revision,
            "fingerprint": encoder.fingerprint,
        }
        self.settings = dict(encoder.settings)

    def answer(
        self,
        task: RetrievalTask,
        lengths: Mapping[str, int],
        top_k: int,
        progress: Progress | None,
    ) -> Answer:
        """Queries come first: they are few, and show soon whether a model works at all.

        Each distinct text is encoded once; "vectors" and the cuts count those.

        Raises:
            ValueError: the model returned NaN, or vectors of changing width.
        """
        costs = partial(encoding_costs, self._encoder)
        of_queries = costs("query", token_lengths(task.queries, self._cache))
        copies = first_copies(task.documents)
        documents = {key: task.documents[key] for key in dict.fromkeys(copies.values())}
        of_documents = costs("document", {key: lengths[key] for key in documents})
        before, total = (
            sum(of_queries.values()),
            sum([*of_queries.values(), *of_documents.values()]),
        )
        report = progress or (lambda done, total: None)
        run = partial(embed, self._encoder, cache=self._cache)
        q = run(
            task.queries,
            "query",
            costs=of_queries,
            progress=lambda done, _: report(done, total),
        )
        d = run(
            documents,
            "document",
            costs=of_documents,
            progress=lambda done, _: report(before + done, total),
        )
        widths = q.encoded.vectors.shape[1], d.encoded.vectors.shape[1]
        if widths[0] != widths[1]:
            raise ValueError(
                f"model {self._encoder.name} returned vectors of width {widths[0]} for queries and "
                f"{widths[1]} for documents"
            )
        counts = {
            "vectors": len(d.encoded.owner),
            "cut_documents": d.encoded.cut_texts,
            "cut_document_tokens": d.encoded.cut_tokens,
            "cut_queries": q.encoded.cut_texts,
            "cut_query_tokens": q.encoded.cut_tokens,
        }
        return Answer(rank(q, d, top_k, copies), counts, q.seconds + d.seconds)


def first_copies(texts: Mapping[str, str]) -> dict[str, str]:
    """Id -> the first id, in their order, that has the same text."""
    first: dict[str, str] = {}
    return {key: first.setdefault(texts[key], key) for key in sorted(texts)}


def rank(
    queries: Embeddings,
    documents: Embeddings,
    top_k: int,
    copies: Mapping[str, str] | None = None,
) -> Ranking:
    """The `top_k` documents of each query by cosine, exactly; ties by document id.

    A document with several vectors scores the best of them; a zero vector scores 0.

    Args:
        copies: document id -> id in `documents` with the same text; None: there are no copies.
            Without it, rounding would decide between them: a matrix product may give equal
            columns unequal results.
    """
    q, d = _unit(queries.encoded.vectors), _unit(documents.encoded.vectors)
    starts = np.searchsorted(documents.encoded.owner, np.arange(len(documents.ids)))
    column = {key: index for index, key in enumerate(documents.ids)}
    copies = copies or {key: key for key in documents.ids}
    ids = sorted(copies)
    columns = np.array([column[copies[key]] for key in ids])
    block = max(1, BLOCK_BYTES // (4 * max(len(d), len(ids))))
    ranking = {}
    for start in range(0, len(q), block):
        scores = np.maximum.reduceat(q[start : start + block] @ d.T, starts, axis=1)[:, columns]
        # Columns are in the order of ids, and a stable sort keeps equal scores in that order.
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        for key, row, found in zip(queries.ids[start:], scores, best, strict=False):
            ranking[key] = [(ids[i], float(row[i])) for i in found]
    return ranking


def _unit(vectors: np.ndarray) -> np.ndarray:
    # float64: squares of large float32 values overflow, and NaN would reach the ranking.
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return (vectors / np.where(norms > 0, norms, 1.0)[:, None]).astype(np.float32)
