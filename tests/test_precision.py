"""The argument `precision`, and which CUDA kernels run for it."""

import itertools
import re

import pytest
import torch

from monarch_kernels import FilterSpectrum, _native, contract, fft_conv, filter_spectrum
from monarch_kernels.spectrum import check_spectrum_precision
from monarch_kernels.testing import Case, evaluate, make_inputs, white

pytestmark = pytest.mark.usefixtures("one_thread")

PRECISIONS = ("exact", "high", "fast")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KB = 1 << 10


# ---- The argument --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_precision_is_exact_here(implementation, dtype):
    """The same bits, gradients included: the CPU and the reference know one arithmetic."""
    if implementation.func is not fft_conv:
        pytest.skip("a GPU knows several")
    case = Case("any", 2, 3, 40, reverse_taps=7, skip=True, pregate=True, dtype=dtype)
    results = [
        evaluate(
            lambda *tensors, precision=precision, **options: implementation(
                *tensors, **options, precision=precision
            ),
            make_inputs(case),
            circular=False,
        )
        for precision in (None, *PRECISIONS)
    ]
    for other in results[1:]:
        for name, t in results[0].items():
            assert torch.equal(t, other[name]), name


def test_a_spectrum_of_every_precision_is_exact_here(implementation):
    u, k = white(2, 3, 8).bfloat16(), white(3, 8, seed=1)
    backend = implementation.keywords["backend"]
    expected = implementation(u, k)
    for made, asked in itertools.product((None, *PRECISIONS), repeat=2):
        spectrum = filter_spectrum(k, length=8, backend=backend, precision=made)
        assert torch.equal(fft_conv(u, spectrum, precision=asked), expected)


def test_a_spectrum_remembers_its_precision():
    for dtype, default in zip(DTYPES, ("exact", "fast", "high"), strict=True):
        k = white(3, 8).to(dtype)
        assert filter_spectrum(k, length=8).precision == default
        for precision in PRECISIONS:
            spectrum = filter_spectrum(k, length=8, precision=precision)
            assert spectrum.precision == precision
            assert (f"precision={precision!r}" in repr(spectrum)) == (precision != "exact")


def test_the_default_goes_by_the_dtype():
    defaults = {dtype: contract.precision_for(None, dtype) for dtype in (*DTYPES, torch.float64)}
    assert list(defaults.values()) == ["exact", "fast", "high", "exact"]


