"""mixer_conv: the sequence mixer of M2-BERT between its projections, as one operator."""

import torch
from torch import Tensor

from monarch_kernels import backends, contract, reference
from monarch_kernels.spectrum import FilterSpectrum, check_spectrum

MAX_TAPS = 8


def mixer_conv(
    q: Tensor,
    k: Tensor | FilterSpectrum,
    *,
    s: Tensor | None = None,
    s_bias: Tensor | None = None,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    u: Tensor | None = None,
    k2: Tensor | FilterSpectrum | None = None,
    k2_rev: Tensor | None = None,
    skip2: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Short convolution, gates and two long convolutions: everything between two projections.

        x1, x2, v = split( short_conv(q; s, s_bias) )               three times H channels
        g = x1 * v
        z = x2 * ( conv(g; k, k_rev) + skip g ) + conv(u; k2, k2_rev) + skip2 u

    with the causal short convolution of `short_conv`, c[t] = s_bias + s[0] q[t-taps+1] + ... +
    s[taps-1] q[t], and the long ones of `fft_conv`. Without s there is no short filter, without u
    no residual branch (the last two terms).

    Arithmetic is float32 (float64 for float64 inputs) from the inputs to z, without a rounding
    between them; the gradients of every tensor are deterministic, and the second derivatives exist
    too. The backward computes again what it needs: only the arguments are saved.

    Memory of the native backend on the CPU, beside the result: the filters' spectra (8 bytes per
    channel and sample for each filter; none with a FilterSpectrum or if B is 1); per thread 24
    bytes per sample of one row (52 in the backward; rows of up to 256 samples are done 16 at a
    time) and, if u is read by columns, up to 8 MiB.

    Args:
        q: `(B, 3H, L)`, 1 <= L <= 4,194,304; float32, bfloat16 or float16 (float64: reference).
            Any strides; rows that are contiguous in L are read in place.
        k: `(H, taps)`, taps <= L, float32 or q.dtype; or a FilterSpectrum of length L, which
            includes k_rev and skip.
        s: `(3H, taps)` with 1 to 8 taps, float32 or q.dtype.
        s_bias: `(3H,)`; needs s.
        k_rev: `(H, reverse taps)`, taps <= L: the filter of the elements ahead.
        skip: `(H,)`, the weight of g itself.
        u: `(B, H, L)`, q.dtype, any strides, read in place. The model has it as `(B, L, H)`: pass
            `u.transpose(1, 2)`.
        k2, k2_rev, skip2: the filter of u, as k, k_rev and skip.
        backend: "native", "reference", or None for the fastest that can.

    Returns:
        z `(B, H, L)`, q.dtype, contiguous. Under autocast, q and u are first cast to autocast's
        dtype; the filters stay as they are.

    Raises:
        TypeError: not a tensor, or a dtype that is not supported or does not go with q's.
        ValueError: shapes, lengths or devices that do not fit; a spectrum of another length, of a
            circular filter, or of another backend.
        RuntimeError: the backend asked for is not available here or for this input.

    Source: M2-BERT (arXiv 2402.07440), class MonarchMixerSequenceMixing; passes and transforms are
    counted in docs/math.md.
    """
    if isinstance(q, Tensor):
        q, u = contract.autocast(q, u)
    channels = _check_activations(q, u, k2)
    if s is not None:
        contract.check_short_filter(s, s_bias, q, 3 * channels, name="q", dims="3H", most=MAX_TAPS)
    elif s_bias is not None:
        raise ValueError("s_bias needs s: without a short filter there is nothing to add it to")
    chosen = _check_filters(q, channels, (k, k_rev, skip), (k2, k2_rev, skip2), backend)
    if chosen == "reference":
        k, k2 = (t.data if isinstance(t, FilterSpectrum) else t for t in (k, k2))
        return reference.mixer_conv(q, k, s, s_bias, k_rev, skip, u, k2, k2_rev, skip2)
    s, s_bias = contract.float32_filters(s, s_bias)
    filters = _filter_arguments(k, k_rev, skip), _filter_arguments(k2, k2_rev, skip2)
    return _fwd(q, s, s_bias, *filters[0], u, *filters[1])


def _check_activations(q, u, k2) -> int:
    """Return H."""
    contract.check_input(q, "q", "B, 3H, L")
    batch, rows, length = q.shape
    if rows % 3 != 0:
        raise ValueError(f"q must have 3 H channels (x1, x2 and v), got {rows}")
    channels = rows // 3
    if u is None:
        if k2 is not None:
            raise ValueError("k2 needs u, the input of the residual branch")
        return channels
    contract.check_tensor("u", u, "B, H, L")
    if tuple(u.shape) != (batch, channels, length):
        raise ValueError(
            f"u must have the shape of z {(batch, channels, length)}, got {tuple(u.shape)}"
        )
    if u.dtype != q.dtype:
        raise TypeError(f"u must have the dtype of q ({q.dtype}), got {u.dtype}")
    contract.check_device("u", u, "q", q)
    if k2 is None:
        raise ValueError("u needs k2, the filter of the residual branch")
    return channels


def _check_filters(q, channels, filters, filters2, backend) -> str:
    """Return the backend that runs."""
    asked = backend
    for names, (k, k_rev, skip) in (
        (("k", "k_rev", "skip"), filters),
        (("k2", "k2_rev", "skip2"), filters2),
    ):
        parts = dict(zip(names[1:], (k_rev, skip), strict=True))
        if k is None and names[0] == "k2":
            for name, t in parts.items():
                if t is not None:
                    raise ValueError(f"{name} needs k2, the filter of the residual branch")
        elif isinstance(k, FilterSpectrum):
            if k.circular:
                raise ValueError(f"{names[0]} is a FilterSpectrum of a circular filter")
            check_spectrum(
                *(k, q, channels, parts, asked),
                **{"name": names[0], "other": "q", "operator": "mixer_conv", "precision": "exact"},
            )
            asked = k.backend
        else:
            contract.check_filter_for(q, channels, (k, k_rev, skip), name="q", names=names)
    return backends.select(asked, q, "mixer_conv")


def _filter_arguments(k, k_rev, skip) -> tuple[Tensor | None, ...]:
    """(k, k_rev, skip, spectrum) of the registered operators."""
    if isinstance(k, FilterSpectrum):
        return None, None, None, k.data
    return *contract.float32_filters(k, k_rev, skip), None


# ---- The registered operators
# Implemented in csrc/torch/mixer_conv.cpp. Exactly one of k and spectrum is given, and with u one
# of k2 and spectrum2; filters are contiguous float32. The backward returns an empty tensor for each
# gradient not wanted.

_lib = torch.library.Library("monarch_kernels", "FRAGMENT")
_tags = (torch.Tag.pt2_compliant_tag,)
_ARGS = (
    "Tensor q, Tensor? s, Tensor? s_bias, Tensor? k, Tensor? k_rev, Tensor? skip, "
    "Tensor? spectrum, Tensor? u, Tensor? k2, Tensor? k2_rev, Tensor? skip2, Tensor? spectrum2"
)
_lib.define(f"mixer_conv_fwd({_ARGS}) -> Tensor", tags=_tags)
_lib.define(
    f"mixer_conv_bwd(Tensor dz, {_ARGS}, bool need_q, bool need_s, bool need_filter, bool need_u, "
    f"bool need_filter2) -> ({', '.join(['Tensor'] * 10)})",
    tags=_tags,
)
_fwd = torch.ops.monarch_kernels.mixer_conv_fwd.default
_bwd = torch.ops.monarch_kernels.mixer_conv_bwd.default
_SPECTRA = (6, 11)  # among the tensors of _ARGS


@torch.library.register_fake("monarch_kernels::mixer_conv_fwd", lib=_lib)
def _(q, *others):
    contract.check_one_device("mixer_conv", q, *others)
    return q.new_empty(q.shape[0], q.shape[1] // 3, q.shape[2])


@torch.library.register_fake("monarch_kernels::mixer_conv_bwd", lib=_lib)
def _(dz, *arguments):
    tensors, needs = arguments[:12], arguments[12:]
    contract.check_one_device("mixer_conv", dz, *tensors)
    q, s, s_bias, k, k_rev, skip, _, u, k2, k2_rev, skip2, _ = tensors
    need_q, need_s, need_filter, need_u, need_filter2 = needs

    def filters(wanted, *given):
        return (contract.fake_filter_gradient(q, t, wanted) for t in given)

    return (
        q.new_empty(q.shape if need_q else (0,)),
        *filters(need_s, s, s_bias),
        *filters(need_filter, k, k_rev, skip),
        q.new_empty(u.shape if need_u and u is not None else (0,)),
        *filters(need_filter2, k2, k2_rev, skip2),
    )


def _setup_fwd(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward_fwd(ctx, dz):
    need = ctx.needs_input_grad
    if any(need[i] for i in _SPECTRA):
        raise RuntimeError("a spectrum has no gradient: pass the filter itself to mixer_conv")
    needs = (need[0], any(need[1:3]), any(need[3:6]), need[7], any(need[8:11]))
    dq, ds, ds_bias, dk, dk_rev, dskip, du, dk2, dk2_rev, dskip2 = _bwd(
        dz, *ctx.saved_tensors, *needs
    )
    grads = (dq, ds, ds_bias, dk, dk_rev, dskip, None, du, dk2, dk2_rev, dskip2, None)
    return tuple(g if wanted else None for g, wanted in zip(grads, need, strict=True))


def _setup_bwd(ctx, inputs, output):
    tensors, needs = inputs[:13], inputs[13:]
    ctx.save_for_backward(*tensors)
    need_q, need_s, need_filter, need_u, need_filter2 = needs
    wanted = (need_q, *[need_s] * 2, *[need_filter] * 3, need_u, *[need_filter2] * 3)
    of = [t for i, t in enumerate(tensors[1:]) if i not in _SPECTRA]
    ctx.needs = tuple(w and t is not None for w, t in zip(wanted, of, strict=True))
    ctx.set_materialize_grads(False)


def _backward_bwd(ctx, *cotangents):
    """Derivatives of the backward, by autograd of the composed operators in float32."""
    with torch.enable_grad():
        saved = [contract.alias(t) for t in ctx.saved_tensors]
        for i in _SPECTRA:  # constants
            saved[i + 1] = ctx.saved_tensors[i + 1]
        dz, *tensors = saved
        differentiable = [t for i, t in enumerate(tensors) if i not in _SPECTRA]
        pairs = [
            (t, c)
            for t, c, need in zip(differentiable, cotangents, ctx.needs, strict=True)
            if need and c is not None
        ]
        if not pairs:
            return (None,) * (len(saved) + 5)
        z = _composed(*tensors)
        inputs = [t for t, _ in pairs]
        grads = torch.autograd.grad(z, inputs, dz.float(), create_graph=True)
        form = sum((g.float() * c.float()).sum() for g, (_, c) in zip(grads, pairs, strict=True))
        wanted = [t for t in (dz, *differentiable) if t is not None]
        found = torch.autograd.grad(form, wanted, create_graph=True, allow_unused=True)
    found = iter(found)
    grads = (None if t is None or i - 1 in _SPECTRA else next(found) for i, t in enumerate(saved))
    return (*grads, *[None] * 5)


def _composed(q, s, s_bias, k, k_rev, skip, spectrum, u, k2, k2_rev, skip2, spectrum2) -> Tensor:
    """mixer_conv in float32 by the operators whose every derivative is known."""
    ops = torch.ops.monarch_kernels
    c = q.float()
    if s is not None:
        c = ops.short_conv_fwd(c, s, s_bias, True, False, False)
    x1, x2, v = c.chunk(3, dim=1)
    z = ops.fft_conv_fwd(v, k, k_rev, skip, spectrum, x1, x2, False)
    if u is None:
        return z
    return z + ops.fft_conv_fwd(u.float(), k2, k2_rev, skip2, spectrum2, None, None, False)


torch.library.register_autograd(
    "monarch_kernels::mixer_conv_fwd", _backward_fwd, setup_context=_setup_fwd, lib=_lib
)
torch.library.register_autograd(
    "monarch_kernels::mixer_conv_bwd", _backward_bwd, setup_context=_setup_bwd, lib=_lib
)
