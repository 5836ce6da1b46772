"""Volumes: documents of one exact length, with the answer at a chosen depth.

They show how well a model reads at a length and at a place, other things being equal.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from m2_bert.loco.docstrings import docstrings, is_query, stdlib_modules
from m2_bert.loco.task import RetrievalTask
from m2_bert.loco.tokens import encodings

if TYPE_CHECKING:
    from tokenizers import Encoding

SEPARATOR = "\n\n"
_SPECIAL = 2  # [CLS] and [SEP]
_PASSAGE_TOKENS = range(40, 401)
# A string literal up to the end of its first paragraph; the group is its prefix and quotes.
_OPENING = re.compile(
    r"""\A([a-zA-Z]*(\"{3}|'{3}|"|')).*?(?:\n[ \t]*\n\s*|(?=\2\Z))""", flags=re.DOTALL
)


@dataclass(frozen=True)
class Passage:
    """A text that can be buried in a volume, and the query that it answers."""

    query: str
    text: str


def stdlib_passages() -> list[Passage]:
    """The standard library's functions and methods; queries are their docstrings' openings.

    The opening paragraph is cut out of the function, the rest of the docstring stays. Functions
    within functions are left to the outer one. Queries are unique.
    """
    passages: dict[str, Passage | None] = {}
    for module, source in stdlib_modules():
        content, end = source.encode(), 0
        for found in docstrings(source):
            start, stop = found.extent
            if not found.is_function or start < end:
                continue
            end = stop
            if is_query(found, module):
                first, last = found.span
                pieces = content[start:first], content[first:last], content[last:stop]
                head, literal, body = (piece.decode() for piece in pieces)
                text = head + _OPENING.sub(r"\1", literal, count=1) + body
                # Two functions of the same description: neither can be asked for.
                repeated = found.query in passages
                passages[found.query] = None if repeated else Passage(found.query, text)
    return [passage for passage in passages.values() if passage is not None]


def volume_task(
    tokens: int,
    passages: Sequence[Passage] | None = None,
    *,
    name: str | None = None,
    position: float | str = "random",
    volumes: int = 100,
    seed: int = 0,
) -> RetrievalTask:
    """One query per volume, answered by one passage at `position` in it; the rest is filler.

    Every volume has exactly `tokens` BERT-uncased tokens, [CLS] and [SEP] included, so a model of
    that length reads it whole. It consists of passages joined by blank lines: the answer, and
    fillers that answer no query of the task. Fillers are cut between words at their ends, and up
    to the tokens of one word are made up with full stops. No filler occurs in two volumes before
    all have been used. The same seed gives the same answers for every position.

    Args:
        tokens: length of each volume.
        passages: what to bury and to fill with, each query once; None: `stdlib_passages`. Those of
            40 to 400 tokens, and at most a quarter of `tokens`, can be answers.
        name: of the task; None: "volumes-" and the length.
        position: share of the filler that stands in front of the answer, 0 to 1, or "random".
        volumes: how many.
        seed: of the choice of answers, the order of fillers and the random positions.

    Raises:
        ValueError: a number is out of range, or there are too few passages.
    """
    if tokens < 4 * _PASSAGE_TOKENS[0]:
        raise ValueError(f"tokens must be at least {4 * _PASSAGE_TOKENS[0]}, got {tokens}")
    if volumes < 1:
        raise ValueError(f"volumes must be at least 1, got {volumes}")
    if position != "random" and (isinstance(position, str) or not 0 <= position <= 1):
        raise ValueError(f'position must be 0 to 1 or "random", got {position!r}')
    given = stdlib_passages() if passages is None else list(passages)
    answers, filler = _deal(given, tokens, volumes, seed)
    depths = random.Random(f"depths {seed}")
    documents, queries, qrels, depth_of = {}, {}, {}, {}
    for number, (passage, length) in enumerate(answers):
        volume, query = f"volume-{number:04d}", f"query-{number:04d}"
        depth = depths.random() if position == "random" else float(position)
        free = tokens - _SPECIAL - length
        before = round(depth * free)
        parts = [filler.take(before), passage.text, filler.take(free - before)]
        documents[volume] = SEPARATOR.join(part for part in parts if part)
        queries[query], qrels[query] = passage.query, {volume: 1}
        depth_of[query] = round(before / free, 4)
    metadata = {"tokens": tokens, "position": position, "seed": seed, "depths": depth_of}
    return RetrievalTask(name or f"volumes-{tokens}", documents, queries, qrels, metadata)


def _deal(
    passages: Sequence[Passage], tokens: int, volumes: int, seed: int
) -> tuple[list[tuple[Passage, int]], _Filler]:
    """The answers with their lengths in tokens, and the filler of all that is left."""
    if len({passage.query for passage in passages}) != len(passages):
        raise ValueError("passages: two of them have the same query")
    order = list(passages)
    random.Random(f"order {seed}").shuffle(order)
    answers, rest = [], []
    for passage, encoding in zip(order, encodings([p.text for p in order]), strict=True):
        length = len(encoding)
        fits = length in _PASSAGE_TOKENS and length <= tokens // 4
        if fits and len(answers) < volumes:
            answers.append((passage, length))
        elif length:
            rest.append((passage.text, _word_ends(encoding)))
    if len(answers) < volumes or not rest:
        raise ValueError(
            f"{volumes} volumes of {tokens} tokens need as many passages of {_PASSAGE_TOKENS[0]} "
            f"to {min(_PASSAGE_TOKENS[-1], tokens // 4)} tokens and fillers besides, got "
            f"{len(answers)} and {len(rest)}; ask for fewer volumes"
        )
    return answers, _Filler(rest)


def _word_ends(encoding: Encoding) -> list[tuple[int, int]]:
    """(tokens, characters) up to the end of each word, where a text may be cut."""
    offsets, words = encoding.offsets, encoding.word_ids  # each access copies the list
    ends = [
        (count, offsets[count - 1][1])
        for count, (word, following) in enumerate(pairwise(words), start=1)
        if word != following
    ]
    return [*ends, (len(offsets), offsets[-1][1])]


class _Filler:
    """Texts in turn, over and over, cut to lengths in tokens."""

    def __init__(self, texts: Sequence[tuple[str, list[tuple[int, int]]]]) -> None:
        self._texts = texts
        self._next = 0

    def take(self, tokens: int) -> str:
        """A text of exactly so many tokens."""
        parts: list[str] = []
        while tokens > 0:
            text, ends = self._texts[self._next % len(self._texts)]
            self._next += 1
            fitting = [end for end in ends if end[0] <= tokens]
            if not fitting:  # not even the first word
                break
            count, characters = fitting[-1]
            parts.append(text[:characters])
            tokens -= count
            if count < ends[-1][0]:
                break
        return SEPARATOR.join([*parts, " ".join("." * tokens)] if tokens else parts)
