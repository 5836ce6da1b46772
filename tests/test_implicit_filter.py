"""implicit_filter: values and gradients of every case, its sine and its decay, and its laws."""

import math

import pytest
import torch

from monarch_kernels import fft_conv, implicit_filter
from monarch_kernels.testing import (
    FILTER_CASES,
    FilterCase,
    check_implicit_filter,
    composed_filter,
    evaluate_filter,
    filter_inputs,
    white,
)

pytestmark = pytest.mark.usefixtures("one_thread", "poison")


@pytest.mark.parametrize("case", FILTER_CASES, ids=lambda case: case.name)
def test_result_and_gradients(filters, case):
    check_implicit_filter(filters, case)


def test_wrong_results_are_noticed():
    case = FilterCase("planted", 2, 150, 20)

    def planted(change):
        def function(**arguments):
            return change(composed_filter(**arguments))

        return function

    def spoilt(k):
        k = k.clone()
        k[1, 7, 131] *= 1.001
        return k

    changes = (lambda k: 0 * k, lambda k: k * (1 + 1e-5), lambda k: k.roll(1, -1), spoilt)
    check_implicit_filter(planted(lambda k: k), case)
    for change in changes:
        with pytest.raises(AssertionError):
            check_implicit_filter(planted(change), case, gradients=False)


def sine_of(function, x):
    """sin x: a network of one unit whose weights are one."""
    one = torch.ones(1, 1)
    w_hidden, b_hidden = torch.empty(1, 0, 1, 1), torch.empty(1, 0, 1)
    options = {"w_hidden": w_hidden, "b_hidden": b_hidden, "w_out": one[None], "freq": one}
    k = function(
        z=x.view(1, -1, 1),
        w_in=one[None],
        b_in=0 * one,
        deltas=0 * one,
        t=torch.zeros_like(x),
        **options,
    )
    return k.flatten()


def ulps(actual, exact):
    """Errors in units in the last place of the result."""
    nearest = exact.float()
    unit = torch.nextafter(nearest.abs(), torch.tensor(math.inf)).double() - nearest.abs().double()
    return ((actual.double() - exact) / unit).abs()


@pytest.mark.parametrize("reach", [1e-3, 2.0, 100.0, 5000.0, 29999.0, 1e6, 1e30])
def test_sine(native_filters, reach):
    x = torch.linspace(-reach, reach, 5003)
    assert ulps(sine_of(native_filters, x), x.double().sin()).max() <= 2


def test_sine_near_its_zeros(native_filters):
    x = (torch.arange(-9000, 9000, dtype=torch.float64) * math.pi).float()
    assert ulps(sine_of(native_filters, x), x.double().sin()).max() <= 2


def test_sine_of_special_numbers(native_filters):
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, 3e-45, 1e-30])
    y = sine_of(native_filters, x)
    assert torch.equal(y.isnan(), torch.tensor([0, 0, 1, 1, 1, 0, 0, 0]).bool())
    assert y[0] == 0
    assert y[1] == 0
    assert y[7] == x[7]
    assert ulps(y[5:6], x[5:6].double().sin()) <= 1


def decay_of(function, deltas, t):
    """exp(-|delta| t), in double: a network whose last activation is almost one."""
    length, channels = t.numel(), deltas.numel()
    half_pi = torch.full((1, length, 1), math.pi / 2)
    one = torch.ones(1, 1)
    options = {"w_hidden": torch.empty(1, 0, 1, 1), "b_hidden": torch.empty(1, 0, 1)}
    w_out = torch.ones(1, channels, 1)
    options |= {"w_out": w_out, "freq": one, "deltas": deltas, "t": t}
    k = function(half_pi, one[None], 0 * one, **options)[0]
    return k.double() / sine_of(function, half_pi.flatten()[:1]).double()


@pytest.mark.parametrize("length", [5, 300, 20000], ids=["far", "near", "nearer"])
def test_decay(native_filters, length):
    """Far apart and near times take different paths."""
    t, deltas = torch.linspace(0, 1, length), torch.linspace(-95, 95, 50)
    k = decay_of(native_filters, deltas, t)
    exact = torch.exp(-deltas.double().abs()[:, None] * t.double())
    normal = exact > 1.2e-38
    assert ulps(k, exact)[normal].max() <= 2.6
    assert (k - exact)[~normal].abs().max() <= 1e-44 if (~normal).any() else True


def test_decay_at_its_ends(native_filters):
    t = torch.tensor([-1e30, -100.0, -1.0, 0.0, 1.0, 103.0, 200.0, 1e30, math.inf, math.nan])
    k = decay_of(native_filters, torch.tensor([1.0, 0.0, math.nan]), t)
    exact = torch.exp(-t.double()).float()
    torch.testing.assert_close(k[0].float(), exact, rtol=4e-7, atol=2e-45, equal_nan=True)
    assert (k[1, :8] - 1).abs().max() <= 1e-7
    assert k[2].isnan().all()


