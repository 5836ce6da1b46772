"""Writing an index: embedded documents come in, shards go out, one commit at a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from m2_bert.search.shards import (
    DamagedShardError,
    OpenShard,
    Shard,
    next_number,
    open_shard,
    write_shard,
)
from m2_bert.search.store import MANIFEST, REBUILD, Manifest, remove_leftovers, write_manifest
from m2_bert.search.vectors import Embedded

SHARD_SPANS = 65_536  # 100 MB at width 768, about 17 million tokens of text


class IndexWriter:
    """Adds documents to the index in a locked folder.

    Attributes:
        known: path -> SHA-256 of the documents that were in the index at the start.
        damaged: messages about shards that could not be read; they no longer count.

    Args:
        manifest: what the index holds so far. file: where it is kept until the end: index.json, or
            rebuild.json if that of the old index shall count until then.
        shard_documents, shard_seconds: a shard is finished after so many documents or so long; and
            after SHARD_SPANS spans.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        file: str,
        shard_documents: int,
        shard_seconds: float,
    ) -> None:
        self.folder, self.file = folder, file
        self.shard_documents, self.shard_seconds = shard_documents, shard_seconds
        self.damaged: list[str] = []
        self._before = manifest.shards if file == MANIFEST else None  # those that index.json names
        self._shards: dict[str, OpenShard] = {}
        self._places: dict[str, tuple[str, int]] = {}  # path -> (shard, row), the latest
        self._wanted: set[str] = set()
        self._unreachable: set[str] = set()
        self._pending: list[Embedded] = []
        self._flushed = time.monotonic()

        usable = []
        for shard in manifest.shards:
            try:
                self._open(shard, manifest.settings.dimension, verify=True)
                usable.append(shard)
            except DamagedShardError as error:
                self.damaged.append(str(error))
        self.manifest = replace(manifest, shards=tuple(usable))
        self.known = {
            path: self._shards[name].records[row].sha256
            for path, (name, row) in self._places.items()
        }

    def _open(self, shard: Shard, dimension: int, verify: bool = False) -> None:
        opened = open_shard(self.folder, shard, dimension, verify)
        self._shards[shard.name] = opened
        for row, record in enumerate(opened.records):
            self._places[record.path] = (shard.name, row)

    def keep(self, path: str) -> None:
        """Say that a known document is still there, unchanged."""
        self._wanted.add(path)

    def keep_unreachable(self, path: str) -> None:
        """Say that a file, or the files of a folder ("." is all), may be there but cannot be read
        now.
        """
        self._unreachable.add(path)

    def add(self, items: Sequence[Embedded]) -> None:
        """Take documents in; they are on disk once a shard is full, or old enough."""
        self._pending += items
        spans = sum(len(item.spans) for item in self._pending)
        old = time.monotonic() - self._flushed >= self.shard_seconds
        if len(self._pending) >= self.shard_documents or spans >= SHARD_SPANS or old:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as a shard; only then let the manifest name it."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        shard = self._write(self._pending)
        self._commit((*self.manifest.shards, shard), self.file, complete=False)
        self._open(shard, self.manifest.settings.dimension)
        self._wanted.update(item.record.path for item in self._pending)
        self._pending = []

    def finish(self, among: Collection[str] | None = None) -> int:
        """Drop documents that are gone, merge small shards, call the index complete.

        Args:
            among: only of these documents it is known whether they are gone; None: of all.

        Returns:
            The number of documents dropped, which does not count those that changed.

        Raises:
            ValueError: all documents are gone, and this is no rebuild.
        """
        self.flush()
        forgotten = self._forgotten(among)
        live = {place for path, place in self._places.items() if path not in forgotten}
        loose = [shard for shard in self.manifest.shards if self._is_loose(shard, live)]
        if len(loose) == 1 and self._is_whole(loose[0], live):
            loose = []
        kept = [shard for shard in self.manifest.shards if shard not in loose]
        kept += [self._write(items) for items in self._regroup(loose, live)]
        self._commit(kept, MANIFEST, complete=True)
        (self.folder / REBUILD).unlink(missing_ok=True)
        remove_leftovers(self.folder)
        if self.manifest.shards != self._before:
            for graph in self.folder.glob("ann-*.faiss"):
                graph.unlink(missing_ok=True)
        return len(forgotten)

    def _forgotten(self, among: Collection[str] | None) -> set[str]:
        missing = self._places.keys() - self._wanted
        forgotten = {path for path in missing if not self._is_unreachable(path)}
        if among is not None:
            forgotten &= set(among)
        if forgotten and len(forgotten) == len(self._places) and self.file != REBUILD:
            raise ValueError(
                f"{self.manifest.root} holds none of the {len(forgotten)} documents of "
                f"{self.folder} any more, so these are kept: mount the folder, or empty the index "
                "with --rebuild"
            )
        return forgotten

    def _is_unreachable(self, path: str) -> bool:
        parents = PurePosixPath(path).parents
        return not self._unreachable.isdisjoint({path, *map(str, parents)})

    def _write(self, items: Sequence[Embedded]) -> Shard:
        return write_shard(
            self.folder,
            next_number(self.folder),
            [item.record for item in items],
            [item.embedding for item in items],
            [item.spans for item in items],
        )

    def _commit(self, shards: Sequence[Shard], file: str, complete: bool) -> None:
        self.manifest = replace(self.manifest, shards=tuple(shards), complete=complete)
        write_manifest(self.folder, self.manifest, file)

    def _is_whole(self, shard: Shard, live: set[tuple[str, int]]) -> bool:
        return all((shard.name, row) in live for row in range(shard.documents))

    def _is_loose(self, shard: Shard, live: set[tuple[str, int]]) -> bool:
        """Whether a shard holds documents that are gone, or could share a file with others."""
        small = shard.documents < self.shard_documents / 2 and shard.spans < SHARD_SPANS / 2
        return small or not self._is_whole(shard, live)

    def _regroup(
        self, shards: Sequence[Shard], live: set[tuple[str, int]]
    ) -> Iterator[list[Embedded]]:
        """The live documents of these shards, in groups of a shard's size."""
        group: list[Embedded] = []
        spans = 0
        for shard in shards:
            opened = self._shards[shard.name]
            for row, record in enumerate(opened.records):
                if (shard.name, row) not in live:
                    continue
                group.append(Embedded(record, opened.embeddings[row], opened.spans_of(row)))
                spans += len(record.spans)
                if len(group) >= self.shard_documents or spans >= SHARD_SPANS:
                    yield group
                    group, spans = [], 0
        if group:
            yield group
