"""fft_conv: first and second derivatives by finite differences, and what autograd is told."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError

from monarch_kernels import fft_conv, filter_spectrum
from monarch_kernels.testing import Case, evaluate, make_inputs, white

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # gradcheck prefers float64, which the native kernels have not; see `native_tolerance`.
    pytest.mark.filterwarnings("ignore:Input #:UserWarning"),
]

FULL = {"skip": True, "pregate": True, "postgate": True}
CASES = (
    Case("causal", 2, 2, 5),
    Case("short", 1, 3, 6, taps=2, reverse_taps=1),
    Case("full", 2, 2, 5, reverse_taps=5, **FULL),
    Case("circular", 2, 3, 4, circular=True, **FULL),
    Case("postgate", 1, 2, 5, postgate=True, skip=True),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def as_function(function, case, dtype):
    """The function of the tensors alone, and the tensors, as gradcheck wants them."""
    given = {n: t for n, t in make_inputs(case).items() if t is not None and n != "dy"}
    tensors = [t.to(dtype, copy=True).requires_grad_() for t in given.values()]

    def of_tensors(*values):
        named = dict(zip(given, values, strict=True))
        return function(named.pop("u"), named.pop("k"), **named, circular=case.circular)

    return of_tensors, tensors


@by_case
def test_float64_reference(case):
    def function(*args, **kwargs):
        return fft_conv(*args, backend="reference", **kwargs)

    of_tensors, tensors = as_function(function, case, torch.float64)
    assert gradcheck(of_tensors, tensors)
    assert gradgradcheck(of_tensors, tensors)


EPS = 0.5


def native_tolerance(case):
    """Tolerance of central differences of step EPS in float32.

    fft_conv is linear in each of its arguments, and so are its gradients: central differences have
    no truncation error, and the step may be of the size of the inputs. What remains is rounding:
    two values, each with the budget of twice torch's error, divided by 2 EPS. That error is
    measured with all inputs twice as large, for the step makes one of them so.
    """

    def reference(*args, **kwargs):
        return fft_conv(*args, backend="reference", **kwargs)

    inputs = {n: t if t is None else 2 * t for n, t in make_inputs(case).items()}
    single, double = (
        evaluate(reference, inputs, circular=case.circular, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    noise = max((single[n] - double[n]).abs().max().item() for n in double)
    return {"eps": EPS, "atol": 2 * 2 * noise / (2 * EPS), "rtol": 0}


@by_case
def test_native(native, case):
    of_tensors, tensors = as_function(native, case, torch.float32)
    tolerance = native_tolerance(case)
    assert gradcheck(of_tensors, tensors, **tolerance)
    assert gradgradcheck(of_tensors, tensors, **tolerance)


def test_the_tolerance_notices_a_wrong_gradient(native_best):
    case = CASES[2]
    of_tensors, tensors = as_function(native_best, case, torch.float32)

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            return t.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * (1 + 1e-4)

    with pytest.raises(GradcheckError):
        gradcheck(lambda *t: Wrong.apply(of_tensors(*t)), tensors, **native_tolerance(case))


def test_with_a_spectrum(implementation):
    """Gradients of u and the gates, first and second; the filter is a constant."""
    case = CASES[2]
    inputs = make_inputs(case)
    backend = implementation.keywords["backend"]
    dtype = torch.float64 if backend == "reference" else torch.float32
    tolerance = {} if backend == "reference" else native_tolerance(case)
    k, k_rev, skip = (inputs[n].to(dtype) for n in ("k", "k_rev", "skip"))
    spectrum = filter_spectrum(k, k_rev, skip=skip, length=case.length, backend=backend)
    tensors = [
        inputs[n].to(dtype, copy=True).requires_grad_() for n in ("u", "pregate", "postgate")
    ]

    def of_tensors(u, pregate, postgate):
        return implementation(u, spectrum, pregate=pregate, postgate=postgate)

    assert gradcheck(of_tensors, tensors, **tolerance)
    assert gradgradcheck(of_tensors, tensors, **tolerance)


@pytest.mark.parametrize("wanted", ["u", "k", "k_rev", "skip", "pregate", "postgate"])
def test_one_gradient_alone_has_the_same_bits(implementation, wanted):
    case = Case("any", 2, 5, 70, reverse_taps=70, **FULL)
    inputs = make_inputs(case)
    every = evaluate(implementation, inputs, circular=False)
    given = {n: t for n, t in inputs.items() if n != "dy"}
    given[wanted] = leaf = given[wanted].detach().clone().requires_grad_()
    y = implementation(given.pop("u"), given.pop("k"), **given)
    (grad,) = torch.autograd.grad(y, leaf, inputs["dy"])
    assert torch.equal(grad, every[f"d{wanted}"])


def test_no_graph_without_need(implementation):
    u, k = white(1, 2, 9), white(2, 9)
    assert not implementation(u, k).requires_grad
    with torch.no_grad():
        assert not implementation(u.requires_grad_(), k).requires_grad


def test_gradient_penalty(implementation):
    """The training loop's use of second derivatives: a penalty on the gradient of the input."""
    u, k = white(2, 3, 40).requires_grad_(), white(3, 40, seed=1).requires_grad_()
    y = implementation(u, k)
    (du,) = torch.autograd.grad(y.square().sum(), u, create_graph=True)
    du.square().sum().backward()
    assert u.grad.isfinite().all()
    assert k.grad.abs().max() > 0


def test_a_cotangent_with_stride_0(implementation):
    """What sum() sends back through the gradient of the filter."""
    u, k = white(2, 3, 40), white(3, 40, seed=1).requires_grad_()
    w = white(2, 3, 40, seed=2).requires_grad_()
    (dk,) = torch.autograd.grad(implementation(u, k), k, w, create_graph=True)
    (summed,) = torch.autograd.grad(dk.sum(), w, retain_graph=True)
    (weighted,) = torch.autograd.grad(dk, w, torch.ones(3, 40))
    assert torch.equal(summed, weighted)


def test_a_used_graph_is_freed(native_best):
    u, k = white(1, 2, 9).requires_grad_(), white(2, 9)
    y = native_best(u, k).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


def test_an_input_changed_in_place_is_noticed(native_best):
    u, k = white(1, 2, 9), white(2, 9).requires_grad_()
    y = native_best(u, k)
    u.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_have_the_dtype_of_their_tensor(implementation):
    for dtype, filters in [(torch.bfloat16, torch.float32), (torch.float16, torch.float16)]:
        u = white(1, 3, 20).to(dtype).requires_grad_()
        k = white(3, 20).to(filters).requires_grad_()
        skip = white(3).to(filters).requires_grad_()
        implementation(u, k, skip=skip).sum().backward()
        assert (u.grad.dtype, k.grad.dtype, skip.grad.dtype) == (dtype, filters, filters)
