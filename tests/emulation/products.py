"""The matrix products with their CUDA kernels and launchers running in the emulator."""

import ctypes
from ctypes import c_bool, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, pad

from tests.emulation.emulator import Emulator
from tests.emulation.launching import H200, DeviceLimits

SOURCES = (
    "csrc/cuda/block_diagonal.cu",
    "csrc/cuda/monarch_matmul.cu",
    "csrc/cuda/glu_mlp.cu",
    "tests/emulation/kernels/products_launch.cpp",
)
_SCALARS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class _Activations(ctypes.Structure):  # csrc/core/block_diagonal.h
    _fields_ = (("data", c_void_p), ("stride", c_int64))


class _Blocks(ctypes.Structure):
    _fields_ = (("data", c_void_p), *((n, c_int64) for n in ("count", "rows", "columns")))


_SIZES = (
    *((name, c_int64) for name in ("rows", "in_features", "out_features")),
    *(("scalar", c_int), ("pairs", c_bool)),
)


class _BlockDiagonal(ctypes.Structure):  # BlockDiagonalParams
    _fields_ = (
        *_SIZES,
        *(("x", _Activations), ("w", _Blocks), ("bias", c_void_p), ("y", c_void_p)),
        ("tile", c_int64),
    )


class _BlockDiagonalBackward(ctypes.Structure):
    _fields_ = (
        *_SIZES,
        *(("dy", _Activations), ("x", _Activations), ("w", _Blocks)),
        *((name, c_void_p) for name in ("dx", "dw", "dbias")),
        ("item_rows", c_int64),
    )


class _MonarchMatmul(ctypes.Structure):  # MonarchMatmulParams, csrc/core/monarch_matmul.h
    _fields_ = (
        *_SIZES,
        *(("x", _Activations), ("w1", _Blocks), ("w2", _Blocks)),
        *(("bias", c_void_p), ("y", c_void_p), ("tile", c_int64)),
    )


_GLU_SIZES = (
    *((name, c_int64) for name in ("rows", "width")),
    *(("scalar", c_int), ("pairs", c_bool), ("gated", c_bool)),
)


class _GluMlp(ctypes.Structure):  # GluMlpParams, csrc/core/glu_mlp.h
    _fields_ = (
        *_GLU_SIZES,
        *((name, _Activations) for name in ("x", "residual")),
        *((name, _Blocks) for name in ("w_in", "w_out")),
        *((name, c_void_p) for name in ("bias", "norm_weight", "norm_bias")),
        *(("eps", c_float), ("y", c_void_p), ("tile", c_int64)),
        *((name, c_void_p) for name in ("hidden", "sum")),
    )


class _GluMlpBackward(ctypes.Structure):
    _fields_ = (
        *_GLU_SIZES,
        *((name, _Activations) for name in ("dz", "x")),
        *((name, _Blocks) for name in ("w_in", "w_out", "w_in_transposed", "w_out_transposed")),
        ("dx", c_void_p),
        *((name, c_int64) for name in ("part", "first", "count", "tile")),
        *((name, c_void_p) for name in ("da", "db", "h", "x_features", "dz_features")),
        *((name, c_void_p) for name in ("dw_in", "dw_out", "dw_in_result", "dw_out_result")),
    )


