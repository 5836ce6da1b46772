"""The CUDA operators from Python to emulated kernels: checks, spectrum, scratch memory, results.

What a GPU adds, the stream and the device guard, is in test_cuda.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from monarch_kernels import _native
from tests.emulation.build import BuildError, build, compiler
from tests.emulation.fft_conv import SOURCES

ROOT = Path(__file__).resolve().parents[1]

WORK = """
import ctypes, functools, sys
import torch
from monarch_kernels import FilterSpectrum, fft_conv, filter_spectrum
from monarch_kernels.testing import CASES, check_fft_conv, white

torch.set_num_threads(1)
torch.ops.load_library(sys.argv[1])
native = functools.partial(fft_conv, backend="native", precision="high")

# Fresh memory holds 3e38: a scratch array that is read before it is written would show.
mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
if mallopt is not None:
    mallopt(-6, 0x80)
names = sys.argv[2].split(",")
chosen = [case for case in CASES if case.name in names]
for case in chosen:
    check_fft_conv(native, case, noise=2.0**-17)  # that of two bfloat16 numbers

u, k = white(2, 3, 300), white(3, 300, seed=1)
short, taps = white(2, 3, 1000).bfloat16(), white(3, 1000, seed=1)  # on tensor cores
exact = fft_conv(short.double(), taps.double(), backend="reference")
rounding = (exact.bfloat16().double() - exact).norm()
error = (fft_conv(short, taps, backend="native").double() - exact).norm()
assert rounding < error < 1.1 * rounding
made = filter_spectrum(taps, length=1000, backend="native", precision="fast")
assert torch.equal(fft_conv(short, made, backend="native"), fft_conv(short, taps, backend="native"))
spectrum = filter_spectrum(k, length=300, backend="native")
assert torch.equal(native(u, spectrum), native(u, k))
data = spectrum.data
twice = torch.cat([data, data])
misaligned = twice[1 : 1 + data.numel()]
for other in (data[:0], data[:-1], data[None], data.double(), twice[::2], misaligned):
    try:
        native(u, FilterSpectrum(other, 3, 300, False, "native"))
    except RuntimeError as error:
        assert "spectrum" in str(error), error
    else:
        raise AssertionError("a wrong spectrum was taken")
print(len(chosen), spectrum.data.numel())
"""
# Rows in a block and in several, odd lengths, every mode, empty tensors, every layout.
NAMES = """
one_full three_circular prime_7 channels_33 interleaved_full first_row_plan circular_prime_521
odd_999 three_1024 prime_4099 short_filter long_reverse empty_batch no_channels transposed sliced
strided expanded same_dtype_filters hyena
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """tests/cuda_binding.cpp, linked with the emulated kernels."""
    if not _native.available:
        pytest.skip(f"backend 'native' is not available: {_native.reason}")
    try:
        gcc = compiler()
    except BuildError as error:
        pytest.skip(str(error))
    kernels = build(SOURCES)
    output = tmp_path_factory.mktemp("binding") / "cuda_binding.so"
    torch_libraries = Path(torch.__file__).parent / "lib"
    done = subprocess.run(
        [
            *(gcc, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"),
            *(f"-I{ROOT / 'csrc'}", ROOT / "tests" / "cuda_binding.cpp", kernels),
            *(f"-Wl,-rpath,{kernels.parent}", f"-L{torch_libraries}", "-ltorch_cpu", "-o", output),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return output


def test_operators_with_emulated_kernels(library):
    command = [sys.executable, "-c", WORK, str(library), ",".join(NAMES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    cases, floats = map(int, done.stdout.split())
    assert cases == 3 * len(NAMES)
    assert floats > 2 * 3 * 300, "this is not the size of a CUDA spectrum"
