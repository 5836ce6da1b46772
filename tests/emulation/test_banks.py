"""The emulator's count of bank conflicts of vectors in shared memory."""

import pytest
import torch


@pytest.fixture(scope="module")
def emulator(emulators):
    return emulators(["tests/emulation/kernels/banks.cu"])[0]


@pytest.mark.parametrize(
    ("size", "stride", "lanes", "accesses", "wavefronts"),
    [
        (4, 1, 32, 1, 1),
        (4, 2, 32, 1, 2),
        (4, 33, 32, 1, 1),
        (4, 32, 32, 1, 32),
        (4, 32, 5, 1, 5),  # 27 lanes stay away
        (4, 0, 32, 1, 1),  # one word for all
        (8, 1, 32, 2, 2),
        (8, 2, 32, 2, 4),
        (8, 17, 32, 2, 2),
        (16, 1, 32, 4, 4),
        (16, 4, 32, 4, 16),
        (16, 9, 32, 4, 4),
    ],
)
def test_strided_stores(emulator, size, stride, lanes, accesses, wavefronts):
    x = torch.ones(32 * size // 4)
    with emulator:
        emulator.buffer(x, "x", readonly=True)
        assert emulator.call("strided_store", x, size, stride, lanes) == 0
    assert emulator.findings() == []
    stats = emulator.stats()
    assert (stats["vector_accesses"], stats["vector_wavefronts"]) == (accesses, wavefronts)
