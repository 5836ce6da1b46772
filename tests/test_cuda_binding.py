"""The CUDA operators from Python to emulated kernels: checks, spectrum, scratch memory, results.

What a GPU adds, the stream and the device guard, is in test_cuda.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from monarch_kernels import _native
from monarch_kernels.testing.products import PRODUCT_CASES
from tests.emulation import mixer_conv, products
from tests.emulation.build import BuildError, build, compiler

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
    check_fft_conv(native, case, noise=2.0**-17)  # 16 bits and short: tensor cores

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
short = white(2, 3, 100).bfloat16()
for precision in ("fast", "high", "exact"):
    made = filter_spectrum(k[:, :100], length=100, backend="native", precision=precision)
    y = native(short, k[:, :100], precision=precision)
    assert torch.equal(native(short, made, precision=precision), y)
    # The CPU stands in for a GPU here, so that no check but the operator's sees the difference.
    other = 0 if precision != "exact" else 2
    nothing = [None] * 3
    try:
        torch.ops.monarch_kernels.fft_conv_fwd(
            short, *nothing, made.data, None, None, False, other
        )
    except RuntimeError as error:
        assert "on this GPU with this precision" in str(error), error
    else:
        raise AssertionError("a spectrum of another precision was taken")
print(len(chosen), spectrum.data.numel())
"""
SHORT_WORK = """
import functools, sys
import torch
from monarch_kernels import short_conv
from monarch_kernels.testing import with_layout
from tests.test_short_conv import OPTIONS, check_short_conv, evaluate, make

torch.set_num_threads(1)
torch.ops.load_library(sys.argv[1])
native = functools.partial(short_conv, backend="native")
for padding, activation, channels_last in OPTIONS:
    options = {"padding": padding, "activation": activation, "channels_last": channels_last}
    for dtype in ("float32", "bfloat16", "float16"):
        for shape in ((2, 3, 1, 3), (2, 35, 70, 4)):
            check_short_conv(native, *shape, dtype, **options)
    for layout in ("transposed", "sliced", "strided"):
        inputs = make(2, 19, 70, 3, channels_last)
        expected = evaluate(native, *inputs, **options)
        laid = [with_layout(t, layout) for t in inputs]
        for name, t in evaluate(native, *laid, **options).items():
            assert torch.equal(t, expected[name]), name
for batch, channels in ((0, 5), (2, 0)):
    results = evaluate(native, *make(batch, channels, 9, 3, False), channels_last=False)
    assert torch.equal(results["ds"], torch.zeros(channels, 3))
"""
# Rows in a block and in several, odd lengths, every mode, empty tensors, every layout.
NAMES = """
one_full three_circular prime_7 channels_33 interleaved_full first_row_plan circular_prime_521
odd_999 three_1024 prime_4099 short_filter long_reverse empty_batch no_channels transposed sliced
strided expanded same_dtype_filters hyena
""".split()  # noqa: SIM905


MIXER_WORK = """
import functools, sys
import torch
from monarch_kernels import FilterSpectrum, filter_spectrum, mixer_conv
from monarch_kernels.testing import MIXER_CASES, check_mixer_conv, make_mixer_inputs, white

torch.set_num_threads(1)
torch.ops.load_library(sys.argv[1])
native = functools.partial(mixer_conv, backend="native")
names = sys.argv[2].split(",")
chosen = [case for case in MIXER_CASES if case.name in names]
for case in chosen:
    check_mixer_conv(native, case)

q, u, k, k2 = white(2, 9, 70), white(2, 70, 3, seed=1), white(3, 70, seed=2), white(3, 70, seed=3)
spectra = [filter_spectrum(t, length=70, backend="native") for t in (k, k2)]
given = native(q, spectra[0], u=u.transpose(1, 2), k2=spectra[1])
assert torch.equal(given, native(q, k, u=u.transpose(1, 2), k2=k2))
for other in (spectra[0].data[:-1], spectra[0].data[None]):
    try:
        native(q, FilterSpectrum(other, 3, 70, False, "native"))
    except RuntimeError as error:
        assert "spectrum" in str(error), error
    else:
        raise AssertionError("a wrong spectrum was taken")
print(len(chosen))
"""
MIXER_NAMES = """
one one_plain prime_7 channels_33 channels_16 no_residual no_short_filter interleaved_strided_u
sliced_columns expanded_u prime_4099 short_filters long_reverse empty_batch no_channels transposed
sliced strided same_dtype_filters
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
    kernels = build([*mixer_conv.SOURCES, *products.SOURCES])
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


def test_short_conv_with_emulated_kernels(library):
    command = [sys.executable, "-c", SHORT_WORK, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


def test_mixer_conv_with_emulated_kernels(library):
    command = [sys.executable, "-c", MIXER_WORK, str(library), ",".join(MIXER_NAMES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == 3 * len(MIXER_NAMES)


PRODUCTS = """
import ctypes, functools, sys
import torch
import monarch_kernels
from monarch_kernels.testing.products import PRODUCT_CASES, check_product

