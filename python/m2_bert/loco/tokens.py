"""Texts as BERT tokens, the unit in which the tasks state document lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

from m2_bert.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding

_BATCH = 64  # texts whose tokens are held at a time


@cache
def _tokenizer():
    return load_tokenizer().backend_tokenizer


def encodings(texts: Sequence[str]) -> Iterator[Encoding]:
    """Content tokens of each text, uncut, without [CLS] and [SEP]: ids, offsets, words."""
    for first in range(0, len(texts), _BATCH):
        block = list(texts[first : first + _BATCH])
        yield from _tokenizer().encode_batch(block, add_special_tokens=False)


def first_tokens(texts: Sequence[str], count: int) -> list[str]:
    """Each text up to the end of its ``count``-th content token; shorter texts as they are.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"the number of tokens to keep must be at least 1, got {count}")
    return [
        text if len(encoding) <= count else text[: encoding.offsets[count - 1][1]]
        for text, encoding in zip(texts, encodings(texts), strict=True)
    ]
