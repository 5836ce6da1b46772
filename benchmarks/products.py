"""block_diagonal, monarch_matmul and glu_mlp against torch: `python -m benchmarks.products`.

At M2-BERT-80M's shapes: 768 -> 3072 with four blocks, and the MLP of D = 768, I = 3072. All sides
are timed in turns in one process, with the same threads and inputs; each case has a process of its
own. A case whose result is wrong is not timed.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

import monarch_kernels as mk
from benchmarks import harness
from monarch_kernels import _native

WIDTH, INNER, BLOCKS = 768, 3072, 4
ROWS = (1, 2, 4, 8, 16, 64, 256, 1024, 8192)
TOKENS = (1, 16, 512, 2048, 8192, 32768)
# Ratios asked for, to the baseline of the same name, from this number of rows on.
BARS = {
    ("block_diagonal", "float32"): (1.0, 0),
    ("glu_mlp", "float32"): (1.3, 2048),
    ("glu_mlp", "bfloat16"): (4.0, 2048),
}


@dataclass(frozen=True)
class Case:
    """One comparison; the kinds are those of `contenders`."""

    kind: str
    rows: int
    dtype: str
    threads: int

    @property
    def id(self) -> str:
        return f"{self.kind}-{self.rows}-{self.dtype}-{self.threads}thread"

    @property
    def bar(self) -> float | None:
        ratio, least = BARS.get((self.kind, self.dtype), (None, 0))
        return ratio if self.rows >= least else None

    @property
    def flops(self) -> float:
        """Of one call, two for each product of a weight and a number."""
        inner = INNER * WIDTH // BLOCKS
        weights = {
            "block_diagonal": inner,
            "monarch_matmul": 32 * 96 * (24 + 96),
            "glu_mlp": 3 * inner,
            "glu_mlp_training": 9 * inner,
        }
        return 2.0 * self.rows * weights[self.kind]


def cases(threads: tuple[int, ...] = (1, 2)) -> Iterator[Case]:
    """Every case, for each number of threads."""
    for count in threads:
        for dtype in ("float32", "bfloat16"):
            yield from (Case("block_diagonal", rows, dtype, count) for rows in ROWS)
            yield from (Case("monarch_matmul", rows, dtype, count) for rows in (16, 1024, 8192))
            yield from (Case("glu_mlp", rows, dtype, count) for rows in TOKENS)
            yield from (Case("glu_mlp_training", rows, dtype, count) for rows in (2048, 8192))


Contender = Callable[[], Tensor | tuple[Tensor, ...]]


def contenders(case: Case, seed: int = 0) -> dict[str, Contender]:
    """The sides of a case: the baseline, others for comparison, and "native"."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random)

    dtype = getattr(torch, case.dtype)
    x = normal(case.rows, WIDTH)
    if case.kind == "block_diagonal":
        w = normal(BLOCKS, INNER // BLOCKS, WIDTH // BLOCKS) / (WIDTH / BLOCKS) ** 0.5
        return _block_diagonal(x.to(dtype), w.to(dtype))
    if case.kind == "monarch_matmul":
        w1, w2 = normal(32, 96, 24) / 24**0.5, normal(32, 96, 96) / 96**0.5
        return _monarch(x.to(dtype), w1.to(dtype), w2.to(dtype))
    w_in = normal(BLOCKS, 2 * INNER // BLOCKS, WIDTH // BLOCKS) / (WIDTH / BLOCKS) ** 0.5
    w_out = normal(BLOCKS, WIDTH // BLOCKS, INNER // BLOCKS) / (INNER / BLOCKS) ** 0.5
    vectors = [0.1 * normal(WIDTH), 1 + 0.1 * normal(WIDTH), 0.1 * normal(WIDTH)]
    if case.kind == "glu_mlp":
        return _glu(x, w_in, w_out, vectors, dtype)
    return _training(x, w_in, w_out, vectors, dtype, normal(case.rows, WIDTH))


def bmm(x: Tensor, w: Tensor) -> Tensor:
    """The block-diagonal product as code bases write it."""
    p, q, c = w.shape
    y = torch.bmm(x.view(-1, p, c).transpose(0, 1), w.mT)
    return y.transpose(0, 1).reshape(-1, p * q)


def _block_diagonal(x: Tensor, w: Tensor) -> dict[str, Contender]:
    p, q, c = w.shape
    dense = torch.randn(p * q, p * c, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    blocks, transposed = x.view(-1, p, c).transpose(0, 1), w.mT
    return {
        # The product alone, its result (P, rows, q): what a layer then has to copy.
        "bmm": lambda: torch.bmm(blocks, transposed),
        "bmm and copy": lambda: bmm(x, w),
        "dense": lambda: linear(x, dense),
        "native": lambda: mk.block_diagonal(x, w),
    }


def _monarch(x: Tensor, w1: Tensor, w2: Tensor) -> dict[str, Contender]:
    blocks, _, r = w2.shape
    dense = mk.to_dense(w1.float(), w2.float()).to(x.dtype).contiguous()

    def composed() -> Tensor:
        h = bmm(x, w1).unflatten(1, (r, blocks)).mT.flatten(1)
        return bmm(h, w2).unflatten(1, (blocks, -1)).mT.flatten(1)

    return {
        "bmm": composed,
        "dense": lambda: linear(x, dense),
        "native": lambda: mk.monarch_matmul(x, w1, w2),
    }


def composed_glu(x: Tensor, w_in: Tensor, w_out: Tensor, vectors: list[Tensor]) -> Tensor:
    """bmm, gelu, product, bmm, layer_norm."""
    bias, scale, shift = vectors
    a, b = bmm(x, w_in).chunk(2, dim=-1)
    return layer_norm(bmm(gelu(a) * b, w_out) + bias + x, (WIDTH,), scale, shift)


def _glu(x, w_in, w_out, vectors, dtype) -> dict[str, Contender]:
    """The baseline is float32 whatever the dtype."""
    y, v_in, v_out = (t.to(dtype) for t in (x, w_in, w_out))
    bias, scale, shift = vectors
    norm = {"norm_weight": scale, "norm_bias": shift}
    sides: dict[str, Contender] = {"float32": lambda: composed_glu(x, w_in, w_out, vectors)}
    if dtype != torch.float32:
        rounded = [t.to(dtype) for t in vectors]
        sides["same dtype"] = lambda: composed_glu(y, v_in, v_out, rounded)
    sides["native"] = lambda: mk.glu_mlp(y, v_in, v_out, bias, residual=y, **norm)
    return sides


def _training(x, w_in, w_out, vectors, dtype, dy) -> dict[str, Contender]:
    """Forward and backward; the baseline is float32."""
    bias, scale, shift = vectors

    def run(function, *tensors):
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = function(*leaves)
        return torch.autograd.grad(y, leaves, dy.to(y.dtype))

    def native(a, b, c):
        return mk.glu_mlp(a, b, c, bias, residual=a, norm_weight=scale, norm_bias=shift)

    low = [t.to(dtype) for t in (x, w_in, w_out)]
    return {
        "float32": lambda: run(lambda *t: composed_glu(*t, vectors), x, w_in, w_out),
        "native": lambda: run(native, *low),
    }


def check(case: Case, sides: dict[str, Contender]) -> float:
    """Relative L2 difference of baseline and native; RuntimeError if it is no rounding error."""
    name = "bmm and copy" if case.kind == "block_diagonal" else next(iter(sides))
    results = [r if isinstance(r, tuple) else (r,) for r in (sides[name](), sides["native"]())]
    bound = 2e-5 if case.dtype == "float32" else 3e-2
    worst = 0.0
    for a, b in zip(*results, strict=True):
        error = ((a.double() - b.double()).norm() / a.double().norm()).item()
        if not error <= bound:
            raise RuntimeError(f"{case.id}: differ by {error:.1e} (at most {bound:.0e})")
        worst = max(worst, error)
    return worst


def measure(case: Case, rounds: int, isa: str = "auto") -> dict[str, object]:
    """Time a case whose result is right; a row of the table."""
    _native.host.set_isa(isa)
    training = case.kind.endswith("training")
    with harness.threads(case.threads), torch.set_grad_enabled(training):
        sides = contenders(case)
        error = check(case, sides)
        timings = harness.time_interleaved(sides, rounds=rounds, min_round_seconds=0.02)
    others = [name for name in sides if name != "native"]
    ratios = {name: harness.compare(timings, "native", name).median_round_ratio for name in others}
    return {
        "id": case.id,
        "kind": case.kind,
        "dtype": case.dtype,
        "rows": case.rows,
        "threads": case.threads,
        "isa": _native.host.isa(),
        "bf16_instructions": _native.host.bf16_instructions(),
        "microseconds": {name: 1e6 * t.median for name, t in timings.items()},
        "gflops": case.flops / timings["native"].median / 1e9,
        "ratios": ratios,
        "bar": case.bar,
        "difference": error,
        "load": os.getloadavg()[0],
        "timings": {name: t.as_dict() for name, t in timings.items()},
    }


def row_text(row: dict) -> str:
    """A line of the Markdown table."""
    times = ", ".join(f"{name} {us:.0f}" for name, us in row["microseconds"].items())
    first = next(iter(row["ratios"].values()))
    missed = " (missed)" if row["bar"] and first < row["bar"] else ""
    ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratios"].items())
    bar = "" if row["bar"] is None else f"{row['bar']:.1f}"
    return (
        f"| {row['kind']} | {row['rows']} | {row['dtype']} | {row['threads']} | {times} "
        f"| {row['gflops']:.0f} | {ratios}{missed} | {bar} | {row['load']:.1f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="numbers of threads, e.g. 1,2")
    parser.add_argument("--isa", default="auto", help="generic, avx2, avx512 or auto")
    parser.add_argument("--kinds", default="", help="only these, e.g. 'block_diagonal,glu_mlp'")
    parser.add_argument("--dtypes", default="", help="only these, e.g. 'bfloat16'")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", default=None, help="also write JSON to this file")
    arguments = parser.parse_args()
    if not _native.available:
        print(f"nothing to measure: {_native.reason}", file=sys.stderr)
        return 1
    counts = tuple(int(n) for n in arguments.threads.split(","))
    kinds = [kind for kind in arguments.kinds.split(",") if kind]
    dtypes = [dtype for dtype in arguments.dtypes.split(",") if dtype]
    rows = []
    print("| case | rows | dtype | threads | us | GFLOP/s | times as fast as | bar | load |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    spawn = multiprocessing.get_context("spawn")
    for case in cases(counts):
        if (kinds and case.kind not in kinds) or (dtypes and case.dtype not in dtypes):
            continue
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            rows.append(process.submit(measure, case, arguments.rounds, arguments.isa).result())
        print(row_text(rows[-1]), flush=True)
    if arguments.output:
        harness.write_json(
            arguments.output, {"machine": harness.describe_machine(), "results": rows}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
