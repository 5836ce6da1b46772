"""What one instruction computes: numbers, exchanges within a warp, atomics, copies."""

import math

import numpy as np
import pytest
import torch

FLOAT_BITS = [0x00000000, 0x80000000, 0x00000001, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF]


@pytest.fixture(params=[0, 1], ids=["fast", "checked"])
def emulator(request, kernels):
    return kernels[request.param]


def samples(count: int) -> torch.Tensor:
    """Floats of every exponent, all float16 and bfloat16 values, and what lies halfway between."""
    random = np.random.default_rng(0).integers(0, 2**32, count, dtype=np.uint32)
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    values = [torch.from_numpy(random.view(np.float32).copy())]
    values += [halves.view(dtype).float() for dtype in (torch.float16, torch.bfloat16)]
    values += [torch.from_numpy(np.array(FLOAT_BITS, np.uint32).view(np.float32))]
    ties = torch.nextafter(values[1], torch.tensor(math.inf)) * (1 + 2**-11)
    return torch.cat([*values, ties]).contiguous()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"]
)
def test_conversions_round_like_torch(dtype, emulator):
    x = samples(20000)
    out, back = torch.empty(x.shape, dtype=dtype), torch.empty_like(x)
    with emulator:
        emulator.buffer(x, "x", readonly=True)
        emulator.buffer(out, "out", uninitialised=True)
        emulator.buffer(back, "back", uninitialised=True)
        name = f"convert_{str(dtype).removeprefix('torch.')}"
        assert emulator.call(name, x, out, back, x.numel()) == 0
    assert emulator.findings() == []
    torch.testing.assert_close(out, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(back, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


def test_packs(emulator):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(64, generator=generator) for _ in range(2))
    out = torch.zeros(4, 64, dtype=torch.int32)
    with emulator:
        for array, name in ((x, "x"), (y, "y"), (out, "out")):
            emulator.buffer(array, name)
        assert emulator.call("pack", x, y, out) == 0
    assert emulator.findings() == []
    pairs = torch.stack([x, y], 1)
    assert torch.equal(out[0].view(torch.bfloat16).view(64, 2), pairs.bfloat16())
    assert torch.equal(out[1].view(torch.float16).view(64, 2), pairs.half())
    tf32 = out[2].view(torch.float32)
    assert ((tf32 - x).abs() <= x.abs() * 2.0**-11).all()
    assert (out[2] & 0x1FFF == 0).all()
    product = x.double() * y.double() + x.double()  # exact but for one rounding of 2^-53
    assert torch.equal(out[3].view(torch.float32), product.float())


def test_sincospi(emulator):
    eighths = np.arange(-40, 41) / 8
    x = np.concatenate([eighths, [1e15 + 0.5, 2.0**53 + 2, 1e-300, 0.3, -1234.56789]])
    out = np.zeros((x.size, 2))
    with emulator:
        emulator.buffer(x, "x", readonly=True)
        emulator.buffer(out, "out", uninitialised=True)
        assert emulator.call("sincospi_of", x, out, x.size) == 0
    assert emulator.findings() == []
    whole = np.arange(-40, 41) % 8 == 0
    assert (out[:81][whole, 0] == 0).all()  # exact where the angle is a multiple of pi
    assert (np.abs(out[:81][whole, 1]) == 1).all()
    expected = [(math.sin(math.pi * v), math.cos(math.pi * v)) for v in x % 2]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-15)


def shuffled(x: np.ndarray, operand: int, width: int) -> list[np.ndarray]:
    """CUDA C++ Programming Guide, "Warp Shuffle Functions"."""
    lane = np.arange(32)
    first, last = lane // width * width, lane // width * width + width - 1
    up, down, xor = lane - operand, lane + operand, lane ^ operand
    sources = (
        first + operand % width,
        np.where(up < first, lane, up),
        np.where(down > last, lane, down),
        np.where(xor > last, lane, xor),
    )
    return [x[source] for source in sources]


@pytest.mark.parametrize("width", [2, 8, 16, 32])
@pytest.mark.parametrize("operand", [0, 1, 5, 16])
def test_shuffles_and_ballot(operand, width, emulator):
    x = np.random.default_rng(0).integers(0, 2**32, 32, dtype=np.uint32)
    out = np.zeros((5, 32), np.uint32)
    with emulator:
        emulator.buffer(x, "x", readonly=True)
        emulator.buffer(out, "out", uninitialised=True)
        assert emulator.call("exchange_lanes", x, 32, operand, width, out) == 0
    assert emulator.findings() == []
    for actual, expected in zip(out, shuffled(x, operand, width), strict=False):
        assert (actual == expected).all()
    assert (out[4] == sum(1 << lane for lane in range(32) if x[lane] % 3 == 0)).all()


def test_shuffle_in_a_warp_that_is_not_full(emulator):
    x = np.arange(40, dtype=np.uint32)
    out = np.zeros((5, 40), np.uint32)
    with emulator:
        emulator.buffer(x, "x", readonly=True)
        emulator.buffer(out, "out", uninitialised=True)
        assert emulator.call("exchange_lanes", x, 40, 1, 8, out) == 0
    assert emulator.findings() == []
    assert (out[3] == x ^ 1).all()
    assert (out[4, 32:] == sum(1 << i for i in range(8) if (32 + i) % 3 == 0)).all()


def test_atomic_maximum(emulator):
    x = np.random.default_rng(0).integers(0, 2**32, 256, dtype=np.uint32)
    out = np.zeros(1, np.uint32)
    with emulator:
        emulator.buffer(x, "x", readonly=True)
        emulator.buffer(out, "out")
        assert emulator.call("maximum", x, out) == 0
    assert emulator.findings() == []
    assert out[0] == x.max()


@pytest.mark.parametrize("source_bytes", [0, 5, 16])
@pytest.mark.parametrize("late", [True, False], ids=["late", "early"])
def test_copy_lands_at_either_end(late, source_bytes, kernels):
    x, out = torch.randn(32, 4), torch.zeros(64, 4)
    expected = x.clone()
    expected.view(torch.uint8).view(32, 16)[:, source_bytes:] = 0
    fast, checked = kernels
    for emulator in kernels:
        emulator.set(late_copies=late)
        with emulator:
            emulator.buffer(x, "x", readonly=True)
            emulator.buffer(out, "out", uninitialised=True)
            assert emulator.call("copy", x, out, source_bytes) == 0
        assert torch.equal(out[32:], expected)
        if late:
            assert out[:32].isnan().all()
        else:
            assert torch.equal(out[:32], expected)
    assert fast.findings() == []
    assert {finding.kind for finding in checked.findings()} == {"in flight"}
