"""short_conv: a short depthwise convolution along the sequence."""

import torch
from torch import Tensor
from torch.nn.functional import silu as torch_silu

from monarch_kernels import backends, contract, reference

PADDINGS = ("causal", "same")
ACTIVATIONS = (None, "silu")


def short_conv(
    u: Tensor,
    s: Tensor,
    s_bias: Tensor | None = None,
    *,
    padding: str = "causal",
    activation: str | None = None,
    channels_last: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Convolve each channel with a filter of a few taps.

        y[t] = activation( s_bias + sum_j s[j] u[t - left + j] )          zeros outside of 0 .. L-1

    where left is taps - 1 for "causal" padding (the last tap is the present) and (taps - 1) // 2
    for "same": the order of `nn.Conv1d(H, H, taps, groups=H)`'s weight without its middle
    dimension. Arithmetic is float32 (float64 for float64 inputs); the gradients of every tensor
    are deterministic, and the second derivatives exist too. Its time grows with the number of taps;
    for filters as long as the sequence there is `fft_conv`.

    Args:
        u: `(B, H, L)`, or `(B, L, H)` if `channels_last`; 1 <= L <= 4,194,304; float32, bfloat16
            or float16 (float64: reference). Read in place if its last dimension is contiguous.
        s: `(H, taps)`, at least one tap, float32 or u.dtype; more taps than samples are allowed.
        s_bias: `(H,)`.
        padding: "causal" or "same".
        activation: None or "silu", x / (1 + exp(-x)).
        channels_last: the layout of u and of the result.
        backend: "native", "reference", or None for the fastest that can.

    Returns:
        y of the shape and dtype of u, contiguous. Under autocast, u is first cast to autocast's
        dtype; the filter stays as it is.

    Raises:
        TypeError: not a tensor, or a dtype that is not supported or does not go with u's.
        ValueError: shapes or devices that do not fit, an unknown padding or activation.
        RuntimeError: the backend asked for is not available here or for this input.
    """
    if isinstance(u, Tensor):
        (u,) = contract.autocast(u)
    contract.check_input(u, dims="B, L, H" if channels_last else "B, H, L")
    if padding not in PADDINGS:
        raise ValueError(f'padding must be "causal" or "same", got {padding!r}')
    if activation not in ACTIVATIONS:
        raise ValueError(f'activation must be None or "silu", got {activation!r}')
    contract.check_short_filter(s, s_bias, u, u.shape[2 if channels_last else 1])
    options = (padding == "causal", activation == "silu", bool(channels_last))
    if backends.select(backend, u, "short_conv") == "reference":
        return reference.short_conv(u, s, s_bias, *options)
    s, s_bias = contract.float32_filters(s, s_bias)
    return _fwd(u, s, s_bias, *options)


# ---- The registered operators
# Implemented in csrc/torch/short_conv.cpp; s and s_bias are contiguous float32. The backward
# returns an empty tensor for each gradient not wanted.

_lib = torch.library.Library("monarch_kernels", "FRAGMENT")
_tags = (torch.Tag.pt2_compliant_tag,)
_ARGS = "Tensor x, Tensor s, Tensor? s_bias, bool causal, bool silu, bool channels_last"
_lib.define(f"short_conv_fwd({_ARGS}) -> Tensor", tags=_tags)
_lib.define(
    f"short_conv_bwd(Tensor dy, {_ARGS}, bool need_x, bool need_s) -> (Tensor, Tensor, Tensor)",
    tags=_tags,
)
_fwd = torch.ops.monarch_kernels.short_conv_fwd.default
_bwd = torch.ops.monarch_kernels.short_conv_bwd.default


@torch.library.register_fake("monarch_kernels::short_conv_fwd", lib=_lib)
def _(x, s, s_bias, causal, silu, channels_last):
    contract.check_one_device("short_conv", x, s, s_bias)
    return x.new_empty(x.shape)


@torch.library.register_fake("monarch_kernels::short_conv_bwd", lib=_lib)
def _(dy, x, s, s_bias, causal, silu, channels_last, need_x, need_s):
    contract.check_one_device("short_conv", dy, x, s, s_bias)
    return (
        x.new_empty(x.shape if need_x else (0,)),
        contract.fake_filter_gradient(x, s, need_s),
        contract.fake_filter_gradient(x, s_bias, need_s),
    )


def _setup_fwd(ctx, inputs, output):
    x, s, s_bias, *ctx.options = inputs
    ctx.save_for_backward(x, s, s_bias)


def _backward_fwd(ctx, dy):
    need_x, need_s, need_bias, *_ = ctx.needs_input_grad
    needs = need_x, need_s or need_bias
    dx, ds, ds_bias = _bwd(dy, *ctx.saved_tensors, *ctx.options, *needs)
    wanted = (dx if need_x else None, ds if need_s else None, ds_bias if need_bias else None)
    return (*wanted, None, None, None)


def _setup_bwd(ctx, inputs, output):
    *tensors, causal, silu, channels_last, need_x, need_s = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = causal, silu, channels_last
    ctx.needs = need_x, need_s, need_s and tensors[3] is not None
    ctx.set_materialize_grads(False)


def _backward_bwd(ctx, *cotangents):
    """Derivatives of the backward: of the bilinear form that it differentiates.

    Without an activation <c, gradients> = <dy, conv(cx; s) + conv(x; cs) + cbias>, whose gradients
    are short convolutions again. With one, autograd differentiates the gradient of
    activation(conv(x; s) + bias), composed of the two.
    """
    with torch.enable_grad():
        saved = [contract.alias(t) for t in ctx.saved_tensors]
        dy, x, s, s_bias = saved
        causal, silu, channels_last = ctx.options
        given = [c if need else None for c, need in zip(cotangents, ctx.needs, strict=True)]
        if all(c is None for c in given):
            return (None,) * (len(saved) + 5)

        def conv(x, s, s_bias):
            s, s_bias = contract.float32_filters(s, s_bias)  # cotangents may be expanded
            return _fwd(x, s, s_bias, causal, False, channels_last).float()

        if silu:
            pairs = [(t, c) for t, c in zip(saved[1:], given, strict=True) if c is not None]
            y = torch_silu(conv(x.float(), s, s_bias))
            inputs = [t for t, _ in pairs]
            grads = torch.autograd.grad(y, inputs, dy.float(), create_graph=True)
            terms = [(g * c).sum() for g, (_, c) in zip(grads, pairs, strict=True)]
        else:
            cx, cs, cbias = given
            terms = [] if cx is None else [conv(cx, s, None)]
            if cs is not None or cbias is not None:
                terms.append(conv(x, torch.zeros_like(s) if cs is None else cs, cbias))
            terms = [(dy.float() * t).sum() for t in terms]
        wanted = [t for t in saved if t is not None]
        grads = torch.autograd.grad(sum(terms), wanted, create_graph=True, allow_unused=True)
    grads = iter(grads)
    return (*(None if t is None else next(grads) for t in saved), *[None] * 5)


torch.library.register_autograd(
    "monarch_kernels::short_conv_fwd", _backward_fwd, setup_context=_setup_fwd, lib=_lib
)
torch.library.register_autograd(
    "monarch_kernels::short_conv_bwd", _backward_bwd, setup_context=_setup_bwd, lib=_lib
)
