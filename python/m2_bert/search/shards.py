"""The shards of a search index: records and vectors of some documents; see store.py."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from m2_bert.search.disk import write_atomically
from m2_bert.search.files import one_line

SHARD_NAME = re.compile(r"shard-(\d{5,})")


class DamagedShardError(ValueError):
    """A shard that cannot be read; the message names the file and the remedy."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} is damaged or missing ({why}): run `m2-bert index` again, "
            "which embeds the documents of this shard anew"
        )


@dataclass(frozen=True)
class Record:
    """One document of a shard; see store.py."""

    path: str
    size: int
    sha256: str
    characters: int
    tokens: int
    cut_tokens: int
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Shard:
    """Name, document and span counts, and SHA-256 of the .jsonl and the .safetensors file."""

    name: str
    documents: int
    spans: int
    records_sha256: str
    vectors_sha256: str


@dataclass(frozen=True)
class OpenShard:
    """A shard in memory-mapped arrays.

    Args:
        path: of the arrays.
        records: n documents. embeddings: (n, D) float32. spans: (m, D) float16.
        first_span: (n + 1,) the rows of document i are first_span[i] to first_span[i + 1].
    """

    path: Path
    records: tuple[Record, ...]
    embeddings: np.ndarray
    spans: np.ndarray
    first_span: np.ndarray

    def spans_of(self, row: int) -> np.ndarray:
        return self.spans[self.first_span[row] : self.first_span[row + 1]]


def open_shard(folder: Path, shard: Shard, dimension: int, verify: bool = False) -> OpenShard:
    """Map a shard's arrays and read its records.

    Args:
        verify: read the arrays too, to compare their SHA-256.

    Raises:
        DamagedShardError: a file is missing, changed, cut short, or does not fit the other.
    """
    path = folder / f"{shard.name}.jsonl"
    try:
        content = path.read_bytes()
        _compare(hashlib.sha256(content).hexdigest(), shard.records_sha256)
        records = tuple(_record(json.loads(line)) for line in content.splitlines())
        path = folder / f"{shard.name}.safetensors"
        if verify:
            with open(path, "rb") as file:
                _compare(hashlib.file_digest(file, "sha256").hexdigest(), shard.vectors_sha256)
        # The torch framework maps tensors in place; numpy's would copy them.
        with safe_open(path, framework="pt") as file:
            embeddings, spans = (file.get_tensor(name).numpy() for name in ("embeddings", "spans"))
        counts = [len(record.spans) for record in records]
        expected = [(shard.documents, dimension), (shard.spans, dimension), np.float32, np.float16]
        found = [embeddings.shape, spans.shape, embeddings.dtype, spans.dtype]
        if found != expected or [len(records), sum(counts)] != [shard.documents, shard.spans]:
            raise ValueError(f"got {found}, expected {expected}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise DamagedShardError(path, one_line(error)) from None
    return OpenShard(path, records, embeddings, spans, np.cumsum([0, *counts]))


def _compare(found: str, expected: str) -> None:
    if found != expected:
        raise ValueError("its SHA-256 is not the one in index.json")


def checked_fields(kind: type, content: dict[str, Any]) -> Any:
    """A dataclass of exactly these fields, whose types (str, int) are checked."""
    made = kind(**content)
    for field in fields(kind):
        if type(content[field.name]).__name__ != field.type:
            raise TypeError(f"{field.name}: got {content[field.name]!r}, expected {field.type}")
    return made


def _record(line: dict[str, Any]) -> Record:
    spans = tuple((int(start), int(end)) for start, end in line["spans"])
    return Record(**{**line, "spans": spans})


def write_shard(
    folder: Path,
    number: int,
    records: Sequence[Record],
    embeddings: Sequence[np.ndarray],
    spans: Sequence[np.ndarray],
) -> Shard:
    """Write both files of a shard; it counts once a manifest names it.

    Args:
        embeddings: n of (D,). spans: n of (m_i, D).
    """
    name = f"shard-{number:05d}"
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in records).encode()
    rows = np.concatenate(spans).astype(np.float16)
    arrays = save({"embeddings": np.stack(embeddings).astype(np.float32), "spans": rows})
    write_atomically(folder / f"{name}.safetensors", arrays)
    write_atomically(folder / f"{name}.jsonl", lines)
    digests = (hashlib.sha256(content).hexdigest() for content in (lines, arrays))
    return Shard(name, len(records), len(rows), *digests)


def next_number(folder: Path) -> int:
    """The number after the last shard's, whether or not that one counts."""
    found = (SHARD_NAME.fullmatch(path.stem) for path in folder.iterdir())
    return max((int(match[1]) for match in found if match), default=-1) + 1
