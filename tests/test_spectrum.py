"""FilterSpectrum: the same results as the filter itself, and where it is refused."""

import math
import re

import pytest
import torch

from monarch_kernels import FilterSpectrum, _native, fft_conv, filter_spectrum
from monarch_kernels.testing import Case, make_inputs, white

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = {"skip": True, "pregate": True, "postgate": True}
CASES = (
    Case("plain", 2, 3, 40),
    Case("full", 2, 17, 200, reverse_taps=200, **FULL),
    Case("short", 2, 3, 300, taps=5, reverse_taps=2, **FULL),
    Case("circular", 2, 5, 513, circular=True, skip=True),
    Case("one", 1, 1, 1, reverse_taps=1),
    Case("bfloat16", 2, 3, 300, reverse_taps=300, dtype="bfloat16", **FULL),
    Case("filters", 2, 3, 99, reverse_taps=99, dtype="float16", same_dtype_filters=True, **FULL),
    Case("no_batch", 0, 3, 40),
)


def make(case, backend=None):
    t = make_inputs(case)
    return filter_spectrum(
        *(t["k"], t["k_rev"]),
        **{"skip": t["skip"], "length": case.length, "circular": case.circular, "backend": backend},
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_filter(implementation, case):
    backend = implementation.keywords["backend"]
    t = make_inputs(case)
    spectrum = make(case, backend)
    gates = {name: t[name] for name in ("pregate", "postgate")}
    direct = implementation(
        *(t["u"], t["k"]), k_rev=t["k_rev"], skip=t["skip"], circular=case.circular, **gates
    )
    for function in (implementation, fft_conv):
        assert torch.equal(function(t["u"], spectrum, **gates), direct)


def test_describes_itself():
    spectrum = filter_spectrum(white(3, 9), length=20, circular=True, backend="reference")
    assert (spectrum.channels, spectrum.length, spectrum.circular) == (3, 20, True)
    assert (spectrum.backend, spectrum.device) == ("reference", torch.device("cpu"))
    assert repr(spectrum) == (
        "FilterSpectrum(channels=3, length=20, circular, backend='reference', device='cpu')"
    )


def test_the_size_is_what_the_documentation_says(native):
    """8 bytes per channel and sample, of the transform."""
    spectrum = filter_spectrum(white(16, 4096), length=4096, backend="native")
    header = 64
    assert spectrum.data.nbytes == 8 * 16 * 4096 + header


@pytest.mark.usefixtures("poison")
def test_every_number_is_written(native_best):
    """The fixture fills fresh memory; nothing of that may show."""
    spectrum = filter_spectrum(white(3, 500), length=500, backend="native")
    assert spectrum.data.abs().max() < 1e6


def test_requires_no_gradient():
    k = white(3, 8).requires_grad_()
    with pytest.raises(RuntimeError, match="k requires a gradient, which a FilterSpectrum"):
        filter_spectrum(k, length=8)
    with pytest.raises(RuntimeError, match="skip requires a gradient"):
        filter_spectrum(k.detach(), skip=white(3).requires_grad_(), length=8)
    with torch.no_grad():
        assert not filter_spectrum(k, length=8).data.requires_grad


def test_does_not_follow_its_filter(implementation):
    backend = implementation.keywords["backend"]
    u, k = white(1, 3, 8), white(3, 8, seed=1)
    before = implementation(u, k)
    spectrum = filter_spectrum(k, length=8, backend=backend)
    k.zero_()
    assert torch.equal(implementation(u, spectrum), before)


MISUSES = {
    "length": (lambda: (white(2, 3, 9), {}), ValueError, "(3, 8), u has (3, 9)"),
    "channels": (lambda: (white(2, 4, 8), {}), ValueError, "(3, 8), u has (4, 8)"),
    "device": (lambda: (white(2, 3, 8).to("meta"), {}), ValueError, "k is on cpu, u on meta"),
    "k_rev": (lambda: (white(2, 3, 8), {"k_rev": white(3, 8)}), ValueError, "k_rev is part of"),
    "skip": (lambda: (white(2, 3, 8), {"skip": white(3)}), ValueError, "skip is part of"),
    "circular": (lambda: (white(2, 3, 8), {"circular": True}), ValueError, "circular is part of"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), MISUSES.values(), ids=MISUSES)
def test_misuse(implementation, arguments, error, message):
    spectrum = filter_spectrum(white(3, 8), length=8, backend=implementation.keywords["backend"])
    u, options = arguments()
    with pytest.raises(error, match=re.escape(message)):
        implementation(u, spectrum, **options)


def test_another_backend(native_best):
    u, k = white(2, 3, 8), white(3, 8)
    for mine, other in (("native", "reference"), ("reference", "native")):
        spectrum = filter_spectrum(k, length=8, backend=mine)
        with pytest.raises(ValueError, match=f"backend '{mine}', asked for is '{other}'"):
            fft_conv(u, spectrum, backend=other)


def test_dtype_of_the_reference():
    single = filter_spectrum(white(3, 8), length=8, backend="reference")
    with pytest.raises(TypeError, match=r"complex64, u is torch.float64"):
        fft_conv(white(2, 3, 8).double(), single)


@pytest.mark.skipif(
    _native.host is None or len(_native.host.available_isas()) < 2,
    reason="there is only one instruction set",
)
@pytest.mark.parametrize("length", [40, 300])
def test_another_instruction_set(restore_isa, length):
    """Its order is that of the vectors: used with other ones it would be silently wrong."""
    first, *others = _native.host.available_isas()
    _native.host.set_isa(first)
    u, k = white(2, 16, length), white(16, length)
    spectrum = filter_spectrum(k, length=length, backend="native")
    expected = fft_conv(u, spectrum)
    for other in others:
        _native.host.set_isa(other)
        with pytest.raises(RuntimeError, match="another CPU instruction set: make it again"):
            fft_conv(u, spectrum)
    _native.host.set_isa(first)
    assert torch.equal(fft_conv(u, spectrum), expected)


def test_data_that_is_no_spectrum(native_best):
    u = white(2, 3, 8)
    made = filter_spectrum(white(3, 8), length=8, backend="native").data
    for data in (
        torch.zeros(0),
        torch.full((1000,), math.nan),
        made[:-1],
        made.double(),
        made[None],
    ):
        with pytest.raises(RuntimeError, match="spectrum"):
            fft_conv(u, FilterSpectrum(data, 3, 8, False, "native"))


BAD = {
    "length_0": ({"length": 0}, ValueError, "length must be from 1"),
    "length_float": ({"length": 8.0}, TypeError, "length must be an int, got float"),
    "length_bool": ({"length": True}, TypeError, "length must be an int, got bool"),
    "length_huge": ({"length": 1 << 40}, ValueError, "length must be from 1 to 4194304"),
    "short": ({"length": 7}, ValueError, "k has 8 taps, more than"),
    "k_rev": ({"k_rev": white(3, 9), "length": 8}, ValueError, "k_rev has 9 taps"),
    "circular": ({"k_rev": white(3, 8), "length": 8, "circular": True}, ValueError, "k_rev must"),
    "backend": ({"length": 8, "backend": "fast"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        filter_spectrum(white(3, 8), **options)


def test_a_mix_of_dtypes_is_refused():
    with pytest.raises(TypeError, match="k_rev"):
        filter_spectrum(white(3, 8), white(3, 8).double(), length=8)
