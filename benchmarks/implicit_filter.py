"""implicit_filter against the networks as M2-BERT's modules compute them, on the CPU.

`python -m benchmarks.implicit_filter`. Four filters of a layer (forward and reverse, of two
convolutions) at M2-BERT's width, with its initialisation. Both sides are timed in turns in one
process, with the same threads and weights; each case has a process of its own, and one whose result
is wrong is not timed. On a busy machine `--clock cpu` compares the seconds that the threads of each
side used instead of those that passed.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

import monarch_kernels as mk
from benchmarks import harness
from monarch_kernels import _native

CHANNELS, ORDER, FEATURES, HIDDEN, FILTERS = 768, 128, 5, 2, 4
LENGTHS = (2048, 8192, 32768)
BAR, BAR_LENGTH = 5.0, 32768


@dataclass(frozen=True)
class Case:
    """One comparison: `kind` is forward or backward (which is both directions)."""

    kind: str
    length: int
    threads: int

    @property
    def id(self) -> str:
        return f"{self.kind}-{self.length}-{self.threads}thread"

    @property
    def flops(self) -> float:
        """Of the forward's products."""
        weights = FEATURES * ORDER + HIDDEN * ORDER**2 + ORDER * CHANNELS
        return 2.0 * FILTERS * self.length * weights

    def bar(self, isa: str) -> float | None:
        """The ratio asked for, where one is."""
        asked = self.kind == "forward" and self.length == BAR_LENGTH and self.threads == 2
        return BAR if asked and isa == "avx512" else None


def cases(threads: tuple[int, ...] = (1, 2)) -> Iterator[Case]:
    """Every case, for each number of threads; the backward at a length whose graph fits."""
    for count in threads:
        yield from (Case("forward", length, count) for length in LENGTHS)
        yield from (Case("backward", length, count) for length in LENGTHS[:2])


def inputs(case: Case, seed: int = 0) -> dict[str, Tensor]:
    """The arguments of implicit_filter, and "dk"."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return 0.02 * torch.randn(*size, generator=random)

    f, length, o, n = FILTERS, case.length, ORDER, HIDDEN
    t = torch.linspace(0, 1, length)
    angle = 6.2831853 * t[:, None] * torch.linspace(1e-4, 1, (FEATURES - 1) // 2)
    z = torch.cat([t[:, None], angle.cos(), -angle.sin()], 1)
    return {
        "z": z.expand(f, -1, -1),
        "w_in": normal(f, o, FEATURES),
        "b_in": torch.zeros(f, o),
        "w_hidden": normal(f, n, o, o),
        "b_hidden": torch.zeros(f, n, o),
        "w_out": normal(f, CHANNELS, o),
        "freq": torch.full((f, o), 10.0),
        "deltas": torch.linspace(-3.07, -15.35, CHANNELS),
        "t": t,
        "dk": normal(f, CHANNELS, length),
    }


def composed(z, w_in, b_in, w_hidden, b_hidden, w_out, freq, deltas, t) -> list[Tensor]:
    """As M2-BERT's modules do it: the decay once for two filters, a transposed copy of each."""
    filters = []
    for f in range(FILTERS):
        if f % 2 == 0:
            decay = torch.exp(-deltas.abs() * t.unsqueeze(-1))
        a = torch.sin(freq[f] * linear(z[f], w_in[f], b_in[f]))
        for i in range(HIDDEN):
            a = torch.sin(freq[f] * linear(a, w_hidden[f, i], b_hidden[f, i]))
        filters.append((linear(a, w_out[f]) * decay).T.contiguous())
    return filters


Contender = Callable[[], tuple[Tensor, ...]]


