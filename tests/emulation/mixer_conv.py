"""`mixer_conv` with its CUDA kernels and launchers running in the emulator."""

import ctypes
from ctypes import c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.emulation import fft_conv, short_conv
from tests.emulation.launching import SCALARS, EmulatedOperator, Rows

SOURCES = (
    "csrc/cuda/mixer_conv.cu",
    "csrc/cuda/mixer_conv_backward.cu",
    "tests/emulation/kernels/mixer_conv_launch.cpp",
    *short_conv.SOURCES,
    *fft_conv.SOURCES,
)


class _Operands(ctypes.Structure):  # MixerConvOperands, csrc/core/mixer_conv.h
    _fields_ = (
        *((name, c_int64) for name in ("batch", "channels", "length")),
        *(("scalar", c_int), ("q", Rows)),
        *(("s", c_void_p), ("s_bias", c_void_p), ("taps", c_int64), ("spectrum", c_void_p)),
        *(("u", Rows), ("u_sample_stride", c_int64), ("residual_spectrum", c_void_p)),
        *((name, fft_conv.FilterSpectrumParams) for name in ("filter", "residual_filter")),
    )


class _Forward(ctypes.Structure):  # MixerConvParams
    _fields_ = (("operands", _Operands), ("z", c_void_p))


class _Gradients(ctypes.Structure):  # FilterGradients
    _fields_ = (
        *((name, c_void_p) for name in ("dk", "dk_rev", "dskip")),
        *((name, c_int64) for name in ("taps", "reverse_taps")),
    )


class Backward(ctypes.Structure):  # MixerConvBackwardParams
    _fields_ = (
        *(("operands", _Operands), ("dz", Rows)),
        *((name, c_void_p) for name in ("dq", "du", "ds", "ds_bias")),
        *((name, _Gradients) for name in ("dfilter", "dresidual_filter")),
    )


@dataclass
class EmulatedMixerConv(EmulatedOperator):
    """A function of the arguments of `mixer_conv`, float32 filters, differentiable once."""

    def __call__(
        self, q, k, *, s=None, s_bias=None, k_rev=None, skip=None, u=None, k2=None, k2_rev=None,
        skip2=None,
    ) -> Tensor:  # fmt: skip
        filters = (t if t is None else t.float() for t in (k, k_rev, skip, k2, k2_rev, skip2))
        s, s_bias = (t if t is None else t.float() for t in (s, s_bias))
        return _Function.apply(self, q, s, s_bias, u, *filters)

    def spectrum(self, k, k_rev, skip, length) -> Tensor | None:
        if k is None:
            return None
        maker = fft_conv.EmulatedFftConv(self.emulator, self.device)
        result = maker.spectrum(k, k_rev, skip, length, False)
        self.findings += maker.findings
        return result

    def forward(self, q, s, s_bias, u, spectra) -> Tensor:
        with self.emulator:
            p = _Forward(self.operands(q, s, s_bias, u, spectra))
            z = self.write((q.shape[0], q.shape[1] // 3, q.shape[2]), q.dtype, "z")
            p.z = z.data_ptr()
            if z.numel():
                self.run("launch_mixer_conv_fwd", p)
        return z

    def backward(self, dz, q, s, s_bias, u, filters, spectra, needs) -> list[Tensor | None]:
        """Gradients of q, s, s_bias, u, k, k_rev, skip, k2, k2_rev, skip2; None if not needed."""
        with self.emulator:
            u = None if u is None else u.contiguous()
            p = Backward(self.operands(q, s, s_bias, u, spectra), self.rows(dz, "dz"))
            results = []

            def result(into, name, t, need):
                results.append(self.write(t.shape, t.dtype, name) if need else None)
                setattr(into, name, results[-1].data_ptr() if need else None)

            for name, t, need in zip(("dq", "ds", "ds_bias", "du"), (q, s, s_bias, u), needs[:4],
                                     strict=True):  # fmt: skip
                result(p, name, t, need)
            for into, first in ((p.dfilter, 0), (p.dresidual_filter, 3)):
                k, k_rev, _ = given = filters[first : first + 3]
                into.taps = 0 if k is None else k.shape[1]
                into.reverse_taps = 0 if k_rev is None else k_rev.shape[1]
                wanted = needs[4 + first : 7 + first]
                for name, t, need in zip(("dk", "dk_rev", "dskip"), given, wanted, strict=True):
                    result(into, name, t, need)
            if q.shape[1]:
                self.run("launch_mixer_conv_bwd", p)
        return results

    def operands(self, q, s, s_bias, u, spectra) -> _Operands:
        p = _Operands(q.shape[0], q.shape[1] // 3, q.shape[2], SCALARS[q.dtype], self.rows(q, "q"))
        p.s, p.s_bias = self.read(s, "s"), self.read(s_bias, "s_bias")
        p.taps = 1 if s is None else s.shape[1]
        p.spectrum = self.read(spectra[0], "spectrum")
        p.residual_spectrum = self.read(spectra[1], "residual spectrum")
        if u is not None:
            p.u = Rows(self.read(u, "u"), u.stride(0), u.stride(1))
            p.u_sample_stride = u.stride(2)
        return p


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, q, s, s_bias, u, *filters):
        s, s_bias = (t if t is None else t.contiguous() for t in (s, s_bias))
        filters = [t if t is None else t.contiguous() for t in filters]
        spectra = [op.spectrum(*filters[i : i + 3], q.shape[-1]) for i in (0, 3)]
        ctx.op = op
        ctx.save_for_backward(q, s, s_bias, u, *filters, *spectra)
        return op.forward(q, s, s_bias, u, spectra)

    @staticmethod
    def backward(ctx, dz):
        q, s, s_bias, u, *rest = ctx.saved_tensors
        filters, spectra = rest[:6], rest[6:]
        return (None, *ctx.op.backward(dz, q, s, s_bias, u, filters, spectra,
                                       ctx.needs_input_grad[1:]))  # fmt: skip
