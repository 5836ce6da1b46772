"""fft_conv: values and gradients of every case, and the mathematics."""

import itertools

import pytest
import torch

from monarch_kernels import fft_conv, reference
from monarch_kernels.testing import BOUNDARIES, CASES, check_fft_conv, evaluate, white

pytestmark = pytest.mark.usefixtures("one_thread", "poison")

LENGTHS = (1, 2, 3, 5, 16, 33, 257)


def is_reference(implementation):
    return implementation.keywords["backend"] == "reference"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_result_and_gradients(implementation, case):
    check_fft_conv(implementation, case, own_period=is_reference(implementation))


@pytest.mark.parametrize("case", BOUNDARIES, ids=lambda case: case.name)
def test_every_transform_size(native, case):
    check_fft_conv(native, case)


def test_error_is_below_that_of_torch_at_128(native):
    """Portable code too, which has no fused multiply-add: its filters are in double precision."""
    u, k = white(4, 32, 128), white(32, 128, seed=1)
    exact = reference.fft_conv(u.double(), k.double())
    error, of_torch = ((f(u, k) - exact).norm() for f in (native, reference.fft_conv))
    assert error < of_torch


def integers(*shape, seed=0, most=3):
    """Whole numbers, for which rounding to the nearest makes any convolution exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).float()


def rounded(t):
    whole = t.round()
    # Beyond a quarter it would be luck that rounding finds the right number.
    assert ((t - whole).abs() < 0.25).all()
    return whole.double()


def direct(u, k, *, k_rev=None, skip=None, pregate=None, postgate=None, circular=False):
    """The sums of fft_conv's docstring as one matrix per channel, without a transform."""
    length = u.shape[-1]
    matrix = u.new_zeros(u.shape[1], length, length)
    for t, s in itertools.product(range(length), range(length)):
        back = (t - s) % length if circular else t - s
        if 0 <= back < k.shape[-1]:
            matrix[:, t, s] += k[:, back]
        if k_rev is not None and 0 <= s - t - 1 < k_rev.shape[-1]:
            matrix[:, t, s] += k_rev[:, s - t - 1]
    if k_rev is not None:  # of one element, none reaches any: its gradient is zero
        matrix = matrix + 0 * k_rev.sum()
    if skip is not None:
        matrix = matrix + skip[:, None, None] * torch.eye(length, dtype=u.dtype)
    g = u if pregate is None else pregate * u
    y = torch.einsum("hts,bhs->bht", matrix, g)
    return y if postgate is None else postgate * y


def combinations():
    """Which of k_rev, skip, pregate, postgate and circular: all that are allowed."""
    for k_rev, skip, pregate, postgate, circular in itertools.product((False, True), repeat=5):
        if not (k_rev and circular):
            names = zip(
                ("k_rev", "skip", "pregate", "postgate"),
                (k_rev, skip, pregate, postgate),
                strict=True,
            )
            yield {name for name, wanted in names if wanted}, circular


@pytest.mark.parametrize("length", [n for n in LENGTHS if n <= 33])
def test_equals_the_sums_for_every_combination(implementation, length):
    for names, circular in combinations():
        shapes = {"u": (2, 3, length), "k": (3, length), "k_rev": (3, length), "skip": (3,)}
        shapes |= dict.fromkeys(("pregate", "postgate", "dy"), (2, 3, length))
        inputs = {
            name: integers(*shape, seed=i)
            for i, (name, shape) in enumerate(shapes.items())
            if name in names | {"u", "k", "dy"}
        }
        actual = evaluate(implementation, inputs, circular=circular)
        exact = evaluate(direct, inputs, circular=circular, dtype=torch.float64)
        for name, value in exact.items():
            assert torch.equal(rounded(actual[name]), value), (names, circular, name)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 33])
def test_float64_reference_is_float64(length):
    """Against the direct sums: a transform of n points errs by O(log n) roundings of the norms."""
    shapes = [(2, 3, length), (3, length), (3, length)]
    u, k, k_rev = (white(*shape, seed=i).double() for i, shape in enumerate(shapes))
    y = fft_conv(u, k, k_rev=k_rev)
    assert y.dtype == torch.float64
    norms = u.norm(dim=-1) * torch.cat([k, k_rev], -1).norm(dim=-1)
    roundings = 3 * (1 + torch.tensor(2.0 * length).log2().ceil())  # three transforms
    bound = roundings * torch.finfo(torch.float64).eps * norms.unsqueeze(-1)
    assert ((y - direct(u, k, k_rev=k_rev)).abs() <= bound).all()


