"""The folder of a search index.

    index.json           format and version, settings, the documents' folder, and the list of shards
                         with the SHA-256 of their files
    rebuild.json         the same of a rebuild that is at work or was interrupted
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
else lies there is removed by the next run. A rebuild names its shards in rebuild.json, which the
next rebuild with the same settings continues, and replaces index.json at its end only: until then
the index is the old one. Files of a shard are never changed. Where two shards hold the same path,
the later one counts.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from m2_bert.checkpoint import fingerprint
from m2_bert.embedder import Embedder
from m2_bert.search.disk import LOCK, TEMPORARY, write_atomically
from m2_bert.search.files import CACHE_SIGNATURE, CACHE_TAG, one_line
from m2_bert.search.shards import SHARD_NAME, Shard, checked_fields

FORMAT, VERSION = "m2_bert search index", 2  # 1 had no SHA-256 of the vectors
MANIFEST, REBUILD = "index.json", "rebuild.json"
TAG = CACHE_SIGNATURE + b"\n# A search index of m2_bert; it can be made again.\n"


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
class Manifest:
    """The content of index.json; `complete` is False while a run is at work or was interrupted."""

    settings: Settings
    root: str
    shards: tuple[Shard, ...] = ()
    complete: bool = False


def read_manifest(folder: Path, file: str = MANIFEST) -> Manifest:
    """Read index.json, or rebuild.json.

    Raises:
        FileNotFoundError: there is none. ValueError: it is damaged, of another version, or not of
            a search index.
    """
    path = folder / file
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{folder} holds no search index (no {file}): "
            f"make one with `m2-bert index FOLDER --out {folder}`"
        ) from None
    if not _is_ours(folder):
        raise ValueError(f"{path} is not of a search index of m2_bert: choose another folder")
    try:
        manifest = json.loads(content)
        version = manifest["version"]
        if version == VERSION:
            return _manifest(manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({one_line(error)}): index again with --rebuild"
        ) from None
    raise ValueError(
        f"{path} is of format version {version!r}, expected {VERSION}: index again with --rebuild"
    )


def _manifest(content: dict[str, Any]) -> Manifest:
    shards = tuple(checked_fields(Shard, shard) for shard in content["shards"])
    for shard in shards:
        if not SHARD_NAME.fullmatch(shard.name):
            raise ValueError(f"shard name {shard.name!r}")
    settings = checked_fields(Settings, content["settings"])
    return Manifest(settings, str(content["root"]), shards, bool(content["complete"]))


def _is_ours(folder: Path) -> bool:
    """Whether index.json has our format; where it is damaged, whether our tag lies beside it."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (ValueError, RecursionError):
        content = None
    except (FileNotFoundError, IsADirectoryError):
        return False
    if isinstance(content, dict):
        return content.get("format") == FORMAT
    tag = folder / CACHE_TAG
    return tag.is_file() and tag.read_bytes() == TAG


def write_manifest(folder: Path, manifest: Manifest, file: str = MANIFEST) -> None:
    """Replace index.json: the moment at which a change of the index takes effect."""
    content = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    write_atomically(folder / file, (json.dumps(content, indent=1) + "\n").encode())


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files, and shards that neither manifest mentions.

    An index.json of another version counts too, and what a damaged one still names.
    """
    named: set[str] = set()
    for file in (MANIFEST, REBUILD):
        if (folder / file).exists():
            content = (folder / file).read_bytes().decode("utf-8", "replace")
            named |= {match[0] for match in SHARD_NAME.finditer(content)}
    for path in folder.iterdir():
        forgotten = SHARD_NAME.fullmatch(path.stem) and path.stem not in named
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
    if names - {LOCK, CACHE_TAG} and not _is_ours(folder):
        raise FileExistsError(
            f"{folder} is not empty and holds no search index: choose another --out"
        )


def create(folder: Path, manifest: Manifest, file: str = MANIFEST) -> None:
    """Start an index, or a rebuild of one, without shards."""
    write_atomically(folder / CACHE_TAG, TAG)
    write_manifest(folder, replace(manifest, shards=(), complete=False), file)
