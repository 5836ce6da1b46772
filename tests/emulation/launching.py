"""Calls launchers of CUDA operators in an emulator: what all of them share."""

import ctypes
from ctypes import c_int, c_int64, c_void_p
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.emulation.emulator import Emulator

SCALARS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/core/scalar.h


class Rows(ctypes.Structure):  # csrc/core/fft_conv.h
    _fields_ = (("data", c_void_p), ("batch_stride", c_int64), ("channel_stride", c_int64))


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
# One block a channel, which loops over the rows, and a cache of three long rows.
FEW = DeviceLimits(0, 0, 99 << 10, 3 << 20)


@dataclass
class EmulatedOperator:
    """An operator whose launchers are in a library of the emulator.

    Every result and all scratch memory is NaN before a call, and every buffer is registered with
    exactly its size. After each call of a kernel, what the emulator found is in `findings`.
    """

    emulator: Emulator
    device: DeviceLimits = field(default_factory=lambda: H200)
    findings: list[str] = field(default_factory=list)
    launches: int = 0

    def read(self, t: Tensor | None, name: str) -> int | None:
        """Register an input; return its address."""
        if t is None:
            return None
        if t.numel():
            whole = t.as_strided((_extent(t),), (1,))
            self.emulator.buffer(whole, name, readonly=True)
        return t.data_ptr()

    def rows(self, t: Tensor | None, name: str) -> Rows:
        """Register an input of which rows are contiguous, or a copy of it that has such rows."""
        if t is None:
            return Rows()
        rows = t if t.stride(2) == 1 or t.shape[2] == 1 else t.contiguous()
        return Rows(self.read(rows, name), rows.stride(0), rows.stride(1))

    def write(self, shape, dtype, name: str) -> Tensor:
        """Register a result."""
        t = torch.full(tuple(shape), float("nan"), dtype=dtype)
        if t.numel():
            self.emulator.buffer(t, name, uninitialised=True)
        return t

    def run(self, function: str, params: ctypes.Structure) -> None:
        call = getattr(self.emulator.library, function)
        call.restype = ctypes.c_char_p
        size = c_int64()
        self._raise(call(ctypes.byref(params), None, ctypes.byref(size), self._limits()))
        scratch = self.write((max(1, -(-size.value // 4)),), torch.float32, "scratch")
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
