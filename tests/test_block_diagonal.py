"""block_diagonal: the mathematics, and bad arguments. Cases and properties: test_products.py."""

import pytest
import torch

from monarch_kernels import block_diagonal
from monarch_kernels.testing import white

pytestmark = pytest.mark.usefixtures("one_thread")


def integers(*shape, seed=0):
    """Whole numbers, of which every product and sum here is exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).float()


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 9, 16, 31, 33, 100])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (4, 48, 32), (2, 97, 19)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_the_dense_matrix(products, rows, shape, dtype):
    blocks, q, c = shape
    w, x = integers(*shape), integers(rows, blocks * c, seed=1)
    bias = integers(blocks * q, seed=2)
    exact = x @ torch.block_diag(*w).t() + bias
    y = products("block_diagonal")(x.to(dtype), w.to(dtype), bias)
    assert torch.equal(y, exact.to(dtype))


def test_padding_is_that_of_zeros(products):
    """A width that P does not divide, and a cropped result: as with zeros and a slice."""
    f = products("block_diagonal")
    w, x, bias = integers(4, 5, 3), integers(20, 10, seed=1), integers(18, seed=2)
    whole = f(torch.nn.functional.pad(x, (0, 2)), w)
    assert torch.equal(f(x, w, bias, out_features=18), whole[:, :18] + bias)


def test_nan_beyond_the_rows_is_not_read(products):
    f, w = products("block_diagonal"), integers(3, 5, 4)
    for rows in (3, 20):
        big = torch.full((rows + 2, 30), float("nan"))
        big[1:-1, 7:18] = integers(rows, 11, seed=1)
        assert torch.equal(f(big[1:-1, 7:18], w), f(big[1:-1, 7:18].clone(), w))


def test_nan_propagates(products):
    f, w = products("block_diagonal"), integers(3, 5, 4)
    for rows in (2, 20):
        x = integers(rows, 12, seed=1)
        x[1, 5] = float("nan")
        bad = f(x, w).isnan()
        assert bad[1, 5:10].all()
        assert bad.sum() == 5


X, W = (6, 8), (2, 3, 4)
BAD = {
    "x_list": ({"x": [1.0]}, TypeError, "x must be a tensor"),
    "x_scalar": ({"x": torch.tensor(1.0)}, ValueError, "x must have shape"),
    "x_no_features": ({"x": torch.empty(3, 0)}, ValueError, "x must have shape"),
    "x_int": ({"x": torch.ones(X, dtype=torch.int32)}, TypeError, "x must be float32"),
    "x_wide": ({"x": torch.ones(6, 9)}, ValueError, "x is 9 wide, w has 2 blocks of 4: expected 7"),
    "x_narrow": ({"x": torch.ones(6, 6)}, ValueError, "x is 6 wide, w has 2 blocks of 4"),
    "w_none": ({"w": None}, TypeError, "w must be a tensor"),
    "w_dense": ({"w": torch.ones(6, 8)}, ValueError, "the dense .6, 8.: torch.nn.functional"),
    "w_rank": ({"w": torch.ones(1, 2, 3, 4)}, ValueError, "w must have shape"),
    "w_empty": ({"w": torch.ones(2, 0, 4)}, ValueError, "w must have shape .* without a zero"),
    "w_dtype": ({"w": torch.ones(W).half()}, TypeError, "w must have the dtype of x"),
    "w_device": ({"w": torch.ones(W, device="meta")}, ValueError, "w is on meta, x on cpu"),
    "bias_shape": ({"bias": torch.ones(5)}, ValueError, r"bias must have shape \(6,\), got \(5,\)"),
    "bias_dtype": ({"bias": torch.ones(6).half()}, TypeError, "bias must be float32"),
    "bias_device": ({"bias": torch.ones(6, device="meta")}, ValueError, "bias is on meta"),
    "out_small": ({"out_features": 3}, ValueError, "out_features is 3 wide, w has 2 blocks of 3"),
    "out_large": ({"out_features": 7}, ValueError, "out_features is 7 wide"),
    "out_float": ({"out_features": 6.0}, TypeError, "out_features must be an int"),
    "backend": ({"backend": "fast"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize(("given", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(given, error, message):
    arguments = {"x": white(*X), "w": white(*W, seed=1)} | given
    with pytest.raises(error, match=message) as caught:
        block_diagonal(arguments.pop("x"), arguments.pop("w"), **arguments)
    assert "\n" not in str(caught.value)
