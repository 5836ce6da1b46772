"""implicit_filter: long filters as the values of a sine network of the tap's position."""

import torch
from torch import Tensor

from monarch_kernels import backends, contract, reference


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
    *,
    backend: str | None = None,
) -> Tensor:
    """F filters of H channels and L taps, each the decayed output of a network of the position.

    For each filter f, with the letters of the arguments' shapes (all but deltas and t at f):

        a = sin(freq * (z @ w_in.T + b_in))                          # (L, O)
        for i in range(n):
            a = sin(freq * (a @ w_hidden[i].T + b_hidden[i]))
        k[f] = ((a @ w_out.T) * exp(-abs(deltas) * t[:, None])).T    # (H, L)

    The order of the result is what `fft_conv`, `mixer_conv` and `filter_spectrum` want. All filters
    that share a position's features belong in one call, forward and reverse, and of both
    convolutions of a layer. Gradients exist for all tensors but t, are deterministic and the same
    for any number of threads; second derivatives are composed of torch's operators. Only the
    arguments are saved: the backward computes the network again, and neither direction ever holds
    the activations of more than a tile of positions.

    Args:
        z: `(F, L, E)`, features of the positions; float32 (float64: reference). Any strides: one
            z for all filters is `z.expand(F, -1, -1)`.
        w_in, b_in: `(F, O, E)`, `(F, O)`, the first layer; dtype and device of z, as all others.
        w_hidden, b_hidden: `(F, n, O, O)`, `(F, n, O)`, n >= 0 layers more.
        w_out: `(F, H, O)`, the last layer, which has no bias.
        freq: `(F, O)`, the frequency of each unit, of all layers.
        deltas: `(F, H)` or `(H,)`, the rate of each channel's decay; its sign does not matter.
        t: `(L,)`, the time of each position, without a gradient.
        backend: "native", "reference", or None for the fastest that can.

    Returns:
        k `(F, H, L)`, dtype of z, contiguous. Autocast changes nothing: in 16 bits neighbouring
        positions are one, and the frequencies magnify what is lost.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: shapes or devices that do not fit; t that requires a gradient.
        RuntimeError: the backend asked for is not available here or for this input.

    Source: Hyena (arXiv 2302.10866), appendix D.3; M2-BERT, class HyenaFilter.
    """
    deltas = _check(z, w_in, b_in, w_hidden, b_hidden, w_out, freq, deltas, t)
    arguments = (z, w_in, b_in, w_hidden, b_hidden, w_out, freq, deltas, t)
    if backends.select(backend, z, "implicit_filter") == "reference":
        return reference.implicit_filter(*arguments)
    return _fwd(*arguments)


def _check(z, w_in, b_in, w_hidden, b_hidden, w_out, freq, deltas, t) -> Tensor:
    """Return deltas as (F, H)."""
    contract.check_input(z, "z", "F, L, E")
    if z.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"z must be float32 or float64, got {str(z.dtype)[6:]}")
    contract.check_tensor("w_in", w_in, "F, O, E")
    contract.check_tensor("w_hidden", w_hidden, "F, n, O, O")
    contract.check_tensor("w_out", w_out, "F, H, O")
    sizes = dict(zip("FLE", z.shape, strict=True))
    sizes |= {"O": w_in.shape[1], "n": w_hidden.shape[1], "H": w_out.shape[1]}
    for letter, name in (("E", "z"), ("O", "w_in"), ("H", "w_out")):
        if sizes[letter] < 1:
            raise ValueError(f"{name} must have {letter} >= 1, got {letter} = {sizes[letter]}")
    flat = isinstance(deltas, Tensor) and deltas.dim() == 1
    for name, x, dims in (
        ("w_in", w_in, "F, O, E"),
        ("b_in", b_in, "F, O"),
        ("w_hidden", w_hidden, "F, n, O, O"),
        ("b_hidden", b_hidden, "F, n, O"),
        ("w_out", w_out, "F, H, O"),
        ("freq", freq, "F, O"),
        ("deltas", deltas, "H," if flat else "F, H"),
        ("t", t, "L,"),
    ):
        contract.check_sizes(name, x, dims, sizes, z, "z")
    if t.requires_grad:
        raise ValueError("t must not require a gradient, which implicit_filter does not compute")
    return deltas.expand(sizes["F"], -1) if flat else deltas


