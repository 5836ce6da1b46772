"""fft_conv and bad arguments: what is raised, and what the message says."""

import subprocess
import sys

import pytest
import torch

from monarch_kernels import fft_conv, filter_spectrum
from monarch_kernels.contract import MAX_LENGTH
from monarch_kernels.testing import white

pytestmark = pytest.mark.usefixtures("one_thread")

B, H, L = 2, 3, 8


def u(*shape, dtype=torch.float32, device="cpu"):
    return white(*(shape or (B, H, L))).to(dtype=dtype, device=device)


def k(*shape, dtype=torch.float32, device="cpu"):
    return white(*(shape or (H, L)), seed=1).to(dtype=dtype, device=device)


# What is wrong: (arguments, exception, name of the argument, what it got, what was expected).
BAD = {
    "u_list": (lambda: {"u": [1.0]}, TypeError, "u", "list", "tensor"),
    "u_rank": (lambda: {"u": u(H, L)}, ValueError, "u", "(3, 8)", "B, H, L"),
    "u_empty": (lambda: {"u": u(B, H, 0)}, ValueError, "u", "[2, 3, 0]", "at least one element"),
    "u_int": (lambda: {"u": u(dtype=torch.int32)}, TypeError, "u", "int32", "float32"),
    "u_complex": (lambda: {"u": u(dtype=torch.cfloat)}, TypeError, "u", "complex64", "bfloat16"),
    "u_long": (
        lambda: {"u": torch.empty(1, 1, MAX_LENGTH + 1, device="meta")},
        *(ValueError, "u", str(MAX_LENGTH + 1), str(MAX_LENGTH)),
    ),
    "k_none": (lambda: {"k": None}, TypeError, "k", "NoneType", "tensor"),
    "k_rank": (lambda: {"k": k(L)}, ValueError, "k", "(8,)", "H, taps"),
    "k_no_taps": (lambda: {"k": k(H, 0)}, ValueError, "k", "(3, 0)", "at least one tap"),
    "k_channels": (lambda: {"k": k(H + 1, L)}, ValueError, "k", "4 channels", "u has 3"),
    "k_one_channel": (lambda: {"k": k(1, L)}, ValueError, "k", "1 channels", "u has 3"),
    "k_long": (lambda: {"k": k(H, L + 1)}, ValueError, "k", "9 taps", "(8)"),
    "k_int": (lambda: {"k": k(dtype=torch.int64)}, TypeError, "k", "int64", "float32"),
    "k_dtype": (lambda: {"k": k(dtype=torch.float16)}, TypeError, "k", "float16", "float32"),
    "k_double": (lambda: {"k": k(dtype=torch.float64)}, TypeError, "k", "float64", "float32"),
    "k_device": (lambda: {"k": k(device="meta")}, ValueError, "k", "meta", "cpu"),
    "k_rev_rank": (lambda: {"k_rev": k(H, L, 1)}, ValueError, "k_rev", "(3, 8, 1)", "H, taps"),
    "k_rev_channels": (lambda: {"k_rev": k(2, L)}, ValueError, "k_rev", "2 channels", "k has 3"),
    "k_rev_long": (lambda: {"k_rev": k(H, L + 1)}, ValueError, "k_rev", "9 taps", "(8)"),
    "k_rev_dtype": (
        lambda: {"k_rev": k(dtype=torch.bfloat16)},
        *(TypeError, "k_rev", "bfloat16", "float32"),
    ),
    "k_rev_device": (lambda: {"k_rev": k(device="meta")}, ValueError, "k_rev", "meta", "cpu"),
    "k_rev_circular": (
        lambda: {"k_rev": k(), "circular": True},
        *(ValueError, "k_rev", "circular=True", "None"),
    ),
    "skip_number": (lambda: {"skip": 1.0}, TypeError, "skip", "float", "tensor"),
    "skip_rank": (lambda: {"skip": k(H, 1)}, ValueError, "skip", "(3, 1)", "H,"),
    "skip_channels": (lambda: {"skip": k(5)}, ValueError, "skip", "5 channels", "k has 3"),
    "skip_dtype": (
        lambda: {"skip": k(H, dtype=torch.float64)},
        *(TypeError, "skip", "float64", "float32"),
    ),
    "skip_device": (lambda: {"skip": k(H, device="meta")}, ValueError, "skip", "meta", "cpu"),
    **{
        f"{gate}_{what}": (lambda gate=gate, make=make: {gate: make()}, error, gate, got, expected)
        for gate in ("pregate", "postgate")
        for what, make, error, got, expected in [
            ("shape", lambda: u(B, H, L - 1), ValueError, "(2, 3, 7)", "(2, 3, 8)"),
            ("broadcast", lambda: u(1, H, L), ValueError, "(1, 3, 8)", "(2, 3, 8)"),
            ("rank", lambda: u(H, L), ValueError, "(3, 8)", "B, H, L"),
            ("dtype", lambda: u(dtype=torch.bfloat16), TypeError, "bfloat16", "float32"),
            ("device", lambda: u(device="meta"), ValueError, "meta", "cpu"),
            ("number", lambda: 2.0, TypeError, "float", "tensor"),
        ]
    },
}


