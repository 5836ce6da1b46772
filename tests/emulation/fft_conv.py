"""`fft_conv` with its CUDA kernels and launchers running in the emulator."""

import ctypes
from ctypes import c_bool, c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.emulation.launching import SCALARS, EmulatedOperator, Rows

SOURCES = (
    "csrc/cuda/fft_conv.cu",
    "csrc/cuda/fft_conv_backward.cu",
    "csrc/cuda/fft_conv_toeplitz.cu",
    "csrc/cuda/fft_conv_chain.cu",
    "tests/emulation/kernels/fft_conv_launch.cpp",
)
_PRECISIONS = {"exact": 0, "high": 1, "fast": 2}


class FilterSpectrumParams(ctypes.Structure):  # csrc/core/fft_conv.h
    _fields_ = (
        *((name, c_int64) for name in ("channels", "length")),
        *(("k", c_void_p), ("taps", c_int64), ("k_rev", c_void_p), ("reverse_taps", c_int64)),
        *(("skip", c_void_p), ("circular", c_bool), ("spectrum", c_void_p), ("precision", c_int)),
    )


class _Forward(ctypes.Structure):  # FftConvParams
    _fields_ = (
        *((name, c_int64) for name in ("batch", "channels", "length")),
        ("scalar", c_int),
        *((name, Rows) for name in ("u", "pregate", "postgate")),
        *(("spectrum", c_void_p), ("y", c_void_p), ("precision", c_int)),
    )


class _Backward(ctypes.Structure):  # FftConvBackwardParams
    _fields_ = (
        *((name, c_int64) for name in ("batch", "channels", "length")),
        ("scalar", c_int),
        *((name, Rows) for name in ("dy", "u", "pregate", "postgate")),
        *((name, c_void_p) for name in ("spectrum", "du", "dpregate", "dpostgate")),
        *((name, c_void_p) for name in ("dk", "dk_rev", "dskip")),
        *(("taps", c_int64), ("reverse_taps", c_int64), ("circular", c_bool)),
        ("precision", c_int),
    )


@dataclass
class EmulatedFftConv(EmulatedOperator):
    """A function of the arguments of `fft_conv`, float32 filters, differentiable once."""

    precision: str = "exact"

    def __call__(
        self, u, k, *, k_rev=None, skip=None, pregate=None, postgate=None, circular=False
    ) -> Tensor:
        filters = (t if t is None else t.float() for t in (k, k_rev, skip))
        return _Function.apply(self, u, *filters, pregate, postgate, circular)

    def spectrum(self, k, k_rev, skip, length, circular) -> Tensor:
        library = self.emulator.library
        library.launch_spectrum_floats.restype = c_int64
        floats = library.launch_spectrum_floats(
            c_int64(k.shape[0]), c_int64(length), self._precision, self._limits()
        )
        with self.emulator:
            p = FilterSpectrumParams(k.shape[0], length, circular=circular)
            p.precision = self._precision
            p.k, p.taps = self.read(k, "k"), k.shape[1]
            p.k_rev = self.read(k_rev, "k_rev")
            p.reverse_taps = 0 if k_rev is None else k_rev.shape[1]
            p.skip = self.read(skip, "skip")
            result = self.write((floats,), torch.float32, "spectrum")
            p.spectrum = result.data_ptr()
            self.run("launch_filter_spectrum", p)
        return result

    def forward(self, u, spectrum, pregate, postgate) -> Tensor:
        with self.emulator:
            p = _Forward(*u.shape, SCALARS[u.dtype], precision=self._precision)
            p.u, p.pregate = self.rows(u, "u"), self.rows(pregate, "pregate")
            p.postgate = self.rows(postgate, "postgate")
            p.spectrum = self.read(spectrum, "spectrum")
            y = self.write(u.shape, u.dtype, "y")
            p.y = y.data_ptr()
            self.run("launch_fft_conv_fwd", p)
        return y

    def backward(self, dy, u, filters, spectrum, pregate, postgate, circular, needs) -> list:
        """Gradients of u, k, k_rev, skip, pregate, postgate; None where not needed."""
        with self.emulator:
            p = _Backward(*u.shape, SCALARS[u.dtype], circular=circular)
            p.precision = self._precision
            for name, t in (("dy", dy), ("u", u), ("pregate", pregate), ("postgate", postgate)):
                setattr(p, name, self.rows(t, name))
            p.spectrum = self.read(spectrum, "spectrum")
            k, k_rev, _ = filters
            p.taps, p.reverse_taps = k.shape[1], 0 if k_rev is None else k_rev.shape[1]
            results = []
            names = ("du", "dk", "dk_rev", "dskip", "dpregate", "dpostgate")
            like = (u, *filters, pregate, postgate)
            for name, t, need in zip(names, like, needs, strict=True):
                results.append(self.write(t.shape, t.dtype, name) if need else None)
                setattr(p, name, results[-1].data_ptr() if need else None)
            self.run("launch_fft_conv_bwd", p)
        return results

    @property
    def _precision(self) -> int:
        return _PRECISIONS[self.precision]


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, u, k, k_rev, skip, pregate, postgate, circular):
        k, k_rev, skip = (t if t is None else t.contiguous() for t in (k, k_rev, skip))
        spectrum = op.spectrum(k, k_rev, skip, u.shape[-1], circular)
        ctx.save_for_backward(u, k, k_rev, skip, spectrum, pregate, postgate)
        ctx.op, ctx.circular = op, circular
        return op.forward(u, spectrum, pregate, postgate)

    @staticmethod
    def backward(ctx, dy):
        u, k, k_rev, skip, spectrum, pregate, postgate = ctx.saved_tensors
        filters = (k, k_rev, skip)
        needs = ctx.needs_input_grad[1:-1]
        grads = ctx.op.backward(dy, u, filters, spectrum, pregate, postgate, ctx.circular, needs)
        return (None, *grads, None)
