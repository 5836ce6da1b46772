"""The CUDA kernels of `fft_conv`, forward and backward, and their launchers, without a GPU."""

import math

import pytest
import torch

from monarch_kernels import reference
from monarch_kernels.testing import CASES, Case, check_fft_conv, evaluate, make_inputs, white
from tests.emulation.emulator import Schedule, schedules
from tests.emulation.fft_conv import SOURCES, EmulatedFftConv
from tests.emulation.launching import FEW, H200, RTX_4090, DeviceLimits

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = {"skip": True, "pregate": True, "postgate": True}
DTYPES = ("float32", "bfloat16", "float16")
# Kept apart from csrc/core/plan.h on purpose: a plan that is dropped there fails here.
BLOCK_SIZES = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
BLOCK_SIZES += (6144, 8192, 12288, 16384)
OUTER_SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)


@pytest.fixture(scope="module")
def flavours(emulators):
    return emulators(SOURCES)


@pytest.fixture(scope="module")
def outer_plans(emulators):
    return emulators(["tests/emulation/kernels/fft_conv_outer.cu", SOURCES[-1]])


@pytest.fixture(scope="module")
def fast(flavours):
    return flavours[0]


def checked_once(op: EmulatedFftConv, case: Case, **options):
    """Results within the error budget, and nothing found."""
    check_fft_conv(op, case, **options)
    assert not op.findings, "\n".join(op.findings[:5])


