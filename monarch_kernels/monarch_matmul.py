"""monarch_matmul: two block-diagonal factors with a permutation between, and its dense matrix."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from monarch_kernels import backends, contract, reference
from monarch_kernels.block_diagonal import _bwd as _block_diagonal_bwd
from monarch_kernels.block_diagonal import block_diagonal


def monarch_matmul(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multiply by a Monarch matrix: block-diagonal w1, a permutation, block-diagonal w2.

    For w1 (k, q, p) and w2 (l, s, r) with l r = k q, and x (..., k p):

        h = torch.einsum("kqp,...kp->...kq", w1, x.unflatten(-1, (k, p))).flatten(-2)
        y = torch.einsum("lsr,...rl->...sl", w2, h.unflatten(-1, (r, l))).flatten(-2) + bias

    so that block i of w2 sees every l-th element of h, from i on, and writes every l-th element of
    y. The permutation is a stride of the native kernel's second product, never a copy. A width
    that k does not divide is padded with zeros to k p, the result cropped to `out_features`.
    With bfloat16, h is rounded to bfloat16 between the two products.

    Args:
        x: `(..., n)`, k (p - 1) < n <= k p; float32, bfloat16 or float16 (float64: reference).
        w1: `(k, q, p)`, the dtype of x.
        w2: `(l, s, r)`, the dtype of x.
        bias: `(out_features,)`, float32 or the dtype of x.
        out_features: l (s - 1) < out_features <= l s; None for l s.
        backend: "native", "reference", or None for the fastest that can.

    Returns:
        y `(..., out_features)`, contiguous. Under autocast x and the factors are first cast.

    Raises:
        TypeError, ValueError: arguments that do not fit, or factors that do not chain.
        RuntimeError: the backend asked for is not available here or for this input.

    Source: arXiv 2204.00595; the order of indices is that of fly's `blockdiag_butterfly_multiply`.
    """
    x, w1, w2 = contract.autocast(x, w1, w2)
    contract.check_rows("x", x)
    contract.check_weight("w1", w1, "k, q, p", x)
    contract.check_weight("w2", w2, "l, s, r", x)
    _check_chain(w1, w2)
    contract.check_width("x", x.shape[-1], "w1", w1.shape[0], w1.shape[2])
    out_features = contract.check_out_features(out_features, "w2", w2.shape[0], w2.shape[1])
    if bias is not None:
        contract.check_vector("bias", bias, out_features, x)
    if backends.select(backend, x, "monarch_matmul") == "reference":
        return reference.monarch_matmul(x, w1, w2, bias, out_features)
    bias = bias if bias is None else bias.to(torch.float32).contiguous()
    y = _fwd(x.reshape(-1, x.shape[-1]), w1, w2, bias, out_features)
    return y.view(*x.shape[:-1], out_features)


def _check_chain(w1: Tensor, w2: Tensor) -> None:
    (k, q, _), (blocks, _, r) = w1.shape, w2.shape
    if k * q != blocks * r:
        raise ValueError(
            f"w2 takes {blocks} x {r} = {blocks * r} values (shape {tuple(w2.shape)}), "
            f"w1 makes {k} x {q} = {k * q} (shape {tuple(w1.shape)})"
        )


def to_dense(w1: Tensor, w2: Tensor) -> Tensor:
    """Return the matrix M `(s l, k p)` of a Monarch pair: `monarch_matmul(x, w1, w2) = x @ M.T`.

    Raises:
        TypeError, ValueError: as `monarch_matmul`.
    """
    contract.check_weight("w1", w1, "k, q, p", w1)
    contract.check_weight("w2", w2, "l, s, r", w1)
    _check_chain(w1, w2)
    width = w1.shape[0] * w1.shape[2]
    identity = torch.eye(width, dtype=w1.dtype, device=w1.device)
    return reference.monarch_matmul(identity, w1, w2, None, w2.shape[0] * w2.shape[1]).t()


