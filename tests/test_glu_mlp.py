"""glu_mlp: GELU's accuracy, the fused parts, bad arguments. Properties: test_products.py."""

import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from monarch_kernels import block_diagonal, glu_mlp
from monarch_kernels.testing import white

pytestmark = pytest.mark.usefixtures("one_thread")


def exact_gelu(x):
    """By math.erfc, which is right to a unit of the last place on both sides."""
    return torch.tensor([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.flatten().tolist()])


def through_the_mlp(products, x):
    """gelu(x) alone: both matrices are the identity."""
    eye = torch.eye(64)[None]
    return products("glu_mlp")(x.reshape(-1, 64), eye, eye, gated=False).flatten()


def test_gelu(native_products):
    x = torch.cat([torch.linspace(-13, 13, 64 * 300), white(64 * 40), 1e-3 * white(64 * 4)])
    y = through_the_mlp(native_products, x).double()
    exact = exact_gelu(x.double()).double()
    _, exponent = torch.frexp(exact.abs().clamp_min(2.0**-126))
    error = (y - exact).abs() / torch.exp2(exponent.double() - 24)  # in units of the last place
    assert error[x > 0].max() <= 2.5
    assert error[(x <= 0) & (x > -1)].max() <= 3
    assert (
        error[(x <= -1) & (x > -4)].max() <= 30
    )  # where Phi is less than 1/6 of its largest value
    assert (y - exact).abs()[x <= 0].max() <= 5e-8
    torch_error = (gelu(x).double() - exact).abs()
    assert (y - exact).square().mean() <= torch_error.square().mean()


def test_gelu_of_what_is_not_finite(native_products):
    x = torch.zeros(64)
    x[0], x[1], x[2], x[3] = 0.0, 1e30, -1e30, 7e37
    y = through_the_mlp(native_products, x)
    assert torch.equal(y[:4], torch.tensor([0.0, 1e30, -0.0, 7e37]))


def test_gradient_of_gelu(native_products):
    x = torch.linspace(-9, 9, 64 * 100).requires_grad_()
    (dx,) = torch.autograd.grad(through_the_mlp(native_products, x).sum(), x)
    double = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(gelu(double).sum(), double)
    assert (dx.double() - exact).abs().max() <= 4e-7


@pytest.mark.parametrize("rows", [1, 40, 300])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_equals_its_parts(products, rows, blocks):
    """The expression of the docstring; in particular, which blocks the gate sees."""
    f = products("glu_mlp")
    width, units = 8 * blocks, 20
    x, residual = white(rows, width), white(rows, width, seed=1)
    w_in, w_out = white(blocks, 2 * units, 8, seed=2) / 3, white(blocks, 8, units, seed=3) / 4
    bias, scale, shift = (white(width, seed=i) for i in (4, 5, 6))
    a, b = block_diagonal(x.double(), w_in.double()).chunk(2, dim=-1)
    z = block_diagonal(gelu(a) * b, w_out.double(), bias.double()) + residual
    y = layer_norm(z, (width,), scale.double(), shift.double(), 1e-5)
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert torch.allclose(f(x, w_in, w_out, bias, residual=residual).double(), z, **close)
    norm = {"norm_weight": scale, "norm_bias": shift}
    fused = f(x, w_in, w_out, bias, residual=residual, **norm)
    assert torch.allclose(fused.double(), y, **close)
    recorded = f(x.clone().requires_grad_(), w_in, w_out, bias, residual=residual, **norm)
    assert torch.allclose(recorded.double(), y, **close)


def test_the_gate_sees_the_first_half(products):
    """With four blocks: blocks 2 and 3 of x do not reach the gate, 0 and 1 not the value."""
    f = products("glu_mlp")
    w_in, w_out = white(4, 10, 6).abs(), white(4, 6, 5, seed=1)
    x = white(3, 24, seed=2)
    gate_only = torch.cat([x[:, :12], torch.zeros(3, 12)], 1)
    value_only = torch.cat([torch.zeros(3, 12), x[:, 12:]], 1)
    for half in (gate_only, value_only):  # gelu(a) * 0 and gelu(0) * b
        assert torch.equal(f(half, w_in, w_out), torch.zeros(3, 24))
    assert f(x, w_in, w_out).abs().min() > 0