def same_under_every_schedule(fast, case: Case, device: DeviceLimits) -> None:
    """Six schedules give the same bits."""
    first = None
    for schedule in schedules():
        fast.use(schedule)
        op = EmulatedFftConv(fast, device)
        results = evaluate(op, make_inputs(case), circular=case.circular)
        assert not op.findings, f"{schedule}: " + "\n".join(op.findings[:5])
        first = first or results
        for name, value in results.items():
            assert torch.equal(value, first[name]), f"{name} under {schedule}"
    fast.use(Schedule())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_every_block_plan(flavours, size, dtype):
    # Rows enough for a block to loop, and for teams without a row in the last turn.
    batch = 19 if size <= 128 else 5 if size <= 1024 else 2
    case = Case(f"plan_{size}", batch, 1, size, reverse_taps=size, dtype=dtype, **FULL)
    device = FEW if size <= 8192 else H200
    for emulator in flavours:
        checked_once(EmulatedFftConv(emulator, device), case)
    same_under_every_schedule(flavours[0], case, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outer", OUTER_SIZES)
def test_every_outer_plan(outer_plans, outer, dtype):
    """Over short inner rows; the cache holds three of four rows, so that groups split the batch."""
    length = 128 * outer - 5
    batch = 4 if outer <= 128 else 1
    case = Case(f"outer_{outer}", batch, 1, length, reverse_taps=length, dtype=dtype, **FULL)
    device = DeviceLimits(0, 0, 99 << 10, 2 * 3 * 2 * 8 * 128 * outer)
    # The longest are many blocks like those of the others: one dtype sees the checks.
    for emulator in outer_plans[: 2 if outer <= 128 or dtype == "float32" else 1]:
        checked_once(EmulatedFftConv(emulator, device), case)
    if outer <= 32:
        same_under_every_schedule(outer_plans[0], case, device)


@pytest.mark.parametrize("length", [2 * 6144 - 5, 4 * 8192, 8 * 6144])
def test_long_rows(fast, length):
    """The inner plans that there are, on a GPU that cannot hold any of these rows in a block."""
    case = Case("long", 3, 1, length, reverse_taps=length, **FULL)
    checked_once(EmulatedFftConv(fast, FEW), case)


def test_longest_row(fast):
    """The longest, 4194304: forward and the gradient of u, beside torch.fft in float32."""
    length = 512 * 8192
    u, k, dy = white(1, 1, length), white(1, length, seed=1), white(1, 1, length, seed=2)
    op = EmulatedFftConv(fast, H200)
    spectrum = op.spectrum(k, None, None, length, False)
    only_u = (True, False, False, False, False, False)
    (du, *_) = op.backward(dy, u, (k, None, None), spectrum, None, None, False, only_u)
    calls = ((reference.fft_conv, u, op.forward(u, spectrum, None, None)), (correlation, dy, du))
    for function, x, actual in calls:
        exact = function(x.double(), k.double())
        error, of_torch = ((t.double() - exact).norm() for t in (actual, function(x, k)))
        assert error <= 2 * of_torch
    assert not op.findings


def correlation(dy, k):
    """The gradient of u: the convolution backwards in time."""
    return reference.fft_conv(dy.flip(-1), k).flip(-1)


@pytest.mark.parametrize("case", [c for c in CASES if c.length <= 70000], ids=lambda c: c.id)
def test_every_case(fast, case):
    checked_once(EmulatedFftConv(fast), case)


@pytest.mark.parametrize("size", BLOCK_SIZES[:11])
@pytest.mark.parametrize("off", [-1, 1])
def test_lengths_beside_a_plan(fast, size, off):
    case = Case(f"{size + off}", 2, 3, size + off, reverse_taps=size + off, postgate=True)
    checked_once(EmulatedFftConv(fast), case)


@pytest.mark.parametrize("length", [10000, 12288, 16384])
def test_plan_that_fits_the_shared_memory(fast, length):
    """Rows that fit a block of an H200, and are split on a GPU whose blocks have 99 KB."""
    case = Case("fits", 2, 2, length, reverse_taps=length, **FULL)
    launches = []
    for device in (H200, RTX_4090):
        op = EmulatedFftConv(fast, device)
        checked_once(op, case)
        launches.append(op.launches)
    assert launches[0] < launches[1]


# Stages of the block plans.
STAGES = {32: 2, 96: 2, 384: 2, 1536: 3, 12288: 3, 16384: 3}


@pytest.mark.parametrize("size", STAGES)
def test_spectrum_is_rounded_once_a_stage(fast, size):
    """Against float64. One tap at 1 tells the frequencies of the entries."""
    op = EmulatedFftConv(fast)

    def spectrum(k):
        data = op.spectrum(k, None, None, size, False)[-2 * size * k.shape[0] :]
        return torch.view_as_complex(data.double().view(-1, size, 2))

    frequency = torch.zeros(1, size)
    frequency[0, 1] = 1
    turns = spectrum(frequency)[0].angle() / (2 * math.pi)
    order = (turns * size - 0.25).round().long() % size
    assert torch.equal(order.sort().values, torch.arange(size))
    k = white(3, size)
    turn = math.pi / 2 / size * torch.arange(size).double()
    exact = torch.fft.ifft(k * torch.polar(torch.ones_like(turn), turn))[:, order] * odd_part(size)
    error = (spectrum(k) - exact).norm() / exact.norm()
    # A float32 is off by 0.43 * 2^-24 of itself in the mean square; float32 arithmetic throughout
    # would be three times as far off.
    assert error < 1.1 * 0.43 * 2**-24 * STAGES[size] ** 0.5


def odd_part(size):
    return size // (size & -size)


@pytest.mark.parametrize("size", [128, 768, 4096])
def test_gradient_of_the_filter_is_more_accurate(fast, size):
    """One tap of u, and of k: both gradients are then dy, transformed there and back."""
    u, k = torch.zeros(1, 8, size), torch.zeros(8, size)
    u[..., 0] = k[:, 0] = 1
    dy = white(1, 8, size)
    y = EmulatedFftConv(fast)(u.requires_grad_(), k.requires_grad_())
    du, dk = torch.autograd.grad(y, (u, k), dy)
    assert (dk - dy[0]).norm() < 0.9 * (du - dy).norm()


def test_too_little_shared_memory_is_an_error(fast):
    op = EmulatedFftConv(fast, DeviceLimits(3, 8, 48 << 10, 4 << 20))
    u, k = torch.ones(1, 1, 8192), torch.ones(1, 8192)
    with pytest.raises(RuntimeError, match="cuda:3 gives a block 49152 bytes of shared memory"):
        op(u, k)


@pytest.mark.parametrize("name", ["u", "k", "k_rev", "skip", "pregate", "postgate"])
def test_one_gradient_alone(fast, name):
    """It is what it is among all of them; the parts of the backward are separate."""
    case = Case("alone", 2, 2, 300, reverse_taps=300, **FULL)
    inputs = make_inputs(case)
    every = evaluate(EmulatedFftConv(fast), inputs, circular=False)
    given = {n: t.detach().clone() for n, t in inputs.items() if n != "dy"}
    leaf = given[name].requires_grad_()
    op = EmulatedFftConv(fast)
    y = op(given.pop("u"), given.pop("k"), **given)
    (gradient,) = torch.autograd.grad(y, leaf, inputs["dy"])
    assert torch.equal(gradient, every[f"d{name}"])
    assert not op.findings
