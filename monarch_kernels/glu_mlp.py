"""glu_mlp: a gated MLP with block-diagonal weights, residual and LayerNorm, in one pass."""

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from monarch_kernels import backends, contract, reference
from monarch_kernels.block_diagonal import block_diagonal


def glu_mlp(
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    gated: bool = True,
    backend: str | None = None,
) -> Tensor:
    """LayerNorm(W_out h + bias + residual), h = gelu(a) * b with a, b the halves of W_in x.

    With `block_diagonal` for both products:

        a, b = block_diagonal(x, w_in).chunk(2, dim=-1)        # a sees the first half of x only
        z = block_diagonal(gelu(a) * b, w_out, bias, out_features=D) + residual
        y = layer_norm(z, (D,), norm_weight, norm_bias, eps)   # without norm_weight, y = z

    gelu is the exact one, x (1 + erf(x / sqrt 2)) / 2. The hidden activations never reach memory:
    the native kernels hold those of a tile of rows in the cache (on CUDA, with float32, few rows or
    blocks wider than 192, those of a part of the rows), and the backward computes them again. While
    a gradient is recorded the normalisation is torch's own, of the fused rest. With bfloat16, h is
    rounded to bfloat16 between the two products.

    Args:
        x: `(..., D)`; float32, bfloat16 or float16 (float64: reference).
        w_in: `(P, 2 I / P, c)` with c = ceil(D / P), the dtype of x; not gated `(P, I / P, c)`.
        w_out: `(P, ceil(D / P), I / P)`, the dtype of x. P must divide I; D is padded with zeros
            and the result cropped, as `block_diagonal` does.
        bias: `(D,)`, float32 or the dtype of x.
        residual: the shape and dtype of x.
        norm_weight, norm_bias: `(D,)`, float32 or the dtype of x.
        eps: added to the variance.
        gated: False for h = gelu(W_in x).
        backend: "native", "reference", or None for the fastest that can.

    Returns:
        y, shape and dtype of x, contiguous. Under autocast x, the weights and the residual are
        first cast to its dtype.

    Raises:
        TypeError, ValueError: arguments that do not fit; dense weights among them.
        RuntimeError: the backend asked for is not available here or for this input.

    Source: the MLP of M2-BERT, arXiv 2310.12109.
    """
    x, w_in, w_out, residual = contract.autocast(x, w_in, w_out, residual)
    _check(x, w_in, w_out, bias, residual, norm_weight, norm_bias, gated)
    eps = float(eps)
    if backends.select(backend, x, "glu_mlp") == "reference":
        return reference.glu_mlp(x, w_in, w_out, bias, residual, norm_weight, norm_bias, eps, gated)
    bias, scale, shift = (
        t if t is None else t.to(torch.float32).contiguous() for t in (bias, norm_weight, norm_bias)
    )
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    added = None if residual is None else residual.reshape(-1, width)
    inputs = (x, w_in, w_out, bias, residual, scale, shift)
    if scale is None or not _recorded(inputs):
        return _fwd(rows, w_in, w_out, bias, added, scale, shift, eps, gated).view(x.shape)
    z = _fwd(rows, w_in, w_out, bias, added, None, None, eps, gated)
    return layer_norm(z.float(), (width,), scale, shift, eps).to(x.dtype).view(x.shape)


def _recorded(tensors) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _check(x, w_in, w_out, bias, residual, norm_weight, norm_bias, gated) -> None:
    contract.check_rows("x", x)
    contract.check_weight("w_in", w_in, "P, 2 I / P, c" if gated else "P, I / P, c", x)
    contract.check_weight("w_out", w_out, "P, ceil(D / P), I / P", x)
    blocks, rows, columns = w_in.shape
    if w_out.shape[0] != blocks:
        raise ValueError(f"w_out has {w_out.shape[0]} blocks, w_in has {blocks}")
    factor = 2 if gated else 1
    if rows != factor * w_out.shape[2]:
        raise ValueError(
            f"w_in has {rows} rows a block, w_out {w_out.shape[2]} columns: expected "
            f"{factor * w_out.shape[2]} rows {'(gated)' if gated else '(not gated)'}"
        )
    width = x.shape[-1]
    contract.check_width("x", width, "w_in", blocks, columns)
    contract.check_width("x", width, "w_out", blocks, w_out.shape[1])
    for name, t in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if t is not None:
            contract.check_vector(name, t, width, x)
    if norm_bias is not None and norm_weight is None:
        raise ValueError("norm_bias is given without norm_weight: nothing is normalised")
    if residual is not None:
        contract.check_rows("residual", residual)
        if residual.shape != x.shape:
            raise ValueError(
                f"residual must have the shape of x {tuple(x.shape)}, got {tuple(residual.shape)}"
            )
        if residual.dtype != x.dtype:
            raise TypeError(f"residual must have the dtype of x ({x.dtype}), got {residual.dtype}")
        contract.check_device("residual", residual, "x", x)


