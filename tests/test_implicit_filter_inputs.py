"""implicit_filter and bad arguments: what is raised, and what the message says."""

import subprocess
import sys

import pytest
import torch

from monarch_kernels import backends, implicit_filter
from monarch_kernels.testing import FilterCase, filter_inputs
from tests.test_fft_conv_inputs import PROLOGUE

pytestmark = pytest.mark.usefixtures("one_thread")


def arguments():
    """F = 2, L = 8, H = 3, O = 4, E = 5, n = 1."""
    given = dict(filter_inputs(FilterCase("good", 2, 8, 3, 4, 5, 1)))
    del given["dk"]
    return given


def empty(*shape, **options):
    return torch.zeros(*shape, **options)


# What is wrong: (arguments, exception, name of the argument, what it got, what was expected).
BAD = {
    "z_list": (lambda: {"z": [1.0]}, TypeError, "z", "list", "F, L, E"),
    "z_rank": (lambda: {"z": empty(8, 5)}, ValueError, "z", "(8, 5)", "F, L, E"),
    "z_dtype": (
        lambda: {"z": empty(2, 8, 5, dtype=torch.bfloat16)},
        *(TypeError, "z", "bfloat16", "float32 or float64"),
    ),
    "z_int": (lambda: {"z": empty(2, 8, 5, dtype=torch.int32)}, TypeError, "z", "int32", "float32"),
    "no_positions": (
        lambda: {"z": empty(2, 0, 5)},
        *(ValueError, "z", "[2, 0, 5]", "at least one element"),
    ),
    "no_features": (lambda: {"z": empty(2, 8, 0)}, ValueError, "z", "E = 0", "E >= 1"),
    "no_units": (lambda: {"w_in": empty(2, 0, 5)}, ValueError, "w_in", "O = 0", "O >= 1"),
    "no_channels": (lambda: {"w_out": empty(2, 0, 4)}, ValueError, "w_out", "H = 0", "H >= 1"),
    "w_in_filters": (
        lambda: {"w_in": empty(3, 4, 5)},
        ValueError,
        "w_in",
        "(3, 4, 5)",
        "(2, 4, 5)",
    ),
    "w_in_features": (
        lambda: {"w_in": empty(2, 4, 6)},
        *(ValueError, "w_in", "(2, 4, 6)", "(F, O, E) = (2, 4, 5)"),
    ),
    "b_in_none": (lambda: {"b_in": None}, TypeError, "b_in", "NoneType", "tensor"),
    "b_in_size": (lambda: {"b_in": empty(2, 5)}, ValueError, "b_in", "(2, 5)", "(F, O) = (2, 4)"),
    "w_hidden_rank": (
        lambda: {"w_hidden": empty(2, 4, 4)},
        *(ValueError, "w_hidden", "(2, 4, 4)", "F, n, O, O"),
    ),
    "w_hidden_size": (
        lambda: {"w_hidden": empty(2, 1, 4, 5)},
        *(ValueError, "w_hidden", "(2, 1, 4, 5)", "(2, 1, 4, 4)"),
    ),
    "b_hidden_layers": (
        lambda: {"b_hidden": empty(2, 2, 4)},
        *(ValueError, "b_hidden", "(2, 2, 4)", "(F, n, O) = (2, 1, 4)"),
    ),
    "w_out_order": (
        lambda: {"w_out": empty(2, 3, 5)},
        *(ValueError, "w_out", "(2, 3, 5)", "(F, H, O) = (2, 3, 4)"),
    ),
    "freq_flat": (lambda: {"freq": empty(4)}, ValueError, "freq", "(4,)", "F, O"),
    "freq_dtype": (
        lambda: {"freq": empty(2, 4, dtype=torch.float64)},
        *(TypeError, "freq", "float64", "dtype of z"),
    ),
    "deltas_size": (lambda: {"deltas": empty(4)}, ValueError, "deltas", "(4,)", "(3,)"),
    "deltas_filters": (lambda: {"deltas": empty(1, 3)}, ValueError, "deltas", "(1, 3)", "(2, 3)"),
    "deltas_device": (
        lambda: {"deltas": empty(3, device="meta")},
        *(ValueError, "deltas", "meta", "z on cpu"),
    ),
    "t_size": (lambda: {"t": empty(9)}, ValueError, "t", "(9,)", "(8,)"),
    "t_rank": (lambda: {"t": empty(1, 8)}, ValueError, "t", "(1, 8)", "L,"),
    "t_gradient": (
        lambda: {"t": empty(8, requires_grad=True)},
        *(ValueError, "t", "gradient", "must not"),
    ),
}


