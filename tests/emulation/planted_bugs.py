"""Bugs to plant in the emulator's own kernels, and what it must say about each."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.emulation import cases
from tests.emulation.build import CACHE

SOURCES = {
    cases.reduction: "reduction",
    cases.transpose: "transpose",
    cases.matmul: "matmul",
    cases.reverse: "exchange",
    cases.handover: "exchange",
    cases.pairs: "exchange",
    cases.relay: "exchange",
    cases.two_launches: "exchange",
}


def plant(name: str, kernel: str, old: str, new: str) -> Path:
    """A copy of the kernel's source with `new` in place of `old`."""
    text = (cases.KERNELS / f"{kernel}.cu").read_text()
    if text.count(old) != 1:
        raise ValueError(f"{kernel}.cu has {text.count(old)} times {old!r}")
    path = CACHE / "planted" / name / f"{kernel}.cu"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = text.replace(old, new)
    if not path.exists() or path.read_text() != text:
        temporary = path.with_suffix(f".{os.getpid()}")  # another pytest may be reading
        temporary.write_text(text)
        temporary.replace(path)
    return path


@dataclass(frozen=True)
class Bug:
    """`new` instead of `old` in the kernel that `run` calls."""

    name: str
    run: Callable
    old: str
    new: str
    kind: str  # of the finding; "" if only the result is wrong. "a|b": either
    line: str = ""  # part of the line that a finding of the kind must name

    @property
    def kernel(self) -> str:
        return SOURCES[self.run]

    def plant(self) -> Path:
        return plant(self.name, self.kernel, self.old, self.new)


SYNC = "  device::sync_threads();\n"
LOAD = "device::load_matrix_x4("

BARRIERS = [
    Bug("missing-barrier", cases.transpose, SYNC, "", "race", "values[i] = tile["),
    Bug("missing-barrier-in-a-loop", cases.matmul, f"  {SYNC}", "", "race", LOAD),
    Bug(
        "barriers-of-two-branches",
        cases.reduction,
        SYNC,
        f"  if (warp < 4) {{\n  {SYNC}  }} else {{\n    device::sync_threads();  // other\n  }}\n",
        "divergent barrier",
        "device::sync_threads();  // other",
    ),
    Bug(
        "barrier-in-one-branch",
        cases.reduction,
        SYNC,
        f"  if (warp < 4){SYNC}",
        "divergent barrier",
        "if (warp < 4)",
    ),
    Bug(
        "exit-while-others-wait",
        cases.reduction,
        SYNC,
        f"  if (thread == 255) return;\n{SYNC}",
        "divergent barrier",
        "  device::sync_threads();",
    ),
    Bug(
        "missing-warp-barrier",
        cases.reverse,
        "    device::sync_warp();\n",
        "",
        "race",
        "value = own[31 - lane];",
    ),
    Bug(
        "missing-warp-barrier-before-reuse",
        cases.reverse,
        "    device::sync_warp();  // all",
        "    // all",
        "race",
        "own[lane] = value;",
    ),
    Bug(
        "warp-barrier-for-a-group",
        cases.pairs,
        "device::sync_group(pair + 1, 64);",
        "device::sync_warp(0xffffffffu << pair * 0);",
        "race",
        "y[thread] = numbers[thread ^ 32];",
    ),
    Bug(
        "group-barrier-of-wrong-id",
        cases.handover,
        "device::sync_group(kEmptied, 128);\n    } else {",
        "device::sync_group(kEmptied + 1, 128);\n    } else {",
        "deadlock",
        "device::sync_group(kEmptied + 1, 128);",
    ),
    Bug(
        "group-barrier-of-wrong-count",
        cases.handover,
        "device::sync_group(kFilled, 128);\n      y[",
        "device::sync_group(kFilled, 64);\n      y[",
        "divergent barrier|deadlock",
        "device::sync_group(kFilled, ",
    ),
    Bug(
        "slot-released-early",
        cases.handover,
        "y[item * 64 + i] = slot[(i + 1) % 64];\n      device::sync_group(kEmptied, 128);",
        "device::sync_group(kEmptied, 128);\n      y[item * 64 + i] = slot[(i + 1) % 64];",
        "race",
        "slot[",
    ),
    Bug(
        "relay-in-the-wrong-order",
        cases.relay,
        "device::sync_group(1, 64);\n    device::sync_group(2, 64);",
        "device::sync_group(2, 64);\n    device::sync_group(1, 64);",
        "race",
        "made[",
    ),
    Bug(
        "shuffle-in-divergent-branch",
        cases.reduction,
        "sum += device::shuffle_xor(",
        "if (lane < 8) sum += device::shuffle_xor(",
        "deadlock|bad collective",
        "if (lane < 8) sum += device::shuffle_xor(",
    ),
]

