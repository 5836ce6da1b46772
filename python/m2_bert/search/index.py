"""Building a search index of a folder, in steps that survive an interruption."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from m2_bert.embedder import Embedder
from m2_bert.search.disk import locked
from m2_bert.search.documents import MAX_BYTES, Document, Unchanged, check_root, read_documents
from m2_bert.search.files import BAD_NAME, Skipped, check_utf8, list_files, printable
from m2_bert.search.passages import PASSAGE_CHARACTERS
from m2_bert.search.store import (
    MANIFEST,
    REBUILD,
    Manifest,
    Settings,
    check_ours,
    create,
    read_manifest,
    remove_leftovers,
)
from m2_bert.search.vectors import Embedded, embed
from m2_bert.search.writer import IndexWriter

SHARD_DOCUMENTS = 1024
SHARD_SECONDS = 60.0
# What is given to the embedder at once, and lost by an interruption: about SLICE_SECONDS of work.
SLICE_SECONDS = 2.0
SMALLEST_SLICE_TOKENS, SLICE_TOKENS = 2048, 65_536
SLICE_DOCUMENTS = 256


@dataclass(frozen=True)
class IndexProgress:
    """How far a run is: files done (one in the making counts in part) and in all, and what became
    of them; tokens embedded.
    """

    done: float
    total_files: int
    embedded: int
    unchanged: int
    skipped: int
    tokens: int


@dataclass(frozen=True)
class IndexReport:
    """What a run did.

    Args:
        documents, spans: in the index now.
        embedded, unchanged, forgotten: documents that were new or changed, that were in the index
            already, and that are no longer there (deleted, or without text now).
        skipped: files without text, with the reasons. Of those that are `transient`, what the index
            held is kept.
        tokens, cut_documents, cut_tokens: of the documents embedded now; `tokens` is uncut.
        damaged: messages about shards that could not be read, whose documents were embedded anew.
        seconds: wall time.
    """

    documents: int
    spans: int
    embedded: int
    unchanged: int
    forgotten: int
    skipped: tuple[Skipped, ...]
    tokens: int
    cut_documents: int
    cut_tokens: int
    damaged: tuple[str, ...]
    seconds: float


def build_index(
    root: str | os.PathLike,
    out: str | os.PathLike,
    embedder: Embedder,
    *,
    model_name: str,
    paths: Sequence[str] | None = None,
    rebuild: bool = False,
    hidden: bool = False,
    max_bytes: int = MAX_BYTES,
    passage_characters: int = PASSAGE_CHARACTERS,
    shard_documents: int = SHARD_DOCUMENTS,
    shard_seconds: float = SHARD_SECONDS,
    progress: Callable[[IndexProgress], Any] | None = None,
) -> IndexReport:
    """Make or update the index of a folder, or continue an interrupted run.

    Files whose content the index knows are not embedded again; documents that are gone are
    forgotten at the end, those that cannot be read for now are not. Whatever stops the run, what it
    has embedded is kept; short of a kill also what is not yet in a shard.

    Args:
        root: the folder of documents, or a single file. out: the folder of the index.
        model_name: what `embedder` was made of, so that a search can make it again.
        paths: these files of `root` alone; what the index holds of others stays, unless `rebuild`.
        rebuild: embed everything anew; for another model or other settings. The old index counts
            until the new one is complete; a rebuild after an interrupted one continues it.
        hidden, max_bytes: see `read_documents`. passage_characters: see `split_passages`.
        shard_documents, shard_seconds: a shard is finished after so many documents or so long.
        progress: called after each file and each step of the embedder.

    Raises:
        ValueError: the index has another model, settings or folder, index.json is damaged, none of
            its documents is left (unless `rebuild`), or a path is not UTF-8.
        FileNotFoundError, NotADirectoryError, FileExistsError: `root` or `out` is not what it
            should be. BlockingIOError: another process writes the index. OSError: no permission,
            disk full.
    """
    started = time.perf_counter()
    root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))
    if root.is_file():
        root, paths = root.parent, [root.name]
    check_utf8("root", root.resolve())
    check_utf8("out", out)
    check_root(root)
    if root.resolve() == out.resolve():
        raise ValueError(f"out: got the folder of documents, {out}: choose a folder of its own")
    check_ours(out)
    settings = Settings.of(embedder, model_name, passage_characters)
    with locked(out):
        manifest, file = _prepare(out, Manifest(settings, str(root.resolve())), rebuild)
        entries = _entries(root, paths, hidden, out)
        names = [entry for entry in entries if isinstance(entry, str)]
        writer = IndexWriter(out, manifest, file, shard_documents, shard_seconds)
        run = _Run(embedder, writer, len(names), progress)
        for entry in entries:
            if isinstance(entry, Skipped):
                run.skip(entry)
        try:
            for found in read_documents(root, names, known=writer.known, max_bytes=max_bytes):
                run.take(found)
            run.embed_slice()
        except BaseException:
            with contextlib.suppress(OSError):  # what stopped the run is the error to show
                writer.flush()
            raise
        forgotten = writer.finish(None if paths is None else names)
    return run.report(forgotten, time.perf_counter() - started)


def _entries(
    root: Path, paths: Sequence[str] | None, hidden: bool, out: Path
) -> list[str | Skipped]:
    if paths is None:
        return list(list_files(root, hidden=hidden, excluded={out.resolve()}))
    relative = (os.path.relpath(os.path.join(root, path), root) for path in paths)
    names = dict.fromkeys(path.replace(os.sep, "/") for path in relative)
    return [x if x == printable(x) else Skipped(printable(x), BAD_NAME) for x in names]


def _prepare(out: Path, wanted: Manifest, rebuild: bool) -> tuple[Manifest, str]:
    """The manifest to continue from and its file, in a folder rid of leftovers."""
    if not (out / MANIFEST).exists():
        create(out, wanted)
        manifest, file = wanted, MANIFEST
    elif rebuild:
        file = REBUILD
        try:
            manifest = _continued(out, file, wanted)
        except (FileNotFoundError, ValueError):  # no interrupted rebuild, or one of other settings
            create(out, wanted, file)
            manifest = wanted
    else:
        manifest, file = _continued(out, MANIFEST, wanted), MANIFEST
        (out / REBUILD).unlink(missing_ok=True)
    remove_leftovers(out)
    return manifest, file


def _continued(out: Path, file: str, wanted: Manifest) -> Manifest:
    manifest = read_manifest(out, file)
    _check_same(out, manifest, wanted)
    # Equal weights may come under another name, and the folder may have moved.
    return replace(manifest, settings=wanted.settings, root=wanted.root)


def _check_same(out: Path, found: Manifest, wanted: Manifest) -> None:
    remedy = "choose another --out, or make this one anew with --rebuild"
    if found.root != wanted.root and os.path.isdir(found.root):
        raise ValueError(f"{out} is the index of {found.root}, not of {wanted.root}: {remedy}")
    models = f" (model {found.settings.model}, now {wanted.settings.model})"
    for name in Settings.__dataclass_fields__:
        old, new = getattr(found.settings, name), getattr(wanted.settings, name)
        if name != "model" and old != new:
            what = f"{name} {old}, not {new}{models if name == 'fingerprint' else ''}"
            raise ValueError(f"{out} was made with {what}: {remedy}")


class _Run:
    """Gathers documents into slices for the embedder, and counts."""

    def __init__(
        self,
        embedder: Embedder,
        writer: IndexWriter,
        total_files: int,
        progress: Callable[[IndexProgress], Any] | None,
    ) -> None:
        self.embedder, self.writer = embedder, writer
        self.total_files, self.progress = total_files, progress
        self.slice: list[Document] = []
        self.skipped: list[Skipped] = []
        self.files = self.unchanged = self.embedded = 0
        self.slice_tokens = self.tokens = self.cut_documents = self.cut_tokens = 0
        self.slice_limit = SMALLEST_SLICE_TOKENS

    def take(self, found: Document | Unchanged | Skipped) -> None:
        self.files += 1
        if isinstance(found, Skipped):
            self.skip(found)
        elif isinstance(found, Unchanged):
            self.unchanged += 1
            self.writer.keep(found.path)
        else:
            self.slice.append(found)
            self.slice_tokens += self._cost(found)
            most = min(SLICE_DOCUMENTS, self.writer.shard_documents)
            if self.slice_tokens >= self.slice_limit or len(self.slice) >= most:
                self.embed_slice()
        self._tell(waiting=len(self.slice))

    def skip(self, found: Skipped) -> None:
        self.skipped.append(found)
        if found.transient:
            self.writer.keep_unreachable(found.path)

    def _cost(self, document: Document) -> int:
        """About how many tokens the model will read, padding included."""
        settings = self.writer.manifest.settings
        tokens = len(document.text) // 4 + 2
        if settings.long_documents == "truncate":
            tokens = min(tokens, settings.max_length)
        longest = self.embedder.model.config.max_position_embeddings
        return max(tokens, longest) if settings.padding == "max_length" else tokens

    def embed_slice(self) -> None:
        documents, self.slice = self.slice, []
        tokens, self.slice_tokens = self.slice_tokens, 0
        started = time.monotonic()
        passage_characters = self.writer.manifest.settings.passage_characters

        def tell_part(tokens: int, total: int) -> None:
            self._tell(waiting=len(documents) * (1 - tokens / max(total, 1)))

        results = embed(self.embedder, documents, passage_characters, tell_part)
        speed = tokens / max(time.monotonic() - started, 1e-3)
        self.slice_limit = min(max(SMALLEST_SLICE_TOKENS, speed * SLICE_SECONDS), SLICE_TOKENS)
        done = [result for result in results if isinstance(result, Embedded)]
        self.skipped += [result for result in results if isinstance(result, Skipped)]
        self.embedded += len(done)
        for record in (item.record for item in done):
            self.tokens += record.tokens
            self.cut_documents += record.cut_tokens > 0
            self.cut_tokens += record.cut_tokens
        self.writer.add(done)
        self._tell(waiting=0)

    def _tell(self, waiting: float) -> None:
        if self.progress is not None:
            counts = (self.embedded, self.unchanged, len(self.skipped), self.tokens)
            self.progress(IndexProgress(self.files - waiting, self.total_files, *counts))

    def report(self, forgotten: int, seconds: float) -> IndexReport:
        shards = self.writer.manifest.shards
        return IndexReport(
            documents=sum(shard.documents for shard in shards),
            spans=sum(shard.spans for shard in shards),
            embedded=self.embedded,
            unchanged=self.unchanged,
            forgotten=forgotten,
            skipped=tuple(self.skipped),
            tokens=self.tokens,
            cut_documents=self.cut_documents,
            cut_tokens=self.cut_tokens,
            damaged=tuple(self.writer.damaged),
            seconds=seconds,
        )
