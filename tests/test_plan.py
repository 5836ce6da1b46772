"""Transform sizes: which exist, and which one a length gets."""

import itertools

import pytest

from monarch_kernels import _native
from monarch_kernels.contract import MAX_LENGTH
from monarch_kernels.testing import plan_length

pytestmark = pytest.mark.skipif(_native.host is None, reason=str(_native.reason))

SIZES = sorted(
    size
    for odd in (1, 3, 5)
    for size in (odd << a for a in range(23))
    if 32 <= size <= MAX_LENGTH and size % (16 if size <= 256 else 256) == 0
)


def size_of(length):
    return _native.host.transform_size(length)


def test_every_short_length_has_the_smallest_size():
    for length in range(1, 20_000):
        assert size_of(length) == next(s for s in SIZES if s >= length), length


@pytest.mark.parametrize("size", SIZES)
def test_boundaries(size):
    assert size_of(size) == size
    assert size_of(size - 1) == size
    if size < MAX_LENGTH:
        assert size_of(size + 1) == SIZES[SIZES.index(size) + 1]


@pytest.mark.parametrize("length", [1, 31, 257, 4097, 65_537, 1_000_003, MAX_LENGTH])
def test_the_table_of_cases_knows_the_same_sizes(length):
    assert plan_length(length) == size_of(length)


def test_waste_is_bounded():
    """From 1024 on, neighbours are 4 : 5 : 6 : 8; the worst is just above 6, and 8/6 < 1.34."""
    for size, following in itertools.pairwise(SIZES):
        if size >= 1024:
            assert following / (size + 1) < 1.34
    # Below, sizes are multiples of 256: 257 gets 512.
    assert max(size_of(n) - n for n in range(257, 1024)) < 256


@pytest.mark.parametrize("length", [0, -1, MAX_LENGTH + 1, 1 << 40])
def test_out_of_range(length):
    with pytest.raises(ValueError, match=f"from 1 to {MAX_LENGTH}, got {length}"):
        size_of(length)


def test_spectrum_is_complex_and_without_gaps():
    for isa in _native.host.available_isas():
        lanes = {"generic": 4, "avx2": 8, "avx512": 16}[isa]
        before = _native.host.isa()
        _native.host.set_isa(isa)
        try:
            # Above 256, rows of their own; up to it, channels fill whole vectors.
            assert _native.host.spectrum_floats(3, 1000) == 3 * 2 * 1024
            assert _native.host.spectrum_floats(3, 100) == -(-3 // lanes) * lanes * 2 * 128
            assert _native.host.spectrum_floats(0, 1000) == 0
        finally:
            _native.host.set_isa(before)
    with pytest.raises(ValueError, match="got 0"):
        _native.host.spectrum_floats(3, 0)


def test_unknown_instruction_set():
    before = _native.host.isa()
    with pytest.raises(ValueError, match=r"'mmx'.*generic, avx2"):
        _native.host.set_isa("mmx")
    assert _native.host.isa() == before
