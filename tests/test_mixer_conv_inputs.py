"""mixer_conv and bad arguments: what is raised, and what the message says."""

import subprocess
import sys

import pytest
import torch

from monarch_kernels import filter_spectrum, mixer_conv
from monarch_kernels.contract import MAX_LENGTH
from monarch_kernels.testing import white
from tests.test_fft_conv_inputs import PROLOGUE

pytestmark = pytest.mark.usefixtures("one_thread")

B, H, L = 2, 3, 8


def q(*shape, dtype=torch.float32, device="cpu"):
    return white(*(shape or (B, 3 * H, L))).to(dtype=dtype, device=device)


def u(*shape, dtype=torch.float32, device="cpu"):
    return white(*(shape or (B, H, L)), seed=2).to(dtype=dtype, device=device)


def k(*shape, dtype=torch.float32, device="cpu"):
    return white(*(shape or (H, L)), seed=1).to(dtype=dtype, device=device)


# What is wrong: (arguments, exception, name of the argument, what it got, what was expected).
BAD = {
    "q_list": (lambda: {"q": [1.0]}, TypeError, "q", "list", "tensor"),
    "q_rank": (lambda: {"q": q(H, L)}, ValueError, "q", "(3, 8)", "B, 3H, L"),
    "q_channels": (lambda: {"q": q(B, 8, L)}, ValueError, "q", "8", "3 H"),
    "q_empty": (lambda: {"q": q(B, 9, 0)}, ValueError, "q", "[2, 9, 0]", "at least one element"),
    "q_int": (lambda: {"q": q(dtype=torch.int32)}, TypeError, "q", "int32", "float32"),
    "q_long": (
        lambda: {"q": torch.empty(1, 3, MAX_LENGTH + 1, device="meta")},
        *(ValueError, "q", str(MAX_LENGTH + 1), str(MAX_LENGTH)),
    ),
    "k_none": (lambda: {"k": None}, TypeError, "k", "NoneType", "tensor"),
    "k_rank": (lambda: {"k": k(L)}, ValueError, "k", "(8,)", "H, taps"),
    "k_channels": (lambda: {"k": k(9, L)}, ValueError, "k", "9 channels", "q has 3"),
    "k_long": (lambda: {"k": k(H, L + 1)}, ValueError, "k", "9 taps", "(8)"),
    "k_dtype": (lambda: {"k": k(dtype=torch.float16)}, TypeError, "k", "float16", "dtype of q"),
    "k_device": (lambda: {"k": k(device="meta")}, ValueError, "k", "meta", "q on cpu"),
    "k_rev_channels": (lambda: {"k_rev": k(2, L)}, ValueError, "k_rev", "2 channels", "k has 3"),
    "k_rev_long": (lambda: {"k_rev": k(H, L + 1)}, ValueError, "k_rev", "9 taps", "(8)"),
    "skip_rank": (lambda: {"skip": k(H, 1)}, ValueError, "skip", "(3, 1)", "H,"),
    "s_rank": (lambda: {"s": k(9, 1, 3)}, ValueError, "s", "(9, 1, 3)", "3H, taps"),
    "s_channels": (lambda: {"s": k(3, 3)}, ValueError, "s", "3 channels", "q has 9"),
    "s_no_taps": (lambda: {"s": k(9, 0)}, ValueError, "s", "got 0", "1 to 8 taps"),
    "s_taps": (lambda: {"s": k(9, 9)}, ValueError, "s", "got 9", "1 to 8 taps"),
    "s_dtype": (
        lambda: {"s": k(9, 3, dtype=torch.float16)},
        *(TypeError, "s", "float16", "dtype of q"),
    ),
    "s_device": (lambda: {"s": k(9, 3, device="meta")}, ValueError, "s", "meta", "cpu"),
    "s_bias_alone": (lambda: {"s_bias": k(9)}, ValueError, "s_bias", "needs s", "filter"),
    "s_bias_channels": (
        lambda: {"s": k(9, 3), "s_bias": k(3)},
        *(ValueError, "s_bias", "3 channels", "q has 9"),
    ),
    "u_alone": (lambda: {"u": u()}, ValueError, "u", "needs k2", "residual"),
    "u_shape": (lambda: {"u": u(B, L, H), "k2": k()}, ValueError, "u", "(2, 8, 3)", "(2, 3, 8)"),
    "u_dtype": (
        lambda: {"u": u(dtype=torch.bfloat16), "k2": k()},
        *(TypeError, "u", "bfloat16", "float32"),
    ),
    "u_device": (lambda: {"u": u(device="meta"), "k2": k()}, ValueError, "u", "meta", "cpu"),
    "k2_alone": (lambda: {"k2": k()}, ValueError, "k2", "needs u", "residual"),
    "k2_rev_alone": (lambda: {"k2_rev": k()}, ValueError, "k2_rev", "needs k2", "residual"),
    "skip2_alone": (lambda: {"skip2": k(H)}, ValueError, "skip2", "needs k2", "residual"),
    "k2_channels": (
        lambda: {"u": u(), "k2": k(2, L)},
        *(ValueError, "k2", "2 channels", "q has 3"),
    ),
    "k2_rev_long": (
        lambda: {"u": u(), "k2": k(), "k2_rev": k(H, 9)},
        *(ValueError, "k2_rev", "9 taps", "(8)"),
    ),
    "skip2_channels": (
        lambda: {"u": u(), "k2": k(), "skip2": k(4)},
        *(ValueError, "skip2", "4 channels", "k2 has 3"),
    ),
}