def contenders(case: Case) -> dict[str, Contender]:
    """The two sides of a case as functions without arguments: "torch" and "native"."""
    given = inputs(case)
    dk = given.pop("dk")
    if case.kind == "forward":
        return {
            "torch": lambda: tuple(composed(**given)),
            "native": lambda: mk.implicit_filter(**given).unbind(),
        }
    leaves = [t.requires_grad_() for n, t in given.items() if n not in ("z", "deltas", "t")]

    def run(k: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(k, leaves, dk.unbind())

    return {
        "torch": lambda: run(tuple(composed(**given))),
        "native": lambda: run(mk.implicit_filter(**given).unbind()),
    }


def check(case: Case, sides: dict[str, Contender]) -> float:
    """Relative L2 difference of the two sides; raises RuntimeError if it is no rounding error."""
    bound = 1e-6 if case.kind == "forward" else 2e-5
    worst = 0.0
    for a, b in zip(*(side() for side in sides.values()), strict=True):
        error = ((a.double() - b.double()).norm() / a.double().norm()).item()
        if not error <= bound:
            raise RuntimeError(f"{case.id}: differ by {error:.1e} (at most {bound:.0e})")
        worst = max(worst, error)
    return worst


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(case: Case, rounds: int, isa: str = "auto", clock: str = "wall") -> dict[str, object]:
    """Time a case whose result is right; a row of the table."""
    _native.host.set_isa(isa)
    with harness.threads(case.threads), torch.set_grad_enabled(case.kind == "backward"):
        sides = contenders(case)
        error = check(case, sides)
        timings = harness.time_interleaved(
            sides, rounds=rounds, min_round_seconds=1.0, clock=CLOCKS[clock]
        )
    isa = _native.host.isa()
    return {
        "id": case.id,
        "kind": case.kind,
        "L": case.length,
        "threads": case.threads,
        "isa": isa,
        "clock": clock,
        "milliseconds": {name: 1e3 * t.median for name, t in timings.items()},
        "gflops": case.flops / timings["native"].median / 1e9 if case.kind == "forward" else None,
        "ratio": harness.compare(timings, "native", "torch").median_round_ratio,
        "bar": case.bar(isa),
        "difference": error,
        "load": os.getloadavg()[0],
        "timings": {name: t.as_dict() for name, t in timings.items()},
    }


def row_text(row: dict) -> str:
    """A line of the Markdown table."""
    bar = "" if row["bar"] is None else f"{row['bar']:.0f}"
    missed = " (missed)" if row["bar"] and row["ratio"] < row["bar"] else ""
    rate = "" if row["gflops"] is None else f"{row['gflops']:.0f}"
    times = row["milliseconds"]
    return (
        f"| {row['kind']} | {row['L']} | {row['threads']} | {row['isa']} | {times['torch']:.1f} "
        f"| {times['native']:.1f} | {rate} | {row['ratio']:.1f}{missed} | {bar} "
        f"| {row['difference']:.1e} | {row['load']:.1f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="numbers of threads, e.g. 1,2")
    parser.add_argument("--isa", default="auto", help="generic, avx2, avx512 or auto")
    parser.add_argument("--kinds", default="", help="only these, e.g. 'forward,backward'")
    parser.add_argument("--lengths", default="", help="only these, e.g. '32768'")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--output", default=None, help="also write JSON to this file")
    arguments = parser.parse_args()
    if not _native.available:
        print(f"nothing to measure: {_native.reason}", file=sys.stderr)
        return 1
    counts = tuple(int(n) for n in arguments.threads.split(","))
    kinds = [kind for kind in arguments.kinds.split(",") if kind]
    lengths = [int(n) for n in arguments.lengths.split(",") if n]
    rows = []
    print(
        "| case | L | threads | ISA | torch ms | native ms | GFLOP/s | ratio | bar | diff | load |"
    )
    print("| --- " * 11 + "|", flush=True)
    spawn = multiprocessing.get_context("spawn")
    for case in cases(counts):
        if (kinds and case.kind not in kinds) or (lengths and case.length not in lengths):
            continue
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            options = arguments.rounds, arguments.isa, arguments.clock
            rows.append(process.submit(measure, case, *options).result())
        print(row_text(rows[-1]), flush=True)
    if arguments.output:
        harness.write_json(
            arguments.output, {"machine": harness.describe_machine(), "results": rows}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
