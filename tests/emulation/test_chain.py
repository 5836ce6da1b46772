"""The chains of tensor-core products of `fft_conv`, and their launchers, without a GPU."""

import math

import pytest
import torch

from monarch_kernels import _native, contract, reference
from monarch_kernels.testing import Case, check_fft_conv, evaluate, make_inputs, white
from tests.emulation.emulator import Schedule, schedules
from tests.emulation.fft_conv import SOURCES, EmulatedFftConv
from tests.emulation.launching import H200, DeviceLimits

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = ("bfloat16", "float16")
# Kept apart from csrc/core/plan.h on purpose: a plan that is dropped there fails here.
SIZES = {"fast": (1024, 2048, 4096, 8192), "high": (1024, 2048, 4096)}
PLANS = [(size, precision) for precision, sizes in SIZES.items() for size in sizes]
FULL = {"skip": True, "pregate": True, "postgate": True}
# One block a channel, which loops over the rows.
FEW = DeviceLimits(0, 0, 227 << 10, 60 << 20)
# Errors against float64 beside those of rounding the exact result, of white noise. What operands of
# 16 bits leave, 3e-4 to 6e-4, is small beside the rounding of bfloat16 only.
BARS = {("bfloat16", "fast"): 1.10, ("float16", "fast"): 3.2}
BARS |= {("bfloat16", "high"): 1.001, ("float16", "high"): 1.01}


@pytest.fixture(scope="module")
def flavours(emulators):
    return emulators(SOURCES)


@pytest.fixture(scope="module")
def fast(flavours):
    return flavours[0]


def assert_nearly_rounded(actual, exact, bar: float) -> None:
    """Relative L2 error at most `bar` times that of rounding; each element within 16 rests.

    The rest is what `bar` leaves for arithmetic, per row: elements of a result are gated.
    """
    assert actual.shape == exact.shape
    rounding = (exact.to(actual.dtype).double() - exact).abs()
    error = (actual.double() - exact).abs()
    ratio = float(error.norm() / rounding.norm())
    assert ratio <= bar, f"{ratio:.4f} times the error of rounding"
    rest = math.sqrt(bar**2 - 1) * rounding.norm() / exact.norm()
    rms = exact.square().mean(-1, keepdim=True).sqrt()
    assert (error <= 2 * rounding + 16 * rest * rms).all()


def exact_results(case: Case) -> dict:
    def function(u, k, *, circular, **others):
        return reference.fft_conv(u, k, circular=circular, **others)

    return evaluate(function, make_inputs(case), circular=case.circular, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "precision"), PLANS)
def test_every_plan(flavours, size, precision, dtype):
    """Results and gradients, gated; nothing found; the same bits under six schedules."""
    batch = 5 if size <= 1024 else 2
    case = Case(f"chain_{size}", batch, 1, size, reverse_taps=size, dtype=dtype, **FULL)
    exact = exact_results(case)
    first = None
    runs = [(flavours[1], Schedule()), *((flavours[0], schedule) for schedule in schedules())]
    for emulator, schedule in runs:
        emulator.use(schedule)
        op = EmulatedFftConv(emulator, FEW, precision=precision)
        results = evaluate(op, make_inputs(case), circular=False)
        assert not op.findings, f"{schedule}: " + "\n".join(op.findings[:5])
        first = first or results
        for name, value in results.items():
            assert torch.equal(value, first[name]), f"{name} under {schedule}"
    flavours[0].use(Schedule())
    for name in ("y", "du", "dpregate", "dpostgate"):
        assert_nearly_rounded(first[name], exact[name], BARS[dtype, precision])


@pytest.mark.parametrize("length", [385, 386, 1000, 1022, 1023, 1025, 2044, 3001, 4092])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_length_with_high_precision(fast, length, dtype):
    """Two parts keep to the budget of the float32 kernels, filters' gradients included."""
    case = Case(f"{length}", 3, 2, length, reverse_taps=length, dtype=dtype, **FULL)
    op = EmulatedFftConv(fast, precision="high")
    check_fft_conv(op, case)
    assert not op.findings, "\n".join(op.findings[:5])


@pytest.mark.parametrize("layout", ["transposed", "sliced", "strided", "expanded"])
def test_every_layout(fast, layout):
    case = Case(layout, 5, 3, 1000, reverse_taps=9, layout=layout, dtype="bfloat16", **FULL)
    inputs = {n: t if t is None else t.contiguous() for n, t in make_inputs(case).items()}
    plain = evaluate(EmulatedFftConv(fast, precision="fast"), inputs, circular=False)
    op = EmulatedFftConv(fast, precision="fast")
    results = evaluate(op, make_inputs(case), circular=False)
    assert not op.findings, "\n".join(op.findings[:5])
    for name in ("y", "du", "dpregate", "dpostgate"):
        assert torch.equal(results[name], plain[name]), name


@pytest.mark.parametrize("length", [700, 1024, 4095])
def test_circular(fast, length):
    case = Case("circular", 2, 2, length, taps=600, circular=True, dtype="bfloat16", skip=True)
    check_fft_conv(EmulatedFftConv(fast, precision="high"), case)


@pytest.mark.parametrize("size", SIZES["fast"])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_accuracy(fast, size, offset):
    """bfloat16: 1.10 times rounding; with an offset of ten standard deviations 1.20."""
    u = (white(2, 3, size) + offset).bfloat16()
    k = white(3, size, seed=1) / math.sqrt(size)
    exact = reference.fft_conv(u.double(), k.double())
    bar = 1.20 if offset else 1.10
    assert_nearly_rounded(EmulatedFftConv(fast, precision="fast")(u, k), exact, bar)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1024, 2048, 4096])
