"""mixer_conv and short_conv as nvcc compiles them: whole operators, run from PTX.

As in test_fft_conv_ptx.py, which has the machinery and the planted bugs.
"""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from monarch_kernels.testing import MixerCase, check_mixer_conv
from tests.emulation import mixer_conv, nvcc
from tests.emulation.build import BuildError, build, compiler
from tests.emulation.launching import SMALL, DeviceLimits
from tests.emulation.mixer_conv import EmulatedMixerConv
from tests.emulation.ptx_module import PtxModule
from tests.emulation.short_conv import EmulatedShortConv
from tests.emulation.test_fft_conv_ptx import KERNELS, SHIPPED, PtxEmulator
from tests.test_short_conv import check_short_conv

pytestmark = [nvcc.needs_nvcc, pytest.mark.usefixtures("one_thread")]

SOURCE = KERNELS / "mixer_conv_ptx.cu"
INCLUDED = sorted((nvcc.ROOT / "csrc" / "cuda").glob("*_conv*.cu"))
# A cache of two long rows: rows come in groups, and a group of channels is one channel.
TINY_CACHE = DeviceLimits(0, 1, 99 << 10, 32 << 10)
CASES = {
    "block": (SMALL, MixerCase("ptx", 9, 3, 250, reverse_taps=100)),
    "block_bfloat16": (SMALL, MixerCase("ptx", 3, 2, 256, reverse_taps=256, dtype="bfloat16")),
    "plain_float16": (
        SMALL,
        MixerCase("ptx", 2, 2, 231, s_taps=None, s_bias=False, residual=False, dtype="float16"),
    ),
    "long": (TINY_CACHE, MixerCase("ptx", 3, 2, 500, reverse_taps=500)),
    "long_bfloat16": (
        TINY_CACHE,
        MixerCase("ptx", 2, 2, 512, s_taps=8, dtype="bfloat16", u_layout="contiguous"),
    ),
}
SHARED = {"twiddle_kernel", "filter_spectrum_kernel", "fft_conv_backward_kernel"}
SHARED |= {"filter_gradient_kernel", "filter_gradient_taps_kernel", "short_conv_kernel"}
SHARED |= {"short_filter_gradient_kernel", "short_sum_kernel"}
IN_BLOCKS = SHARED | {"mixer_conv_kernel"}
LONG = SHARED | {"outer_forward_kernel", "fft_conv_kernel", "outer_inverse_kernel"}


@pytest.fixture(scope="module")
def emulator():
    try:
        compiler()
    except BuildError as reason:
        pytest.skip(str(reason))
    # compile_ptx knows a result by its headers and flags, and these are no headers.
    text = b"".join(path.read_bytes() for path in [*INCLUDED, KERNELS / "fft_conv_ptx.cu"])
    flag = f"-DINCLUDED_{hashlib.sha256(text).hexdigest()[:16]}"
    launchers = [name for name in mixer_conv.SOURCES if name.endswith("_launch.cpp")]
    with ThreadPoolExecutor(2) as pool:
        ptx = pool.submit(nvcc.compile_ptx, SOURCE, SHIPPED, (flag,))
        library = pool.submit(build, [SOURCE, *launchers])
        return PtxEmulator(library.result(), PtxModule(ptx.result().read_text()))


def launched(emulator: PtxEmulator) -> set[str]:
    names = {re.search(r"[a-z_]+_kernel(?=[EI])", kernel)[0] for kernel in emulator.launched}
    emulator.launched.clear()
    return names


@pytest.mark.parametrize("name", CASES)
def test_mixer_conv(emulator, name):
    """Result and all gradients are within the error budget, and nothing but PTX ran."""
    device, case = CASES[name]
    check_mixer_conv(EmulatedMixerConv(emulator, device), case)
    expected = LONG if "long" in name else IN_BLOCKS
    if case.s_taps is None:  # no gradient of a filter is asked for
        expected = expected - {"short_filter_gradient_kernel", "short_sum_kernel"}
    assert launched(emulator) == expected


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_short_conv(emulator, channels_last, dtype):
    """Without SiLU: the exponential is CUDA's own, and rounds in ways the interpreter lacks."""
    options = {"padding": "same", "activation": None, "channels_last": channels_last}
    check_short_conv(EmulatedShortConv(emulator), 2, 35, 70, 9, dtype, **options)
    assert launched(emulator) == {name for name in SHARED if name.startswith("short")}
