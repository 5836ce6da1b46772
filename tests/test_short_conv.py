"""short_conv: values, gradients, layouts, bad input, and what torch's transformations see."""

import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck

from monarch_kernels import short_conv
from monarch_kernels.testing import assert_close_to_float64, white, with_layout
from tests.test_fft_conv_registration import ops

LENGTHS = (1, 2, 15, 16, 33, 100, 1100)
TAPS = (1, 2, 3, 4, 7, 40)
OPTIONS = tuple(itertools.product(("causal", "same"), (None, "silu"), (False, True)))
IDS = ["-".join((p, a or "linear", "BLH" if last else "BHL")) for p, a, last in OPTIONS]
by_options = pytest.mark.parametrize(("padding", "activation", "channels_last"), OPTIONS, ids=IDS)


def make(batch, channels, length, taps, channels_last, dtype="float32"):
    """u, s, s_bias, dy."""
    shape = (batch, length, channels) if channels_last else (batch, channels, length)
    u, dy = (white(*shape, seed=i).to(getattr(torch, dtype)) for i in (0, 1))
    return u, white(channels, taps, seed=2) / taps**0.5, white(channels, seed=3), dy


def evaluate(function, u, s, s_bias, dy, dtype=None, **options):
    leaves = [t.detach() if dtype is None else t.detach().to(dtype) for t in (u, s, s_bias)]
    for t in leaves:
        t.requires_grad_()
    y = function(*leaves, **options)
    grads = torch.autograd.grad(y, leaves, dy.to(y.dtype))
    return dict(zip(("y", "du", "ds", "ds_bias"), (y.detach(), *grads), strict=True))


def shifted(u, s, s_bias=None, *, padding, activation, channels_last):
    """The sum of short_conv's docstring by slices."""
    x = u.transpose(1, 2) if channels_last else u
    length, taps = x.shape[-1], s.shape[-1]
    left = taps - 1 if padding == "causal" else (taps - 1) // 2
    x = torch.nn.functional.pad(x, (left, taps - 1 - left))
    y = sum(s[:, j, None] * x[..., j : j + length] for j in range(taps))
    y = y if s_bias is None else y + s_bias[:, None]
    y = y * torch.sigmoid(y) if activation else y
    return y.transpose(1, 2) if channels_last else y


def check_short_conv(function, batch, channels, length, taps, dtype, **options):
    """The budget: twice the worst error of the same sums by torch in float32, in three orders."""
    inputs = make(batch, channels, length, taps, options["channels_last"], dtype)
    actual = evaluate(function, *inputs, **options)
    exact = evaluate(shifted, *inputs, dtype=torch.float64, **options)
    reference = dict(options, backend="reference")
    peers = [
        evaluate(shifted, *inputs, dtype=torch.float32, **options),
        evaluate(short_conv, *inputs, dtype=torch.float32, **reference),
    ]
    for name, value in actual.items():
        # Rounding of a few numbers may be 0 by luck: at least that of their terms' sum.
        eps = torch.finfo(torch.float32).eps
        rough = exact[name] + 4 * eps * exact[name].square().mean().sqrt()
        assert_close_to_float64(
            value,
            exact[name],
            [*(p[name] for p in peers), rough],
            dtype=torch.float32 if name.startswith("ds") else getattr(torch, dtype),
            name=f"{length} samples, {taps} taps, {channels} channels: {name}",
        )


@pytest.mark.usefixtures("one_thread", "poison")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@by_options
def test_result_and_gradients(short, padding, activation, channels_last, dtype):
    options = {"padding": padding, "activation": activation, "channels_last": channels_last}
    for length, taps in itertools.product(LENGTHS, TAPS):
        for channels in (3, 35) if length < 100 else (3,):
            check_short_conv(short, 2, channels, length, taps, dtype, **options)


@pytest.mark.usefixtures("one_thread")
@by_options
def test_derivatives_of_the_reference(padding, activation, channels_last):
    def function(*tensors):
        return short_conv(
            *tensors,
            padding=padding,
            activation=activation,
            channels_last=channels_last,
            backend="reference",
        )

    u, s, s_bias, _ = make(2, 3, 5, 4, channels_last)
    leaves = [t.double().requires_grad_() for t in (u, s, s_bias)]
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.usefixtures("one_thread")
@by_options
def test_derivatives_of_the_kernels(native_short, padding, activation, channels_last):
    """First to third derivatives equal those of the float64 reference."""
    options = {"padding": padding, "activation": activation, "channels_last": channels_last}
    results = []
    for dtype, extra in ((torch.float32, {}), (torch.float64, {"backend": "reference"})):
        function = native_short if dtype == torch.float32 else short_conv
        *leaves, dy = (t.to(dtype).requires_grad_() for t in make(2, 3, 20, 4, channels_last))
        y = function(*leaves, **options, **extra)
        found = grads = torch.autograd.grad(y, leaves, dy, create_graph=True)
        for order in range(2):
            form = sum(
                (g * white(*g.shape, seed=10 * order + i).to(dtype)).sum()
                for i, g in enumerate(grads)
                if g is not None
            )
            grads = torch.autograd.grad(form, [*leaves, dy], create_graph=True, allow_unused=True)
            found = (*found, *grads)
        results.append(found)
    for a, b in zip(*results, strict=True):
        if b is None or b.norm() == 0:
            assert a is None or a.norm() <= 1e-5
        else:
            assert (a.double() - b).norm() <= 1e-5 * b.norm()


