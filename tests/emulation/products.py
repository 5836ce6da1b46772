"""The matrix products with their CUDA kernels and launchers running in the emulator."""

import ctypes
from ctypes import c_bool, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.emulation.emulator import Emulator
from tests.emulation.fft_conv import H200, DeviceLimits

SOURCES = (
    "csrc/cuda/block_diagonal.cu",
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
