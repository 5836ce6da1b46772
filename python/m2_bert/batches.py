"""From texts to padded batches: tokens, cutting of long texts, grouping by length, padding.

C is the number of tokens a piece holds beside [CLS] and [SEP]: max_length - 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from transformers import BertTokenizer

LONG_DOCUMENTS = ("truncate", "error", "window")
OVERLAP = 8  # windows share an eighth of C
SLICE_CHARACTERS = 1_000_000  # tokenised at once: the offsets of a token take 100 bytes and more

# What a batch costs beside its tokens, and what the filters of a new length n cost, as tokens and
# as a part of n. Measured on a CPU, 80M model: 20 to 50; 0.22 (float32) to 0.4 (bfloat16).
BATCH_COST = 32
FILTER_COST = 0.25


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """What the model reads of a text at once: all of it, its beginning, or a window of it.

    Attributes:
        text: index of the text.
        ids: token ids (int32), with [CLS] and [SEP].
        start: position in the text of the first token after [CLS].
        owned: positions [first, last) whose token states are taken from this piece.
    """

    text: int
    ids: np.ndarray
    start: int
    owned: tuple[int, int]


def tokenize(
    texts: Sequence[str], tokenizer: BertTokenizer, offsets: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield for each text its ids (n,) with [CLS] and [SEP], uncut, and its offsets or None.

    Offsets (n - 2, 2) are the characters [start, end) of the tokens between [CLS] and [SEP].

    Raises:
        ValueError: a text holds half a surrogate pair.
    """
    first = 0
    while first < len(texts):
        last, characters = first, 0
        while last < len(texts) and (last == first or characters < SLICE_CHARACTERS):
            characters += len(texts[last])
            last += 1
        try:
            encoded = tokenizer(
                list(texts[first:last]),
                return_attention_mask=False,
                return_token_type_ids=False,
                return_offsets_mapping=offsets,
            )
        except TypeError:
            _refuse_surrogates(texts, first, last)
            raise
        places = encoded["offset_mapping"] if offsets else [None] * (last - first)
        for ids, place in zip(encoded["input_ids"], places, strict=True):
            between = None if place is None else np.reshape(place[1:-1], (-1, 2)).astype(np.int64)
            yield np.asarray(ids, dtype=np.int32), between
        first = last


def _refuse_surrogates(texts: Sequence[str], first: int, last: int) -> None:
    for index in range(first, last):
        try:
            texts[index].encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"texts[{index}]: character {error.start} is half of a surrogate pair, which is no "
                "text: decode its source with errors='replace'"
            ) from None


def window_starts(tokens: int, capacity: int) -> list[int]:
    """Return where windows of C = `capacity` tokens begin in a text of `tokens` > C.

    s_k = min(k (C - floor(C / 8)), tokens - C): the last window is moved left so as to be full.
    """
    last = tokens - capacity
    return [*range(0, last, capacity - capacity // OVERLAP), last]


def cut(text: int, ids: np.ndarray, max_length: int, long_documents: str) -> list[Piece]:
    """Return the pieces of a text whose ids, with [CLS] and [SEP], are given whole.

    A token belongs to the window in which it is farthest from an edge; of two, to the earlier.

    Raises:
        ValueError: the text is longer than max_length and `long_documents` is "error".
    """
    tokens, capacity = len(ids) - 2, max_length - 2
    if tokens <= capacity:
        return [Piece(text, ids, 0, (0, tokens))]
    if long_documents == "error":
        raise ValueError(
            f"texts[{text}]: got {len(ids)} tokens, expected at most {max_length}: shorten it, or "
            "pass long_documents='window' (or 'truncate')"
        )
    windowed = long_documents == "window"
    starts = window_starts(tokens, capacity) if windowed else [0]
    # The middle of what neighbours share: there both edges are equally far.
    middles = [(a + b + capacity + 1) // 2 for a, b in pairwise(starts)]
    edges = [0, *middles, tokens if windowed else capacity]
    return [
        Piece(
            text,
            np.concatenate([ids[:1], ids[1 + start : 1 + start + capacity], ids[-1:]]),
            start,
            (first, last),
        )
        for start, (first, last) in zip(starts, pairwise(edges), strict=True)
    ]


def padded_length(tokens: int, longest: int) -> int:
    """Return `tokens` rounded up to a 16th of an octave, at least to 8s, at most to `longest`."""
    octave = 1 << (max(tokens, 2) - 1).bit_length() - 1  # octave < tokens <= 2 octave
    step = max(8, octave // 16)
    return min(-(-tokens // step) * step, longest)


def plan_batches(
    tokens: Sequence[int], batch_tokens: int, longest: int, full_length: bool
) -> list[tuple[int, list[int]]]:
    """Return [(padded length, indices of pieces)], the longest first.

    No batch has more than `batch_tokens` tokens, padding included, except for a single piece that
    is longer. The padded lengths are those for which padding, batches and filters cost least.

    Args:
        tokens: tokens of each piece.
        longest: the longest padded length.
        full_length: pad every piece to `longest`.
    """
    needed = [longest if full_length else padded_length(n, longest) for n in tokens]
    given = _best_lengths(Counter(needed), batch_tokens)
    batches: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        length = given[needed[index]]
        members = batches[-1][1] if batches and batches[-1][0] == length else None
        if members is None or (len(members) + 1) * length > batch_tokens:
            batches.append((length, [index]))
        else:
            members.append(index)
    return batches


def _best_lengths(pieces: Counter[int], batch_tokens: int) -> dict[int, int]:
    """For each needed length (with its number of pieces) the length to pad it to.

    Lengths that lie side by side share the longest of them. best[j] is the least cost of the j
    longest, found from the best of the i < j longest and one length for those in between.
    """
    lengths = sorted(pieces, reverse=True)
    best, shared_from = [0.0], [0]
    for end in range(1, len(lengths) + 1):
        options, count = [], 0
        for first in range(end - 1, -1, -1):
            count += pieces[lengths[first]]
            length = lengths[first]
            batches = -(-count // max(1, batch_tokens // length))
            cost = (count + FILTER_COST) * length + BATCH_COST * batches
            options.append((best[first] + cost, first))
        least, first = min(options)
        best.append(least)
        shared_from.append(first)
    given, end = {}, len(lengths)
    while end:
        first = shared_from[end]
        given |= dict.fromkeys(lengths[first:end], lengths[first])
        end = first
    return given


def pad(pieces: Sequence[Piece], length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Return input_ids and attention_mask, each (len(pieces), length) int64; padded right."""
    input_ids = np.full((len(pieces), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(pieces), length), dtype=np.int64)
    for row, piece in enumerate(pieces):
        input_ids[row, : len(piece.ids)] = piece.ids
        mask[row, : len(piece.ids)] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(mask)
