"""Calls of the emulator's own kernels, each with the result that NumPy or torch expects.

Each function registers its buffers, launches, and returns (what came out, what should have).
"""

from pathlib import Path

import numpy as np
import torch

from tests.emulation.emulator import Emulator

KERNELS = Path(__file__).parent / "kernels"


def _integers(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**31, count, dtype=np.uint32)


def reduction(emulator: Emulator, count: int = 3000, blocks: int = 3):
    x = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    total = np.zeros(1, np.float32)
    emulator.buffer(x, "x", readonly=True)
    emulator.buffer(total, "total")
    assert emulator.call("reduction", x, count, total, blocks) == 0
    return torch.from_numpy(total), torch.tensor([x.sum(dtype=np.float64)])


def transpose(emulator: Emulator, rows: int = 52, columns: int = 40):
    x = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    y = torch.full((columns, rows), float("nan"))
    emulator.buffer(x, "x", readonly=True)
    emulator.buffer(y, "y", uninitialised=True)
    assert emulator.call("transpose", x, y, rows, columns) == 0
    return y, x.T


def matmul(emulator: Emulator, dtype=torch.float16, m: int = 100, n: int = 64, k: int = 160):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(m, k, generator=generator).to(dtype)
    B = torch.randn(n, k, generator=generator).to(dtype)
    C = torch.full((m, n), float("nan"))
    emulator.buffer(A, "A", readonly=True)
    emulator.buffer(B, "B", readonly=True)
    emulator.buffer(C, "C", uninitialised=True)
    name = {torch.float16: "matmul_f16", torch.bfloat16: "matmul_bf16"}[dtype]
    assert emulator.call(name, A, B, C, m, n, k) == 0
    return C, A.double() @ B.double().T


def reverse(emulator: Emulator, rounds: int = 3):
    x, y = _integers(128), np.zeros(128, np.uint32)
    emulator.buffer(x, "x", readonly=True)
    emulator.buffer(y, "y", uninitialised=True)
    assert emulator.call("reverse", x, y, rounds) == 0
    return torch.from_numpy(y), torch.from_numpy(x.reshape(4, 32)[:, ::-1].reshape(-1).copy())


def handover(emulator: Emulator, items: int = 4):
    x, y = _integers(64 * items), np.zeros(64 * items, np.uint32)
    emulator.buffer(x, "x", readonly=True)
    emulator.buffer(y, "y", uninitialised=True)
    assert emulator.call("handover", x, y, items) == 0
    return torch.from_numpy(y), torch.from_numpy(np.roll(2 * x.reshape(items, 64), -1, 1)).view(-1)


def pairs(emulator: Emulator):
    y = np.zeros(128, np.uint32)
    emulator.buffer(y, "y", uninitialised=True)
    assert emulator.call("pairs", y) == 0
    return torch.from_numpy(y), torch.arange(128) ^ 32


def relay(emulator: Emulator):
    y = np.zeros(32, np.uint32)
    emulator.buffer(y, "y", uninitialised=True)
    assert emulator.call("relay", y) == 0
    return torch.from_numpy(y), 7 * torch.arange(31, -1, -1)


def two_launches(emulator: Emulator, blocks: int = 4):
    x, y = _integers(64 * blocks), np.zeros(64 * blocks, np.uint32)
    emulator.buffer(x, "x", readonly=True)
    emulator.buffer(y, "y", uninitialised=True)
    assert emulator.call("two_launches", x, y, blocks) == 0
    return torch.from_numpy(y), torch.from_numpy(2 * (x + 1))


def barriers(emulator: Emulator, threads: int = 1024, blocks: int = 1, count: int = 10):
    y = np.zeros(threads * blocks, np.uint32)
    emulator.buffer(y, "y", uninitialised=True)
    assert emulator.call("barriers", y, blocks, threads, count) == 0
    expected = (torch.arange(threads) + count) % threads
    return torch.from_numpy(y), expected.repeat(blocks)


def correct(result) -> bool:
    """Products and sums of unit scale, in float32."""
    actual, expected = result
    return torch.allclose(actual.double(), expected.double(), rtol=1e-5, atol=1e-4)


ALL = (reduction, transpose, matmul, reverse, handover, pairs, relay, two_launches, barriers)
