"""The matrix products on a GPU: `python -m benchmarks.products_cuda [--output FILE]`.

At M2-BERT-80M's shapes and in turns: the kernels, the composition of torch.bmm, and the dense
product, all of one dtype. Times are medians of CUDA events around graph replays over inputs that
no cache holds (`gpu_timing.py`). A result is first compared with the composition in float64; one
that is wrong gets no time.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

import monarch_kernels as mk
from benchmarks import gpu_timing, harness
from benchmarks.products import BLOCKS, INNER, WIDTH, bmm, composed_glu
from monarch_kernels import backends

# Dense bfloat16 on an H200 as cuBLAS reaches it, floating-point operations a second.
H200_DENSE = 790e12
# Issue 7, bfloat16: fraction of H200_DENSE, and times as fast as a named contender, from so many
# rows on.
GOALS = {
    "glu_mlp": {"fraction": 0.60, "times": ("bmm", 1.7), "rows": 8192},
    "block_diagonal": {"fraction": None, "times": ("dense", 1.0), "rows": 512},
}
ROWS = (16, 128, 512, 2048, 8192, 32768, 131072)
KINDS = ("block_diagonal", "glu_mlp", "glu_mlp backward")
# Largest relative L2 error against float64.
BOUND = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
HEADER = """| case | rows | contender | us | TFLOP/s | of 790 | times bmm | times dense | goal |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


@dataclass(frozen=True)
class Case:
    """One comparison; `kind` is one of KINDS, `dtype` a name in torch."""

    kind: str
    rows: int
    dtype: str = "bfloat16"

    @property
    def id(self) -> str:
        return f"{self.kind.replace(' ', '-')}-{self.dtype}-{self.rows}"

    @property
    def flops(self) -> float:
        """Of one call, without what a backward computes again."""
        products = {"block_diagonal": 1, "glu_mlp": 3, "glu_mlp backward": 9}
        return 2.0 * self.rows * products[self.kind] * INNER * WIDTH / BLOCKS

    def goal(self) -> dict[str, Any] | None:
        found = GOALS.get(self.kind)
        if found is None or self.dtype != "bfloat16" or self.rows < found["rows"]:
            return None
        return found


def cases(dtypes: Sequence[str] = ("bfloat16", "float32")) -> Iterator[Case]:
    for dtype in dtypes:
        for kind in KINDS:
            yield from (Case(kind, rows, dtype) for rows in ROWS)


Contender = Callable[[Tensor], Any]