@pytest.mark.parametrize(("make", "error", "name", "got", "expected"), BAD.values(), ids=BAD)
def test_bad_arguments(mixer, make, error, name, got, expected):
    arguments = {"q": q(), "k": k()} | make()
    with pytest.raises(error) as caught:
        mixer(arguments.pop("q"), arguments.pop("k"), **arguments)
    message = str(caught.value)
    assert message.startswith(f"{name} "), message
    assert got in message, message
    assert expected in message, message


def spectrum(*shape, length=L, **options):
    return filter_spectrum(k(*shape), length=length, backend="native", **options)


BAD_SPECTRA = {
    "length": (lambda: {"k": spectrum(length=9)}, ValueError, r"k is .*\(3, 9\), q has \(3, 8\)"),
    "channels": (lambda: {"k": spectrum(4, L)}, ValueError, r"k is .*\(4, 8\), q has \(3, 8\)"),
    "k2_length": (
        lambda: {"u": u(), "k2": spectrum(length=9)},
        *(ValueError, r"k2 is .*\(3, 9\), q has \(3, 8\)"),
    ),
    "without_reverse": (
        lambda: {"k": spectrum(), "k_rev": k()},
        *(ValueError, "k_rev is part of a FilterSpectrum: give it to filter_spectrum"),
    ),
    "without_skip": (
        lambda: {"u": u(), "k2": spectrum(), "skip2": k(H)},
        *(ValueError, "skip2 is part of a FilterSpectrum: give it to filter_spectrum"),
    ),
    "circular": (lambda: {"k": spectrum(circular=True)}, ValueError, "k is .* circular"),
    "reference": (
        lambda: {"k": filter_spectrum(k(), length=L, backend="reference")},
        *(ValueError, "k is .*'reference', asked for is 'native'"),
    ),
    "k2_alone": (lambda: {"k2": spectrum()}, ValueError, "k2 needs u"),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD_SPECTRA.values(), ids=BAD_SPECTRA)
def test_bad_spectra(native_mixer, make, error, message):
    arguments = {"k": k()} | make()
    with pytest.raises(error, match=message):
        native_mixer(q(), arguments.pop("k"), **arguments)


def test_spectra_of_two_backends(mixer_best):
    other = filter_spectrum(k(), length=L, backend="reference")
    with pytest.raises(ValueError, match="k2 is a FilterSpectrum of backend 'reference'"):
        mixer_conv(q(), spectrum(), u=u(), k2=other)
    # A spectrum chooses the backend: here one that can take the other filter too.
    assert mixer_conv(q(), k(), u=u(), k2=other).shape == (B, H, L)


def test_a_filter_that_wants_a_gradient_has_no_spectrum():
    with pytest.raises(RuntimeError, match="k requires a gradient, which a FilterSpectrum"):
        filter_spectrum(k().requires_grad_(), length=L)


def test_float64_is_for_the_reference():
    double = {"dtype": torch.float64}
    assert mixer_conv(q(**double), k(**double)).dtype == torch.float64
    with pytest.raises(RuntimeError, match=r"'native' is not available: .*float64"):
        mixer_conv(q(**double), k(**double), backend="native")


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        mixer_conv(q(), k(), k())


# ---- The operators themselves: whatever they are given, they raise or return, and never crash ----

FUZZ = (
    PROLOGUE
    + """
random.seed(0)
size = lambda: random.choice((0, 1, 2, 3, 5, 16, 17, 40, 300))
dtypes = (torch.float32,) * 200 + (torch.bfloat16, torch.float16, torch.float64, torch.int32)

def tensor(*shape):
    if random.random() < 0.02:
        shape = [size() for _ in range(random.randint(0, 4))]
    t = torch.zeros(shape, dtype=random.choice(dtypes))
    return t.transpose(1, -1) if random.random() < 0.2 and t.dim() > 2 else t

def maybe(*shape):
    return tensor(*shape) if random.random() < 0.5 else None

returned = raised = 0
flag = lambda: random.random() < 0.5
for _ in range(1200):
    b, h, n = size(), size(), size()
    q = tensor(b, 3 * h if random.random() < 0.95 else size(), n)
    s = maybe(3 * h, random.choice((1, 2, 3, 8, 8, 0, 9)))
    bias = None if s is None else maybe(3 * h)

    def filters():
        taps = lambda: n if random.random() < 0.9 else size()
        if random.random() < 0.7 or n == 0:
            return [tensor(h, taps()), maybe(h, taps()), maybe(h), None]
        if random.random() < 0.2:
            return [None, None, None, tensor(random.choice((0, 15, 16, 1000, 100000)))]
        length = n if random.random() < 0.8 else max(1, size())
        return [None] * 3 + [ops.filter_spectrum(torch.zeros(h, 1), None, None, length, False)]

    main, u, residual = filters(), maybe(b, h, n), [None] * 4
    if u is not None:
        residual = filters() if random.random() < 0.95 else residual
    arguments = (q, s, bias, *main, u, *residual)
    try:
        if flag():
            ops.mixer_conv_fwd(*arguments)
        else:
            ops.mixer_conv_bwd(tensor(b, h, n), *arguments, *(flag() for _ in range(5)))
        returned += 1
    except (RuntimeError, NotImplementedError):
        raised += 1
print(returned, raised)
"""
)


def test_bad_shapes_never_crash(mixer_best):
    done = subprocess.run([sys.executable, "-c", FUZZ], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    returned, raised = map(int, done.stdout.split())
    assert min(returned, raised) > 100, "the shapes are all good, or all bad"