BOUNDS = [
    Bug(
        "shared-store-out-of-bounds",
        cases.transpose,
        "kTile * kPitch * sizeof(float);",
        "kTile * kTile * sizeof(float);",
        "out of bounds",
        "*reinterpret_cast<float4*>(tile + line * kPitch + quad) = in;",
    ),
    Bug(
        "static-shared-store-out-of-bounds",
        cases.reduction,
        "partial[warp] = sum;",
        "partial[warp + 1] = sum;",
        "out of bounds",
        "partial[warp + 1] = sum;",
    ),
    Bug(
        "global-store-out-of-bounds",
        cases.matmul,
        "if (row < M) *",
        "*",
        "out of bounds|read-only buffer",  # whatever lies behind C
        "*reinterpret_cast<float2*>(C + row * N + column) = pair;",
    ),
    Bug(
        "global-load-out-of-bounds",
        cases.reduction,
        "i < count;",
        "i <= count;",
        "out of bounds",
        "device::load_readonly(x + i);",
    ),
    Bug(
        "copy-source-out-of-bounds",
        cases.matmul,
        "A + (inside ? (first_row + row) * K + k : 0), inside ? 16 : 0",
        "A + (first_row + row) * K + k",
        "out of bounds",
        "device::copy_async_16(device::shared_address(a_tiles",
    ),
    Bug(
        "matrix-row-out-of-bounds",
        cases.matmul,
        "warp_column + 16 * j + lane % 8",
        "warp_column + 16 * (j + 4 * kStages) + lane % 8",
        "out of bounds",
        "device::load_matrix_x4(b[j]",
    ),
    Bug(
        "local-index-out-of-range",
        cases.transpose,
        "for (int i = 0; i < 4; ++i)",
        "for (int i = 0; i < 4 + rows % 7; ++i)",
        "local index",
        "values[i] = tile[",
    ),
    Bug(
        "matrix-row-misaligned",
        cases.matmul,
        "load_matrix_x4(a[i], device::shared_address(source))",
        "load_matrix_x4(a[i], device::shared_address(source + 1))",
        "misaligned",
        "device::load_matrix_x4(a[i]",
    ),
    Bug(
        "vector-load-misaligned",
        cases.transpose,
        "(x + row * columns + column));",
        "(x + row * columns + column + (row == 0)));",
        "misaligned",
        "device::load_readonly(",
    ),
    Bug(
        "vector-store-misaligned",
        cases.transpose,
        "kPitch = kTile + 4;",
        "kPitch = kTile + 1;",
        "misaligned",
        "*reinterpret_cast<float4*>(tile + line * kPitch + quad) = in;",
    ),
    Bug(
        "store-to-readonly",
        cases.reduction,
        "if (lane == 0) partial[warp] = sum;",
        "if (lane == 0) const_cast<float*>(x)[warp] = partial[warp] = sum;",
        "read-only buffer",
        "const_cast<float*>(x)[warp] =",
    ),
]

MEMORY = [
    Bug(
        "uninitialised-shared-read",
        cases.reduction,
        "if (lane == 0) partial[warp]",
        "if (lane == 0 && warp > 0) partial[warp]",
        "uninitialised read",
        "sum = lane < kWarps ? partial[lane] : 0.0f;",
    ),
    Bug(
        "uninitialised-global-read",
        cases.two_launches,
        "y[i] = x[i] + 1;",
        "if (i != 70) y[i] = x[i] + 1;",
        "uninitialised read",
        "y[i] *= 2;",
    ),
    Bug(
        "update-not-atomic",
        cases.reduction,
        "device::atomic_add(total, sum);",
        "*total += sum;",
        "race",
        "*total += sum;",
    ),
    Bug(
        "blocks-overlap",
        cases.two_launches,
        "const int i = blockIdx.x * blockDim.x + threadIdx.x;\n",
        "const int i = blockIdx.x / 2 * blockDim.x + threadIdx.x;\n",
        "race",
        "y[i] = x[i] + 1;",
    ),
    Bug(
        "read-of-what-another-block-updates",
        cases.two_launches,
        "y[i] *= 2;",
        "y[i] = 2 * y[i] + y[(i + 64) % count] / 2;",
        "race",
        "y[i] = 2 * y[i]",
    ),
]

COPIES = [
    Bug(
        "missing-wait",
        cases.matmul,
        "    device::copy_async_wait<kStages - 2>();\n",
        "",
        "in flight",
        LOAD,
    ),
    Bug(
        "wait-too-lax",
        cases.matmul,
        "copy_async_wait<kStages - 2>",
        "copy_async_wait<kStages - 1>",
        "in flight",
        LOAD,
    ),
    Bug(
        "missing-commit",
        cases.matmul,
        "    device::copy_async_commit();\n    const int stage",
        "    const int stage",
        "in flight",
        LOAD,
    ),
    Bug(
        "stage-overwritten-in-use",
        cases.matmul,
        "fetch(step + kStages - 1);\n    device",
        "fetch(step + kStages);\n    device",
        "race|in flight",
        "device::",
    ),
]

VALUES = [
    Bug(
        "wrong-matrix-row",
        cases.matmul,
        "lane % 8 + lane / 16 * 8;",
        "lane % 8 + lane / 8 % 2 * 8;",
        "",
    ),
    Bug("swizzle-of-one-side", cases.matmul, "swizzled(row, k + lane / 16)", "row * kDepth", ""),
]

ALL = [*BARRIERS, *BOUNDS, *MEMORY, *COPIES, *VALUES]
