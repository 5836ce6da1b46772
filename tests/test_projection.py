"""projection: the mathematics in every layout, gradients, and bad arguments."""

import subprocess
import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import linear

from monarch_kernels import _native, backends, projection
from monarch_kernels.testing import assert_close_to_float64, white
from monarch_kernels.testing.inputs import with_layout

# B, L, n, m: single numbers, odd ones, whole vectors, several tiles, and several partial sums.
SIZES = [(1, 1, 1, 1), (2, 7, 5, 3), (3, 33, 35, 97), (2, 64, 96, 48), (1, 700, 130, 100)]
SIZES += [(1, 40, 1100, 14), (2, 1, 16, 32), (2, 5, 1, 4)]
LAYOUTS = ("contiguous", "columns", "sliced", "strided", "expanded")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FIRST = pytest.mark.parametrize("channels_first", [False, True], ids=["rows", "channels"])
SMALL = (2, 5, 7, 6)


def laid(x, layout):
    return (
        x.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "columns"
        else with_layout(x, layout)
    )


def integers(*shape, seed=0):
    """Whole numbers, of which every product and sum here is exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).float()


def arguments(size, dtype=torch.float32, layout="contiguous"):
    batch, rows, n, m = size
    x = laid(white(batch, rows, n).to(dtype), layout)
    return x, (white(m, n, seed=1) / n**0.5).to(dtype), white(m, seed=2)


def by_torch(x, w, bias, channels_first=False):
    y = linear(x, w, bias)
    return y.transpose(1, 2) if channels_first else y


@pytest.mark.usefixtures("one_thread", "poison")
@FIRST
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_linear_in_every_layout(products, size, dtype, channels_first):
    batch, rows, n, m = size
    x, w, bias = integers(batch, rows, n), integers(m, n, seed=1), integers(m, seed=2)
    for layout in LAYOUTS:
        given = laid(x.to(dtype), layout)
        exact = by_torch(given.float(), w, bias, channels_first).to(dtype)
        y = products("projection")(given, w.to(dtype), bias, channels_first=channels_first)
        assert y.is_contiguous()
        assert torch.equal(y, exact), layout
        if layout != "strided":
            plain = products("projection")(given, w.to(dtype), channels_first=channels_first)
            assert torch.equal(plain, by_torch(given.float(), w, None, channels_first).to(dtype))


@pytest.mark.usefixtures("one_thread", "poison")
@FIRST
@pytest.mark.parametrize("layout", ["contiguous", "columns"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_result_and_gradients(products, dtype, layout, channels_first):
    """By the error budget; the gradients are sums over 300 rows or 65 features."""
    x, w, bias = arguments((2, 150, 96, 65), dtype, layout)
    dy = white(2, 150, 65, seed=3).to(dtype)
    dy = dy.transpose(1, 2).contiguous() if channels_first else dy

    def run(function, kind):
        leaves = [t.to(kind).detach().requires_grad_() for t in (x, w, bias)]
        y = function(*leaves, channels_first=channels_first)
        return y.detach(), *torch.autograd.grad(y, leaves, dy.to(kind))

    kept = [t.detach().requires_grad_() for t in (x, w, bias)]
    y = products("projection")(*kept, channels_first=channels_first)
    found = y.detach(), *torch.autograd.grad(y, kept, dy)
    exact, peers = run(by_torch, torch.float64), run(by_torch, torch.float32)
    names = ("y", "dx", "dw", "dbias")
    for name, actual, wanted, peer in zip(names, found, exact, peers, strict=True):
        assert_close_to_float64(actual, wanted, peer, name=name)
    for wrong in (0 * found[0], found[0].roll(1, -1), 1.02 * found[0]):
        with pytest.raises(AssertionError):
            assert_close_to_float64(wrong, exact[0], peers[0])


@pytest.mark.usefixtures("one_thread")
@FIRST
def test_nan_stays_in_its_row_and_is_not_read_beyond(products, channels_first):
    x, w, bias = integers(2, 40, 12), integers(5, 12, seed=1), integers(5, seed=2)
    x[1, 17, 3] = float("nan")
    for layout in ("contiguous", "columns"):
        y = products("projection")(laid(x, layout), w, bias, channels_first=channels_first)
        y = y.transpose(1, 2) if channels_first else y
        assert y[1, 17].isnan().all()
        assert y.isnan().sum() == 5
    around = torch.full((2, 60, 14), float("nan"))
    around[:, 4:44, 1:13] = x.nan_to_num()
    y = products("projection")(around[:, 4:44, 1:13], w, bias, channels_first=channels_first)
    assert torch.equal(y, by_torch(x.nan_to_num(), w, bias, channels_first))


@FIRST
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads_and_rows(
    native_products, dtype, channels_first, threads
):
    function = native_products("projection")
    x, w, bias = arguments((2, 700, 130, 300), dtype, "columns")
    threads(1)
    whole = function(x, w, bias)
    for count in (1, 2, 3):
        threads(count)
        y = function(x, w, bias, channels_first=channels_first)
        assert torch.equal(y.transpose(1, 2) if channels_first else y, whole)
    part = function(x[:, 33:100], w, bias)
    assert torch.equal(part, whole[:, 33:100])


@pytest.mark.usefixtures("one_thread")
@FIRST
@pytest.mark.parametrize("layout", ["contiguous", "columns"])
def test_derivatives(products, layout, channels_first):
    """Linear in each argument, so that a large step has no error of its own."""

    def function(x, w, bias):
        return products("projection")(laid(x, layout), w, bias, channels_first=channels_first)

    tensors = [t.requires_grad_() for t in arguments(SMALL)]
    options = {"eps": 0.5, "atol": 1e-5, "rtol": 1e-5}
    with pytest.warns(UserWarning, match="Input #"):
        assert gradcheck(function, tensors, **options)
    with pytest.warns(UserWarning, match="Input #"):
        assert gradgradcheck(function, tensors, **options)


@pytest.mark.usefixtures("one_thread")
@FIRST
def test_opcheck_and_compile(best_products, channels_first):
    operator = torch.ops.monarch_kernels.projection_fwd.default
    assert torch.Tag.pt2_compliant_tag in operator.tags
    for requires_grad in (False, True):
        x, w, bias = (t.requires_grad_(requires_grad) for t in arguments(SMALL))
        torch.library.opcheck(operator, (x, w[None].detach(), bias, channels_first))
    torch._dynamo.reset()
    function = best_products("projection")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    given = [t.detach() for t in (x, w, bias)]
    expected = function(*given, channels_first=channels_first)
    assert torch.equal(compiled(*given, channels_first=channels_first), expected)
    torch._dynamo.reset()


def test_autocast_float64_empty_and_meta(products):
    function, (x, w, bias) = products("projection"), arguments(SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = function(x, w, bias)
    assert torch.equal(y, function(x.bfloat16(), w.bfloat16(), bias))
    assert function(x[:0], w, bias, channels_first=True).shape == (0, 6, 5)
    assert function(x[:, :0], w, bias).shape == (2, 0, 6)
    y = function(*(t.to("meta") for t in (x, w, bias)), channels_first=True)
    assert (y.shape, y.device.type) == ((2, 6, 5), "meta")
    double = [t.double() for t in (x, w, bias)]
    torch.testing.assert_close(projection(*double), linear(*double), rtol=0, atol=1e-12)


def test_backends(monkeypatch):
    x, w, bias = arguments(SMALL)
    monkeypatch.setattr(_native, "available", False)
    monkeypatch.setattr(_native, "reason", "left at home")
    assert backends.select(None, x, "projection") == "reference"
    with pytest.raises(RuntimeError, match="backend 'native' is not available: left at home"):
        projection(x, w, bias, backend="native")


BAD = {
    "x_list": ({"x": [1.0]}, TypeError, "x must be a tensor"),
    "x_rank": ({"x": torch.ones(4, 3)}, ValueError, r"x must have shape \(B, L, n\), got \(4, 3\)"),
    "x_int": ({"x": torch.ones(2, 4, 3).int()}, TypeError, "x must be float32"),
    "w_rank": ({"w": torch.ones(1, 5, 3)}, ValueError, r"w must have shape \(m, n\)"),
    "w_width": ({"w": torch.ones(5, 4)}, ValueError, r"w must have shape \(m, 3\) .* got \(5, 4\)"),
    "w_empty": ({"w": torch.ones(0, 3)}, ValueError, "without a zero"),
    "w_dtype": ({"w": torch.ones(5, 3).half()}, TypeError, "w must have the dtype of x"),
    "w_device": ({"w": torch.ones(5, 3, device="meta")}, ValueError, "w is on meta, x on cpu"),
    "bias_shape": ({"bias": torch.ones(3)}, ValueError, r"bias must have shape \(5,\)"),
    "bias_dtype": ({"bias": torch.ones(5).half()}, TypeError, "bias must be float32"),
    "backend": ({"backend": "fast"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize(("given", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(given, error, message):
    named = {"x": white(2, 4, 3), "w": white(5, 3, seed=1)} | given
    with pytest.raises(error, match=message) as caught:
        projection(named.pop("x"), named.pop("w"), **named)
    assert "\n" not in str(caught.value)


FUZZ = """
import random, torch
import monarch_kernels
random.seed(0)
size = lambda: random.choice((0, 1, 2, 3, 16, 17, 40))
def tensor(*shape):
    if random.random() < 0.1:
        shape = [size() for _ in range(random.randint(0, 4))]
    t = torch.zeros(shape, dtype=random.choice((torch.float32,) * 30 + (torch.int32,)))
    return t.transpose(0, -1) if random.random() < 0.2 and t.dim() > 1 else t
returned = raised = 0
for _ in range(1000):
    b, l, n, m = size(), size(), size(), size()
    bias = tensor(m) if random.random() < 0.5 else None
    try:
        torch.ops.monarch_kernels.projection_fwd(
            tensor(b, l, n), tensor(1, m, n), bias, random.random() < 0.5)
        returned += 1
    except RuntimeError:
        raised += 1
print(returned, raised)
"""


@pytest.mark.skipif(not _native.available, reason=str(_native.reason))
def test_bad_shapes_never_crash():
    done = subprocess.run([sys.executable, "-c", FUZZ], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    returned, raised = map(int, done.stdout.split())
    assert min(returned, raised) > 100, "the shapes are all good, or all bad"
