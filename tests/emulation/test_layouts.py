"""How matrices lie in registers: as the PTX ISA documents it, and as CuTe's traits compute it."""

import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.emulation.build import CACHE, compiler

DTYPES = {0: torch.float16, 1: torch.bfloat16, 2: torch.float32}
LANE = np.arange(32)
GROUP, MEMBER = LANE // 4, LANE % 4


def documented_layouts(pairs: bool):
    """(row, column) of element i of each lane, arrays (32, elements), for A, B and C.

    PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" (`pairs`) and "for
    mma.m16n8k8" with .tf32; B's row is along K.
    """
    g, t = GROUP[:, None], MEMBER[:, None]
    if pairs:
        i = np.arange(8)[None]
        a = (g + np.where((i % 4) < 2, 0, 8), 2 * t + i % 2 + np.where(i < 4, 0, 8))
        i = np.arange(4)[None]
        b = (2 * t + i % 2 + np.where(i < 2, 0, 8), g + 0 * i)
    else:
        i = np.arange(4)[None]
        a = (g + np.where(i % 2 == 0, 0, 8), t + np.where(i < 2, 0, 4))
        i = np.arange(2)[None]
        b = (t + 4 * i, g + 0 * i)
    i = np.arange(4)[None]
    return a, b, (g + np.where(i < 2, 0, 8), 2 * t + i % 2)


def registers(matrix: torch.Tensor, layout) -> np.ndarray:
    """The 32-bit registers of each lane: two elements of 16 bits, or one of 32."""
    elements = matrix[tuple(map(torch.from_numpy, np.broadcast_arrays(*layout)))].contiguous()
    return elements.view(torch.int32).numpy().view(np.uint32)


@pytest.mark.parametrize("kind", DTYPES, ids=["f16", "bf16", "tf32"])
def test_product_of_fragments(kind, kernels):
    generator = torch.Generator().manual_seed(0)
    depth, dtype = (8 if kind == 2 else 16), DTYPES[kind]
    # Integers: exact in every type and in any order of summation.
    A, B, C = (
        torch.randint(-9, 10, shape, generator=generator).float()
        for shape in ((16, depth), (depth, 8), (16, 8))
    )
    layouts = documented_layouts(pairs=kind != 2)
    a, b = (registers(m.to(dtype), layout) for m, layout in zip((A, B), layouts, strict=False))
    for emulator in kernels:
        d = C[tuple(map(torch.from_numpy, np.broadcast_arrays(*layouts[2])))].contiguous()
        with emulator:
            emulator.buffer(a, "a", readonly=True)
            emulator.buffer(b, "b", readonly=True)
            emulator.buffer(d, "d")
            emulator.call("product", kind, a, b, d)
        assert emulator.findings() == []
        expected = (A @ B + C)[tuple(map(torch.from_numpy, np.broadcast_arrays(*layouts[2])))]
        assert torch.equal(d, expected)


def test_tf32_ignores_the_low_bits(kernels):
    a, b = np.full((32, 4), 0x3F801FFF, np.uint32), np.full((32, 2), 0x3F801FFF, np.uint32)
    d = np.zeros((32, 4), np.float32)
    with kernels[0] as emulator:
        emulator.call("product", 2, a, b, d)
    assert (d == 8).all()


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_load_matrix(count, transposed, kernels):
    """Register i of lane l: elements (l / 4, 2 (l % 4)) and the next of matrix i."""
    random = np.random.default_rng(count)
    x = np.arange(256, dtype=np.uint16).reshape(32, 8)
    rows = random.permutation(32).astype(np.int32)
    matrices = x[rows].reshape(4, 8, 8)
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    pairs = matrices.reshape(4, 32, 2).transpose(1, 0, 2).astype(np.uint32)
    expected = pairs[..., 0] | pairs[..., 1] << 16
    expected[:, count:] = 0
    for emulator in kernels:
        out = np.zeros((32, 4), np.uint32)
        with emulator:
            for array, name in ((x, "x"), (rows, "rows"), (out, "out")):
                emulator.buffer(array, name)
            emulator.call("load", count, transposed, x, rows, out)
        assert emulator.findings() == []
        assert (out == expected).all()


@pytest.mark.parametrize("transposed", [0, 1])
def test_store_matrix_inverts_load_matrix(transposed, kernels):
    x = np.arange(256, dtype=np.uint16).reshape(32, 8)
    rows = np.random.default_rng(0).permutation(32).astype(np.int32)
    for emulator in kernels:
        fragments, out = np.zeros((32, 4), np.uint32), np.zeros((32, 8), np.uint16)
        with emulator:
            for array, name in ((x, "x"), (rows, "rows"), (fragments, "f"), (out, "out")):
                emulator.buffer(array, name)
            emulator.call("load", 4, transposed, x, rows, fragments)
            emulator.call("store", transposed, fragments, rows, out)
        assert emulator.findings() == []
        assert (out == x).all()


def cutlass_include() -> Path | None:
    spec = importlib.util.find_spec("cutlass_library")
    if spec is None or not spec.submodule_search_locations:
        return None
    include = Path(next(iter(spec.submodule_search_locations))) / "source" / "include"
    return include if include.is_dir() else None


CUDA = Path("/usr/local/cuda/include")
CUTE = """
#include <cstdio>
#include <cute/atom/mma_traits_sm80.hpp>
template <class Layout>
void list(Layout layout) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < cute::size<1>(layout); ++i) std::printf("%d ", int(layout(lane, i)));
  std::puts("");
}
template <class Instruction>
void list_all() {
  using Traits = cute::MMA_Traits<Instruction>;
  list(typename Traits::ALayout{});
  list(typename Traits::BLayout{});
  list(typename Traits::CLayout{});
}
int main() {
  list_all<cute::SM80_16x8x16_F32F16F16F32_TN>();
  list_all<cute::SM80_16x8x16_F32BF16BF16F32_TN>();
  list_all<cute::SM80_16x8x8_F32TF32TF32F32_TN>();
}
"""


@pytest.mark.skipif(cutlass_include() is None, reason="the nvidia-cutlass wheel is not installed")
@pytest.mark.skipif(not (CUDA / "cccl").is_dir(), reason="no headers of CUDA 13 or later")
def test_documented_layouts_are_those_of_cute():
    CACHE.mkdir(parents=True, exist_ok=True)
    source, program = CACHE / "cute_layouts.cpp", CACHE / "cute_layouts"
    source.write_text(CUTE)
    include = [f"-I{cutlass_include()}", f"-isystem{CUDA}", f"-isystem{CUDA / 'cccl'}"]
    command = [compiler(), "-std=c++17", "-w", *include, str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    found = [np.array(line.split(), int).reshape(32, -1) for line in lines.splitlines()]
    for kind in DTYPES:
        a, b, c = documented_layouts(pairs=kind != 2)
        # CuTe numbers the elements of A by (M, K), of B by (N, K), of C by (M, N), column-major.
        assert (found[3 * kind] == a[0] + 16 * a[1]).all()
        assert (found[3 * kind + 1] == b[1] + 8 * b[0]).all()
        assert (found[3 * kind + 2] == c[0] + 16 * c[1]).all()
