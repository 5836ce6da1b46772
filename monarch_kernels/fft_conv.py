"""fft_conv: long convolution with fused gates and skip."""

import torch
from torch import Tensor

from monarch_kernels import _native, backends, contract, reference
from monarch_kernels.spectrum import FilterSpectrum, check_spectrum


def fft_conv(
    u: Tensor,
    k: Tensor | FilterSpectrum,
    *,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    pregate: Tensor | None = None,
    postgate: Tensor | None = None,
    circular: bool = False,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor:
    """Convolve each channel with a filter as long as the sequence, gates and skip fused.

    With g = pregate * u,

        y[t] = postgate[t] * ( sum_{j=0..t} k[j] g[t-j] + sum_{j>=0} k_rev[j] g[t+1+j] + skip g[t] )

    (k_rev[0] multiplies the next element), or for `circular` the sum over one period of L,
    y[t] = postgate[t] * ( sum_j k[j] g[(t-j) mod L] + skip g[t] ). The causal case equals
    `irfft(rfft(g, n=2*L) * rfft(k, n=2*L))[..., :L]`. Arithmetic is float32 (float64 for float64
    inputs), accurate to float32 rounding, unless `precision` lets a GPU do less; the gradients of
    every tensor are deterministic, and the second derivatives exist too.

    Memory of the native backend on the CPU, beside the result: the filter's spectrum (8 bytes per
    channel and sample, none with a FilterSpectrum), per thread 13 bytes per sample of one row (29
    in the backward; rows of up to 256 samples are done 16 at a time), and once per process and size
    of transform a table of 8 bytes per sample.

    On a GPU the kernels run on torch's current stream and wait for nothing, so that a CUDA graph
    can capture forward and backward. Beside the spectrum, the backward and rows of more than 16,384
    samples need scratch memory, which comes from torch's allocator.

    Args:
        u: `(B, H, L)`, 1 <= L <= 4,194,304; float32, bfloat16 or float16 (float64: reference).
            Any strides; rows that are contiguous in L are read in place.
        k: `(H, taps)`, taps <= L, float32 or u.dtype; or a FilterSpectrum of length L, which
            includes k_rev, skip and circular.
        k_rev: `(H, reverse taps)`, taps <= L: the filter of the elements ahead. Not with circular.
        skip: `(H,)`, the weight of the input itself.
        pregate, postgate: `(B, H, L)`, u.dtype.
        circular: period L instead of zeros outside of the sequence.
        backend: "native", "reference", or None for the fastest that can.
        precision: the least accuracy asked for, which is where tensor cores of a GPU may be used
            for 16-bit u: "fast" (default for bfloat16), at most 1.1 times the error of rounding y
            to bfloat16; "high" (default for float16), 1.05 times that of rounding to float16;
            "exact", float32 arithmetic. What has no faster kernels is exact: every precision on a
            CPU, of the reference and of float32 and float64 u. None with a FilterSpectrum is the
            precision it was made for. docs/numerics.md has the errors.

    Returns:
        y `(B, H, L)`, u.dtype, contiguous. Under autocast, u and the gates are first cast to
        autocast's dtype; the filters stay as they are.

    Raises:
        TypeError: not a tensor, or a dtype that is not supported or does not go with u's.
        ValueError: shapes, lengths or devices that do not fit; an unknown precision, or on a GPU
            another one than that of the FilterSpectrum.
        RuntimeError: the backend asked for is not available here or for this input.

    Source: the bidirectional form is that of M2-BERT (arXiv 2402.07440); the transform is derived
    in docs/math.md.
    """
    if isinstance(u, Tensor):
        u, pregate, postgate = contract.autocast(u, pregate, postgate)
    contract.check_input(u)
    for name, gate in (("pregate", pregate), ("postgate", postgate)):
        if gate is not None:
            contract.check_gate(name, gate, u)
    if isinstance(k, FilterSpectrum):
        parts = {"k_rev": k_rev, "skip": skip, "circular": circular or None}
        if precision is not None:
            contract.precision_for(precision, u.dtype)
        check_spectrum(k, u, u.shape[1], parts, backend, precision=precision)
        if k.backend == "reference":
            return reference.fft_conv_spectrum(u, k.data, pregate, postgate, k.circular)
        number = contract.PRECISIONS[k.precision]
        return _fwd(u, None, None, None, k.data, pregate, postgate, k.circular, number)
    precision = contract.precision_for(precision, u.dtype)
    contract.check_filter_for(u, u.shape[1], (k, k_rev, skip), circular=circular)
    if backends.select(backend, u) == "reference":
        return reference.fft_conv(u, k, k_rev, skip, pregate, postgate, circular)
    k, k_rev, skip = contract.float32_filters(k, k_rev, skip)
    number = contract.PRECISIONS[precision]
    return _fwd(u, k, k_rev, skip, None, pregate, postgate, circular, number)


# ---- The registered operators
# Implemented in csrc/torch/fft_conv.cpp and fft_conv_cuda.cpp. Exactly one of k and spectrum is
# given; k, k_rev and skip are contiguous float32. `precision` is one of contract.PRECISIONS. The
# backward returns an empty tensor for each gradient not wanted.

_lib = torch.library.Library("monarch_kernels", "FRAGMENT")
_tags = (torch.Tag.pt2_compliant_tag,)
_lib.define(
    "filter_spectrum(Tensor k, Tensor? k_rev, Tensor? skip, SymInt length, bool circular, "
    "int precision=0) -> Tensor",
    tags=_tags,
)
_ARGS = (
    "Tensor u, Tensor? k, Tensor? k_rev, Tensor? skip, Tensor? spectrum, "
    "Tensor? pregate, Tensor? postgate, bool circular"
)
_lib.define(f"fft_conv_fwd({_ARGS}, int precision=0) -> Tensor", tags=_tags)
_lib.define(
    f"fft_conv_bwd(Tensor dy, {_ARGS}, bool need_u, bool need_filter, bool need_pregate, "
    "bool need_postgate, int precision=0) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_tags,
)
_fwd = torch.ops.monarch_kernels.fft_conv_fwd.default
_bwd = torch.ops.monarch_kernels.fft_conv_bwd.default


@torch.library.register_fake("monarch_kernels::filter_spectrum", lib=_lib)
def _(k, k_rev, skip, length, circular, precision=0):
    contract.check_one_device("fft_conv", k, k_rev, skip)
    shape = int(k.shape[0]), int(length)
    if k.device.type == "cuda":
        shared = backends.shared_bytes(k.device.index)
        return k.new_empty(_native.host.spectrum_floats(*shape, shared, precision))
    header = 16
    return k.new_empty(header + _native.host.spectrum_floats(*shape))


@torch.library.register_fake("monarch_kernels::fft_conv_fwd", lib=_lib)
def _(u, k, k_rev, skip, spectrum, pregate, postgate, circular, precision=0):
    contract.check_one_device("fft_conv", u, k, k_rev, skip, spectrum, pregate, postgate)
    return u.new_empty(u.shape)


@torch.library.register_fake("monarch_kernels::fft_conv_bwd", lib=_lib)
def _(dy, u, k, k_rev, skip, spectrum, pregate, postgate, circular, need_u, need_filter, *rest):
    contract.check_one_device("fft_conv", dy, u, k, k_rev, skip, spectrum, pregate, postgate)

    def like(t, wanted):
        return t.new_empty(t.shape) if wanted and t is not None else u.new_empty(0)

    return (
        like(u, need_u),
        *(contract.fake_filter_gradient(u, t, need_filter) for t in (k, k_rev, skip)),
        *(like(t, wanted) for t, wanted in zip((pregate, postgate), rest[:2], strict=True)),
    )


def _setup_fwd(ctx, inputs, output):
    *tensors, ctx.circular, ctx.precision = inputs
    ctx.save_for_backward(*tensors)


def _backward_fwd(ctx, dy):
    u, k, k_rev, skip, spectrum, pregate, postgate = ctx.saved_tensors
    need_u, *need_filters, need_spectrum, need_pregate, need_postgate = ctx.needs_input_grad[:7]
    if need_spectrum:
        raise RuntimeError("a spectrum has no gradient: pass the filter itself to fft_conv")
    needs = (need_u, any(need_filters), need_pregate, need_postgate)
    tensors = (dy, u, k, k_rev, skip, spectrum, pregate, postgate)
    grads = _bwd(*tensors, ctx.circular, *needs, ctx.precision)
    du, dk, dk_rev, dskip, dpregate, dpostgate = grads
    wanted = (need_u, *need_filters, False, need_pregate, need_postgate)
    results = (du, dk, dk_rev, dskip, None, dpregate, dpostgate)
    return (*(r if w else None for r, w in zip(results, wanted, strict=True)), None, None)


def _setup_bwd(ctx, inputs, output):
    *tensors, ctx.circular, need_u, need_filter, need_pregate, need_postgate, ctx.precision = inputs
    ctx.save_for_backward(*tensors)
    needs = (need_u, need_filter, need_filter, need_filter, need_pregate, need_postgate)
    of = (*tensors[1:5], *tensors[6:])  # without dy and the spectrum
    ctx.needs = tuple(need and t is not None for need, t in zip(needs, of, strict=True))
    ctx.set_materialize_grads(False)


def _backward_bwd(ctx, *cotangents):
    """Derivatives of the backward, from the bilinear form that it differentiates.

    With d = postgate dy, g = pregate u and w = cu pregate + cpregate u for cotangents c of the
    gradients, <c, gradients> = <d, conv(w; k) + conv(g; ck)> + <cpostgate dy, conv(g; k)>; its
    gradients are again convolutions, differentiable to any order.
    """
    with torch.enable_grad():
        saved = [contract.alias(t) for t in ctx.saved_tensors]
        saved[5] = ctx.saved_tensors[5]  # the spectrum is a constant
        dy, u, k, k_rev, skip, spectrum, pregate, postgate = saved
        given = [c if need else None for c, need in zip(cotangents, ctx.needs, strict=True)]
        cu, ck, ck_rev, cskip, cpregate, cpostgate = given
        if spectrum is not None and any(c is not None for c in (ck, ck_rev, cskip)):
            raise RuntimeError("a spectrum has no gradient: pass the filter itself to fft_conv")

        def conv(x, *filters):
            if filters:
                k_, rev_, skip_ = contract.float32_filters(*filters)  # cotangents may be expanded
                zero = torch.zeros_like(k) if k_ is None else k_
                return _fwd(x, zero, rev_, skip_, *[None] * 3, ctx.circular, ctx.precision)
            return _fwd(x, k, k_rev, skip, spectrum, None, None, ctx.circular, ctx.precision)

        d, g = _times(dy, postgate), _times(u, pregate)
        terms = []
        if cu is not None:
            terms.append((d, conv(_times(cu, pregate))))
        if cpregate is not None:
            terms.append((d, conv(cpregate * u)))
        if any(c is not None for c in (ck, ck_rev, cskip)):
            terms.append((d, conv(g, ck, ck_rev, cskip)))
        if cpostgate is not None:
            terms.append((cpostgate * dy, conv(g)))
        if not terms:
            return (None,) * (len(saved) + 6)
        form = sum((a.float() * b.float()).sum() for a, b in terms)
        wanted = [t for t in saved if t is not None and t is not spectrum]
        grads = torch.autograd.grad(form, wanted, create_graph=True, allow_unused=True)
    grads = iter(grads)
    return (*(None if t is None or t is spectrum else next(grads) for t in saved), *[None] * 6)


def _times(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a * b


torch.library.register_autograd(
    "monarch_kernels::fft_conv_fwd", _backward_fwd, setup_context=_setup_fwd, lib=_lib
)
torch.library.register_autograd(
    "monarch_kernels::fft_conv_bwd", _backward_bwd, setup_context=_setup_bwd, lib=_lib
)
