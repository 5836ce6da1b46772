"""`fft_conv` with its CUDA kernels and launchers running in the emulator."""

import ctypes
from ctypes import c_bool, c_int, c_int64, c_void_p
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.emulation.emulator import Emulator

SOURCES = (
    "csrc/cuda/fft_conv.cu",
    "csrc/cuda/fft_conv_backward.cu",
    "csrc/cuda/fft_conv_toeplitz.cu",
    "csrc/cuda/fft_conv_chain.cu",
    "tests/emulation/kernels/fft_conv_launch.cpp",
)
_SCALARS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_PRECISIONS = {"exact": 0, "high": 1, "fast": 2}


class _Rows(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("batch_stride", c_int64), ("channel_stride", c_int64))


class _FilterSpectrum(ctypes.Structure):  # FilterSpectrumParams, csrc/core/fft_conv.h
    _fields_ = (
        *((name, c_int64) for name in ("channels", "length")),
        *(("k", c_void_p), ("taps", c_int64), ("k_rev", c_void_p), ("reverse_taps", c_int64)),
        *(("skip", c_void_p), ("circular", c_bool), ("spectrum", c_void_p), ("precision", c_int)),
    )


class _Forward(ctypes.Structure):  # FftConvParams
    _fields_ = (
        *((name, c_int64) for name in ("batch", "channels", "length")),
        ("scalar", c_int),
        *((name, _Rows) for name in ("u", "pregate", "postgate")),
        *(("spectrum", c_void_p), ("y", c_void_p), ("precision", c_int)),
    )


class _Backward(ctypes.Structure):  # FftConvBackwardParams
    _fields_ = (
        *((name, c_int64) for name in ("batch", "channels", "length")),
        ("scalar", c_int),
        *((name, _Rows) for name in ("dy", "u", "pregate", "postgate")),
        *((name, c_void_p) for name in ("spectrum", "du", "dpregate", "dpostgate")),
        *((name, c_void_p) for name in ("dk", "dk_rev", "dskip")),
        *(("taps", c_int64), ("reverse_taps", c_int64), ("circular", c_bool)),
        ("precision", c_int),
    )


class DeviceLimits(ctypes.Structure):
    """The facts of a GPU that launchers go by (csrc/cuda/launch.h)."""

    _fields_ = (
        *(("index", c_int), ("multiprocessors", c_int)),
        *(("shared_bytes", c_int64), ("l2_bytes", c_int64)),
    )


H200 = DeviceLimits(0, 132, 227 << 10, 60 << 20)
RTX_4090 = DeviceLimits(0, 128, 99 << 10, 72 << 20)
# One multiprocessor and a cache of a few rows: blocks loop over rows, long rows come in groups.
SMALL = DeviceLimits(0, 1, 99 << 10, 3 << 20)


@dataclass
class EmulatedFftConv:
    """A function of the arguments of `fft_conv`, float32 filters, differentiable once.

    Every result and all scratch memory is NaN before a call, and every buffer is registered with
    exactly its size. After each call of a kernel, what the emulator found is in `findings`.
    """

    emulator: Emulator
    device: DeviceLimits = field(default_factory=lambda: H200)
    findings: list[str] = field(default_factory=list)
    launches: int = 0
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
            p = _FilterSpectrum(k.shape[0], length, circular=circular, precision=self._precision)
            p.k, p.taps = self._read(k, "k"), k.shape[1]
            p.k_rev = self._read(k_rev, "k_rev")
            p.reverse_taps = 0 if k_rev is None else k_rev.shape[1]
            p.skip = self._read(skip, "skip")
            result = self._write((floats,), torch.float32, "spectrum")
            p.spectrum = result.data_ptr()
            self._run("launch_filter_spectrum", p)
        return result

    def forward(self, u, spectrum, pregate, postgate) -> Tensor:
        with self.emulator:
            p = _Forward(*u.shape, _SCALARS[u.dtype], precision=self._precision)
            p.u, p.pregate = self._rows(u, "u"), self._rows(pregate, "pregate")
            p.postgate = self._rows(postgate, "postgate")
            p.spectrum = self._read(spectrum, "spectrum")
            y = self._write(u.shape, u.dtype, "y")
            p.y = y.data_ptr()
            self._run("launch_fft_conv_fwd", p)
        return y

    def backward(self, dy, u, filters, spectrum, pregate, postgate, circular, needs) -> list:
        """Gradients of u, k, k_rev, skip, pregate, postgate; None where not needed."""
        with self.emulator:
            p = _Backward(*u.shape, _SCALARS[u.dtype], circular=circular)
            p.precision = self._precision
            for name, t in (("dy", dy), ("u", u), ("pregate", pregate), ("postgate", postgate)):
                setattr(p, name, self._rows(t, name))
            p.spectrum = self._read(spectrum, "spectrum")
            k, k_rev, _ = filters
            p.taps, p.reverse_taps = k.shape[1], 0 if k_rev is None else k_rev.shape[1]
            results = []
            names = ("du", "dk", "dk_rev", "dskip", "dpregate", "dpostgate")
            like = (u, *filters, pregate, postgate)
            for name, t, need in zip(names, like, needs, strict=True):
                results.append(self._write(t.shape, t.dtype, name) if need else None)
                setattr(p, name, results[-1].data_ptr() if need else None)
            self._run("launch_fft_conv_bwd", p)
        return results

    def _read(self, t: Tensor | None, name: str) -> int | None:
        if t is None:
            return None
        self.emulator.buffer(t, name, readonly=True)
        return t.data_ptr()

    def _rows(self, t: Tensor | None, name: str) -> _Rows:
        if t is None:
            return _Rows()
        rows = t if t.stride(2) == 1 or t.shape[2] == 1 else t.contiguous()
        if rows.numel():
            whole = rows.as_strided((_extent(rows),), (1,))
            self.emulator.buffer(whole, name, readonly=True)
        return _Rows(rows.data_ptr(), rows.stride(0), rows.stride(1))

    def _write(self, shape, dtype, name: str) -> Tensor:
        t = torch.full(tuple(shape), float("nan"), dtype=dtype)
        if t.numel():
            self.emulator.buffer(t, name, uninitialised=True)
        return t

    @property
    def _precision(self) -> int:
        return _PRECISIONS[self.precision]

    def _run(self, function: str, params: ctypes.Structure) -> None:
        call = getattr(self.emulator.library, function)
        call.restype = ctypes.c_char_p
        size = c_int64()
        self._raise(call(ctypes.byref(params), None, ctypes.byref(size), self._limits()))
        scratch = self._write((max(1, -(-size.value // 4)),), torch.float32, "scratch")
        address = c_void_p(scratch.data_ptr())
        error = call(ctypes.byref(params), address, None, self._limits())
        self.findings += map(str, self.emulator.findings())
        self.launches += self.emulator.stats()["launches"]
        self._raise(error)

    def _limits(self):
        return ctypes.byref(self.device)

    @staticmethod
    def _raise(error: bytes | None) -> None:
        if error is not None:
            raise RuntimeError(error.decode())


def _extent(t: Tensor) -> int:
    """How many elements of memory a tensor spans."""
    return 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))


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
