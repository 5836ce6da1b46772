"""Seeded inputs of unit scale, and the ways they can lie in memory."""

import math

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "transposed", "sliced", "strided", "expanded")


def white(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers of variance 1, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_norm_like(
    batch: int, channels: int, length: int, *, outliers: float = 0.0, seed: int = 0
) -> Tensor:
    """Activations `(B, H, L)` as behind a LayerNorm: each position has variance 1 over H.

    `outliers` is the factor by which every 256th element, on average, is larger before the
    normalisation; 0 for none. One channel cannot be normalised over: it keeps variance near 1.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, length, generator=generator)
    x = x * torch.exp(0.5 * torch.randn(channels, 1, generator=generator))
    if outliers:
        x = torch.where(torch.rand(x.shape, generator=generator) < 1 / 256, outliers * x, x)
    if channels == 1:
        return x
    return (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)


def hyena_filter(channels: int, taps: int, *, seed: int = 0) -> Tensor:
    """Filters `(H, taps)` of unit norm: a sine network of the position times a decay.

    The decay rates are those of Hyena (arXiv 2302.10866): a filter has fallen to 1% after 0.3 of
    the sequence in the fastest channel, after 1.5 in the slowest.
    """
    generator = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 1, max(taps, 1))[:taps, None]
    bands = 2 * math.pi * torch.arange(1, 9) * t
    features = torch.cat([t, bands.cos(), bands.sin()], 1)  # (taps, 17)
    for width in (64, 64):
        weight = torch.randn(features.shape[1], width, generator=generator)
        features = torch.sin(10 * features @ weight / math.sqrt(features.shape[1]))
    k = (features @ torch.randn(64, channels, generator=generator)).t()
    decay = math.log(100) / torch.linspace(0.3, 1.5, max(channels, 1))[:channels, None]
    return torch.nn.functional.normalize(k * torch.exp(-decay * t.t()), dim=-1)


def with_layout(t: Tensor, layout: str) -> Tensor:
    """Return a tensor equal to t whose memory lies as `layout` says; gaps are filled with NaN.

    transposed: the last dimension is not the contiguous one. sliced: rows are contiguous but apart,
    and start at an odd address. strided: every second element. expanded: t's first entry repeated
    along the first dimension with stride 0 - the one layout that changes the values.
    """
    if layout == "contiguous":
        return t
    if layout == "transposed":
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded":
        return t[:1].expand_as(t)
    *rows, n = t.shape
    if layout == "sliced":
        view = t.new_full((*rows, n + 8), math.nan)[..., 3 : 3 + n]
    elif layout == "strided":
        view = t.new_full((*rows, 2 * n + 1), math.nan)[..., 1 : 2 * n : 2]
    else:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    view.copy_(t)
    return view