@pytest.mark.parametrize(("make", "error", "name", "got", "expected"), BAD.values(), ids=BAD)
def test_bad_arguments(filters, make, error, name, got, expected):
    with pytest.raises(error) as caught:
        filters(**(arguments() | make()))
    message = str(caught.value)
    assert message.startswith(f"{name} "), message
    assert got in message, message
    assert expected in message, message
    assert "\n" not in message


def test_float64_is_for_the_reference():
    double = {n: t.double() for n, t in arguments().items()}
    assert implicit_filter(**double).dtype == torch.float64
    with pytest.raises(RuntimeError, match=r"'native' is not available: .*float64"):
        implicit_filter(**double, backend="native")


def test_the_backend_is_a_keyword():
    with pytest.raises(TypeError, match="positional"):
        implicit_filter(*arguments().values(), "native")


def test_the_registered_operator_has_no_gradient_for_t(filters_best):
    given = arguments()
    given["deltas"] = given["deltas"].expand(2, -1)
    given["t"] = given["t"].clone().requires_grad_()
    k = torch.ops.monarch_kernels.implicit_filter_fwd(*given.values())
    with pytest.raises(RuntimeError, match="no gradient for t"):
        k.sum().backward()


def test_cuda_without_kernels(filters_best):
    class OnGpu:  # what `backends` looks at
        device, dtype = torch.device("cuda", 0), torch.float32

    assert backends.unsupported("native", OnGpu, "implicit_filter") is not None
    assert backends.select(None, OnGpu, "implicit_filter") == "reference"


# ---- The operators themselves: whatever they are given, they raise or return, and never crash ----

FUZZ = (
    PROLOGUE
    + """
random.seed(0)
size = lambda: random.choice((1, 2, 3, 5, 16, 17, 40, 130) * 6 + (0,))
dtypes = (torch.float32,) * 200 + (torch.bfloat16, torch.float64, torch.int32)

def tensor(*shape):
    if random.random() < 0.02:
        shape = [size() for _ in range(random.randint(0, 4))]
    t = torch.zeros(shape, dtype=random.choice(dtypes))
    return t.transpose(1, -1) if random.random() < 0.2 and t.dim() > 2 else t

returned = raised = 0
flag = lambda: random.random() < 0.5
for _ in range(500):
    f, n, l, h, o, e = random.choice((0, 1, 2)), random.choice((0, 1, 2)), *(size() for _ in "lhoe")
    tensors = [tensor(*s) for s in ((f, l, e), (f, o, e), (f, o), (f, n, o, o), (f, n, o),
                                    (f, h, o), (f, o), (f, h), (l,))]
    try:
        if flag():
            ops.implicit_filter_fwd(*tensors)
        else:
            ops.implicit_filter_bwd(tensor(f, h, l), *tensors, flag(), flag(), flag())
        returned += 1
    except (RuntimeError, NotImplementedError):
        raised += 1
print(returned, raised)
"""
)


def test_bad_shapes_never_crash(filters_best):
    done = subprocess.run([sys.executable, "-c", FUZZ], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    returned, raised = map(int, done.stdout.split())
    assert min(returned, raised) > 100, "the shapes are all good, or all bad"
