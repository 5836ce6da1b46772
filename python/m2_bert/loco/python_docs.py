"""Section heading -> page of Python's documentation, from its reStructuredText sources."""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from m2_bert.loco.task import RetrievalTask
from m2_bert.loco.tokens import encodings

DEFAULT_FOLDER = Path("/usr/share/doc/python3.11/html/_sources")
# (documents, queries) as first measured with Debian's python3.11-doc.
EXPECTED = (464, 425)

_SHORTEST = 200  # tokens; shorter pages are tables of contents
_DEEP = 2048
_PER_PAGE = 3
_WORDS = range(3, 41)
_RULE = re.compile(r"""([=\-~^"'`*+#.:_])\1{2,}""")
_ROLE = re.compile(r":[\w:+-]+:`[!~]?([^`<]*?)(?:\s*<[^`]*>)?`")


@dataclass(frozen=True)
class Heading:
    """A section's heading: its text, and where it and its rules stand, in characters."""

    text: str
    span: tuple[int, int]
    is_title: bool


def python_docs_task(folder: str | os.PathLike = DEFAULT_FOLDER) -> RetrievalTask:
    """Deep section heading -> page of Python's documentation; natural language, long documents.

    Documents: the pages of at least 200 BERT tokens, with roles like :func:`x` reduced to their
    text. Queries: headings that stand after the first 2,048 tokens of a page, have 3 to 40 words
    and occur once in all pages; of each page the three with the smallest CRC-32, which are cut out
    of it with their rules.

    With Debian's python3.11-doc 3.11.2 that gives 461 documents and 401 queries, where the task
    that it follows, whose recipe is not published in full, has 464 and 425.

    Args:
        folder: a folder of *.rst or *.rst.txt files: Debian's html/_sources, Doc/ of a source
            checkout, or a folder that holds _sources.

    Raises:
        FileNotFoundError: there is no such folder, or no such file in it; says what to install.
        ValueError: no page has a deep heading.
    """
    pages = dict(_pages(Path(folder)))
    starts = {
        page: [start for start, _ in encoding.offsets]
        for page, encoding in zip(pages, encodings(list(pages.values())), strict=True)
    }
    found = {page: headings(text) for page, text in pages.items() if len(starts[page]) >= _SHORTEST}
    times = Counter(heading.text.lower() for each in found.values() for heading in each)
    documents, queries, qrels = {}, {}, {}
    for page, each in found.items():
        deep = [h for h in each if times[h.text.lower()] == 1 and _is_deep(h, starts[page])]
        deep.sort(key=lambda heading: (zlib.crc32(heading.text.encode()), heading.text))
        for number, heading in enumerate(deep[:_PER_PAGE]):
            query = f"{page}#{number}"
            queries[query], qrels[query] = heading.text, {page: 1}
        documents[page] = _without(pages[page], deep[:_PER_PAGE])
    if not queries:
        raise ValueError(f"{folder}: no page has a section heading after its first {_DEEP} tokens")
    counts = {"documents": len(documents), "queries": len(queries)}
    expected = dict(zip(counts, EXPECTED, strict=True))
    metadata = {
        "source": str(folder),
        "licence": "PSF-2.0",
        "counts": counts,
        "expected": expected,
        "difference": {part: counts[part] - expected[part] for part in counts},
    }
    return RetrievalTask("python-docs", documents, queries, qrels, metadata)


def _pages(folder: Path) -> Iterator[tuple[str, str]]:
    """(path without suffix, text) of each page, sorted by path."""
    folder = folder / "_sources" if (folder / "_sources").is_dir() else folder
    files = [*folder.rglob("*.rst"), *folder.rglob("*.rst.txt")] if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(
            f"no reStructuredText pages in {folder}: apt-get install python3.11-doc, or give the "
            "folder that holds them (html/_sources of Debian's package, Doc of CPython's sources)"
        )
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield name.removesuffix(".txt").removesuffix(".rst"), _ROLE.sub(r"\1", text)


def headings(text: str) -> list[Heading]:
    """Headings of a reStructuredText page; the first kind of rule is that of its title."""
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    found: list[Heading] = []
    title = None
    for row in range(len(lines) - 1):
        heading, rule = lines[row].rstrip(), lines[row + 1].rstrip()
        # Reducing roles shortened the headings, never the rules.
        ruled = _RULE.fullmatch(rule) and len(rule) >= len(heading) - 1
        if not ruled or not heading or heading[0].isspace() or _RULE.fullmatch(heading):
            continue
        overlined = row > 0 and lines[row - 1].rstrip() == rule
        kind = (rule[0], overlined)
        title = kind if title is None else title
        span = (starts[row - overlined], min(starts[row + 2], len(text)))
        found.append(Heading(heading, span, kind == title))
    return found


def _is_deep(heading: Heading, starts: list[int]) -> bool:
    """Whether it is a section's, of enough words, after the first tokens of its page."""
    after = len(starts) > _DEEP and heading.span[0] >= starts[_DEEP]
    return after and not heading.is_title and len(heading.text.split()) in _WORDS


def _without(text: str, cut: list[Heading]) -> str:
    for start, end in sorted((heading.span for heading in cut), reverse=True):
        text = text[:start] + text[end:]
    return text
