"""The CUDA kernels of `mixer_conv`, forward and backward, and their launchers, without a GPU."""

import ctypes

import pytest
import torch

from monarch_kernels.testing import (
    MIXER_CASES,
    MixerCase,
    check_mixer_conv,
    evaluate_mixer,
    make_mixer_inputs,
)
from tests.emulation.emulator import Schedule, schedules
from tests.emulation.fft_conv import SOURCES as FFT_SOURCES
from tests.emulation.launching import FEW, H200, RTX_4090, SMALL, DeviceLimits
from tests.emulation.mixer_conv import SOURCES, Backward, EmulatedMixerConv
from tests.emulation.test_fft_conv import BLOCK_SIZES, DTYPES, OUTER_SIZES

pytestmark = pytest.mark.usefixtures("one_thread")

# The plans of 24 and 32 points a thread have a way of their own through a row.
LARGE = (384, 512, 768, 1024, 12288, 16384)


@pytest.fixture(scope="module")
def flavours(emulators):
    return emulators(SOURCES)


@pytest.fixture(scope="module")
def long_flavours(emulators):
    """Every outer plan over inner rows of 128 points."""
    included = ("csrc/cuda/mixer_conv.cu", *FFT_SOURCES[:-1])
    others = [name for name in SOURCES if name not in included]
    outer = [f"tests/emulation/kernels/{name}_conv_outer.cu" for name in ("mixer", "fft")]
    return emulators([*outer, *others])


@pytest.fixture(scope="module")
def fast(flavours):
    return flavours[0]


def checked_once(op: EmulatedMixerConv, case: MixerCase, **options):
    """Results within the error budget, and nothing found."""
    check_mixer_conv(op, case, **options)
    assert not op.findings, "\n".join(op.findings[:5])


def same_under_every_schedule(fast, case: MixerCase, device, gradients: bool) -> None:
    """Six schedules give the same bits."""
    first = None
    for schedule in schedules():
        fast.use(schedule)
        op = EmulatedMixerConv(fast, device)
        results = evaluate_mixer(op, make_mixer_inputs(case), gradients=gradients)
        assert not op.findings, f"{schedule}: " + "\n".join(op.findings[:5])
        first = first or results
        for name, value in results.items():
            assert torch.equal(value, first[name]), f"{name} under {schedule}"
    fast.use(Schedule())


def test_parameters_lie_where_the_compiler_has_them(fast):
    size = fast.library.size_of_mixer_conv_bwd
    size.restype = ctypes.c_int64
    assert size() == ctypes.sizeof(Backward)


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_every_block_plan(flavours, size):
    """Rows enough for a block to loop, and for teams without a row in the last turn."""
    batch = 19 if size <= 128 else 5 if size <= 1024 else 2
    device = FEW if size <= 8192 else H200
    for i, dtype in enumerate(DTYPES):
        case = MixerCase(f"plan_{size}", batch, 1, size, reverse_taps=size, dtype=dtype)
        small = size <= 1024
        for emulator in flavours[: 2 if small and i < 2 else 1]:
            checked_once(EmulatedMixerConv(emulator, device), case, gradients=False)
        if small and i == 1:
            same_under_every_schedule(flavours[0], case, device, gradients=False)


@pytest.mark.parametrize("outer", OUTER_SIZES)
def test_every_outer_plan(long_flavours, outer):
    """The cache holds three of four rows, so that groups split the batch."""
    length = 128 * outer - 5
    batch = 4 if outer <= 128 else 1
    dtype = DTYPES[OUTER_SIZES.index(outer) % 3]
    case = MixerCase(f"outer_{outer}", batch, 1, length, reverse_taps=length, dtype=dtype)
    device = DeviceLimits(0, 0, 99 << 10, 2 * 2 * 3 * 8 * 128 * outer)
    for emulator in long_flavours[: 2 if outer <= 32 else 1]:
        checked_once(EmulatedMixerConv(emulator, device), case, gradients=outer <= 32)
    if outer <= 8:
        same_under_every_schedule(long_flavours[0], case, device, gradients=True)


@pytest.mark.parametrize("case", [c for c in MIXER_CASES if c.length <= 1000], ids=lambda c: c.id)
def test_every_case(fast, case):
    checked_once(EmulatedMixerConv(fast), case)


@pytest.mark.parametrize("name", ["channels_33", "sliced_columns", "interleaved", "short_filters"])
def test_checked_backward(flavours, name):
    """In groups of one channel too: a cache that holds nothing."""
    case = next(c for c in MIXER_CASES if c.name == name)
    for device in (H200, DeviceLimits(0, 1, 99 << 10, 1 << 10)):
        checked_once(EmulatedMixerConv(flavours[1], device), case)
    same_under_every_schedule(flavours[0], case, device, gradients=True)


@pytest.mark.parametrize("device", [H200, RTX_4090, SMALL], ids=["227", "99", "few"])
def test_where_the_residual_is_held(fast, device):
    """In shared memory or in scratch, by what a GPU has of the first."""
    for length in (4096, 12288):
        case = MixerCase("held", 2, 2, length, reverse_taps=length, dtype="bfloat16")
        checked_once(EmulatedMixerConv(fast, device), case, gradients=length == 12288)


def test_small_shared_memory(fast):
    device = DeviceLimits(3, 8, 48 << 10, 4 << 20)
    checked_once(EmulatedMixerConv(fast, device), MixerCase("48", 2, 3, 3000, reverse_taps=9))
    q, k = torch.ones(1, 3, 8192), torch.ones(1, 8192)
    with pytest.raises(RuntimeError, match="cuda:3 gives a block 49152 bytes of shared memory"):
        EmulatedMixerConv(fast, device)(q, k)


@pytest.mark.parametrize("taps", range(1, 9))
def test_every_number_of_taps(fast, taps):
    for length in (5, 40, 300):
        case = MixerCase("taps", 2, 3, length, s_taps=taps, reverse_taps=length)
        checked_once(EmulatedMixerConv(fast), case)


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("off", [-1, 1])
def test_lengths_beside_a_plan(fast, size, off):
    case = MixerCase("beside", 1, 2, size + off, reverse_taps=size + off, s_taps=8)
    checked_once(EmulatedMixerConv(fast), case, gradients=False)


@pytest.mark.parametrize("name", ["q", "s", "s_bias", "u", "k", "k_rev", "skip", "k2", "skip2"])
def test_one_gradient_alone(fast, name):
    """It is what it is among all of them."""
    inputs = make_mixer_inputs(MixerCase("alone", 2, 2, 70, reverse_taps=70))
    every = evaluate_mixer(EmulatedMixerConv(fast), inputs)
    given = {n: t.detach().clone() for n, t in inputs.items() if n != "dz"}
    leaf = given[name].requires_grad_()
    op = EmulatedMixerConv(fast)
    z = op(given.pop("q"), given.pop("k"), **given)
    (gradient,) = torch.autograd.grad(z, leaf, inputs["dz"])
    assert torch.equal(gradient, every[f"d{name}"])
    assert not op.findings