def test_scales_of_rows(fast, size, dtype):
    """Powers of two pass through exactly, from the largest numbers to the smallest; zeros too."""
    powers = (110, 100, 20, -20, -80, -100) if dtype == "bfloat16" else (11, 3, -3, -8)
    u = white(1, 1, size).to(getattr(torch, dtype))
    u = u.where(u.abs() > 2.0**-5, 0)  # so that no bit is lost where it is scaled
    k = white(1, size, seed=1) / math.sqrt(size)
    op = EmulatedFftConv(fast, precision="fast")
    y = op(u, k).double()
    for power in powers:
        actual, expected = op(u * 2.0**power, k).double(), y * 2.0**power
        normal = expected.abs() >= torch.finfo(u.dtype).tiny
        assert torch.equal(actual[normal], expected[normal]), power
    assert torch.equal(op(torch.zeros_like(u), k), torch.zeros_like(u))
    for power in (-60, 60) if dtype == "bfloat16" else (-6, 6):  # of filters
        expected = y * 2.0**power
        normal = expected.abs() >= torch.finfo(u.dtype).tiny
        assert torch.equal(op(u, k * 2.0**power).double()[normal], expected[normal]), power


def test_smallest_numbers_are_not_lost(fast):
    u = torch.full((1, 1, 1024), 2.0**-133, dtype=torch.bfloat16)
    k = torch.zeros(1, 1024)
    k[0, 5] = 1.0
    y = EmulatedFftConv(fast, precision="fast")(u, k)
    assert torch.equal(y[..., 5:], u[..., 5:])
    assert not y[..., :5].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("size", [1024, 2048, 4096])
def test_rows_that_are_not_finite(fast, size, value):
    u, k = white(3, 2, size).bfloat16(), white(2, size, seed=1) / math.sqrt(size)
    y = EmulatedFftConv(fast, precision="fast")(u, k)
    u = u.clone()
    u[1, 0, 17] = value
    spoilt = EmulatedFftConv(fast, precision="fast")(u, k)
    assert spoilt[1, 0].isnan().all()
    others = torch.ones(3, 2, dtype=torch.bool)
    others[1, 0] = False
    assert torch.equal(spoilt[others], y[others])


@pytest.mark.parametrize("size", [1024, 2048, 4096])
def test_same_bits_on_every_gpu(fast, size):
    """However many blocks share a channel's rows, also in turns with warps without a row."""
    u, k = white(11, 2, size).bfloat16(), white(2, size, seed=1) / math.sqrt(size)
    gpus = [FEW, H200, DeviceLimits(0, 1, 227 << 10, 60 << 20)]
    results = [EmulatedFftConv(fast, gpu, precision="fast")(u, k) for gpu in gpus]
    assert all(torch.equal(y, results[0]) for y in results)


def test_one_result_alone(fast):
    case = Case("alone", 2, 2, 1000, dtype="bfloat16", **FULL)
    inputs = make_inputs(case)
    every = evaluate(EmulatedFftConv(fast, precision="fast"), inputs, circular=False)
    for name in ("u", "k", "pregate", "postgate"):
        given = {n: t.detach().clone() for n, t in inputs.items() if n != "dy" and t is not None}
        leaf = given[name].requires_grad_()
        op = EmulatedFftConv(fast, precision="fast")
        y = op(given.pop("u"), given.pop("k"), **given)
        (gradient,) = torch.autograd.grad(y, leaf, inputs["dy"])
        assert torch.equal(gradient, every[f"d{name}"]), name
        assert not op.findings


def test_empty(fast):
    for shape in ((0, 3, 1000), (2, 0, 1000)):
        u = torch.empty(shape, dtype=torch.bfloat16)
        assert (
            EmulatedFftConv(fast, precision="fast")(u, torch.zeros(shape[1], 1000)).shape == shape
        )


@pytest.mark.parametrize(
    ("shared_kib", "precision", "taken"),
    [
        (227, "fast", (385, 1024, 1025, 4096, 4097, 8192)),
        (99, "fast", (385, 1024, 1025, 4096)),
        (48, "fast", ()),
        (227, "high", (385, 1024, 1025, 4096)),
        (99, "high", ()),
        (227, "exact", ()),
    ],
)
def test_lengths_that_chains_take(shared_kib, precision, taken):
    _host = _native.host
    number = contract.PRECISIONS[precision]
    for length in (384, 385, 1024, 1025, 4096, 4097, 8192, 8193, 65536):
        kind = _host.cuda_kernel_kind(length, 16, number, shared_kib << 10)
        assert (kind == "chain") == (length in taken), length


@pytest.mark.parametrize(("size", "precision"), PLANS)
def test_no_bank_conflicts(fast, size, precision):
    """Of matrices, and of vectors: tables, spectra and what is exchanged between the stages."""
    op = EmulatedFftConv(fast, FEW, precision=precision)
    u, k = white(1, 1, size).bfloat16(), white(1, size, seed=1)
    spectrum = op.spectrum(k, None, None, size, False)
    op.forward(u, spectrum, None, None)
    stats = fast.stats()
    assert stats["matrices"] > 0
    assert stats["wavefronts"] == stats["matrices"]
    assert stats["vector_accesses"] >= size / 32
    assert stats["vector_wavefronts"] == stats["vector_accesses"]
