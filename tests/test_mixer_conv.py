"""mixer_conv: values and gradients of every case, and the sums of its docstring."""

import itertools

import pytest
import torch

from monarch_kernels import fft_conv, filter_spectrum, mixer_conv, short_conv
from monarch_kernels.testing import (
    MIXER_BOUNDARIES,
    MIXER_CASES,
    MixerCase,
    check_mixer_conv,
    evaluate_mixer,
    make_mixer_inputs,
    white,
)
from tests.test_fft_conv import direct, integers, is_reference, rounded

pytestmark = pytest.mark.usefixtures("one_thread", "poison")


@pytest.mark.parametrize("case", MIXER_CASES, ids=lambda case: case.id)
def test_result_and_gradients(mixer, case):
    check_mixer_conv(mixer, case, own_period=is_reference(mixer))


@pytest.mark.parametrize("case", MIXER_BOUNDARIES, ids=lambda case: case.name)
def test_transform_sizes(native_mixer, case):
    check_mixer_conv(native_mixer, case)


@pytest.mark.parametrize("taps", range(1, 9))
@pytest.mark.parametrize("length", [5, 40, 300])
def test_every_number_of_taps(native_mixer, taps, length):
    case = MixerCase("taps", 2, 3, length, s_taps=taps, reverse_taps=length)
    check_mixer_conv(native_mixer, case)


def sums(
    q, k, *, s=None, s_bias=None, k_rev=None, skip=None, u=None, k2=None, k2_rev=None, skip2=None
):
    """mixer_conv without a transform."""
    c, length = q, q.shape[-1]
    if s is not None:
        taps = s.shape[-1]
        back = [torch.nn.functional.pad(q, (taps - 1 - j, 0))[..., :length] for j in range(taps)]
        c = sum(s[:, j, None] * back[j] for j in range(taps))
        c = c if s_bias is None else c + s_bias[:, None]
    x1, x2, v = c.chunk(3, dim=1)
    z = direct(v, k, k_rev=k_rev, skip=skip, pregate=x1, postgate=x2)
    return z if u is None else z + direct(u, k2, k_rev=k2_rev, skip=skip2)


def combinations():
    for s_bias, k_rev, skip, residual in itertools.product((False, True), repeat=4):
        for s_taps in (None, 1, 2, 3, 5):
            if s_taps or not s_bias:
                names = {"q", "k", "dz"}
                names |= {"s"} if s_taps else set()
                names |= {"s_bias"} if s_bias else set()
                names |= {"k_rev"} if k_rev else set()
                names |= {"skip"} if skip else set()
                if residual:
                    names |= {"u", "k2"} | {f"{n[:1]}2{n[1:]}" for n in names & {"k_rev"}}
                    names |= {"skip2"} if skip else set()
                yield names, s_taps


@pytest.mark.parametrize("length", [1, 2, 3, 16, 33])
def test_equals_the_sums_for_every_combination(mixer, length):
    for names, s_taps in combinations():
        shapes = {"q": (2, 9, length), "s": (9, s_taps), "s_bias": (9,), "skip": (3,)}
        shapes |= dict.fromkeys(("k", "k_rev", "k2", "k2_rev"), (3, length))
        shapes |= dict.fromkeys(("u", "dz"), (2, 3, length)) | {"skip2": (3,)}
        inputs = {
            name: integers(*shape, seed=i, most=1)
            for i, (name, shape) in enumerate(shapes.items())
            if name in names
        }
        actual = evaluate_mixer(mixer, inputs)
        exact = evaluate_mixer(sums, inputs, dtype=torch.float64)
        for name, value in exact.items():
            assert torch.equal(rounded(actual[name]), value), (names, s_taps, name)


def test_is_its_parts(native_mixer):
    """The public operators composed; close, for the parts round what lies between them."""
    case = MixerCase("parts", 2, 5, 300, reverse_taps=300)
    given = {n: t for n, t in make_mixer_inputs(case).items() if n != "dz"}
    x1, x2, v = short_conv(given["q"], given["s"], given["s_bias"]).chunk(3, dim=1)
    main = {"k_rev": given["k_rev"], "skip": given["skip"]}
    residual = {"k_rev": given["k2_rev"], "skip": given["skip2"]}
    expected = fft_conv(v, given["k"], pregate=x1, postgate=x2, **main)
    expected = expected + fft_conv(given["u"], given["k2"], **residual)
    actual = native_mixer(given.pop("q"), given.pop("k"), **given)
    assert (actual - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("length", [1, 70, 512, 700])
@pytest.mark.parametrize("batch", [1, 2])
def test_spectra_have_the_same_bits(mixer, batch, length):
    """Spectra made beforehand, in either or both branches; without them, one row makes its own."""
    case = MixerCase("spectra", batch, 5, length, reverse_taps=length)
    given = {n: t for n, t in make_mixer_inputs(case).items() if n != "dz"}
    backend = mixer.keywords["backend"]
    expected = mixer(given["q"], given["k"], **{n: given[n] for n in given if n not in ("q", "k")})
    filters = (("k", "k_rev", "skip"), ("k2", "k2_rev", "skip2"))
    for which in ([0], [1], [0, 1]):
        arguments = dict(given)
        for i in which:
            k, k_rev, skip = filters[i]
            arguments[k] = filter_spectrum(
                given[k], given[k_rev], skip=given[skip], length=length, backend=backend
            )
            del arguments[k_rev], arguments[skip]
        assert torch.equal(mixer(arguments.pop("q"), arguments.pop("k"), **arguments), expected)


def test_float64_reference_is_float64():
    q, k, u = white(2, 9, 40).double(), white(3, 40, seed=1).double(), white(2, 3, 40).double()
    z = mixer_conv(q, k, u=u, k2=k)
    assert z.dtype == torch.float64
    assert torch.allclose(z, sums(q, k, u=u, k2=k), rtol=1e-12, atol=1e-12)
