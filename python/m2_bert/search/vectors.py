"""From documents to what an index stores of them: unit vectors of the whole and of its passages."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2_bert.embedder import Embedder, TruncationWarning
from m2_bert.search.documents import Document
from m2_bert.search.files import Skipped, one_line
from m2_bert.search.passages import split_passages
from m2_bert.search.shards import Record


@dataclass(frozen=True, eq=False)
class Embedded:
    """A record with its vectors: embedding (D,) and spans (m, D), float32, unit length."""

    record: Record
    embedding: np.ndarray
    spans: np.ndarray


def embed(
    embedder: Embedder,
    documents: Sequence[Document],
    passage_characters: int,
    progress: Callable[[int, int], Any] | None = None,
) -> list[Embedded | Skipped]:
    """Embed documents and their passages, in one pass of the model over each document.

    A document that the embedder refuses (too long under "error", not finite) is skipped.

    Args:
        progress: as Embedder.encode's.
    """
    results: dict[str, Embedded | Skipped] = {}
    records = []
    for document in documents:
        record = _record(embedder, document, passage_characters)
        if isinstance(record, Skipped):
            results[document.path] = record
        else:
            records.append((document.text, record))
    for result in _embed(embedder, records, progress):
        path = result.path if isinstance(result, Skipped) else result.record.path
        results[path] = result
    return [results[document.path] for document in documents]


def _record(embedder: Embedder, document: Document, passage_characters: int) -> Record | Skipped:
    encoded = embedder.tokenizer(
        document.text,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
    )
    offsets = np.reshape(encoded["offset_mapping"], (-1, 2))  # characters [start, end) of a token
    room = embedder.max_length - 2  # [CLS], [SEP]
    cut = max(0, len(offsets) - room)
    if not len(offsets):
        return Skipped(document.path, "empty: no word in it")
    if cut and embedder.long_documents == "error":
        return Skipped(
            document.path,
            f"too long: {len(offsets) + 2} tokens, the limit is {embedder.max_length}: "
            "choose long documents 'window' or 'truncate'",
        )
    text = document.text
    if embedder.long_documents == "window":
        cut = 0
    elif cut:
        text = text[: offsets[room, 0]]  # passages beyond what the model reads have no vector
    spans = np.reshape(split_passages(text, passage_characters), (-1, 2)).astype(np.int64)
    first = np.searchsorted(offsets[:, 1], spans[:, 0], side="right")
    last = np.searchsorted(offsets[:, 0], spans[:, 1], side="left")
    return Record(
        path=document.path,
        size=document.size,
        sha256=document.digest,
        characters=len(document.text),
        tokens=len(offsets) + 2,
        cut_tokens=cut,
        # A passage of control characters alone has no token.
        spans=tuple((int(start), int(end)) for start, end in spans[first < last]),
    )


def _embed(
    embedder: Embedder,
    records: list[tuple[str, Record]],
    progress: Callable[[int, int], Any] | None,
) -> list[Embedded | Skipped]:
    if not records:
        return []
    texts = [text for text, _ in records]
    spans = [record.spans for _, record in records]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # the records count what is cut
            embeddings, parts = embedder.encode_with_spans(texts, spans, progress=progress)
    except ValueError as error:
        if len(records) == 1:
            return [Skipped(records[0][1].path, f"cannot be embedded: {one_line(error)}")]
        # One text is refused; the others shall not suffer for it.
        return [result for record in records for result in _embed(embedder, [record], None)]
    return [
        Embedded(record, unit(embedding), unit(part))
        for (_, record), embedding, part in zip(records, embeddings, parts, strict=True)
    ]


def unit(x: np.ndarray) -> np.ndarray:
    """Rows (..., D) scaled to unit length, float32; a row of zeros stays one."""
    x = np.asarray(x, dtype=np.float32)
    # float64: the squares of a large row do not overflow, nor those of a small one vanish.
    norm = np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    return (x / np.where(norm > 0, norm, 1)).astype(np.float32)