@dataclass
class EmulatedProducts:
    """The operators as functions of tensors, differentiable once.

    Every result and all scratch memory is NaN before a call, and every buffer is registered with
    exactly its size. After each call of a kernel, what the emulator found is in `findings`.
    """

    emulator: Emulator
    device: DeviceLimits = field(default_factory=lambda: H200)
    findings: list[str] = field(default_factory=list)
    stats: list[dict[str, int]] = field(default_factory=list)

    def block_diagonal(self, x, w, bias=None, *, out_features=None) -> Tensor:
        width = w.shape[0] * w.shape[1] if out_features is None else out_features
        y = _BlockDiagonalFunction.apply(self, _rows(x), w, bias, width)
        return y.view(*x.shape[:-1], width)

    def block_diagonal_fwd(self, x, w, bias, width) -> Tensor:
        with self.emulator:
            p = _BlockDiagonal(x.shape[0], x.shape[1], width, _SCALARS[x.dtype])
            p.x, p.w, p.bias = self._activations(x, "x"), self._blocks(w, "w"), self._vector(bias)
            y = self._write((x.shape[0], width), x.dtype, "y")
            p.y = y.data_ptr()
            self._run("block_diagonal_fwd", p)
        return y

    def block_diagonal_bwd(self, dy, x, w, needs) -> list[Tensor | None]:
        with self.emulator:
            p = _BlockDiagonalBackward(x.shape[0], x.shape[1], dy.shape[1], _SCALARS[x.dtype])
            p.dy, p.x = self._activations(dy, "dy"), self._activations(x, "x")
            p.w = self._blocks(w, "w")
            wanted = (("dx", x.shape, x.dtype), ("dw", w.shape, x.dtype))
            wanted = (*wanted, ("dbias", dy.shape[1:], torch.float32))
            return self._results("block_diagonal_bwd", p, wanted, needs)

    def monarch_matmul(self, x, w1, w2, bias=None, *, out_features=None) -> Tensor:
        width = w2.shape[0] * w2.shape[1] if out_features is None else out_features
        y = _MonarchMatmulFunction.apply(self, _rows(x), w1, w2, bias, width)
        return y.view(*x.shape[:-1], width)

    def monarch_matmul_fwd(self, x, w1, w2, bias, width) -> Tensor:
        with self.emulator:
            p = _MonarchMatmul(x.shape[0], x.shape[1], width, _SCALARS[x.dtype])
            p.x, p.bias = self._activations(x, "x"), self._vector(bias)
            p.w1, p.w2 = self._blocks(w1, "w1"), self._blocks(w2, "w2")
            y = self._write((x.shape[0], width), x.dtype, "y")
            p.y = y.data_ptr()
            self._run("monarch_matmul_fwd", p)
        return y

    def glu_mlp(
        self,
        x,
        w_in,
        w_out,
        bias=None,
        *,
        residual=None,
        norm_weight=None,
        norm_bias=None,
        gated=True,
    ) -> Tensor:
        residual = residual if residual is None else _rows(residual)
        vectors = (bias, residual, norm_weight, norm_bias)
        return _GluMlpFunction.apply(self, _rows(x), w_in, w_out, *vectors, gated).view(x.shape)

    def glu_mlp_fwd(self, x, w_in, w_out, bias, residual, norm_weight, norm_bias, gated) -> Tensor:
        with self.emulator:
            p = _GluMlp(*x.shape, _SCALARS[x.dtype], gated=gated, eps=1e-5)
            p.x, p.residual = self._activations(x, "x"), self._activations(residual, "residual")
            p.w_in, p.w_out = self._blocks(w_in, "w_in"), self._blocks(w_out, "w_out")
            p.bias, p.norm_weight = self._vector(bias), self._vector(norm_weight)
            p.norm_bias = self._vector(norm_bias)
            y = self._write(x.shape, x.dtype, "y")
            p.y = y.data_ptr()
            self._run("glu_mlp_fwd", p)
        return y

    def glu_mlp_bwd(self, dz, x, w_in, w_out, gated, needs) -> list[Tensor | None]:
        with self.emulator:
            p = _GluMlpBackward(*x.shape, _SCALARS[x.dtype], gated=gated)
            p.dz, p.x = self._activations(dz, "dz"), self._activations(x, "x")
            p.w_in, p.w_out = self._blocks(w_in, "w_in"), self._blocks(w_out, "w_out")
            names = ("dx", "dw_in_result", "dw_out_result")
            like = zip(names, (x, w_in, w_out), strict=True)
            wanted = [(name, t.shape, x.dtype) for name, t in like]
            return self._results("glu_mlp_bwd", p, wanted, needs)

    def _results(self, function, p, wanted, needs) -> list[Tensor | None]:
        results = []
        for (name, shape, dtype), need in zip(wanted, needs, strict=True):
            results.append(self._write(shape, dtype, name) if need else None)
            setattr(p, name, results[-1].data_ptr() if need else None)
        self._run(function, p)
        return results

    def _read(self, t: Tensor | None, name: str) -> int | None:
        if t is None or t.numel() == 0:
            return None
        self.emulator.buffer(t, name, readonly=True)
        return t.data_ptr()

    def _vector(self, t: Tensor | None) -> int | None:
        return self._read(t if t is None else t.float().contiguous(), "vector")

    def _blocks(self, w: Tensor, name: str) -> _Blocks:
        w = w.contiguous()
        return _Blocks(self._read(w, name), *w.shape)

    def _activations(self, t: Tensor | None, name: str) -> _Activations:
        if t is None:
            return _Activations()
        t = t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous()
        if t.numel():
            extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
            self.emulator.buffer(t.as_strided((extent,), (1,)), name, readonly=True)
        return _Activations(t.data_ptr(), t.stride(0))

    def _write(self, shape, dtype, name: str) -> Tensor:
        t = torch.full(tuple(shape), float("nan"), dtype=dtype)
        if t.numel():
            self.emulator.buffer(t, name, uninitialised=True)
        return t

    def _run(self, function: str, params: ctypes.Structure) -> None:
        call = getattr(self.emulator.library, f"launch_{function}")
        call.restype = ctypes.c_char_p
        size, limits = c_int64(), ctypes.byref(self.device)
        _raise(call(ctypes.byref(params), None, ctypes.byref(size), limits))
        scratch = self._write((max(1, -(-size.value // 4)),), torch.float32, "scratch")
        error = call(ctypes.byref(params), c_void_p(scratch.data_ptr()), None, limits)
        self.findings += map(str, self.emulator.findings())
        self.stats.append(self.emulator.stats())
        _raise(error)


def _raise(error: bytes | None) -> None:
    if error is not None:
        raise RuntimeError(error.decode())


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _wanted(ctx, *grads) -> tuple[Tensor | None, ...]:
    needs = zip(grads, ctx.needs_input_grad, strict=True)
    return tuple(grad if need else None for grad, need in needs)


class _BlockDiagonalFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, x, w, bias, width):
        ctx.op = op
        ctx.save_for_backward(x, w)
        return op.block_diagonal_fwd(x, w, bias, width)

    @staticmethod
    def backward(ctx, dy):
        needs = ctx.needs_input_grad[1:4]
        return (None, *ctx.op.block_diagonal_bwd(dy, *ctx.saved_tensors, needs), None)


class _MonarchMatmulFunction(torch.autograd.Function):
    """The backward is a composition of block_diagonal's, as in monarch_kernels."""

    @staticmethod
    def forward(ctx, op, x, w1, w2, bias, width):
        ctx.op = op
        ctx.save_for_backward(x, w1, w2)
        return op.monarch_matmul_fwd(x, w1, w2, bias, width)

    @staticmethod
    def backward(ctx, dy):
        (x, w1, w2), op = ctx.saved_tensors, ctx.op
        (k, q, _), (blocks, s, r) = w1.shape, w2.shape
        given = pad(dy, (0, blocks * s - dy.shape[1])).unflatten(1, (s, blocks)).mT.flatten(1)
        h = op.block_diagonal_fwd(x, w1, None, k * q).unflatten(1, (r, blocks)).mT.flatten(1)
        dh, dw2, _ = op.block_diagonal_bwd(given, h, w2, (True, True, False))
        dh = dh.unflatten(1, (blocks, r)).mT.flatten(1)
        dx, dw1, _ = op.block_diagonal_bwd(dh, x, w1, (True, True, False))
        return _wanted(ctx, None, dx, dw1, dw2, dy.sum(0, dtype=torch.float32), None)


class _GluMlpFunction(torch.autograd.Function):
    """While a gradient is recorded the normalisation is torch's own, as in monarch_kernels."""

    @staticmethod
    def forward(ctx, op, x, w_in, w_out, bias, residual, norm_weight, norm_bias, gated):
        ctx.op, ctx.gated = op, gated
        z = op.glu_mlp_fwd(x, w_in, w_out, bias, residual, None, None, gated)
        ctx.save_for_backward(x, w_in, w_out, z, norm_weight, norm_bias)
        return op.glu_mlp_fwd(x, w_in, w_out, bias, residual, norm_weight, norm_bias, gated)

    @staticmethod
    def backward(ctx, dy):
        x, w_in, w_out, z, norm_weight, norm_bias = ctx.saved_tensors
        dz, dvectors = dy, {}
        if norm_weight is not None:
            leaves = [z, *(t for t in (norm_weight, norm_bias) if t is not None)]
            leaves = [t.detach().requires_grad_() for t in leaves]
            with torch.enable_grad():
                y = layer_norm(leaves[0].float(), x.shape[1:], *leaves[1:]).to(x.dtype)
            dz, *rest = torch.autograd.grad(y, leaves, dy)
            dvectors = dict(enumerate(rest))
        needs = ctx.needs_input_grad[1:4]
        grads = ctx.op.glu_mlp_bwd(dz, x, w_in, w_out, ctx.gated, needs)
        dbias = dz.contiguous().sum(0, dtype=torch.float32)
        return _wanted(ctx, None, *grads, dbias, dz, dvectors.get(0), dvectors.get(1), None)
