"""Cutting a text into passages, the spans that a search result points at."""

from __future__ import annotations

import re

PASSAGE_CHARACTERS = 1200  # about 200 words

# Where a passage may end, best first; each pattern's match belongs to the passage before.
_ENDS = (
    re.compile(r"\n[ \t\r\f\v]*\n\s*"),
    re.compile(r"\n"),
    re.compile(r"[.!?][\"')\]]*\s+|[。！？]"),  # noqa: RUF001
    re.compile(r"\s+"),
)


def split_passages(text: str, max_characters: int = PASSAGE_CHARACTERS) -> list[tuple[int, int]]:
    """Spans (start, end) of at most `max_characters` that hold all of the text but white space.

    A passage ends at the last paragraph break in its second half; else at the last line break, end
    of a sentence, or space there; else where the limit is. Passages begin and end with a visible
    character, are in order and do not overlap: text[start:end].

    Raises:
        ValueError: `max_characters` is below 1.
    """
    if max_characters < 1:
        raise ValueError(f"max_characters: got {max_characters}, expected at least 1")
    spans = []
    start = 0
    visible = re.compile(r"\S")
    while found := visible.search(text, start):
        start = found.start()
        end = min(start + max_characters, len(text))
        if end < len(text):
            end = _last_end(text, start + max_characters // 2, end)
        spans.append((start, start + len(text[start:end].rstrip())))
        start = end
    return spans


def _last_end(text: str, low: int, high: int) -> int:
    """The best place to end in (low, high]; `high` if there is none."""
    for pattern in _ENDS:
        # Matches end at most at `high`; white space beyond it opens the next passage.
        ends = [match.end() for match in pattern.finditer(text, low, high) if match.end() > low]
        if ends:
            return ends[-1]
    return high
