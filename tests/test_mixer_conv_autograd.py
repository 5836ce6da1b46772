"""mixer_conv: first and second derivatives by finite differences, and what autograd is told."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from monarch_kernels import filter_spectrum, mixer_conv
from monarch_kernels.testing import MixerCase, evaluate_mixer, make_mixer_inputs, white

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = (
    MixerCase("full", 2, 2, 5, reverse_taps=5),
    MixerCase("plain", 1, 2, 4, s_taps=None, s_bias=False, skip=False, residual=False),
    MixerCase("no_bias", 1, 2, 5, s_taps=2, s_bias=False, reverse_taps=2, taps=3),
    MixerCase("residual", 1, 2, 4, s_taps=None, s_bias=False, u_layout="contiguous"),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def of_tensors(function, case, dtype):
    """The function of the tensors alone, and the tensors, as gradcheck wants them."""
    given = {n: t for n, t in make_mixer_inputs(case).items() if t is not None and n != "dz"}
    tensors = [t.to(dtype, copy=True).requires_grad_() for t in given.values()]

    def call(*values):
        named = dict(zip(given, values, strict=True))
        return function(named.pop("q"), named.pop("k"), **named)

    return call, tensors


@by_case
def test_float64_reference(case):
    def function(*args, **kwargs):
        return mixer_conv(*args, backend="reference", **kwargs)

    call, tensors = of_tensors(function, case, torch.float64)
    assert gradcheck(call, tensors)
    assert gradgradcheck(call, tensors)


def by_reference(case):
    call, _ = of_tensors(
        lambda *a, **k: mixer_conv(*a, backend="reference", **k), case, torch.float64
    )
    return call


@by_case
def test_first_and_second_derivatives(native_mixer, case):
    """The kernels' first and second derivatives equal those of the float64 reference.

    The reference's are checked by differences above. Cotangents are white: every element of every
    derivative of a derivative has its part in the result.
    """
    results = []
    for dtype in (torch.float32, torch.float64):
        if dtype == torch.float32:
            call, tensors = of_tensors(native_mixer, case, dtype)
        else:
            call, tensors = by_reference(case), of_tensors(None, case, dtype)[1]
        z = call(*tensors)
        dz = white(*z.shape, seed=7).to(dtype).requires_grad_()
        first = torch.autograd.grad(z, tensors, dz, create_graph=True)
        weights = [white(*g.shape, seed=20 + i).to(dtype) for i, g in enumerate(first)]
        leaves = [dz, *tensors]
        second = torch.autograd.grad(first, leaves, weights, create_graph=True, allow_unused=True)
        form = sum(
            (g * white(*g.shape, seed=40 + i).to(dtype)).sum()
            for i, g in enumerate(second)
            if g is not None
        )
        third = torch.autograd.grad(form, leaves, allow_unused=True)
        results.append([*first, *second, *third])
    assert len(results[0]) == len(results[1])
    for found, exact in zip(*results, strict=True):
        if exact is None or exact.norm() == 0:
            assert found is None or found.norm() <= 1e-4
        else:
            assert (found.double() - exact).norm() <= 1e-5 * exact.norm() + 1e-6


@pytest.mark.parametrize("unwanted", ["q", "u", "k", "k2", "s", "s_bias", "skip2"])
def test_second_derivatives_with_a_constant(native_mixer, unwanted):
    """gradgradcheck's pattern with one tensor that requires no gradient."""
    case = CASES[0]
    inputs = {n: t for n, t in make_mixer_inputs(case).items() if n != "dz"}
    found = []
    for dtype, function in ((torch.float32, native_mixer), (torch.float64, mixer_conv)):
        given = {n: t.to(dtype, copy=True).requires_grad_(n != unwanted) for n, t in inputs.items()}
        leaves = [t for t in given.values() if t.requires_grad]
        backend = {} if dtype == torch.float32 else {"backend": "reference"}
        z = function(given.pop("q"), given.pop("k"), **given, **backend)
        first = torch.autograd.grad(z.square().sum(), leaves, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        found.append(torch.autograd.grad(penalty, leaves, allow_unused=True))
    for a, b in zip(*found, strict=True):
        assert (a.double() - b).norm() <= 1e-4 * b.norm()


@pytest.mark.parametrize("wanted", ["q", "k", "s", "s_bias", "k_rev", "skip", "u", "k2", "skip2"])
@pytest.mark.parametrize("length", [70, 300])
def test_one_gradient_alone_has_the_same_bits(native_mixer, wanted, length):
    case = MixerCase("any", 2, 5, length, reverse_taps=length)
    inputs = make_mixer_inputs(case)
    every = evaluate_mixer(native_mixer, inputs)
    given = {n: t for n, t in inputs.items() if n != "dz"}
    given[wanted] = leaf = given[wanted].detach().clone().requires_grad_()
    z = native_mixer(given.pop("q"), given.pop("k"), **given)
    (grad,) = torch.autograd.grad(z, leaf, inputs["dz"])
    assert torch.equal(grad, every[f"d{wanted}"])


def with_spectra(case, backend):
    given = {n: t for n, t in make_mixer_inputs(case).items() if n != "dz"}
    for k, k_rev, skip in (("k", "k_rev", "skip"), ("k2", "k2_rev", "skip2")):
        given[k] = filter_spectrum(
            given[k], given.pop(k_rev), skip=given.pop(skip), length=case.length, backend=backend
        )
    return given


def test_with_spectra(mixer):
    """Gradients of q, u, s and s_bias, first and second; the filters are constants."""
    case = MixerCase("spectra", 2, 3, 40, reverse_taps=40)
    inputs = make_mixer_inputs(case)
    expected = evaluate_mixer(mixer, inputs)
    given = with_spectra(case, mixer.keywords["backend"])
    leaves = {n: given[n].detach().clone().requires_grad_() for n in ("q", "u", "s", "s_bias")}
    given |= leaves
    z = mixer(given.pop("q"), given.pop("k"), **given)
    grads = torch.autograd.grad(z, list(leaves.values()), inputs["dz"], create_graph=True)
    for name, grad in zip(leaves, grads, strict=True):
        assert torch.equal(grad, expected[f"d{name}"]), name
    penalty = sum(g.square().sum() for g in grads)
    second = torch.autograd.grad(penalty, list(leaves.values()), allow_unused=True)
    assert second[0].isfinite().all()
    assert second[1] is None, "the gradients do not depend on u"


def test_a_spectrum_has_no_gradient(native_mixer):
    """The operator itself; the public function's spectra never require one."""
    spectrum = filter_spectrum(white(2, 9), length=9, backend="native").data.requires_grad_()
    none = [None] * 5
    z = torch.ops.monarch_kernels.mixer_conv_fwd(
        white(1, 6, 9), None, None, None, None, None, spectrum, *none
    )
    with pytest.raises(RuntimeError, match="a spectrum has no gradient: pass the filter itself"):
        z.sum().backward()


def test_no_graph_without_need(mixer):
    q, k = white(1, 6, 9), white(2, 9)
    assert not mixer(q, k).requires_grad
    with torch.no_grad():
        assert not mixer(q.requires_grad_(), k).requires_grad


def test_a_used_graph_is_freed(mixer_best):
    z = mixer_best(white(1, 6, 9).requires_grad_(), white(2, 9)).sum()
    z.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        z.backward()


def test_an_input_changed_in_place_is_noticed(mixer_best):
    q, k = white(1, 6, 9), white(2, 9).requires_grad_()
    z = mixer_best(q, k)
    q.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_gradients_have_the_dtype_of_their_tensor(mixer):
    for dtype, filters in [(torch.bfloat16, torch.float32), (torch.float16, torch.float16)]:
        q, u = white(1, 9, 20).to(dtype), white(1, 3, 20).to(dtype)
        k, s = white(3, 20).to(filters), white(9, 3).to(filters)
        leaves = [t.requires_grad_() for t in (q, u, k, s)]
        mixer(q, k, s=s, u=u, k2=k).sum().backward()
        assert [t.grad.dtype for t in leaves] == [dtype, dtype, filters, filters]


def test_a_gradient_with_stride_0(mixer):
    """What sum() sends back."""
    q, k = white(2, 9, 40).requires_grad_(), white(3, 40, seed=1).requires_grad_()
    summed = torch.autograd.grad(mixer(q, k).sum(), (q, k))
    weighted = torch.autograd.grad(mixer(q, k), (q, k), torch.ones(2, 3, 40))
    assert all(torch.equal(a, b) for a, b in zip(summed, weighted, strict=True))
