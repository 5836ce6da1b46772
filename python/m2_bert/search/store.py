"""The folder of a search index.

    index.json           format and version, settings, the documents' folder, and the list of shards
    shard-00000.safetensors
        embeddings       (n, D) float32, unit length: one row a document
        spans            (m, D) float16, unit length: the passages of the first document, then ...
    shard-00000.jsonl    n lines, one a document in the same order:
                         {"path", "size", "sha256" (of the file), "characters" (of its text),
                         "tokens", "cut_tokens", "spans": [[start, end], ...] (characters)}
    ann-<digest>.faiss   approximate index over the embeddings, made when one is asked for
    .lock, CACHEDIR.TAG  held by the run that writes; tells backups and indexers to pass by

Only index.json decides what belongs to the index, and it is replaced in one step after the files it
names are on disk: whenever a run is killed, the index is that of the last finished shard, and what
else lies there is removed by the next run. Files of a shard are never changed. Where two shards
hold the same path, the later one counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from m2_bert.checkpoint import fingerprint
from m2_bert.embedder import Embedder
from m2_bert.search.disk import LOCK, TEMPORARY, write_atomically
from m2_bert.search.files import CACHE_SIGNATURE, CACHE_TAG, one_line

FORMAT, VERSION = "m2_bert search index", 1
MANIFEST = "index.json"
_SHARD_NAME = re.compile(r"shard-(\d{5,})")


class DamagedShardError(ValueError):
    """A shard that cannot be read; the message names the file and the remedy."""


@dataclass(frozen=True)
class Settings:
    """What decides the vectors of an index, which all of its documents have in common.

    Args:
        model: name or path the model was loaded by. fingerprint: of its weights.
        padding, max_length, long_documents, dtype: how the embedder treats texts.
        dimension: D. passage_characters: longest span.
    """

    model: str
    fingerprint: str
    padding: str
    max_length: int
    long_documents: str
    dtype: str
    dimension: int
    passage_characters: int

    @classmethod
    def of(cls, embedder: Embedder, model: str, passage_characters: int) -> Settings:
        return cls(
            model=model,
            fingerprint=fingerprint(embedder.model),
            padding=embedder.model.config.padding,
            max_length=embedder.max_length,
            long_documents=embedder.long_documents,
            dtype=str(embedder.model.dtype).removeprefix("torch."),
            dimension=embedder.dimension,
            passage_characters=passage_characters,
        )


@dataclass(frozen=True)
class Record:
    """One document of a shard; see the module's docstring."""

    path: str
    size: int
    sha256: str
    characters: int
    tokens: int
    cut_tokens: int
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Shard:
    """Name, document and span counts, and SHA-256 of the .jsonl file."""

    name: str
    documents: int
    spans: int
    records_sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of index.json; `complete` is False while a run is at work or was interrupted."""

    settings: Settings
    root: str
    shards: tuple[Shard, ...] = ()
    complete: bool = False


@dataclass(frozen=True)
class OpenShard:
    """A shard in memory-mapped arrays.

    Args:
        records: n documents. embeddings: (n, D) float32. spans: (m, D) float16.
        first_span: (n + 1,) the rows of document i are first_span[i] to first_span[i + 1].
    """

    records: tuple[Record, ...]
    embeddings: np.ndarray
    spans: np.ndarray
    first_span: np.ndarray

    def spans_of(self, row: int) -> np.ndarray:
        return self.spans[self.first_span[row] : self.first_span[row + 1]]


# ---- Reading -------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """Read index.json.

    Raises:
        FileNotFoundError: there is none. ValueError: it is damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT or content["version"] != VERSION:
            found = f"{content['format']!r}, version {content['version']!r}"
            raise ValueError(f"got {found}, expected {FORMAT!r}, version {VERSION}")
        shards = tuple(_make(Shard, shard) for shard in content["shards"])
        for shard in shards:
            if not _SHARD_NAME.fullmatch(shard.name):
                raise ValueError(f"shard name {shard.name!r}")
        settings = _make(Settings, content["settings"])
        return Manifest(settings, str(content["root"]), shards, bool(content["complete"]))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{folder} holds no search index (no {MANIFEST}): "
            f"make one with `m2-bert index FOLDER --out {folder}`"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged or not ours ({one_line(error)}): index again with --rebuild"
        ) from None