def project_to_monarch(
    dense: Tensor, *, blocks_in: int, blocks_out: int, rank: int = 1
) -> tuple[Tensor, Tensor]:
    """Return (w1, w2), the Monarch matrix nearest to `dense` in the Frobenius norm.

    A Monarch matrix with k = blocks_in, l = blocks_out and h of width k l rank is, seen as k l
    matrices `dense[s l + i, j p + .]` of shape (s, p), any matrix whose (i, j) part has rank at
    most `rank`. So the nearest one has the truncated singular value decomposition of each part; the
    singular values are divided evenly between w1 and w2.

    Args:
        dense: `(m, n)`, y = dense x; blocks_out must divide m, blocks_in must divide n. Computed in
            float32 (float64 for float64).
        blocks_in: k, blocks of w1.
        blocks_out: l, blocks of w2.
        rank: of each part; at most min(m / l, n / k).

    Returns:
        w1 `(k, l rank, n / k)` and w2 `(l, m / l, k rank)`, the dtype of dense.

    Raises:
        TypeError, ValueError: not a matrix, or sizes that do not fit.

    Source: Monarch matrices, arXiv 2204.00595, section 3.3 (projection).
    """
    contract.check_tensor("dense", dense, "m, n")
    (m, n), k, out = dense.shape, blocks_in, blocks_out
    for name, count, of, size in (("blocks_in", k, "n", n), ("blocks_out", out, "m", m)):
        if not isinstance(count, int) or count < 1 or size < 1 or size % count:
            raise ValueError(f"{name} must divide {of} = {size}, got {count!r}")
    s, p = m // out, n // k
    if not isinstance(rank, int) or not 1 <= rank <= min(s, p):
        raise ValueError(f"rank must be from 1 to min(m / l, n / k) = {min(s, p)}, got {rank!r}")
    exact = torch.float64 if dense.dtype == torch.float64 else torch.float32
    parts = dense.to(exact).reshape(s, out, k, p).permute(1, 2, 0, 3)  # (l, k, s, p)
    left, values, right = torch.linalg.svd(parts, full_matrices=False)
    root = values[..., :rank].sqrt()
    left = left[..., :rank] * root.unsqueeze(-2)  # (l, k, s, rank)
    right = right[..., :rank, :] * root.unsqueeze(-1)  # (l, k, rank, p)
    # Row (j; a, i) of h, with i fastest, is element (r = (j, a), l = i) of what w2 reads.
    w1 = right.permute(1, 2, 0, 3).reshape(k, rank * out, p)
    w2 = left.permute(0, 2, 1, 3).reshape(out, s, k * rank)
    return w1.to(dense.dtype), w2.to(dense.dtype)


# ---- The registered operator
# Implemented in csrc/torch/monarch_matmul{,_cuda}.cpp. x is (rows, n), bias float32.

_lib = torch.library.Library("monarch_kernels", "FRAGMENT")
_tags = (torch.Tag.pt2_compliant_tag,)
_lib.define(
    "monarch_matmul_fwd(Tensor x, Tensor w1, Tensor w2, Tensor? bias, SymInt out_features)"
    " -> Tensor",
    tags=_tags,
)
_fwd = torch.ops.monarch_kernels.monarch_matmul_fwd.default


@torch.library.register_fake("monarch_kernels::monarch_matmul_fwd", lib=_lib)
def _(x, w1, w2, bias, out_features):
    contract.check_one_device("monarch_matmul", x, w1, w2, bias)
    return x.new_empty(x.shape[0], out_features)


def _setup_fwd(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])


def _backward_fwd(ctx, dy):
    """The gradients by `block_diagonal`, of which this is a composition: differentiable again.

    Here the permutation is a copy; h is computed again.
    """
    x, w1, w2 = ctx.saved_tensors
    need_x, need_w1, need_w2, need_bias, _ = ctx.needs_input_grad
    blocks, s, r = w2.shape
    dx = dw1 = dw2 = None
    if need_x or need_w1 or need_w2:
        dy_blocks = pad(dy, (0, blocks * s - dy.shape[1])).unflatten(1, (s, blocks)).mT.flatten(1)
    if need_x or need_w1:
        dh = block_diagonal(dy_blocks, w2.mT).unflatten(1, (blocks, r)).mT.flatten(1)
        dx, dw1, _ = _block_diagonal_bwd(dh, x, w1, need_x, need_w1, False)
    if need_w2:
        h = block_diagonal(x, w1).unflatten(1, (r, blocks)).mT.flatten(1)
        _, dw2, _ = _block_diagonal_bwd(dy_blocks, h, w2, False, True, False)
    dbias = dy.contiguous().sum(0, dtype=torch.float32) if need_bias else None
    return dx if need_x else None, dw1 if need_w1 else None, dw2, dbias, None


torch.library.register_autograd(
    "monarch_kernels::monarch_matmul_fwd", _backward_fwd, setup_context=_setup_fwd, lib=_lib
)