# ---- The registered operators
# Implemented in csrc/torch/implicit_filter.cpp. The backward returns an empty tensor for each
# gradient not wanted; those of weights, biases and frequencies are wanted together.

_lib = torch.library.Library("monarch_kernels", "FRAGMENT")
_tags = (torch.Tag.pt2_compliant_tag,)
_ARGS = (
    "Tensor z, Tensor w_in, Tensor b_in, Tensor w_hidden, Tensor b_hidden, Tensor w_out, "
    "Tensor freq, Tensor deltas, Tensor t"
)
_lib.define(f"implicit_filter_fwd({_ARGS}) -> Tensor", tags=_tags)
_lib.define(
    f"implicit_filter_bwd(Tensor dk, {_ARGS}, bool need_z, bool need_weights, bool need_deltas) "
    f"-> ({', '.join(['Tensor'] * 8)})",
    tags=_tags,
)
_fwd = torch.ops.monarch_kernels.implicit_filter_fwd.default
_bwd = torch.ops.monarch_kernels.implicit_filter_bwd.default


@torch.library.register_fake("monarch_kernels::implicit_filter_fwd", lib=_lib)
def _(z, *others):
    contract.check_one_device("implicit_filter", z, *others)
    return z.new_empty(z.shape[0], others[4].shape[1], z.shape[1])


@torch.library.register_fake("monarch_kernels::implicit_filter_bwd", lib=_lib)
def _(dk, *arguments):
    tensors, needs = arguments[:9], arguments[9:]
    contract.check_one_device("implicit_filter", dk, *tensors)
    wanted = _each(*needs)
    return tuple(
        dk.new_empty(t.shape if need else (0,)) for t, need in zip(tensors, wanted, strict=False)
    )


def _each(need_z: bool, need_weights: bool, need_deltas: bool) -> tuple[bool, ...]:
    """Whether each tensor's gradient is computed."""
    return (need_z, *[need_weights] * 6, need_deltas)


def _setup_fwd(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward_fwd(ctx, dk):
    need = ctx.needs_input_grad
    if need[8]:
        raise RuntimeError("implicit_filter has no gradient for t")
    grads = _bwd(dk, *ctx.saved_tensors, need[0], any(need[1:7]), need[7])
    return (*(g if wanted else None for g, wanted in zip(grads, need, strict=False)), None)


def _setup_bwd(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:10])
    ctx.needs = _each(*inputs[10:])
    ctx.set_materialize_grads(False)


def _backward_bwd(ctx, *cotangents):
    """Derivatives of the backward, by autograd of the composed network in float32."""
    with torch.enable_grad():
        dk, *tensors, t = (contract.alias(x) for x in ctx.saved_tensors)
        chosen = [
            (x, c)
            for x, c, need in zip(tensors, cotangents, ctx.needs, strict=True)
            if need and c is not None
        ]
        if not chosen:
            return (None,) * 13
        k = reference.implicit_filter(*tensors, t)
        inputs = [x for x, _ in chosen]
        # Without hidden layers, k does not depend on their weights.
        first = torch.autograd.grad(k, inputs, dk, create_graph=True, allow_unused=True)
        used = [(g, c) for g, (_, c) in zip(first, chosen, strict=True) if g is not None]
        second = torch.autograd.grad(
            [g for g, _ in used],
            (dk, *tensors),
            [c for _, c in used],
            create_graph=True,
            allow_unused=True,
        )
    return (*second, *[None] * 4)


torch.library.register_autograd(
    "monarch_kernels::implicit_filter_fwd", _backward_fwd, setup_context=_setup_fwd, lib=_lib
)
torch.library.register_autograd(
    "monarch_kernels::implicit_filter_bwd", _backward_bwd, setup_context=_setup_bwd, lib=_lib
)