def open_shard(folder: Path, shard: Shard, dimension: int) -> OpenShard:
    """Map a shard's arrays and read its records.

    Raises:
        DamagedShardError: a file is missing, cut short, or does not fit the other.
    """
    path = folder / f"{shard.name}.jsonl"
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != shard.records_sha256:
            raise ValueError("its SHA-256 is not the one in index.json")
        records = tuple(_record(json.loads(line)) for line in content.splitlines())
        path = folder / f"{shard.name}.safetensors"
        # The torch framework maps tensors in place; numpy's would copy them.
        with safe_open(path, framework="pt") as file:
            embeddings, spans = (file.get_tensor(name).numpy() for name in ("embeddings", "spans"))
        counts = [len(record.spans) for record in records]
        expected = [(shard.documents, dimension), (shard.spans, dimension), np.float32, np.float16]
        found = [embeddings.shape, spans.shape, embeddings.dtype, spans.dtype]
        if found != expected or [len(records), sum(counts)] != [shard.documents, shard.spans]:
            raise ValueError(f"got {found}, expected {expected}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise DamagedShardError(
            f"{path} is damaged or missing ({one_line(error)}): run `m2-bert index` again, "
            "which embeds the documents of this shard anew"
        ) from None
    return OpenShard(records, embeddings, spans, np.cumsum([0, *counts]))


def _make(kind: type, content: dict[str, Any]) -> Any:
    """A dataclass of exactly these fields, whose types (str, int) are checked."""
    made = kind(**content)
    for field in fields(kind):
        if type(content[field.name]).__name__ != field.type:
            raise TypeError(f"{field.name}: got {content[field.name]!r}, expected {field.type}")
    return made


def _record(line: dict[str, Any]) -> Record:
    spans = tuple((int(start), int(end)) for start, end in line["spans"])
    return Record(**{**line, "spans": spans})


# ---- Writing -------------------------------------------------------------------------------------


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace index.json: the moment at which a change of the index takes effect."""
    content = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    write_atomically(folder / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


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
    arrays = {
        "embeddings": np.stack(embeddings).astype(np.float32),
        "spans": np.concatenate(spans).astype(np.float16),
    }
    write_atomically(folder / f"{name}.safetensors", save(arrays))
    write_atomically(folder / f"{name}.jsonl", lines)
    return Shard(name, len(records), len(arrays["spans"]), hashlib.sha256(lines).hexdigest())


def next_number(manifest: Manifest) -> int:
    """The number after the last shard's."""
    numbers = [int(_SHARD_NAME.fullmatch(shard.name)[1]) for shard in manifest.shards]
    return max(numbers, default=-1) + 1


def remove_leftovers(folder: Path, manifest: Manifest) -> None:
    """Remove temporary files, and shards that the manifest does not name."""
    named = {shard.name for shard in manifest.shards}
    for path in folder.iterdir():
        forgotten = _SHARD_NAME.fullmatch(path.stem) and path.stem not in named
        if path.name.startswith(TEMPORARY) or (
            forgotten and path.suffix in {".safetensors", ".jsonl"}
        ):
            path.unlink(missing_ok=True)


def check_ours(folder: Path) -> None:
    """Refuse a folder that holds other things than an index.

    Raises:
        FileExistsError: it does, or it is a file.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is not a folder: choose another --out")
    names = {name for name in os.listdir(folder) if not name.startswith(TEMPORARY)}
    if MANIFEST not in names and names - {LOCK, CACHE_TAG}:
        raise FileExistsError(
            f"{folder} is not empty and holds no search index: choose another --out"
        )


def create(folder: Path, manifest: Manifest) -> None:
    """Start an index, or start it anew: the old shards no longer count."""
    tag = CACHE_SIGNATURE + b"\n# A search index of m2_bert; it can be made again.\n"
    write_atomically(folder / CACHE_TAG, tag)
    write_manifest(folder, replace(manifest, shards=(), complete=False))
