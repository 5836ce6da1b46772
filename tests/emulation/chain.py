"""`fft_conv` with its tensor-core kernels running in the emulator."""

import ctypes
from ctypes import c_int64
from dataclasses import dataclass

from tests.emulation.fft_conv import SOURCES as FLOAT32_SOURCES
from tests.emulation.fft_conv import EmulatedFftConv

SOURCES = (
    "csrc/cuda/fft_conv_chain.cu",
    *FLOAT32_SOURCES[:2],
    "tests/emulation/kernels/chain_launch.cpp",
)
PRECISIONS = ("fast", "high")
_ENTRIES = {
    "launch_filter_spectrum": "chain_spectrum",
    "launch_fft_conv_fwd": "chain_fwd_{}",
    "launch_fft_conv_bwd": "chain_bwd_{}",
}


@dataclass
class EmulatedChain(EmulatedFftConv):
    """Spectra, forward and backward of csrc/cuda/fft_conv_chain.h, for bfloat16 and float16."""

    precision: str = "fast"

    def size(self, length: int, circular: bool = False) -> int:
        call = self.emulator.library.chain_size
        call.restype = c_int64
        return call(c_int64(length), int(circular), self._number(), self._limits())

    def spectrum_floats(self, channels: int, length: int) -> int:
        call = self.emulator.library.chain_spectrum_floats
        call.restype = c_int64
        return call(c_int64(channels), c_int64(length), self._limits())

    def _number(self) -> int:
        return PRECISIONS.index(self.precision)

    def _run(self, function: str, params: ctypes.Structure) -> None:
        super()._run(_ENTRIES[function].format(self._number()), params)
