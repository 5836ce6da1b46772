"""Every operator in plain torch: what the kernels must equal, on any device, in float64 too.

Arguments are those of the public operators, which validate; nothing is checked here.
"""

import functools

import torch
from torch import Tensor
from torch.nn.functional import conv1d, gelu, layer_norm, linear, pad
from torch.nn.functional import silu as torch_silu


def _computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which to compute: torch.fft has no 16-bit transforms on the CPU."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def filter_spectrum(
    k: Tensor, k_rev: Tensor | None, skip: Tensor | None, length: int, circular: bool
) -> Tensor:
    """rfft of the filter on the period of `fft_conv`: (H, n // 2 + 1) complex.

    The period n is `length` if circular, else 2 `length`: tap j of k lies at index j, tap j of
    k_rev at index n - 1 - j, so that the product of spectra is the sum in `fft_conv`'s docstring.
    """
    dtype = _computed(k.dtype)
    period = length if circular else 2 * length
    taps = pad(k.to(dtype), (0, period - k.shape[-1]))
    if k_rev is not None:
        taps = taps + pad(k_rev.to(dtype).flip(-1), (period - k_rev.shape[-1], 0))
    # torch.fft refuses empty tensors.
    empty = taps.numel() == 0
    spectrum = taps[..., : period // 2 + 1] + 0j if empty else torch.fft.rfft(taps, n=period)
    return spectrum if skip is None else spectrum + skip.to(dtype).unsqueeze(-1)


def fft_conv_spectrum(
    u: Tensor, spectrum: Tensor, pregate: Tensor | None, postgate: Tensor | None, circular: bool
) -> Tensor:
    """`fft_conv` with a spectrum made by `filter_spectrum`."""
    dtype, length = _computed(u.dtype), u.shape[-1]
    period = length if circular else 2 * length
    g = u.to(dtype) if pregate is None else u.to(dtype) * pregate.to(dtype)
    if g.numel() == 0:
        y = g * spectrum.real[:, :1]  # empty, and connected to both for the gradients
    else:
        y = torch.fft.irfft(torch.fft.rfft(g, n=period) * spectrum, n=period)[..., :length]
    return (y if postgate is None else y * postgate.to(dtype)).to(u.dtype)


def fft_conv(
    u: Tensor,
    k: Tensor,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    pregate: Tensor | None = None,
    postgate: Tensor | None = None,
    circular: bool = False,
) -> Tensor:
    """The long convolution of `monarch_kernels.fft_conv` by torch.fft."""
    if u.dtype == torch.float64:
        k = k.double()
    spectrum = filter_spectrum(k, k_rev, skip, u.shape[-1], circular)
    return fft_conv_spectrum(u, spectrum, pregate, postgate, circular)


def short_conv(
    u: Tensor,
    s: Tensor,
    s_bias: Tensor | None = None,
    causal: bool = True,
    silu: bool = False,
    channels_last: bool = False,
) -> Tensor:
    """The short depthwise convolution of `monarch_kernels.short_conv` by torch's conv1d."""
    dtype, (channels, taps) = _computed(u.dtype), s.shape
    x = (u.transpose(1, 2) if channels_last else u).to(dtype)
    s, s_bias = s.to(dtype), None if s_bias is None else s_bias.to(dtype)
    left = taps - 1 if causal else (taps - 1) // 2
    if x.numel() == 0:  # conv1d refuses to have no groups
        c = x * s[:, :1] if s_bias is None else x * s[:, :1] + s_bias.unsqueeze(-1)
    else:
        x = pad(x, (left, taps - 1 - left))
        device = x.device.type if x.device.type in ("cpu", "cuda") else "cpu"
        with torch.autocast(device, enabled=False):  # it would cast x back to 16 bits
            c = conv1d(x, s.unsqueeze(1), s_bias, groups=channels)
    y = (torch_silu(c) if silu else c).to(u.dtype)
    return y.transpose(1, 2).contiguous() if channels_last else y


def mixer_conv(
    q: Tensor,
    k: Tensor,
    s: Tensor | None = None,
    s_bias: Tensor | None = None,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    u: Tensor | None = None,
    k2: Tensor | None = None,
    k2_rev: Tensor | None = None,
    skip2: Tensor | None = None,
) -> Tensor:
    """`monarch_kernels.mixer_conv` by conv1d and torch.fft; k and k2 may be their spectra."""
    dtype, length = _computed(q.dtype), q.shape[-1]

    def spectrum(k: Tensor, k_rev: Tensor | None, skip: Tensor | None) -> Tensor:
        return k if k.is_complex() else filter_spectrum(k.to(dtype), k_rev, skip, length, False)

    c = q.to(dtype) if s is None else short_conv(q.to(dtype), s, s_bias)
    x1, x2, v = c.chunk(3, dim=1)
    z = fft_conv_spectrum(v, spectrum(k, k_rev, skip), x1, x2, False)
    if u is not None:
        residual = spectrum(k2, k2_rev, skip2)
        z = z + fft_conv_spectrum(u.to(dtype), residual, None, None, False)
    return z.to(q.dtype)


def _without_autocast(function):
    """Autocast would compute in 16 bits what is to be exact; the public functions have cast."""

    @functools.wraps(function)
    def call(x, *args, **kwargs):
        if not torch.is_autocast_enabled(x.device.type if x.device.type == "cuda" else "cpu"):
            return function(x, *args, **kwargs)
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args, **kwargs)

    return call


