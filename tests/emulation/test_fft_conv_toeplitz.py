"""The Toeplitz kernels of `fft_conv`, forward and backward, and their launchers, without a GPU."""

from dataclasses import replace

import pytest
import torch

from monarch_kernels.testing import CASES, Case, check_fft_conv, evaluate, make_inputs, white
from tests.emulation.emulator import Schedule, schedules
from tests.emulation.fft_conv import SOURCES, EmulatedFftConv
from tests.emulation.launching import RTX_4090, DeviceLimits

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = {"skip": True, "pregate": True, "postgate": True}
DTYPES = ("bfloat16", "float16")
LONGEST = 256
# Two bfloat16 numbers hold 16 bits of a tap and of a gated input.
NOISE = 2.0**-17
# One team a channel, which loops over the rows.
FEW = DeviceLimits(0, 0, 99 << 10, 3 << 20)


@pytest.fixture(scope="module")
def flavours(emulators):
    return emulators(SOURCES)


@pytest.fixture(scope="module")
def fast(flavours):
    return flavours[0]


def op_on(emulator, precision="fast", device=RTX_4090):
    return EmulatedFftConv(emulator, device, precision=precision)


def checked_once(op, case, **options):
    """Results within the error budget, and nothing found."""
    check_fft_conv(op, case, noise=NOISE, **options)
    assert not op.findings, "\n".join(op.findings[:5])


GATES = ("", "pregate", "postgate", "pregate postgate")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gates", GATES, ids=lambda gates: gates.replace(" ", "_") or "plain")
@pytest.mark.parametrize("length", [128, 256])
def test_every_kernel(flavours, length, gates, dtype):
    """Whole groups of 16 rows and one that is not, causal and not; and six schedules."""
    options = dict.fromkeys(gates.split(), True)
    case = Case("whole", 17, 1, length, reverse_taps=length, dtype=dtype, **options)
    for emulator in flavours:
        checked_once(op_on(emulator, device=FEW), case)
    checked_once(op_on(flavours[0]), replace(case, reverse_taps=None))
    same_under_every_schedule(flavours[0], case)


def same_under_every_schedule(emulator, case):
    first = None
    for schedule in schedules():
        emulator.use(schedule)
        op = op_on(emulator)
        results = evaluate(op, make_inputs(case), circular=case.circular)
        assert not op.findings, f"{schedule}: " + "\n".join(op.findings[:5])
        first = first or results
        for name, value in results.items():
            assert torch.equal(value, first[name]), f"{name} under {schedule}"
    emulator.use(Schedule())


SHORT = [c for c in CASES if c.length <= LONGEST and c.dtype in DTYPES]


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.id)
def test_every_case(fast, case):
    checked_once(op_on(fast, "high"), case)


@pytest.mark.parametrize("length", [1, 3, 15, 16, 17, 63, 64, 127, 129, 161, 192, 255])
@pytest.mark.parametrize("reverse", [False, True], ids=["causal", "bidirectional"])
def test_lengths(fast, length, reverse):
    case = Case(f"{length}", 5, 3, length, reverse_taps=length if reverse else None, **FULL)
    for dtype in DTYPES:
        checked_once(op_on(fast), replace(case, dtype=dtype))


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_rows_at_any_address(fast, offset):
    """Aligned to 2, 4 and 8 bytes, with strides that are and are not a multiple of 8 bytes."""
    k = white(3, 128, seed=1)
    for pitch in (132, 130):
        memory = white(5 * 3 * pitch + offset).bfloat16()
        u = memory[offset:].view(5, 3, pitch)[:, :, :128]
        op = op_on(fast)
        y = op(u, k)
        assert torch.equal(y, op_on(fast)(u.contiguous(), k))
        assert not op.findings


def test_a_row_does_not_depend_on_the_batch(fast):
    """In a whole group of rows, in a part of one, in another place of one."""
    u, k, k_rev = white(37, 2, 128).bfloat16(), white(2, 128, seed=1), white(2, 128, seed=2)
    whole = op_on(fast)(u, k, k_rev=k_rev, pregate=u)
    for rows in (slice(0, 1), slice(5, 21), slice(30, 37)):
        part = u[rows]
        assert torch.equal(op_on(fast)(part, k, k_rev=k_rev, pregate=part), whole[rows])


def test_the_dispatch_by_precision(fast):
    """What runs for each precision, by its number of launches: the table is test_precision.py's."""
    u, k = white(2, 3, 100).bfloat16(), white(3, 100)
    launches = {}
    for precision in ("exact", "high", "fast"):
        op = op_on(fast, precision)
        op(u, k)
        launches[precision] = op.launches
    assert launches == {"exact": 3, "high": 2, "fast": 2}  # twiddles, filter, rows; filter, rows
    op = op_on(fast)
    op(white(2, 3, LONGEST + 1).bfloat16(), white(3, LONGEST + 1))
    assert op.launches == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_in_its_row(fast, value):
    u, k = white(17, 2, 128).bfloat16(), white(2, 128, seed=1)
    expected = op_on(fast)(u, k)
    u[5, 1, 40] = value
    y = op_on(fast)(u, k)
    assert not torch.isfinite(y[5, 1, 40:]).any()
    y[5, 1, 32:] = expected[5, 1, 32:]  # from the tile of 16 that it is in
    assert torch.equal(y, expected)


def test_zeros(fast):
    u = white(17, 2, 128).bfloat16()
    u[3] = 0
    y = op_on(fast)(u, white(2, 128, seed=1), pregate=u, postgate=u)
    assert (y[3] == 0).all()
    assert (y[4] != 0).any()