def test_values_equal_the_composed_to_one_millionth(native_filters):
    """At the scale of M2-BERT's weights: standard deviation 0.02, and freq 10."""
    inputs = dict(filter_inputs(FilterCase("model", 4, 2000, 40, 128, 5, 2, 10.0)))
    del inputs["dk"]
    for name in ("w_in", "w_hidden", "w_out"):
        inputs[name] = 0.02 * white(*inputs[name].shape, seed=3)
    inputs |= {n: 0 * inputs[n] for n in ("b_in", "b_hidden")}
    inputs["freq"] = torch.full_like(inputs["freq"], 10.0)
    k, expected = native_filters(**inputs), composed_filter(**inputs)
    for f in range(4):
        assert (k[f] - expected[f]).norm() <= 1e-6 * expected[f].norm()


def test_filters_of_one_call_have_the_bits_of_their_own(native_filters):
    case = FilterCase("any", 3, 200, 50, 20)
    inputs = filter_inputs(case)
    every = evaluate_filter(native_filters, inputs)
    for f in range(3):
        alone = {n: t if n == "t" else t[f : f + 1] for n, t in inputs.items()}
        for name, value in evaluate_filter(native_filters, alone).items():
            assert torch.equal(value[0], every[name][f]), name


@pytest.mark.parametrize("length", [40, 1500])
def test_same_bits_with_any_number_of_threads(native_filters, threads, length):
    inputs = filter_inputs(FilterCase("any", 3, length, 50, 20))
    threads(1)
    expected = evaluate_filter(native_filters, inputs)
    for count in (2, 3, 7):
        threads(count)
        for name, value in evaluate_filter(native_filters, inputs).items():
            assert torch.equal(value, expected[name]), (count, name)


def test_a_large_result_has_the_same_bits(native_filters):
    """Past the caches, in whole lines or not."""
    for length in (4096, 4097):
        inputs = dict(filter_inputs(FilterCase("large", 1, length, 300, 4, 2, 0)))
        del inputs["dk"]
        k = native_filters(**inputs)
        inputs |= {n: inputs[n][:, :20] for n in ("w_out", "deltas")}
        assert torch.equal(k[:, :20], native_filters(**inputs))


@pytest.mark.parametrize("name", ["z", "w_in", "b_in", "w_hidden", "b_hidden", "w_out", "freq"])
def test_nan_propagates(filters, name):
    inputs = dict(filter_inputs(FilterCase("nan", 2, 40, 20, 6)))
    poisoned = inputs[name].clone()
    poisoned[1].view(-1)[5] = math.nan
    results = evaluate_filter(filters, inputs | {name: poisoned})
    k = results["k"]
    assert k[0].isfinite().all()
    assert k[1].isnan().any()
    if name == "z":  # one position
        assert k[1, :, 1].isnan().all()
        assert k[1, :, 2:].isfinite().all()
    elif name == "w_out":  # one channel
        assert k[1, 0].isnan().all()
        assert k[1, 1:].isfinite().all()
    else:
        assert k[1].isnan().all()
    assert results["dw_in"][1].isnan().any()
    assert results["dw_in"][0].isfinite().all()


def test_the_sign_of_deltas_does_not_matter(filters):
    inputs = filter_inputs(FilterCase("any", 2, 40, 20, 6))
    k = evaluate_filter(filters, inputs)
    turned = evaluate_filter(filters, inputs | {"deltas": -inputs["deltas"]})
    assert torch.equal(turned["k"], k["k"])
    assert torch.equal(turned["ddeltas"], -k["ddeltas"])
    zero = evaluate_filter(filters, inputs | {"deltas": 0 * inputs["deltas"]})
    assert torch.equal(zero["ddeltas"], torch.zeros(2, 20))


def test_into_a_convolution(filters):
    """Filter, spectrum, convolution, and back to the weights: forward and reverse filter."""
    inputs = dict(filter_inputs(FilterCase("any", 2, 50, 6, 8)))
    del inputs["dk"]
    leaves = {n: t.clone().requires_grad_(n != "t") for n, t in inputs.items()}
    u, dy = white(3, 6, 50, seed=1), white(3, 6, 50, seed=2)
    k, k_rev = filters(**leaves)
    y = fft_conv(u, k, k_rev=k_rev, backend=filters.keywords["backend"])
    names = [n for n in leaves if n != "t"]
    grads = torch.autograd.grad(y, [leaves[n] for n in names], dy)

    exact = {n: t.double().requires_grad_(n != "t") for n, t in inputs.items()}
    k, k_rev = implicit_filter(**exact, backend="reference")
    z = fft_conv(u.double(), k, k_rev=k_rev, backend="reference")
    expected = torch.autograd.grad(z, [exact[n] for n in names], dy.double())
    assert (y - z).norm() <= 1e-5 * z.norm()
    for name, grad, value in zip(names, grads, expected, strict=True):
        assert (grad - value).norm() <= 1e-4 * value.norm(), name