@pytest.mark.parametrize("length", LENGTHS)
class TestMathematics:
    def test_delta_is_the_identity(self, implementation, length):
        u = integers(2, 5, length)
        delta = torch.zeros(5, length)
        delta[:, 0] = 1
        for circular in (False, True):
            assert torch.equal(rounded(implementation(u, delta, circular=circular)), u.double())
        zero = torch.zeros_like(delta)
        assert torch.equal(rounded(implementation(u, zero, skip=torch.ones(5))), u.double())

    def test_a_tap_shifts(self, implementation, length):
        u = integers(2, 3, length)
        for tap in {0, length // 2, length - 1}:
            k = torch.zeros(3, length)
            k[:, tap] = 1
            back = torch.zeros_like(u)
            back[..., tap:] = u[..., : length - tap]
            ahead = torch.zeros_like(u)
            ahead[..., : max(0, length - tap - 1)] = u[..., tap + 1 :]
            zero = torch.zeros_like(k)
            assert torch.equal(rounded(implementation(u, k)), back.double())
            assert torch.equal(rounded(implementation(u, zero, k_rev=k)), ahead.double())
            rolled = implementation(u, k, circular=True)
            assert torch.equal(rounded(rolled), u.roll(tap, -1).double())

    def test_shift_equivariance(self, implementation, length):
        u, k = integers(1, 3, length), integers(3, length, seed=1)
        shift = length // 3
        moved = torch.zeros_like(u)
        moved[..., shift:] = u[..., : length - shift]
        y, moved_y = rounded(implementation(u, k)), rounded(implementation(moved, k))
        assert torch.equal(moved_y[..., shift:], y[..., : length - shift])
        rolled = rounded(implementation(u.roll(shift, -1), k, circular=True))
        assert torch.equal(rolled, rounded(implementation(u, k, circular=True)).roll(shift, -1))

    def test_linearity(self, implementation, length):
        a, b = integers(2, 3, length), integers(2, 3, length, seed=1)
        k, c = integers(3, length, seed=2), integers(3, length, seed=3)
        y = rounded(implementation(2 * a - b, k))
        assert torch.equal(y, 2 * rounded(implementation(a, k)) - rounded(implementation(b, k)))
        y = rounded(implementation(a, k + c))
        assert torch.equal(y, rounded(implementation(a, k)) + rounded(implementation(a, c)))

    def test_time_reversal_exchanges_the_filters(self, implementation, length):
        """k[0] is the present, k_rev[0] the next element: the present's tap changes place."""
        u = integers(2, 3, length)
        k, k_rev = integers(3, length, seed=1), integers(3, length, seed=2)
        k_rev[:, -1] = 0  # reaches beyond the sequence: nothing corresponds to it
        y = implementation(u, k, k_rev=k_rev)
        swapped = torch.cat([k[:, :1], k_rev[:, :-1]], -1)
        swapped_rev = torch.cat([k[:, 1:], torch.zeros(3, 1)], -1)
        reverse = implementation(u.flip(-1), swapped, k_rev=swapped_rev)
        assert torch.equal(rounded(reverse).flip(-1), rounded(y))

    def test_circular_is_the_sum_of_rolled_inputs(self, implementation, length):
        u, k = integers(2, 3, length), integers(3, length, seed=1)
        rolled = sum(k[:, j, None] * u.roll(j, -1) for j in range(length))
        assert torch.equal(rounded(implementation(u, k, circular=True)), rolled.double())

    def test_gradient_is_the_adjoint(self, implementation, length):
        """<A x, y> = <x, A* y>, with A* from autograd."""
        x, y = integers(2, 3, length), integers(2, 3, length, seed=1)
        k, k_rev = integers(3, length, seed=2), integers(3, length, seed=3)
        x.requires_grad_()
        result = implementation(x, k, k_rev=k_rev)
        (adjoint,) = torch.autograd.grad(result, x, y)
        left, right = rounded(result.detach()) * y, x.detach() * rounded(adjoint)
        assert left.sum() == right.sum()