torch.set_num_threads(1)
torch.ops.load_library(sys.argv[1])
mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
if mallopt is not None:
    mallopt(-6, 0x80)  # as above
operators = sys.argv[2].split(",")
# The bindings are the same for all dtypes; with this one the vectors have another than x.
chosen = [case for case in PRODUCT_CASES if case.dtype == "bfloat16"]
for case in chosen:
    operator = getattr(monarch_kernels, case.operator)
    check_product(functools.partial(operator, backend="native"), case)

# What keeps the kernels inside their arrays, without the checks of the public functions.
ops = torch.ops.monarch_kernels
x, w = torch.ones(3, 8), torch.ones(2, 5, 4)
mlp = torch.ones(2, 6, 4), torch.ones(2, 4, 3)
operators_of_errors = tuple(f"{name}: " for name in operators)
for wrong in (
    lambda: ops.block_diagonal_fwd(x[0], w, None, 10),
    lambda: ops.block_diagonal_fwd(x, w.half(), None, 10),
    lambda: ops.block_diagonal_fwd(x, w[:, :0], None, 10),
    lambda: ops.block_diagonal_fwd(x, w, None, 11),
    lambda: ops.block_diagonal_fwd(x, w, torch.ones(9), 10),
    lambda: ops.block_diagonal_fwd(x[:, :4], w, None, 10),
    lambda: ops.block_diagonal_bwd(torch.ones(2, 10), x, w, True, True, True),
    lambda: ops.block_diagonal_bwd(torch.ones(3, 11), x, w, True, True, True),
    lambda: ops.monarch_matmul_fwd(x, w, torch.ones(3, 4, 5), None, 12),
    lambda: ops.monarch_matmul_fwd(x, w, torch.ones(5, 4, 2), None, 21),
    lambda: ops.monarch_matmul_fwd(x, w, torch.ones(5, 4, 2).half(), None, 20),
    lambda: ops.glu_mlp_fwd(x, *mlp, None, None, None, None, 1e-5, False),
    lambda: ops.glu_mlp_fwd(x, mlp[0], mlp[1][:1], None, None, None, None, 1e-5, True),
    lambda: ops.glu_mlp_fwd(x, *mlp, torch.ones(7), None, None, None, 1e-5, True),
    lambda: ops.glu_mlp_fwd(x, *mlp, None, torch.ones(2, 8), None, None, 1e-5, True),
    lambda: ops.glu_mlp_fwd(x, *mlp, None, None, torch.ones(8).double(), None, 1e-5, True),
    lambda: ops.glu_mlp_bwd(x[:2], x, *mlp, True, True, True, True),
):
    try:
        wrong()
    except RuntimeError as error:
        assert str(error).startswith(operators_of_errors), error
    else:
        raise AssertionError("wrong arguments were taken")
print(len(chosen))
"""
OPERATORS = ("block_diagonal", "glu_mlp", "monarch_matmul")


def test_products_with_emulated_kernels(library):
    command = [sys.executable, "-c", PRODUCTS, str(library), ",".join(OPERATORS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == len(PRODUCT_CASES) / 3