def _blocks(x: Tensor, w: Tensor) -> Tensor:
    """x (..., n) @ blocks (P, q, c): (..., P * q), x padded with zeros to P * c."""
    p, q, c = w.shape
    x = pad(x, (0, p * c - x.shape[-1])).reshape(-1, p, c)
    return torch.einsum("tpc,pqc->tpq", x, w).reshape(-1, p * q)


@_without_autocast
def block_diagonal(x: Tensor, w: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """`monarch_kernels.block_diagonal` as an einsum."""
    dtype = _computed(x.dtype)
    y = _blocks(x.to(dtype), w.to(dtype))[:, :out_features]
    y = y if bias is None else y + bias.to(dtype)
    return y.to(x.dtype).reshape(*x.shape[:-1], out_features)


@_without_autocast
def projection(x: Tensor, w: Tensor, bias: Tensor | None, channels_first: bool) -> Tensor:
    """`monarch_kernels.projection` as one product, which writes the layout of the result."""
    dtype, given = _computed(x.dtype), x.dtype
    x, w = x.to(dtype), w.to(dtype).expand(x.shape[0], -1, -1)
    left, right = (w, x.transpose(1, 2)) if channels_first else (x, w.transpose(1, 2))
    if bias is None:
        return torch.bmm(left, right).to(given)
    bias = bias.to(dtype)
    return torch.baddbmm(bias[:, None] if channels_first else bias, left, right).to(given)


@_without_autocast
def monarch_matmul(
    x: Tensor, w1: Tensor, w2: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    """`monarch_kernels.monarch_matmul` as two einsums with a permutation between."""
    dtype, (blocks, rows, columns) = _computed(x.dtype), w2.shape
    h = _blocks(x.to(dtype), w1.to(dtype)).reshape(-1, columns, blocks)
    y = torch.einsum("lsr,trl->tsl", w2.to(dtype), h).reshape(-1, rows * blocks)
    y = y[:, :out_features]
    y = y if bias is None else y + bias.to(dtype)
    return y.to(x.dtype).reshape(*x.shape[:-1], out_features)


@_without_autocast
def glu_mlp(
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    gated: bool = True,
) -> Tensor:
    """`monarch_kernels.glu_mlp` as einsums, gelu and layer_norm."""
    dtype, width = _computed(x.dtype), x.shape[-1]
    h = _blocks(x.to(dtype), w_in.to(dtype))
    if gated:
        a, b = h.chunk(2, dim=-1)
        h = gelu(a) * b
    else:
        h = gelu(h)
    y = _blocks(h, w_out.to(dtype))[:, :width].reshape(x.shape)
    for t in (bias, residual):
        y = y if t is None else y + t.to(dtype)
    if norm_weight is not None:
        scale, shift = (t if t is None else t.to(dtype) for t in (norm_weight, norm_bias))
        y = layer_norm(y, (width,), scale, shift, eps)
    return y.to(x.dtype)


@_without_autocast
def implicit_filter(
    z: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_hidden: Tensor,
    b_hidden: Tensor,
    w_out: Tensor,
    freq: Tensor,
    deltas: Tensor,
    t: Tensor,
) -> Tensor:
    """`monarch_kernels.implicit_filter`, one network after the other; deltas is (F, H).

    Not as batched products: their rounding may depend on L, and that of the first layers is what
    the frequencies magnify. So the taps of a shorter filter are the first ones of a longer.
    """
    decay = torch.exp(-deltas.abs().unsqueeze(-1) * t)  # (F, H, L)
    filters = []
    for f in range(z.shape[0]):
        a = torch.sin(freq[f] * linear(z[f], w_in[f], b_in[f]))
        for w, b in zip(w_hidden[f].unbind(), b_hidden[f].unbind(), strict=True):
            a = torch.sin(freq[f] * linear(a, w, b))
        filters.append(linear(a, w_out[f]).T)
    return torch.stack(filters) * decay if filters else decay * w_out.sum(-1, keepdim=True)
