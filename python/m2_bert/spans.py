"""Late chunking: from spans of characters to means of token states of the whole text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m2_bert.batches import Piece
from m2_bert.model import M2BertForEmbedding


def token_ranges(
    spans: Sequence[tuple[int, int]], offsets: np.ndarray, characters: int, kept: int
) -> np.ndarray:
    """Return (m, 2): for each span the range [first, last) of the tokens that overlap it.

    Args:
        spans: m pairs (start, end) of characters.
        offsets: (tokens, 2), characters [start, end) of each token, ascending.
        characters: length of the text.
        kept: number of tokens that the model will read.

    Raises:
        ValueError: naming the span that is not one of the text, or without a token, or cut.
    """
    pairs = np.asarray(spans)
    if pairs.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(
            f"got {pairs.dtype} of shape {pairs.shape}, expected pairs (start, end) of integers"
        )
    start, end = pairs[:, 0], pairs[:, 1]
    wrong = (start < 0) | (start >= end) | (end > characters)
    _refuse_spans(wrong, pairs, f"expected 0 <= start < end <= {characters}, the text's length")
    first = np.searchsorted(offsets[:, 1], start, side="right")
    last = np.searchsorted(offsets[:, 0], end, side="left")
    _refuse_spans(first >= last, pairs, "without a token in it (white space, control characters)")
    until = offsets[kept - 1, 1] if kept else 0
    _refuse_spans(
        last > kept,
        pairs,
        f"but truncation keeps {kept} tokens, up to character {until}: end the span there, or pass "
        "long_documents='window'",
    )
    return np.stack([first, last], axis=1)


def _refuse_spans(wrong: np.ndarray, pairs: np.ndarray, why: str) -> None:
    if wrong.any():
        index = int(wrong.argmax())
        raise ValueError(f"span {index}: got ({pairs[index, 0]}, {pairs[index, 1]}), {why}")


def add_states(sums: Tensor, states: Tensor, piece: Piece, ranges: np.ndarray) -> None:
    """Add to `sums` (m, D) the states of the tokens that a piece owns, for each span.

    Args:
        states: (L, D), the last states of the piece, [CLS] first.
        ranges: (m, 2), of `token_ranges`.
    """
    bounds = ranges.clip(*piece.owned)
    touched = np.flatnonzero(bounds[:, 0] < bounds[:, 1])
    if len(touched):
        rows = (bounds[touched] - piece.start + 1).tolist()  # + 1: [CLS]
        parts = [states[a:b].sum(0, dtype=torch.float32) for a, b in rows]
        sums[touched] += torch.stack(parts).cpu()


@torch.no_grad()
def span_embeddings(model: M2BertForEmbedding, sums: Tensor, ranges: np.ndarray) -> Tensor:
    """Return embeddings (m, D), float32: the model's head on the mean states of spans.

    Args:
        sums: (m, D), the sums of the states of each span's tokens.
        ranges: (m, 2), of `token_ranges`.
    """
    if not len(ranges):
        return sums
    config, pooler = model.config, model.bert.pooler
    means = sums / torch.from_numpy(ranges[:, 1] - ranges[:, 0])[:, None]
    if not config.use_cls_token:
        weight = pooler.dense.weight
        # As sequences of one token: whatever the pooler takes of a sequence, it is that one.
        means = pooler(means.to(weight.device, weight.dtype)[:, None], None).float().cpu()
    return F.normalize(means, dim=-1) if config.use_normalized_embeddings else means