# ---- The registered operators
# Implemented in csrc/torch/glu_mlp{,_cuda}.cpp. x and residual are (rows, D); bias and the norm's
# vectors float32. The backward is that of the products alone, and returns an empty tensor for each
# gradient not wanted.

_lib = torch.library.Library("monarch_kernels", "FRAGMENT")
_tags = (torch.Tag.pt2_compliant_tag,)
_lib.define(
    "glu_mlp_fwd(Tensor x, Tensor w_in, Tensor w_out, Tensor? bias, Tensor? residual, "
    "Tensor? norm_weight, Tensor? norm_bias, float eps, bool gated) -> Tensor",
    tags=_tags,
)
_lib.define(
    "glu_mlp_bwd(Tensor dz, Tensor x, Tensor w_in, Tensor w_out, bool gated, bool need_x, "
    "bool need_w_in, bool need_w_out) -> (Tensor, Tensor, Tensor)",
    tags=_tags,
)
_fwd = torch.ops.monarch_kernels.glu_mlp_fwd.default
_bwd = torch.ops.monarch_kernels.glu_mlp_bwd.default


@torch.library.register_fake("monarch_kernels::glu_mlp_fwd", lib=_lib)
def _(x, w_in, w_out, bias, residual, norm_weight, norm_bias, eps, gated):
    contract.check_one_device("glu_mlp", x, w_in, w_out, bias, residual, norm_weight, norm_bias)
    return x.new_empty(x.shape)


@torch.library.register_fake("monarch_kernels::glu_mlp_bwd", lib=_lib)
def _(dz, x, w_in, w_out, gated, need_x, need_w_in, need_w_out):
    contract.check_one_device("glu_mlp", dz, x, w_in, w_out)
    wanted = ((x, need_x), (w_in, need_w_in), (w_out, need_w_out))
    return tuple(t.new_empty(t.shape if need else (0,)) for t, need in wanted)


def _setup_fwd(ctx, inputs, output):
    x, w_in, w_out, _, _, norm_weight, norm_bias, _, ctx.gated = inputs
    if norm_weight is not None or norm_bias is not None:
        ctx.normalised = True
        return
    ctx.normalised = False
    ctx.save_for_backward(x, w_in, w_out)


def _backward_fwd(ctx, dz):
    if ctx.normalised:
        raise RuntimeError("glu_mlp_fwd has no gradient with a norm: use monarch_kernels.glu_mlp")
    *needs, need_bias, need_residual = ctx.needs_input_grad[:5]
    grads = [None] * 3
    if any(needs):
        grads = _bwd(dz, *ctx.saved_tensors, ctx.gated, *needs)
        grads = [g if need else None for g, need in zip(grads, needs, strict=True)]
    dbias = dz.contiguous().sum(0, dtype=torch.float32) if need_bias else None
    return (*grads, dbias, dz if need_residual else None, *[None] * 4)


def _setup_bwd(ctx, inputs, output):
    *tensors, ctx.gated, need_x, need_w_in, need_w_out = inputs
    ctx.needs = need_x, need_w_in, need_w_out
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward_bwd(ctx, *cotangents):
    """Derivatives of the gradients as autograd records them for the unfused products."""
    given = [c if need else None for c, need in zip(cotangents, ctx.needs, strict=True)]
    if all(c is None for c in given):
        return (None,) * 8
    with torch.enable_grad():
        dz, x, w_in, w_out = (contract.alias(t) for t in ctx.saved_tensors)
        h = block_diagonal(x, w_in)
        if ctx.gated:
            a, b = h.chunk(2, dim=-1)
            h = gelu(a) * b
        else:
            h = gelu(h)
        z = block_diagonal(h, w_out, out_features=x.shape[-1])
        first = torch.autograd.grad(z, (x, w_in, w_out), dz, create_graph=True)
        chosen = [(g, c) for g, c in zip(first, given, strict=True) if c is not None]
        second = torch.autograd.grad(
            [g for g, _ in chosen],
            (dz, x, w_in, w_out),
            [c for _, c in chosen],
            create_graph=True,
            allow_unused=True,
        )
    return (*second, *[None] * 4)


torch.library.register_autograd(
    "monarch_kernels::glu_mlp_fwd", _backward_fwd, setup_context=_setup_fwd, lib=_lib
)
torch.library.register_autograd(
    "monarch_kernels::glu_mlp_bwd", _backward_bwd, setup_context=_setup_bwd, lib=_lib
)
