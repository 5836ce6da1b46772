"""`short_conv` with its CUDA kernels and launchers running in the emulator."""

import ctypes
from ctypes import c_bool, c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.emulation.launching import SCALARS, EmulatedOperator

SOURCES = (
    "csrc/cuda/short_conv.cu",
    "tests/emulation/kernels/short_conv_launch.cpp",
)


class _Array(ctypes.Structure):  # ShortConvArray, csrc/core/short_conv.h
    _fields_ = (("data", c_void_p), ("batch_stride", c_int64), ("row_stride", c_int64))


class _Forward(ctypes.Structure):  # ShortConvParams
    _fields_ = (
        *((name, c_int64) for name in ("batch", "channels", "length")),
        *(("scalar", c_int), ("channels_last", c_bool), ("x", _Array)),
        *(("s", c_void_p), ("s_bias", c_void_p), ("taps", c_int64), ("left", c_int64)),
        *(("silu", c_bool), ("y", c_void_p)),
    )


class _Backward(ctypes.Structure):  # ShortConvBackwardParams
    _fields_ = (
        *(("forward", _Forward), ("dy", _Array)),
        *((name, c_void_p) for name in ("dx", "ds", "ds_bias")),
    )


@dataclass
class EmulatedShortConv(EmulatedOperator):
    """A function of the arguments of `short_conv`, float32 filters, differentiable once."""

    def __call__(
        self, u, s, s_bias=None, *, padding="causal", activation=None, channels_last=False
    ) -> Tensor:
        options = padding == "causal", activation == "silu", channels_last
        return _Function.apply(self, u, s, s_bias, *options)

    def forward(self, x, s, s_bias, *options) -> Tensor:
        with self.emulator:
            p = self.params(x, s, s_bias, *options)
            y = self.write(x.shape, x.dtype, "y")
            p.y = y.data_ptr()
            self.run("launch_short_conv_fwd", p)
        return y

    def backward(self, dy, x, s, s_bias, *options, needs) -> list[Tensor | None]:
        """Gradients of x, s, s_bias; None where not needed."""
        with self.emulator:
            p = _Backward(self.params(x, s, s_bias, *options), self.array(dy, "dy"))
            results = []
            for name, t, need in zip(("dx", "ds", "ds_bias"), (x, s, s_bias), needs, strict=True):
                results.append(self.write(t.shape, t.dtype, name) if need else None)
                setattr(p, name, results[-1].data_ptr() if need else None)
            self.run("launch_short_conv_bwd", p)
        return results

    def params(self, x, s, s_bias, causal, silu, channels_last) -> _Forward:
        batch, channels, length = x.shape if not channels_last else x.transpose(1, 2).shape
        p = _Forward(batch, channels, length, SCALARS[x.dtype], channels_last)
        p.x, p.s, p.s_bias = self.array(x, "x"), self.read(s, "s"), self.read(s_bias, "s_bias")
        p.taps, p.silu = s.shape[1], silu
        p.left = p.taps - 1 if causal else (p.taps - 1) // 2
        return p

    def array(self, t: Tensor, name: str) -> _Array:
        rows = self.rows(t, name)
        return _Array(rows.data, rows.batch_stride, rows.channel_stride)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, x, s, s_bias, *options):
        s, s_bias = (t if t is None else t.float().contiguous() for t in (s, s_bias))
        ctx.save_for_backward(x, s, s_bias)
        ctx.op, ctx.options = op, options
        return op.forward(x, s, s_bias, *options)

    @staticmethod
    def backward(ctx, dy):
        needs = ctx.needs_input_grad[1:4]
        grads = ctx.op.backward(dy, *ctx.saved_tensors, *ctx.options, needs=needs)
        return (None, *grads, None, None, None)