@pytest.mark.parametrize("precision", ["", "Fast", "fp16", 2, True, ["fast"]])
def test_unknown_names(precision):
    u, k = white(2, 3, 8), white(3, 8)
    message = re.escape(
        f"precision must be one of 'exact', 'high', 'fast' or None, got {precision!r}"
    )
    for call in (
        lambda: fft_conv(u, k, precision=precision),
        lambda: fft_conv(u, filter_spectrum(k, length=8), precision=precision),
        lambda: filter_spectrum(k, length=8, precision=precision),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_number_that_is_no_precision(native_best):
    u, k = white(2, 3, 8), white(3, 8)
    ops = torch.ops.monarch_kernels
    calls = (
        lambda n: ops.filter_spectrum(k, None, None, 8, False, n),
        lambda n: ops.fft_conv_fwd(u, k, *[None] * 5, False, n),
        lambda n: ops.fft_conv_bwd(u, u, k, *[None] * 5, False, *[True] * 4, n),
    )
    for call, number in itertools.product(calls, (-1, 3)):
        with pytest.raises(RuntimeError, match=f"precision {number} is not 0"):
            call(number)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_opcheck(native_best, precision):
    number = contract.PRECISIONS[precision]
    u, k = (t.bfloat16() for t in (white(2, 3, 8), white(2, 3, 8, seed=1)))
    k = white(3, 8, seed=2)
    leaves = u.requires_grad_(), k.requires_grad_()
    arguments = (*leaves, *[None] * 5, False)
    ops = torch.ops.monarch_kernels
    torch.library.opcheck(ops.fft_conv_fwd.default, (*arguments, number))
    dy, needs = u.detach(), (True, True, False, False)
    torch.library.opcheck(ops.fft_conv_bwd.default, (dy, *arguments, *needs, number))
    torch.library.opcheck(ops.filter_spectrum.default, (k.detach(), None, None, 8, False, number))


def test_compile(native_best, fresh_dynamo):
    u, k = white(2, 3, 8).bfloat16().requires_grad_(), white(3, 8, seed=1)
    compiled = torch.compile(fft_conv, fullgraph=True, backend="aot_eager")
    for precision in (None, *PRECISIONS):
        y = compiled(u, k, precision=precision)
        assert torch.equal(y, fft_conv(u, k))
        y.float().sum().backward()


# ---- What a GPU would say ------------------------------------------------------------------------


def spectrum_of(precision):
    return FilterSpectrum(torch.zeros(0), 3, 8, False, "native", precision)


def test_a_spectrum_of_another_precision():
    u = torch.zeros(1, 3, 8, dtype=torch.bfloat16)
    names = {"name": "k", "other": "u"}
    for made, asked in itertools.product(PRECISIONS, (None, *PRECISIONS)):
        if asked in (None, made):
            check_spectrum_precision(spectrum_of(made), u, asked, **names)
            continue
        message = f"of precision '{made}', asked for is '{asked}': make it by .*precision='{asked}'"
        with pytest.raises(ValueError, match=message):
            check_spectrum_precision(spectrum_of(made), u, asked, **names)


def test_float32_with_a_spectrum_for_16_bits():
    u = torch.zeros(1, 3, 8)
    check_spectrum_precision(spectrum_of("exact"), u, None, name="k", other="u")
    for precision in ("high", "fast"):
        with pytest.raises(TypeError, match="u is float32, whose kernels are exact: make it by"):
            check_spectrum_precision(spectrum_of(precision), u, None, name="k", other="u")


# ---- The dispatch --------------------------------------------------------------------------------

# As if these were compiled: (shortest, longest, shared bytes) of toeplitz, chain fast, chain high.
KERNELS = ((1, 256, 4 * KB), (512, 32768, 99 * KB), (1024, 4096, 99 * KB))
TABLE = (
    # length, bits, precision, shared memory, kind
    (1, 16, "fast", 227 * KB, "toeplitz"),
    (256, 16, "fast", 227 * KB, "toeplitz"),
    (256, 16, "high", 48 * KB, "toeplitz"),
    (256, 16, "fast", 2 * KB, "exact"),
    (256, 16, "exact", 227 * KB, "exact"),
    (256, 32, "fast", 227 * KB, "exact"),
    (257, 16, "fast", 227 * KB, "exact"),
    (512, 16, "fast", 227 * KB, "chain"),
    (512, 16, "high", 227 * KB, "exact"),
    (1024, 16, "high", 99 * KB, "chain"),
    (1024, 16, "high", 99 * KB - 1, "exact"),
    (4097, 16, "high", 227 * KB, "exact"),
    (4097, 16, "fast", 227 * KB, "chain"),
    (32768, 16, "fast", 227 * KB, "chain"),
    (32769, 16, "fast", 227 * KB, "exact"),
    (32768, 16, "exact", 227 * KB, "exact"),
    (32768, 32, "fast", 227 * KB, "exact"),
    (1 << 22, 16, "fast", 227 * KB, "exact"),
)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row)))
def test_dispatch(native_best, row):
    length, bits, precision, shared, kind = row
    number = contract.PRECISIONS[precision]
    found = _native.host.cuda_kernel_kind(length, bits, number, shared, compiled=KERNELS)
    assert found == kind


def test_no_two_forms_of_a_spectrum_have_the_same_size(native_best):
    host = _native.host
    remainders = {"exact": 0, "toeplitz": 1, "chain": 2}
    for length in (1, 31, 128, 129, 256, 257, 999, 4096, 70000):
        for precision, channels in itertools.product(range(3), (1, 3, 768)):
            kind = host.cuda_kernel_kind(length, 16, precision, 227 * KB)
            floats = host.spectrum_floats(channels, length, 227 * KB, precision)
            assert floats > 2 * channels * length
            assert floats % 4 == remainders[kind]


def test_bad_arguments_of_the_dispatch(native_best):
    with pytest.raises(ValueError, match="precision must be 0, 1 or 2, got 3"):
        _native.host.cuda_kernel_kind(8, 16, 3, 48 * KB)
    with pytest.raises(ValueError, match="length must be from 1"):
        _native.host.cuda_kernel_kind(0, 16, 0, 48 * KB)