def contenders(case: Case, device: torch.device) -> tuple[dict[str, Contender], Contender]:
    """The sides of a case as functions of x, and the float64 result to compare with."""
    random = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random, device=device)

    dtype = getattr(torch, case.dtype)
    w_in = normal(BLOCKS, 2 * INNER // BLOCKS, WIDTH // BLOCKS) / (WIDTH / BLOCKS) ** 0.5
    w_out = normal(BLOCKS, WIDTH // BLOCKS, INNER // BLOCKS) / (INNER / BLOCKS) ** 0.5
    vectors = [0.1 * normal(WIDTH), 1 + 0.1 * normal(WIDTH), 0.1 * normal(WIDTH)]
    w_in, w_out, *rounded = (t.to(dtype) for t in (w_in, w_out, *vectors))
    if case.kind == "block_diagonal":
        w = w_in[:, : INNER // BLOCKS].contiguous()
        dense = normal(INNER, WIDTH).to(dtype)
        sides: dict[str, Contender] = {
            "bmm": lambda x: bmm(x, w),
            "dense": lambda x: linear(x, dense),
            "native": lambda x: mk.block_diagonal(x, w, backend="native"),
        }
        return sides, lambda x: bmm(x.double(), w.double())

    def native(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        bias, scale, shift = vectors
        norm = {"norm_weight": scale, "norm_bias": shift}
        return mk.glu_mlp(x, first, second, bias, residual=x, backend="native", **norm)

    def composed(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return composed_glu(x, first, second, [t.to(x.dtype) for t in vectors])

    if case.kind == "glu_mlp":
        sides = {
            "bmm": lambda x: composed_glu(x, w_in, w_out, rounded),
            "native": lambda x: native(x, w_in, w_out),
        }
        return sides, lambda x: composed(x.double(), w_in.double(), w_out.double())

    def gradients(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        with torch.enable_grad():
            y = function(*leaves)
            return torch.autograd.grad(y, leaves, torch.cos(tensors[0]).to(y.dtype))

    sides = {
        "bmm": lambda x: gradients(composed, x, w_in, w_out),
        "native": lambda x: gradients(native, x, w_in, w_out),
    }
    return sides, lambda x: gradients(composed, x.double(), w_in.double(), w_out.double())


def error_of(found: Any, exact: Any) -> float:
    """The largest relative L2 error of the results; infinite if one is not a number."""
    pairs = [(found, exact)] if isinstance(found, Tensor) else zip(found, exact, strict=True)
    worst = 0.0
    for a, b in pairs:
        error = float((a.double() - b).norm() / b.norm())
        worst = max(worst, error) if error == error else float("inf")
    return worst


def measure(case: Case, device: torch.device, rounds: int = 9) -> dict[str, Any]:
    """Check every side with a part of the rows, then time all that are right."""
    dtype = getattr(torch, case.dtype)
    bytes_each = case.rows * (WIDTH + INNER) * dtype.itemsize
    count = gpu_timing.input_sets(bytes_each, device)
    sides, exact = contenders(case, device)
    # Rows enough for the grid of the timed call, few enough for float64.
    x = torch.randn(min(case.rows, 16384), WIDTH, device=device, dtype=dtype)
    expected, rows, right = exact(x), {}, {}
    for name, side in sides.items():
        if name == "dense":
            right[name] = side
            continue
        try:
            error = error_of(side(x), expected)
        except RuntimeError as failure:
            rows[name] = {"failed": gpu_timing.in_words(failure)}
            continue
        if not error <= BOUND[dtype]:
            rows[name] = {"failed": f"wrong result: error {error:.1e}", "error": error}
            continue
        rows[name], right[name] = {"error": error}, side
    del expected
    inputs = [torch.randn(case.rows, WIDTH, device=device, dtype=dtype) for _ in range(count)]
    calls = {name: [functools.partial(side, x) for x in inputs] for name, side in right.items()}
    for name, timing in gpu_timing.time_in_turns(calls, device, rounds=rounds).items():
        rows[name] = {**rows.get(name, {}), **timing}
    for row in rows.values():
        if "median_s" in row:
            row["tflops"] = case.flops / row["median_s"] / 1e12
            for name in ("bmm", "dense"):
                if "median_s" in rows.get(name, {}):
                    row[f"times_{name}"] = rows[name]["median_s"] / row["median_s"]
    gpu_timing.free(device)
    wrong = [name for name, row in rows.items() if "failed" in row]
    return {"id": case.id, "case": vars(case), "contenders": rows, "wrong": wrong}


def goal_text(case: Case, row: dict[str, Any]) -> str:
    """What was asked of the kernels, and whether it is so."""
    goal = case.goal()
    if goal is None:
        return ""
    name, ratio = goal["times"]
    met = row.get(f"times_{name}", 0.0) >= ratio
    text = f"{ratio} times {name}"
    if goal["fraction"] is not None:
        met = met and row["tflops"] * 1e12 >= goal["fraction"] * H200_DENSE
        text += f", {goal['fraction']:.0%}"
    return f"{text}: {'met' if met else 'missed'}"


def row_texts(case: Case, result: dict[str, Any]) -> Iterator[str]:
    """Lines of the Markdown table."""
    for name, row in result["contenders"].items():
        begin = f"| {case.kind} {case.dtype} | {case.rows} | {name} |"
        if "median_s" not in row:
            yield f"{begin} {row['failed']} | | | | | |"
            continue
        ratios = [f"{row[k]:.2f}" if k in row else "" for k in ("times_bmm", "times_dense")]
        fraction = row["tflops"] * 1e12 / H200_DENSE
        goal = goal_text(case, row) if name == "native" else ""
        numbers = f"{1e6 * row['median_s']:.1f} | {row['tflops']:.1f} | {fraction:.0%}"
        yield f"{begin} {numbers} | {ratios[0]} | {ratios[1]} | {goal} |"


def run(
    chosen: Sequence[Case],
    device: torch.device,
    rounds: int = 9,
    budget: float = 120.0,
    output: str | None = None,
) -> dict[str, Any]:
    """Measure cases until `budget` seconds are gone; print the table; return the record."""
    start, results, missing = time.monotonic(), [], []
    record = {
        "machine": harness.describe_machine(),
        "gpu": gpu_timing.describe_gpu(device),
        "results": results,
        "not_measured": missing,
    }
    print(HEADER, flush=True)
    for case in chosen:
        if time.monotonic() - start > budget:
            missing.append(case.id)
            continue
        results.append(measure(case, device, rounds))
        print("\n".join(row_texts(case, results[-1])), flush=True)
        if output:  # after each case: a time limit loses none
            harness.write_json(output, record)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default="", help=f"only these of: {', '.join(KINDS)}")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds in all")
    parser.add_argument("--output", default=None, help="also write JSON to this file")
    options = parser.parse_args(arguments)
    reason = backends.cuda_unsupported()
    if reason is not None:
        print(f"nothing to measure: {reason}", file=sys.stderr)
        return 1
    kinds = [kind for kind in options.kinds.split(",") if kind] or KINDS
    chosen = [case for case in cases(options.dtypes.split(",")) if case.kind in kinds]
    torch.set_grad_enabled(False)
    device = torch.device("cuda", torch.cuda.current_device())
    record = run(chosen, device, options.rounds, options.budget, options.output)
    return 1 if any(result["wrong"] for result in record["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
