"""projection: a dense linear map that reads and writes activations in either layout."""

import torch
from torch import Tensor

from monarch_kernels import backends, contract, reference


def projection(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    channels_first: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Multiply each row of x with a dense matrix; rows and features may lie in memory either way.

    y[b, t, i] = bias[i] + sum_j w[i, j] x[b, t, j], of which `channels_first` returns the
    transpose (B, m, L), contiguous:

        torch.nn.functional.linear(x, w, bias)                             # (B, L, m)
        torch.nn.functional.linear(x, w, bias).transpose(1, 2).contiguous()  # channels_first

    Neither direction makes a copy: the two ends of `mixer_conv` are
    `projection(u, w, bias, channels_first=True)` and `projection(z.transpose(1, 2), w, bias)`.
    Sums are float32 for all dtypes but float64. A row of the result does not depend on the others,
    nor on the number of threads.

    Args:
        x: `(B, L, n)`, read in place if its features or its rows are contiguous; float32, bfloat16
            or float16 (float64: reference).
        w: `(m, n)`, the dtype of x.
        bias: `(m,)`, float32 or the dtype of x.
        channels_first: the layout of the result.
        backend: "native", "reference", or None for the fastest that can.

    Returns:
        y `(B, L, m)`, or `(B, m, L)` if `channels_first`; contiguous. Under autocast x and w are
        first cast to its dtype.

    Raises:
        TypeError: not a tensor, or dtypes that are not supported or do not go together.
        ValueError: shapes or devices that do not fit.
        RuntimeError: the backend asked for is not available here or for this input.
    """
    x, w = contract.autocast(x, w)
    contract.check_dense(x, w)
    if bias is not None:
        contract.check_vector("bias", bias, w.shape[0], x)
    if backends.select(backend, x, "projection") == "reference":
        return reference.projection(x, w, bias, channels_first)
    bias = bias if bias is None else bias.to(torch.float32).contiguous()
    return _fwd(x, w.unsqueeze(0), bias, channels_first)


# ---- The registered operator
# Implemented in csrc/torch/projection.cpp. w is (1, m, n), bias float32. The gradients are products
# of torch's own, which is as fast at them.

_lib = torch.library.Library("monarch_kernels", "FRAGMENT")
_lib.define(
    "projection_fwd(Tensor x, Tensor w, Tensor? bias, bool channels_first) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_fwd = torch.ops.monarch_kernels.projection_fwd.default


@torch.library.register_fake("monarch_kernels::projection_fwd", lib=_lib)
def _(x, w, bias, channels_first):
    contract.check_one_device("projection", x, w, bias)
    batch, rows, _ = x.shape
    features = w.shape[1]
    return x.new_empty((batch, features, rows) if channels_first else (batch, rows, features))


def _setup(ctx, inputs, output):
    x, w, _, ctx.channels_first = inputs
    ctx.save_for_backward(x, w)


def _backward(ctx, dy):
    x, w = ctx.saved_tensors
    dy = dy.transpose(1, 2) if ctx.channels_first else dy  # (B, L, m)
    dx = dw = dbias = None
    if ctx.needs_input_grad[0]:
        if x.stride(-1) == 1:
            dx = torch.matmul(dy, w[0])
        else:  # in the layout of x
            dx = torch.matmul(w[0].t(), dy.transpose(1, 2)).transpose(1, 2)
    if ctx.needs_input_grad[1]:
        dw = torch.matmul(dy.flatten(0, 1).t(), x.flatten(0, 1)).unsqueeze(0)
    if ctx.needs_input_grad[2]:
        dbias = dy.sum((0, 1), dtype=torch.float32)
    return dx, dw, dbias, None


torch.library.register_autograd(
    "monarch_kernels::projection_fwd", _backward, setup_context=_setup, lib=_lib
)
