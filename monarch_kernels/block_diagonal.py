"""block_diagonal: the product with a block-diagonal matrix, one factor of a Monarch matrix."""

import torch
from torch import Tensor

from monarch_kernels import backends, contract, reference


def block_diagonal(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multiply P contiguous blocks of the last dimension of x, each with a matrix of its own.

    y[..., p q + i] = bias[p q + i] + sum_j w[p, i, j] x[..., p c + j] for w of shape (P, q, c):

        torch.einsum("...pc,pqc->...pq", x.unflatten(-1, (P, c)), w).flatten(-2) + bias

    A width that P does not divide follows the rule of M2-BERT's BlockdiagLinear: blocks have
    ceil(n / P) columns and ceil(out_features / P) rows, x reads as zero beyond n, and the result is
    cropped to `out_features`. Sums are float32 for all dtypes but float64. A row of the result does
    not depend on the others, nor on the number of threads; up to 8 rows are summed in another order
    than more.

    Args:
        x: `(..., n)`, P (c - 1) < n <= P c; float32, bfloat16 or float16 (float64: reference).
        w: `(P, q, c)`, the dtype of x.
        bias: `(out_features,)`, float32 or the dtype of x.
        out_features: P (q - 1) < out_features <= P q; None for P q.
        backend: "native", "reference", or None for the fastest that can.

    Returns:
        y `(..., out_features)`, contiguous. Under autocast x and w are first cast to its dtype.

    Raises:
        TypeError: not a tensor, or dtypes that are not supported or do not go together.
        ValueError: shapes or devices that do not fit.
        RuntimeError: the backend asked for is not available here or for this input.

    Source: Monarch matrices, arXiv 2204.00595; as a layer, arXiv 2310.12109.
    """
    x, w = contract.autocast(x, w)
    contract.check_rows("x", x)
    contract.check_weight("w", w, "P, q, c", x)
    blocks, rows, columns = w.shape
    contract.check_width("x", x.shape[-1], "w", blocks, columns)
    out_features = contract.check_out_features(out_features, "w", blocks, rows)
    if bias is not None:
        contract.check_vector("bias", bias, out_features, x)
    if backends.select(backend, x, "block_diagonal") == "reference":
        return reference.block_diagonal(x, w, bias, out_features)
    bias = bias if bias is None else bias.to(torch.float32).contiguous()
    if x.dim() == 2:  # saves two views: a tenth of a call with one row
        return _fwd(x, w, bias, out_features)
    y = _fwd(x.reshape(-1, x.shape[-1]), w, bias, out_features)
    return y.view(*x.shape[:-1], out_features)


# ---- The registered operators
# Implemented in csrc/torch/block_diagonal{,_cuda}.cpp. x is (rows, n), bias float32. The backward
# returns an empty tensor for each gradient not wanted.

_lib = torch.library.Library("monarch_kernels", "FRAGMENT")
_tags = (torch.Tag.pt2_compliant_tag,)
_lib.define(
    "block_diagonal_fwd(Tensor x, Tensor w, Tensor? bias, SymInt out_features) -> Tensor",
    tags=_tags,
)
_lib.define(
    "block_diagonal_bwd(Tensor dy, Tensor x, Tensor w, bool need_x, bool need_w, bool need_bias)"
    " -> (Tensor, Tensor, Tensor)",
    tags=_tags,
)
_fwd = torch.ops.monarch_kernels.block_diagonal_fwd.default
_bwd = torch.ops.monarch_kernels.block_diagonal_bwd.default


@torch.library.register_fake("monarch_kernels::block_diagonal_fwd", lib=_lib)
def _(x, w, bias, out_features):
    contract.check_one_device("block_diagonal", x, w, bias)
    return x.new_empty(x.shape[0], out_features)


@torch.library.register_fake("monarch_kernels::block_diagonal_bwd", lib=_lib)
def _(dy, x, w, need_x, need_w, need_bias):
    contract.check_one_device("block_diagonal", dy, x, w)
    return (
        x.new_empty(x.shape if need_x else (0,)),
        w.new_empty(w.shape if need_w else (0,)),
        x.new_empty((dy.shape[1],) if need_bias else (0,), dtype=torch.float32),
    )


def _setup_fwd(ctx, inputs, output):
    x, w, _, _ = inputs
    ctx.save_for_backward(x, w)


def _backward_fwd(ctx, dy):
    needs = ctx.needs_input_grad[:3]
    grads = _bwd(dy, *ctx.saved_tensors, *needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), None)


def _setup_bwd(ctx, inputs, output):
    dy, x, w, *ctx.needs = inputs
    ctx.save_for_backward(dy, x, w)
    ctx.set_materialize_grads(False)


def _backward_bwd(ctx, *cotangents):
    """Derivatives of <dy, f(cx, w) + f(x, cw) + cb>, the form that the backward differentiates."""
    with torch.enable_grad():
        dy, x, w = (contract.alias(t) for t in ctx.saved_tensors)
        given = zip(cotangents, ctx.needs, strict=True)
        cx, cw, cb = (c if need else None for c, need in given)
        terms = []
        if cx is not None:
            terms.append(_fwd(cx.contiguous(), w, None, dy.shape[1]))
        if cw is not None:
            terms.append(_fwd(x, cw.contiguous(), None, dy.shape[1]))
        if cb is not None:
            terms.append(cb.expand(dy.shape))
        if not terms:
            return (None,) * 6
        form = sum((dy.float() * term.float()).sum() for term in terms)
        grads = torch.autograd.grad(form, (dy, x, w), create_graph=True, allow_unused=True)
    return (*grads, None, None, None)


torch.library.register_autograd(
    "monarch_kernels::block_diagonal_fwd", _backward_fwd, setup_context=_setup_fwd, lib=_lib
)
torch.library.register_autograd(
    "monarch_kernels::block_diagonal_bwd", _backward_bwd, setup_context=_setup_bwd, lib=_lib
)
