"""implicit_filter: derivatives by finite differences, alone and through a convolution."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from monarch_kernels import fft_conv, implicit_filter
from monarch_kernels.testing import FilterCase, evaluate_filter, filter_inputs, white

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = (
    FilterCase("plain", 2, 4, 3, 2, 2, 1),
    FilterCase("no_hidden", 1, 3, 2, 2, 1, 0),
    FilterCase("shared", 2, 3, 2, 3, 2, 2, shared=True),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def leaves_of(case, dtype):
    """The tensors of a case but dk as leaves; t alone requires no gradient."""
    given = {n: t for n, t in filter_inputs(case).items() if n != "dk"}
    return {n: t.to(dtype, copy=True).requires_grad_(n != "t") for n, t in given.items()}


def of_tensors(function, names, t):
    """The function of the differentiable tensors alone, as gradcheck wants it."""

    def call(*tensors):
        return function(**dict(zip(names, tensors, strict=True)), t=t)

    return call


def convolved(**options):
    """y = conv(u; k, k_rev) with both filters of one call; of weights, and u."""

    def function(u, **arguments):
        k = implicit_filter(**arguments, **options)
        return fft_conv(u, k[0], k_rev=k[-1], **options)

    return function


@by_case
def test_float64_reference(case):
    leaves = leaves_of(case, torch.float64)
    t = leaves.pop("t")
    names = list(leaves)
    call = of_tensors(lambda **a: implicit_filter(**a, backend="reference"), names, t)
    tensors = list(leaves.values())
    assert gradcheck(call, tensors)
    assert gradgradcheck(call, tensors)


@by_case
def test_filter_spectrum_convolution(case):
    """Filter, its spectrum, the convolution, and the gradients of the network's weights."""
    leaves = leaves_of(case, torch.float64)
    t = leaves.pop("t")
    leaves["u"] = white(1, case.channels, case.length).double().requires_grad_()
    call = of_tensors(convolved(backend="reference"), list(leaves), t)
    assert gradcheck(call, list(leaves.values()))
    assert gradgradcheck(call, list(leaves.values()))


@pytest.mark.parametrize("path", ["filter", "convolution"])
@by_case
def test_first_and_second_derivatives(native_filters, case, path):
    """The kernels' derivatives equal the float64 reference's, which differences check above."""
    results = []
    for dtype, backend in ((torch.float32, "native"), (torch.float64, "reference")):
        leaves = leaves_of(case, dtype)
        if path == "convolution":
            leaves["u"] = white(1, case.channels, case.length).to(dtype).requires_grad_()
            y = convolved(backend=backend)(**leaves)
        else:
            y = implicit_filter(**leaves, backend=backend)
        tensors = [t for n, t in leaves.items() if n != "t" and t.numel() > 0]
        dy = white(*y.shape, seed=7).to(dtype).requires_grad_()
        first = torch.autograd.grad(y, tensors, dy, create_graph=True)
        weights = [white(*g.shape, seed=20 + i).to(dtype) for i, g in enumerate(first)]
        second = torch.autograd.grad(first, [dy, *tensors], weights, create_graph=True)
        form = sum((g * white(*g.shape, seed=40 + i).to(dtype)).sum() for i, g in enumerate(second))
        third = torch.autograd.grad(form, [dy, *tensors])
        results.append([*first, *second, *third])
    for found, exact in zip(*results, strict=True):
        assert (found.double() - exact).norm() <= 2e-5 * exact.norm() + 1e-6


NAMES = ("z", "w_in", "b_in", "w_hidden", "b_hidden", "w_out", "freq", "deltas")


@pytest.mark.parametrize("wanted", NAMES)
def test_one_gradient_alone_has_the_same_bits(native_filters, wanted):
    inputs = filter_inputs(FilterCase("any", 2, 150, 20, 6))
    every = evaluate_filter(native_filters, inputs)
    given = {n: t.detach() for n, t in inputs.items() if n != "dk"}
    leaf = given[wanted] = given[wanted].clone().requires_grad_()
    (grad,) = torch.autograd.grad(native_filters(**given), leaf, inputs["dk"])
    assert torch.equal(grad, every[f"d{wanted}"])


@pytest.mark.parametrize("unwanted", NAMES)
def test_second_derivatives_with_a_constant(filters_best, unwanted):
    found = []
    for dtype, backend in ((torch.float32, "native"), (torch.float64, "reference")):
        leaves = leaves_of(FilterCase("any", 2, 9, 4, 3), dtype)
        leaves[unwanted].requires_grad_(False)
        wanted = [t for t in leaves.values() if t.requires_grad]
        k = implicit_filter(**leaves, backend=backend)
        first = torch.autograd.grad(k.square().sum(), wanted, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        found.append(torch.autograd.grad(penalty, wanted))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_a_gradient_with_any_strides(native_filters):
    leaves = leaves_of(FilterCase("any", 2, 70, 5, 4), torch.float32)
    wanted = [t for t in leaves.values() if t.requires_grad]
    k = native_filters(**leaves)
    ones = torch.autograd.grad(k, wanted, torch.ones(1).expand(k.shape), retain_graph=True)
    dense = torch.autograd.grad(k, wanted, torch.ones(k.shape), retain_graph=True)
    turned = torch.autograd.grad(k, wanted, torch.ones(70, 5, 2).permute(2, 1, 0))
    for a, b, c in zip(ones, dense, turned, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_no_graph_without_need(filters):
    leaves = leaves_of(CASES[0], torch.float32)
    assert not filters(**{n: t.detach() for n, t in leaves.items()}).requires_grad
    with torch.no_grad():
        assert not filters(**leaves).requires_grad


def test_an_input_changed_in_place_is_noticed(filters_best):
    leaves = leaves_of(CASES[0], torch.float32)
    k = filters_best(**leaves)
    leaves["w_out"].data = leaves["w_out"].data.clone()
    with torch.no_grad():
        leaves["b_in"].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        k.sum().backward()