def test_the_eps_counts(products):
    x, zero = torch.ones(40, 8), torch.zeros(2, 8, 4)
    y = products("glu_mlp")(
        x,
        zero,
        torch.zeros(2, 4, 4),
        residual=x * torch.arange(8),
        norm_weight=torch.ones(8),
        eps=1e3,
    )
    variance = torch.arange(8.0).var(correction=0)
    expected = (torch.arange(8) - 3.5) / (variance + 1e3).sqrt()
    assert torch.allclose(y, expected.expand(40, 8))


def test_gradients_do_not_keep_the_hidden_activations(best_products):
    """What autograd saves is the inputs and, for the norm, one tensor of the result's size."""
    saved = []
    x = white(300, 32).requires_grad_()
    w_in, w_out = white(4, 64, 8, seed=1), white(4, 8, 32, seed=2)
    pack = lambda t: saved.append(t) or t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        best_products("glu_mlp")(x, w_in, w_out, norm_weight=torch.ones(32))
    assert max(t.numel() for t in saved) <= x.numel()


X, W_IN, W_OUT = (6, 8), (2, 12, 4), (2, 4, 6)
BAD = {
    "x_wide": ({"x": torch.ones(6, 9)}, ValueError, "x is 9 wide, w_in has 2 blocks of 4"),
    "dense_in": ({"w_in": torch.ones(24, 8)}, ValueError, "w_in must have shape .* the dense"),
    "dense_out": ({"w_out": torch.ones(8, 12)}, ValueError, "w_out must have shape .* the dense"),
    "blocks": ({"w_out": torch.ones(4, 2, 6)}, ValueError, "w_out has 4 blocks, w_in has 2"),
    "chain": (
        {"w_out": torch.ones(2, 4, 5)},
        *(ValueError, "w_in has 12 rows a block, w_out 5 columns: expected 10 rows"),
    ),
    "not_gated": ({"gated": False}, ValueError, "expected 6 rows .not gated."),
    "out_width": ({"w_out": torch.ones(2, 5, 6)}, ValueError, "x is 8 wide, w_out has 2 blocks"),
    "dtype": ({"w_in": torch.ones(W_IN).bfloat16()}, TypeError, "w_in must have the dtype of x"),
    "bias": ({"bias": torch.ones(7)}, ValueError, r"bias must have shape \(8,\)"),
    "norm": ({"norm_weight": torch.ones(8, 1)}, ValueError, "norm_weight must have shape"),
    "norm_bias": ({"norm_bias": torch.ones(8)}, ValueError, "norm_bias .* without norm_weight"),
    "residual": ({"residual": torch.ones(6, 1)}, ValueError, "residual must have the shape of x"),
    "residual_dtype": ({"residual": torch.ones(X).half()}, TypeError, "residual must have the dt"),
    "residual_list": ({"residual": [1.0]}, TypeError, "residual must be a tensor"),
}


@pytest.mark.parametrize(("given", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(given, error, message):
    arguments = {"x": white(*X), "w_in": white(*W_IN), "w_out": white(*W_OUT)} | given
    positional = [arguments.pop(n) for n in ("x", "w_in", "w_out")]
    with pytest.raises(error, match=message) as caught:
        glu_mlp(*positional, **arguments)
    assert "\n" not in str(caught.value)


def test_no_gradient_through_the_fused_operator(best_products):
    """The registered operator with a norm is for inference; the public function knows."""
    arguments = white(3, 8).requires_grad_(), white(2, 12, 4), white(2, 4, 6), None, None
    y = torch.ops.monarch_kernels.glu_mlp_fwd(*arguments, torch.ones(8), None, 1e-5, True)
    with pytest.raises(RuntimeError, match="no gradient with a norm"):
        y.sum().backward()
