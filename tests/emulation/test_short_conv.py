"""The CUDA kernels of `short_conv`, forward and backward, and their launchers, without a GPU."""

import pytest
import torch

from monarch_kernels.testing import with_layout
from tests.emulation.emulator import Schedule, schedules
from tests.emulation.short_conv import SOURCES, EmulatedShortConv
from tests.test_short_conv import OPTIONS, by_options, check_short_conv, evaluate, make

pytestmark = pytest.mark.usefixtures("one_thread")

# (channels, length, taps): one sample, an odd end of a run, several blocks of channels or samples,
# more taps than samples, and more than are summed at a time.
SHAPES = ((3, 1, 1), (35, 15, 3), (3, 33, 4), (2, 2, 40), (3, 1100, 3), (40, 70, 17))


@pytest.fixture(scope="module")
def flavours(emulators):
    return emulators(SOURCES)


@pytest.fixture(scope="module")
def fast(flavours):
    return flavours[0]


def options_of(padding, activation, channels_last):
    return {"padding": padding, "activation": activation, "channels_last": channels_last}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@by_options
def test_every_form(flavours, padding, activation, channels_last, dtype):
    """Results and gradients within the error budget, and nothing found."""
    options = options_of(padding, activation, channels_last)
    for emulator in flavours:
        op = EmulatedShortConv(emulator)
        for channels, length, taps in SHAPES:
            check_short_conv(op, 2, channels, length, taps, dtype, **options)
        assert not op.findings, "\n".join(op.findings[:5])


@by_options
def test_every_schedule_gives_the_same_bits(fast, padding, activation, channels_last):
    options = options_of(padding, activation, channels_last)
    inputs = make(2, 35, 301, 3, channels_last, "bfloat16")
    first = None
    for schedule in schedules():
        fast.use(schedule)
        op = EmulatedShortConv(fast)
        results = evaluate(op, *inputs, **options)
        assert not op.findings, f"{schedule}: " + "\n".join(op.findings[:5])
        first = first or results
        for name, value in results.items():
            assert torch.equal(value, first[name]), f"{name} under {schedule}"
    fast.use(Schedule())


def test_sums_over_many_blocks(fast):
    """Rows whose gradients are sums of several blocks' sums."""
    op = EmulatedShortConv(fast)
    for channels_last in (False, True):
        options = options_of("causal", None, channels_last)
        check_short_conv(op, 5, 1, 7000, 3, "float32", **options)
    assert not op.findings


@pytest.mark.parametrize("layout", ["sliced", "strided", "transposed"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_layouts(fast, layout, channels_last):
    inputs = make(2, 19, 70, 3, channels_last)
    op = EmulatedShortConv(fast)
    expected = evaluate(op, *inputs, channels_last=channels_last)
    laid = (with_layout(inputs[0], layout), *inputs[1:3], with_layout(inputs[3], layout))
    for name, t in evaluate(op, *laid, channels_last=channels_last).items():
        assert torch.equal(t, expected[name]), name
    assert not op.findings


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_empty_batch(fast, options):
    op = EmulatedShortConv(fast)
    results = evaluate(op, *make(0, 5, 9, 3, options[2]), **options_of(*options))
    assert torch.equal(results["ds"], torch.zeros(5, 3))
    assert torch.equal(results["ds_bias"], torch.zeros(5))


@pytest.mark.parametrize("name", ["u", "s", "s_bias"])
def test_one_gradient_alone(fast, name):
    """It is what it is among all of them."""
    *tensors, dy = make(2, 3, 70, 5, False)
    every = evaluate(EmulatedShortConv(fast), *tensors, dy, activation="silu")
    leaf = tensors[("u", "s", "s_bias").index(name)].requires_grad_()
    op = EmulatedShortConv(fast)
    (gradient,) = torch.autograd.grad(op(*tensors, activation="silu"), leaf, dy)
    assert torch.equal(gradient, every[f"d{name}"])
    assert not op.findings


def test_too_many_samples_are_an_error(fast):
    op = EmulatedShortConv(fast)
    params = op.params(torch.ones(1, 1, 8), torch.ones(1, 1), None, True, False, False)
    params.batch = 1 << 33
    with pytest.raises(RuntimeError, match="short_conv: 8589934592 rows of 8 samples"):
        op.run("launch_short_conv_fwd", params)
