"""What the wrappers of device.cuh do on a GPU, recorded; the emulator is held to the record.

    python -m tests.emulation.conformance [--output tests/fixtures/device_conformance.npz]

on a machine with a GPU and nvcc compiles conformance.cu, gives every wrapper the inputs of
`inputs` and writes what came out. tests/test_conformance.py compares the emulator with the file.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.emulation.nvcc import find_nvcc

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tests" / "emulation" / "conformance.cu"
RECORDING = ROOT / "tests" / "fixtures" / "device_conformance.npz"
# Only where the GPU has the instruction: the least compute capability.
NEEDS = {"store_matrix_x4": (9, 0), "store_matrix_x4_transposed": (9, 0)}


class Library:
    """conformance.cu, compiled by nvcc or with the emulator."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.conformance_name.restype = ctypes.c_char_p
        library.conformance_run.restype = ctypes.c_char_p
        count = library.conformance_count()
        self.operations = {library.conformance_name(i).decode(): i for i in range(count)}

    def words(self, name: str) -> tuple[int, int]:
        """Words that a thread reads and writes."""
        index = self.operations[name]
        read, written = self.library.conformance_in_words, self.library.conformance_out_words
        return read(index), written(index)

    def run(self, name: str, given: np.ndarray) -> np.ndarray:
        """Apply an operation to (threads, words in), uint32; return (threads, words out)."""
        words_in, words_out = self.words(name)
        threads = len(given)
        if given.dtype != np.uint32 or given.shape != (threads, words_in) or threads % 32:
            raise ValueError(f"{name}: expected (32 n, {words_in}) of uint32, got {given.shape}")
        given = np.ascontiguousarray(given)
        found = np.full((threads, words_out), 0xFFFFFFFF, np.uint32)
        error = self.library.conformance_run(
            self.operations[name],
            given.ctypes.data_as(ctypes.c_void_p),
            found.ctypes.data_as(ctypes.c_void_p),
            threads // 32,
        )
        if error:
            raise RuntimeError(f"{name}: {error.decode()}")
        return found


def build_for_gpu(folder: Path, arch: str = "native") -> Library:
    """Compile conformance.cu with nvcc; CalledProcessError with its output if that fails."""
    library = folder / "conformance.so"
    flags = ["-std=c++17", "-O2", "--expt-relaxed-constexpr", "-shared", "-Xcompiler=-fPIC"]
    command = [find_nvcc() or "nvcc", *flags, f"-arch={arch}", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True)
    return Library(ctypes.CDLL(str(library)))


# ---- Inputs --------------------------------------------------------------------------------------

WARPS = 64


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def _any_floats(random: np.random.Generator, count: int) -> np.ndarray:
    """Bit patterns of floats: all exponents, ties of 16-bit rounding, zeros, infinities, NaN."""
    bits = random.integers(0, 1 << 32, count, dtype=np.uint64).astype(np.uint32)
    kind = random.integers(0, 4, count)
    bits = np.where(kind == 1, bits & 0xFFFF8000, bits)  # ties of bfloat16, or their neighbours
    bits = np.where(kind == 2, (bits & 0x8FFFF000) | 0x38000000, bits)  # the range of float16
    special = np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x477FF000], np.uint32)
    bits[: len(special)] = special
    return bits.astype(np.uint32)


def _float16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).view(np.uint16).astype(np.uint32)


def _bfloat16(x: np.ndarray) -> np.ndarray:
    return _bits(x) >> 16


