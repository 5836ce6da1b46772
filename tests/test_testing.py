"""The error budget rejects what is wrong, and accepts what is right."""

import functools
import math
import sys

import pytest
import torch

from monarch_kernels import fft_conv
from monarch_kernels.testing import (
    CASES,
    LAYOUTS,
    Case,
    assert_close_to_float64,
    check_fft_conv,
    hyena_filter,
    layer_norm_like,
    white,
    with_layout,
)

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def sample():
    """A product, exact and by torch in float32; error and size as those of a convolution."""
    u, k = white(3, 4, 200, seed=1), white(4, 200, seed=2) / math.sqrt(200)

    def convolve(dtype):
        spectra = torch.fft.rfft(u.to(dtype), n=400) * torch.fft.rfft(k.to(dtype), n=400)
        return torch.fft.irfft(spectra, n=400)[..., :200]

    return convolve(torch.float64), convolve(torch.float32)


def one_element_wrong(y):
    y = y.clone()
    y[1, 2, 77] += 0.02 * y.abs().amax()
    return y


def one_row_wrong(y):
    y = y.clone()
    y[2, 1] *= 1.01
    return y


def one_nan(y):
    y = y.clone()
    y[0, 0, 5] = math.nan
    return y


WRONG = {
    "zeros": torch.zeros_like,
    "scaled": lambda y: 1.01 * y,
    "shifted": lambda y: y.roll(1, -1),
    "shifted_by_a_row": lambda y: y.roll(1, -2),
    "negative": torch.neg,
    "one_element": one_element_wrong,
    "one_row": one_row_wrong,
    "nan": one_nan,
    "infinite": lambda y: torch.where(y == y.amax(), math.inf, y),
    "last_element_missing": lambda y: torch.cat([y[..., :-1], torch.zeros_like(y[..., :1])], -1),
    "permuted_channels": lambda y: y.flip(1),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accepts_a_result_of_the_dtype(sample, dtype):
    exact, single = sample
    margin = assert_close_to_float64(single.to(dtype), exact, single)
    assert 0 < margin.l2 <= 1
    assert 0 < margin.element <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_rejects(sample, dtype, wrong):
    exact, single = sample
    with pytest.raises(AssertionError):
        assert_close_to_float64(wrong(single).to(dtype), exact, single)


def test_rejects_a_small_bias(sample):
    """1.01 is far outside; so is what one would hardly see."""
    exact, single = sample
    with pytest.raises(AssertionError, match="relative L2 error"):
        assert_close_to_float64((single.double() * (1 + 1e-6)).float(), exact, single)
    with pytest.raises(AssertionError):
        assert_close_to_float64((single * 1.001).bfloat16(), exact, single)


def test_rejects_arithmetic_in_16_bits(sample):
    """Rounding twice is what kernels that accumulate in 16 bits do."""
    exact, single = sample
    other = white(3, 4, 200, seed=4)
    sloppy = (single + other).bfloat16().float() - other
    with pytest.raises(AssertionError):
        assert_close_to_float64(sloppy.bfloat16(), exact, single)


@pytest.mark.parametrize("shape", [(3, 4, 199), (1, 3, 4, 200), (3, 4, 1), (2400,)], ids=str)
def test_rejects_another_shape(sample, shape):
    exact, single = sample
    actual = torch.zeros(shape)
    with pytest.raises(AssertionError, match=r"has shape .* expected \(3, 4, 200\)"):
        assert_close_to_float64(actual, exact, single)


def test_rejects_another_dtype(sample):
    exact, single = sample
    with pytest.raises(AssertionError, match=r"has dtype torch.float32, expected torch.bfloat16"):
        assert_close_to_float64(single, exact, single, dtype=torch.bfloat16)
    with pytest.raises(AssertionError, match="exact must be float64"):
        assert_close_to_float64(single, single, single)


def test_message_has_both_numbers(sample):
    exact, single = sample
    with pytest.raises(AssertionError, match=r"y: relative L2 error 1, allowed is \d.*e-07"):
        assert_close_to_float64(0 * single, exact, single, name="y")
    wrong = single.clone()
    wrong[1, 2, 77] += 1e-5
    with pytest.raises(AssertionError, match=r"element \(1, 2, 77\) .* allowed is .* 1 of 2400"):
        assert_close_to_float64(wrong, exact, single)


def test_exact_zeros_must_be_zero():
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    assert_close_to_float64(zeros.float(), zeros, zeros.float())
    with pytest.raises(AssertionError):
        assert_close_to_float64(zeros.float() + 1e-30, zeros, zeros.float())


# ---- End to end: a kernel with a fault fails the check that the tests of fft_conv use ------------

KERNEL_FAULTS = {
    "zeros": torch.zeros_like,
    "shifted": lambda y: y.roll(1, -1),
    "scaled": lambda y: y * 1.01,
    "one_element": lambda y: y.index_fill(2, torch.tensor([9]), 0.0),
    "nan": lambda y: y.masked_fill(y == y.amax(), math.nan),
}
FAULT_CASES = [c for c in CASES if c.name in ("channels_33", "odd_999")]


@pytest.mark.parametrize("case", FAULT_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("fault", KERNEL_FAULTS.values(), ids=KERNEL_FAULTS)
def test_a_faulty_forward_fails(native_best, monkeypatch, fault, case):
    module = sys.modules["monarch_kernels.fft_conv"]  # the attribute of that name is the function
    kernel = module._fwd
    check_fft_conv(native_best, case, gradients=False)
    monkeypatch.setattr(module, "_fwd", lambda *arguments: fault(kernel(*arguments)))
    with pytest.raises(AssertionError, match=r": y(: | has )"):
        check_fft_conv(native_best, case, gradients=False)


@pytest.mark.parametrize("which", range(6), ids=["du", "dk", "dk_rev", "dskip", "dpre", "dpost"])
@pytest.mark.parametrize("fault", [torch.zeros_like, lambda g: 1.01 * g], ids=["zeros", "scaled"])
@pytest.mark.parametrize("case", FAULT_CASES, ids=lambda case: case.id)
def test_a_faulty_gradient_fails(native_best, monkeypatch, fault, case, which):
    module = sys.modules["monarch_kernels.fft_conv"]
    kernel = module._bwd

    def faulty(*arguments):
        grads = list(kernel(*arguments))
        grads[which] = fault(grads[which])
        return tuple(grads)

    monkeypatch.setattr(module, "_bwd", faulty)
    with pytest.raises(AssertionError, match=r": d\w+(: | has )"):
        check_fft_conv(native_best, case)


def test_a_wrong_dtype_fails():
    case = Case("any", 1, 2, 40, dtype="bfloat16")
    with pytest.raises(AssertionError, match=r"y has dtype torch.float32"):
        check_fft_conv(lambda *a, **k: fft_conv(*a, **k).float(), case)


# ---- Inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [white, layer_norm_like], ids=["white", "layer_norm"])
def test_inputs_have_unit_scale_and_a_seed(make):
    x = make(2, 64, 300, seed=1)
    assert abs(x.square().mean() - 1) < 5 / math.sqrt(x.numel())  # five standard errors
    assert torch.equal(x, make(2, 64, 300, seed=1))
    assert not torch.equal(x, make(2, 64, 300, seed=2))


def test_outliers_stand_out():
    plain, outliers = (layer_norm_like(1, 64, 4096, outliers=f) for f in (0, 30))
    assert outliers.square().mean() == pytest.approx(plain.square().mean())
    assert outliers.pow(4).mean() > plain.pow(4).mean()


def test_hyena_filters_decay():
    k = hyena_filter(4, 1000)
    assert torch.allclose(k.norm(dim=-1), torch.ones(4))
    assert (k[0, 300:].norm() < k[0, :300].norm() / 10).all()
    assert hyena_filter(0, 10).shape == (0, 10)
    assert hyena_filter(2, 1).shape == (2, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_values(layout):
    t = white(3, 4, 5)
    laid = with_layout(t, layout)
    assert torch.equal(laid, t[:1].expand(3, 4, 5) if layout == "expanded" else t)
    assert laid.is_contiguous() == (layout == "contiguous")
    with pytest.raises(ValueError, match="layout must be one of"):
        with_layout(t, "diagonal")


def test_ids_are_unique():
    assert len({case.id for case in CASES}) == len(CASES)


def test_function_must_be_called_with_the_case():
    """`check_fft_conv` compares: a function that ignores the filter fails."""
    with pytest.raises(AssertionError):
        check_fft_conv(functools.partial(lambda u, k, **_: u * 1), CASES[0], gradients=False)
