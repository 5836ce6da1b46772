"""monarch_matmul: the mathematics, projection, bad arguments. Properties: test_products.py."""

import pytest
import torch

from monarch_kernels import monarch_matmul, project_to_monarch, to_dense
from monarch_kernels.testing import white
from tests.test_block_diagonal import integers

pytestmark = pytest.mark.usefixtures("one_thread")

# (k, q, p), (l, s, r)
SHAPES = [
    ((1, 1, 1), (1, 1, 1)),
    ((4, 4, 4), (4, 4, 4)),
    ((3, 4, 5), (6, 7, 2)),
    ((2, 33, 3), (11, 17, 6)),
    ((5, 3, 2), (15, 2, 1)),
    ((5, 3, 2), (1, 20, 15)),
]


@pytest.mark.parametrize("rows", [1, 8, 33])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_equals_its_dense_matrix(products, shapes, rows):
    w1, w2 = integers(*shapes[0]), integers(*shapes[1], seed=1)
    x = integers(rows, shapes[0][0] * shapes[0][2], seed=2)
    dense = to_dense(w1, w2)
    bias = integers(len(dense), seed=3)
    assert torch.equal(products("monarch_matmul")(x, w1, w2, bias), x @ dense.t() + bias)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_the_docstring(products, shapes):
    (k, _, p), (blocks, _, r) = shapes
    w1, w2, x = integers(*shapes[0]), integers(*shapes[1], seed=1), integers(9, k * p, seed=2)
    h = torch.einsum("kqp,...kp->...kq", w1, x.unflatten(-1, (k, p))).flatten(-2)
    y = torch.einsum("lsr,...rl->...sl", w2, h.unflatten(-1, (r, blocks))).flatten(-2)
    assert torch.equal(products("monarch_matmul")(x, w1, w2), y)


def test_a_hadamard_transform(products):
    """Of 16 points: the Kronecker product of two of 4, with the permutation between."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    four = torch.kron(two, two)
    w = four.expand(4, 4, 4)
    # Block i of w2 reads element i of every block of w1, and writes every fourth element.
    assert torch.equal(to_dense(w, w), torch.kron(four, four))
    x = integers(5, 16)
    assert torch.equal(products("monarch_matmul")(x, w, w), x @ torch.kron(four, four))


@pytest.mark.parametrize(("k", "out", "rank"), [(2, 3, 1), (4, 3, 2), (1, 1, 3), (8, 4, 1)])
def test_projection_of_a_monarch_matrix_is_itself(k, out, rank):
    w1, w2 = white(k, out * rank, 6).double(), white(out, 5, k * rank, seed=1).double()
    dense = to_dense(w1, w2)
    found = project_to_monarch(dense, blocks_in=k, blocks_out=out, rank=rank)
    assert (found[0].shape, found[1].shape) == (w1.shape, w2.shape)
    assert torch.allclose(to_dense(*found), dense, atol=1e-12)


def test_projection_is_the_nearest():
    """Its error is what the singular values of the parts say, and no step makes it smaller."""
    dense = white(12, 20).double()
    pair = [t.requires_grad_() for t in project_to_monarch(dense, blocks_in=4, blocks_out=3)]
    error = (to_dense(*pair) - dense).square().sum()
    parts = dense.reshape(4, 3, 4, 5).permute(1, 2, 0, 3)
    left_out = torch.linalg.svdvals(parts)[..., 1:].square().sum()
    assert torch.allclose(error, left_out)
    assert all(g.abs().max() < 1e-10 for g in torch.autograd.grad(error, pair))


def test_projection_keeps_the_dtype():
    w1, w2 = project_to_monarch(white(8, 8).bfloat16(), blocks_in=2, blocks_out=2, rank=4)
    assert w1.dtype == w2.dtype == torch.bfloat16


X, W1, W2 = (6, 8), (2, 6, 4), (3, 5, 4)
BAD = {
    "chain": (
        {"w2": torch.ones(3, 5, 3)},
        *(ValueError, r"w2 takes 3 x 3 = 9 values .*, w1 makes 2 x 6 = 12"),
    ),
    "x_wide": ({"x": torch.ones(6, 9)}, ValueError, "x is 9 wide, w1 has 2 blocks of 4"),
    "w1_dense": ({"w1": torch.ones(12, 8)}, ValueError, "w1 must have shape .* the dense"),
    "w2_dtype": ({"w2": torch.ones(W2).half()}, TypeError, "w2 must have the dtype of x"),
    "w2_none": ({"w2": None}, TypeError, "w2 must be a tensor"),
    "bias": ({"bias": torch.ones(14)}, ValueError, r"bias must have shape \(15,\)"),
    "out": ({"out_features": 12}, ValueError, "out_features is 12 wide, w2 has 3 blocks of 5"),
}


@pytest.mark.parametrize(("given", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(given, error, message):
    arguments = {"x": white(*X), "w1": white(*W1), "w2": white(*W2)} | given
    positional = [arguments.pop(n) for n in ("x", "w1", "w2")]
    with pytest.raises(error, match=message) as caught:
        monarch_matmul(*positional, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks_in": 3, "blocks_out": 2}, "blocks_in must divide n = 8, got 3"),
        ({"blocks_in": 2, "blocks_out": 5}, "blocks_out must divide m = 6, got 5"),
        ({"blocks_in": 2, "blocks_out": 2, "rank": 4}, "rank must be from 1 to .* = 3, got 4"),
        ({"blocks_in": 2, "blocks_out": 2, "rank": 0}, "rank must be from 1"),
    ],
)
def test_bad_projections(options, message):
    with pytest.raises(ValueError, match=message):
        project_to_monarch(white(6, 8), **options)