def _matrix_operands(random: np.random.Generator, name: str, threads: int) -> np.ndarray:
    """a, b and d of a product: in the first half small whole numbers, whose sums are exact."""
    kind = name.rsplit("_", 1)[1]
    halves = 1 if kind == "tf32" else 2

    def numbers(words: int) -> np.ndarray:
        whole = random.integers(-8, 9, (threads // 2, words)).astype(np.float32)
        rest = random.standard_normal((threads - threads // 2, words)).astype(np.float32)
        return np.concatenate([whole, rest])

    operands = numbers(6 * halves)
    if kind == "tf32":
        packed = _bits(operands) & np.uint32(0xFFFFE000)
    else:
        short = (_float16 if kind == "f16" else _bfloat16)(operands)
        packed = short[:, 0::2] | short[:, 1::2] << 16
    return np.concatenate([packed, _bits(numbers(4))], 1)


def _values_and(
    random: np.random.Generator, threads: int, limit: int, values: np.ndarray | None = None
) -> np.ndarray:
    """Two words: any value, and a number below `limit`."""
    if values is None:
        values = random.integers(0, 1 << 32, threads, dtype=np.uint64)
    operand = random.integers(0, limit, threads)
    return np.stack([values, operand], 1).astype(np.uint32)


def _rows(random: np.random.Generator, threads: int, extra: np.ndarray) -> np.ndarray:
    """Four words, the number `extra`, and padding to 32 bytes."""
    given = random.integers(0, 1 << 32, (threads, 8), dtype=np.uint64).astype(np.uint32)
    given[:, 4] = extra
    return given


def inputs(name: str, words: int) -> np.ndarray:
    """What an operation is given: (threads, words), the same on every machine."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    threads = 32 * WARPS
    if name in ("to_float_f16", "to_float_bf16"):
        return np.arange(1 << 16, dtype=np.uint32)[:, None]  # every number there is
    if name.startswith(("pack", "from_float", "to_tf32", "fma")):
        return _any_floats(random, 4 * threads * words).reshape(-1, words)
    if name in ("exp", "exp2_approximate", "inverse_sqrt"):
        low = 0.001 if name == "inverse_sqrt" else -20.0
        return _bits(random.uniform(low, 20.0, (threads, 1)))
    if name.endswith("bf16x2"):  # whole numbers: every sum is exact
        pairs = _bfloat16(random.integers(-15, 16, (threads, 2 * words)).astype(np.float32))
        return pairs[:, 0::2] | pairs[:, 1::2] << 16
    if name == "shared_vectors":
        return random.integers(0, 1 << 32, (threads, words), dtype=np.uint64).astype(np.uint32)
    if name == "sincospi":
        x = np.concatenate([np.arange(threads // 2) / 64, random.uniform(-4, 4, threads // 2)])
        return np.ascontiguousarray(x, np.float64).view(np.uint32).reshape(-1, 2)
    if name.startswith("multiply_accumulate"):
        return _matrix_operands(random, name, threads)
    if name.startswith("copy_async"):
        size = int(name.rsplit("_", 1)[1])
        return _rows(random, threads, random.integers(0, size + 1, threads))
    if "matrix" in name:  # within each warp, the rows in another order
        order = np.concatenate([random.permutation(32) for _ in range(WARPS)])
        return _rows(random, threads, order)
    if name == "atomic_add_float":  # whole numbers: the order of the additions does not show
        return _values_and(random, threads, 4, _bits(random.integers(-99, 99, threads)))
    if name == "atomic_max_int":
        return _values_and(random, threads, 4, random.integers(-99, 99, threads).astype(np.uint32))
    return _values_and(random, threads, 32)[:, :words]


# ---- Comparison ----------------------------------------------------------------------------------


def _equal_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a == b


Comparison = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of booleans


def _equal_or_both_nan(dtype: type, infinity: int) -> Comparison:
    """Bits of a format whose infinity has the bits `infinity`: one NaN is as good as another."""

    def compare(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = (np.ascontiguousarray(x).view(dtype) for x in (a, b))
        magnitude = dtype(np.iinfo(dtype).max >> 1)
        nan = ((a & magnitude) > infinity) & ((b & magnitude) > infinity)
        return (a == b) | nan

    return compare


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums of 17 numbers: exact for whole ones; else the order and the last bits are the GPU's.

    Tensor cores cut the aligned terms off instead of rounding: an error of some units of the last
    place of the largest term, here at most 32.
    """
    x, y = (np.ascontiguousarray(t).view(np.float32).astype(np.float64) for t in (a, b))
    exact = np.arange(len(x)) < len(x) // 2
    return np.where(exact[:, None], x == y, np.abs(x - y) <= 32 * 8 * 2.0**-23)


def _doubles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two implementations of a function, each within two units of the last place."""
    x, y = (np.ascontiguousarray(t).view(np.float64) for t in (a, b))
    return np.abs(x - y) <= 4 * np.spacing(np.maximum(np.abs(x), 2.0**-54))


def _floats(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same for functions of float32, which a GPU approximates."""
    x, y = (np.ascontiguousarray(t).view(np.float32) for t in (a, b))
    return np.abs(x - y) <= 4 * np.spacing(np.abs(x))


def compare(name: str) -> Comparison:
    """How two results of an operation are compared."""
    if name.startswith("multiply_accumulate"):
        return _products
    if name == "sincospi":
        return _doubles
    if name.startswith("exp"):
        return _floats
    if name.startswith(("to_float", "fma", "to_tf32")):
        return _equal_or_both_nan(np.uint32, 0x7F800000)
    if name.startswith(("pack", "from_float")):
        return _equal_or_both_nan(np.uint16, 0x7C00 if name.endswith("_f16") else 0x7F80)
    return _equal_bits


def differences(name: str, found: np.ndarray, recorded: np.ndarray) -> list[str]:
    """What differs, in words; empty if nothing does."""
    if found.shape != recorded.shape:
        return [f"{name}: {found.shape} results, recorded are {recorded.shape}"]
    wrong = ~compare(name)(found, recorded)
    rows = np.unique(np.argwhere(wrong)[:, 0])
    texts = [
        f"{name}: thread {row}: {[hex(w) for w in found[row]]}, "
        f"recorded {[hex(w) for w in recorded[row]]}"
        for row in rows[:4]
    ]
    return texts + ([f"{name}: {len(rows)} threads differ in all"] if len(rows) > 4 else [])


# ---- The recording -------------------------------------------------------------------------------


def record(library: Library, capability: tuple[int, int]) -> dict[str, np.ndarray]:
    """The results of all operations that a GPU has, by name."""
    found = {}
    for name in library.operations:
        if capability >= NEEDS.get(name, (8, 0)):
            found[name] = library.run(name, inputs(name, library.words(name)[0]))
    return found


def write(path: Path, results: dict[str, np.ndarray], machine: str) -> None:
    """Write a recording: the results, and the name of the GPU."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    os.close(handle)
    np.savez_compressed(temporary, machine=np.array(machine), **results)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RECORDING)
    output = parser.parse_args().output
    import torch

    if not torch.cuda.is_available() or find_nvcc() is None:
        sys.stderr.write("nothing to record: this needs a GPU and nvcc\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        library = build_for_gpu(Path(folder))
        results = record(library, torch.cuda.get_device_capability())
    machine = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    write(output, results, machine)
    sys.stdout.write(f"{len(results)} operations of {machine} recorded in {output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