@by_options
def test_same_bits_for_any_number_of_threads(
    native_short, padding, activation, channels_last, threads
):
    options = {"padding": padding, "activation": activation, "channels_last": channels_last}
    inputs = make(3, 40, 1500, 3, channels_last)
    threads(1)
    first = evaluate(native_short, *inputs, **options)
    for count in (1, 2, 3):
        threads(count)
        for name, t in evaluate(native_short, *inputs, **options).items():
            assert torch.equal(t, first[name]), name


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("layout", ["transposed", "sliced", "strided"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_layout_does_not_change_a_bit(native_short, layout, channels_last):
    inputs = make(2, 19, 70, 3, channels_last)
    expected = evaluate(native_short, *inputs, channels_last=channels_last)
    laid = [with_layout(t, layout) for t in inputs]
    for name, t in evaluate(native_short, *laid, channels_last=channels_last).items():
        assert torch.equal(t, expected[name]), name
        assert t.is_contiguous() or name != "y"


@pytest.mark.usefixtures("one_thread", "poison")
@pytest.mark.parametrize("channels_last", [False, True])
def test_empty(short, channels_last):
    for batch, channels in ((0, 5), (2, 0)):
        inputs = make(batch, channels, 9, 3, channels_last)
        results = evaluate(short, *inputs, channels_last=channels_last)
        assert results["y"].shape == results["du"].shape == inputs[0].shape
        assert torch.equal(results["ds"], torch.zeros(channels, 3))
        assert torch.equal(results["ds_bias"], torch.zeros(channels))


@pytest.mark.usefixtures("one_thread")
def test_silu_of_large_numbers(native_short):
    """Saturates to x and to 0, without an overflow on the way."""
    u = torch.tensor([-1e30, -200, -88, -20, 0, 20, 88, 200, 1e30]).reshape(1, 1, -1)
    y = native_short(u, torch.ones(1, 1), activation="silu")
    expected = torch.nn.functional.silu(u.double())
    assert ((y - expected).abs() <= 1e-6 * expected.abs() + 1e-6).logical_or(u < -100).all()
    assert (y[u < -100].abs() <= 1e-6 * u[u < -100].abs()).all()
    assert native_short(torch.full((1, 1, 3), torch.nan), torch.ones(1, 1)).isnan().all()


def arguments(**changes):
    return {"u": white(2, 3, 8), "s": white(3, 2, seed=1)} | changes


BAD = {
    "u_list": ({"u": [1.0]}, TypeError, "u must be a tensor"),
    "u_rank": ({"u": white(3, 8)}, ValueError, r"u must have shape \(B, H, L\), got \(3, 8\)"),
    "u_empty": ({"u": white(2, 3, 0)}, ValueError, "u must have at least one element"),
    "u_last_empty": (
        {"u": white(2, 0, 3), "channels_last": True},
        *(ValueError, "u must have at least one element in dimension L"),
    ),
    "s_rank": ({"s": white(3, 1, 2)}, ValueError, r"s must have shape \(H, taps\)"),
    "s_channels": ({"s": white(8, 2)}, ValueError, "s has 8 channels .*, u has 3"),
    "s_no_taps": ({"s": white(3, 0)}, ValueError, "s must have at least 1 tap, got 0"),
    "s_dtype": ({"s": white(3, 2).half()}, TypeError, "s must be float32 or of the dtype of u"),
    "s_device": ({"s": white(3, 2).to("meta")}, ValueError, "s is on meta, u on cpu"),
    "bias": ({"s_bias": white(2)}, ValueError, "s_bias has 2 channels .*, u has 3"),
    "last": ({"channels_last": True}, ValueError, "s has 3 channels .*, u has 8"),
    "padding": ({"padding": "valid"}, ValueError, 'padding must be "causal" or "same"'),
    "activation": ({"activation": "relu"}, ValueError, 'activation must be None or "silu"'),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(short, changes, error, message):
    with pytest.raises(error, match=message):
        short(**arguments(**changes))


@pytest.mark.usefixtures("fresh_dynamo")
@by_options
def test_opcheck(native_best, padding, activation, channels_last):
    u, s, s_bias, dy = make(2, 5, 40, 3, channels_last)
    flags = (padding == "causal", activation == "silu", channels_last)
    for bias in (s_bias, None):
        for requires_grad in (False, True):
            given = [
                t if t is None else t.detach().requires_grad_(requires_grad) for t in (u, s, bias)
            ]
            torch.library.opcheck(ops().short_conv_fwd.default, (*given, *flags))
            for needs in ((True, True), (False, False)):
                torch.library.opcheck(ops().short_conv_bwd.default, (dy, *given, *flags, *needs))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("channels_last", [False, True])
def test_compile_dynamic_does_not_recompile(native_best, channels_last):
    counter = CompileCounterWithBackend("aot_eager")

    def function(u, s, s_bias):
        return short_conv(u, s, s_bias, activation="silu", channels_last=channels_last)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for batch, channels, length in ((2, 5, 40), (3, 7, 64), (4, 33, 300)):
        inputs = make(batch, channels, length, 3, channels_last)
        expected = evaluate(function, *inputs)
        for name, t in evaluate(compiled, *inputs).items():
            assert torch.equal(t, expected[name]), name
    assert counter.frame_count == 1


def test_autocast_and_meta(short):
    u, s = white(2, 3, 8), white(3, 2, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = short(u, s)
    assert torch.equal(y, short(u.bfloat16(), s))
    assert short(u.to("meta"), s.to("meta")).device.type == "meta"