@pytest.mark.parametrize(("make", "error", "name", "got", "expected"), BAD.values(), ids=BAD)
def test_bad_arguments(implementation, make, error, name, got, expected):
    arguments = {"u": u(), "k": k()} | make()
    copies = {n: t.clone() for n, t in arguments.items() if isinstance(t, torch.Tensor)}
    with pytest.raises(error) as caught:
        implementation(arguments.pop("u"), arguments.pop("k"), **arguments)
    message = str(caught.value)
    assert message.startswith(f"{name} "), message
    assert got in message, message
    assert expected in message, message
    assert all(torch.equal(t, copies[n]) for n, t in arguments.items() if n in copies and t.is_cpu)


def test_filters_of_another_16_bit_dtype():
    with pytest.raises(TypeError, match=r"k must be float32 or of the dtype of u \(torch.bfloat16"):
        fft_conv(u(dtype=torch.bfloat16), k(dtype=torch.float16))


def test_float64_is_for_the_reference():
    double = {"dtype": torch.float64}
    assert fft_conv(u(**double), k(**double)).dtype == torch.float64
    with pytest.raises(RuntimeError, match=r"'native' is not available: .*float64"):
        fft_conv(u(**double), k(**double), backend="native")


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        fft_conv(u(), k(), k())


# ---- The operators themselves: whatever they are given, they raise or return, and never crash ----

PROLOGUE = """
import random, torch
import monarch_kernels
ops = torch.ops.monarch_kernels
torch.set_num_threads(1)
"""

FUZZ = (
    PROLOGUE
    + """
random.seed(0)
size = lambda: random.choice((0, 1, 2, 3, 5, 16, 17, 40, 300))
dtypes = (torch.float32,) * 150 + (torch.bfloat16, torch.float16, torch.float64, torch.int32)

def tensor(*shape):
    if random.random() < 0.04:
        shape = [size() for _ in range(random.randint(0, 4))]
    t = torch.zeros(shape, dtype=random.choice(dtypes))
    if random.random() < 0.2 and t.dim() > 1:
        t = t.transpose(0, -1)
    return t

def maybe(*shape):
    return tensor(*shape) if random.random() < 0.5 else None

returned = raised = 0
for _ in range(1200):
    b, h, n = size(), size(), size()
    u = tensor(b, h, n)
    filters = [maybe(h, random.choice((n, size()))), maybe(h, random.choice((n, size()))), maybe(h)]
    spectrum = None
    if filters[0] is None:  # `test_filters_beside_a_spectrum` has both
        filters, spectrum = [None] * 3, tensor(random.choice((0, 15, 16, 1000, 100000)))
    if random.random() < 0.2 and n > 0:
        filters, spectrum = [None] * 3, ops.filter_spectrum(torch.zeros(h, n), None, None, n, False)
        if random.random() < 0.5:
            u = tensor(b, size(), size())
    flag = lambda: random.random() < 0.5
    arguments = (u, *filters, spectrum, maybe(b, h, n), maybe(b, h, n), flag())
    try:
        which = random.randrange(3)
        if which == 0:
            ops.fft_conv_fwd(*arguments)
        elif which == 1:
            ops.fft_conv_bwd(tensor(b, h, n), *arguments, flag(), flag(), flag(), flag())
        else:
            k = tensor(h, size()) if filters[0] is None else filters[0]
            length = random.choice((n, size(), -1, 1 << 40))
            ops.filter_spectrum(k, *filters[1:], length, flag())
        returned += 1
    except (RuntimeError, NotImplementedError):
        raised += 1
print(returned, raised)
"""
)


def test_bad_shapes_never_crash(native_best):
    done = subprocess.run([sys.executable, "-c", FUZZ], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    returned, raised = map(int, done.stdout.split())
    assert min(returned, raised) > 100, "the shapes are all good, or all bad"


BESIDE_A_SPECTRUM = (
    PROLOGUE
    + """
u, k = torch.zeros(1, 4096, 512), torch.zeros(4096, 512)
spectrum = ops.filter_spectrum(k, None, None, 512, False)
wanted = False, True, False, False
try:
    ops.fft_conv_bwd(u, u, None, torch.zeros(1, 400), None, spectrum, None, None, False, *wanted)
except RuntimeError:
    print("raised")
"""
)


def test_filters_beside_a_spectrum(native_best):
    done = subprocess.run([sys.executable, "-c", BESIDE_A_SPECTRUM], capture_output=True, text=True)
    assert done.returncode == 0, done.returncode
    assert done.stdout.strip() == "raised"


def test_operators_refuse_a_mix_of_devices(native_best):
    with pytest.raises(RuntimeError):
        torch.ops.monarch_kernels.fft_conv_fwd(
            u(), k(device="meta"), None, None, None, None, None, False
        )


def test_spectrum_of_tensors_of_two_devices():
    with pytest.raises(ValueError, match="k_rev is on meta, k on cpu"):
        filter_spectrum(k(), k(device="meta"), length=L)
