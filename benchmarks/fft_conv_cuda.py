"""fft_conv on a GPU: `python -m benchmarks.fft_conv_cuda [--output FILE]`.

In one run and in turns: torch.fft, our kernels (with the filter's spectrum made beforehand, and
with the filter in each call), the transform of the filter alone, a copy of the same bytes, and
other packages' convolutions where installed (`peers.py`). Times are medians of CUDA events around
graph replays over inputs that no cache holds (`gpu_timing.py`). A result is first compared with
float64; one that is wrong gets no time.

The floor of a case is the time in which its activations can be read and written once: bytes over
the bandwidth of the copy measured in the same run, and over 4.3 TB/s, which a copy reaches on an
H200 and in which the goals below are stated.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import monarch_kernels as mk
from benchmarks import gpu_timing, harness
from benchmarks.peers import PEERS, NotHere, Problem
from monarch_kernels import backends, contract, reference

H200_COPY = 4.3e12  # bytes a second, read and written

# Issue 3: fractions of the floor at H200_COPY for float32 by the largest length they hold for, and
# how many times torch.fft's speed.
GOALS = {
    "plain": {"fraction": {256: 0.50, 1024: 0.45, 16384: 0.30}, "times_torch": 10.0},
    "gated": {"fraction": {256: 0.75, 1024: 0.65, 16384: 0.55}, "times_torch": 15.0},
}

BATCH, CHANNELS = 64, 768
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
# Rows of several passes over memory, with about as many samples: (L, B).
LONG = ((32768, 32), (131072, 8), (1 << 20, 1))
KINDS = ("plain", "gated", "plain backward", "gated backward")
# Tensors of the shape of u that each kind reads and writes: u and y; gates; and forward with
# backward, where dy is read and du and the gradients of the gates are written.
TENSORS = {"plain": 2, "gated": 4, "plain backward": 2 + 3, "gated backward": 4 + 7}
# Largest relative L2 error against float64.
BOUND = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 2e-2}


@dataclass(frozen=True)
class Case:
    """One comparison; `kind` is one of KINDS, `dtype` a name in torch."""

    kind: str
    length: int
    batch: int = BATCH
    channels: int = CHANNELS
    dtype: str = "float32"

    @property
    def id(self) -> str:
        kind = self.kind.replace(" ", "-")
        return f"{kind}-{self.dtype}-{self.batch}x{self.channels}x{self.length}"

    @property
    def gated(self) -> bool:
        return self.kind.startswith("gated")

    @property
    def backward(self) -> bool:
        return self.kind.endswith("backward")

    @property
    def samples(self) -> int:
        return self.batch * self.channels * self.length

    @property
    def floor_bytes(self) -> int:
        """Each activation read or written once.

        The filter is left out: at most 1/64 of u at 64 rows, but as much as u where there is one.
        """
        return TENSORS[self.kind] * self.samples * getattr(torch, self.dtype).itemsize

    def goal(self) -> float | None:
        """The fraction of the floor at H200_COPY that is asked for."""
        if self.backward or self.dtype != "float32" or self.length not in LENGTHS:
            return None
        fractions = GOALS[self.kind]["fraction"]
        return fractions[min(length for length in fractions if length >= self.length)]


def cases(dtypes: Sequence[str] = ("float32", "bfloat16")) -> Iterator[Case]:
    """Every case; forward before backward, so that a run that is cut short has the goals."""
    for kind in KINDS:
        for dtype in dtypes:
            for length in LENGTHS:
                yield Case(kind, length, dtype=dtype)
            for length, batch in LONG:
                yield Case(kind, length, batch, dtype=dtype)


Contender = Callable[[Problem], Any]


def make_problem(case: Case, device: torch.device, seed: int) -> Problem:
    """Inputs of a case: normal numbers, and a filter that decays to 2%."""
    random = torch.Generator(device).manual_seed(seed)
    shape, dtype = (case.batch, case.channels, case.length), getattr(torch, case.dtype)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random, device=device, dtype=dtype)

    decay = torch.exp(-4 * torch.arange(case.length, device=device) / case.length)
    k = normal(case.channels, case.length).float() * decay / case.length**0.5
    gates = (normal(*shape), normal(*shape)) if case.gated else (None, None)
    return Problem(normal(*shape), k, *gates)


def torch_fft(problem: Problem) -> Contender:
    """As code bases write it, with the filter's spectrum made beforehand."""
    length = problem.u.shape[-1]
    k_f = torch.fft.rfft(problem.k, n=2 * length)

    def call(p: Problem) -> Tensor:
        g = (p.u if p.pregate is None else p.u * p.pregate).float()
        y = torch.fft.irfft(torch.fft.rfft(g, n=2 * length) * k_f, n=2 * length)[..., :length]
        return (y if p.postgate is None else y * p.postgate.float()).to(p.u.dtype)

    return call


def native_spectrum(problem: Problem) -> Contender:
    precision = contract.precision_for(None, problem.u.dtype)
    options = {"length": problem.u.shape[-1], "backend": "native", "precision": precision}
    spectrum = mk.filter_spectrum(problem.k, **options)
    return lambda p: mk.fft_conv(p.u, spectrum, pregate=p.pregate, postgate=p.postgate)


def native_filter(problem: Problem) -> Contender:
    k = problem.k
    return lambda p: mk.fft_conv(p.u, k, pregate=p.pregate, postgate=p.postgate, backend="native")


def filter_alone(problem: Problem) -> Contender:
    k, length = problem.k, problem.u.shape[-1]
    return lambda p: mk.filter_spectrum(k, length=length, backend="native").data


def torch_fft_filter(problem: Problem) -> Contender:
    """For the backward: the gradient of the filter needs the filter in the graph."""
    k = problem.k
    return lambda p: reference.fft_conv(p.u, k, None, None, p.pregate, p.postgate)


FORWARD = {
    "torch.fft": torch_fft,
    "native": native_spectrum,
    "native, filter in each call": native_filter,
}
BACKWARD = {"torch.fft": torch_fft_filter, "native": native_filter}


def with_backward(prepare: Callable[[Problem], Contender]) -> Callable[[Problem], Contender]:
    """Forward and backward for u, the filter and the gates, with y's own shape as gradient."""

    def prepared(problem: Problem) -> Contender:
        problem.k.requires_grad_()
        call = prepare(problem)

        def run(p: Problem) -> tuple[Tensor, ...]:
            wanted = [t for t in (p.u, problem.k, p.pregate, p.postgate) if t is not None]
            for t in wanted:
                t.requires_grad_()
            y = call(p)
            return (y.detach(), *torch.autograd.grad(y, wanted, y.detach()))

        return run

    return prepared


def rows_of(problem: Problem) -> tuple[slice, slice]:
    """The rows that are compared with float64: spread over the batch and the channels."""
    batch, channels = problem.u.shape[:2]
    return slice(0, None, max(1, batch // 2)), slice(0, None, max(1, channels // 7))


def error_of(result: Any, problem: Problem, case: Case) -> float:
    """Relative L2 error against float64 of a forward result, on some rows; inf if not finite.

    Of a backward, y and the gradient of u are compared: the tests have the rest.
    """
    rows, channels = rows_of(problem)

    def part(t: Tensor | None) -> Tensor | None:
        return None if t is None else t[rows, channels].detach().double()

    k = problem.k[channels].detach().double()
    u = part(problem.u).requires_grad_(case.backward)
    y = reference.fft_conv(u, k, None, None, part(problem.pregate), part(problem.postgate))
    results = list(result[:2]) if case.backward else [result]
    exact = [y.detach()]
    if case.backward:
        exact += torch.autograd.grad(y, u, part(results[0]))
    worst = 0.0
    for found, right in zip(results, exact, strict=True):
        if not bool(torch.isfinite(found).all()):
            return float("inf")
        error = (part(found) - right).norm() / right.norm()
        worst = max(worst, float(error))
    return worst


def prepare_all(
    case: Case, problem: Problem, native: bool
) -> tuple[dict[str, Contender], dict[str, dict[str, Any]]]:
    """The contenders of a case whose results are right, and why each other one is not there."""
    chosen = BACKWARD if case.backward else FORWARD
    if not native:
        chosen = {name: f for name, f in chosen.items() if not name.startswith("native")}
    if case.backward:
        chosen = {name: with_backward(f) for name, f in chosen.items()}
    else:
        chosen = {**chosen, **PEERS}
    calls, rows = {}, {}
    for name, prepare in chosen.items():
        try:
            call = prepare(problem)
            error = error_of(call(problem), problem, case)
        except NotHere as reason:
            rows[name] = {"skipped": str(reason)}
            continue
        except Exception as failure:
            rows[name] = {"failed": gpu_timing.in_words(failure)}
            continue
        rows[name] = {"error": error}
        if error <= BOUND[getattr(torch, case.dtype)]:
            calls[name] = call
        else:
            rows[name]["failed"] = f"wrong result: relative L2 error {error:.1e}"
    return calls, rows


def measure(
    case: Case, device: torch.device, bandwidth: float, *, rounds: int = 9, native: bool = True
) -> dict[str, Any]:
    """A case's times, ready for JSON; `bandwidth` is the copy's, in bytes a second."""
    count = gpu_timing.input_sets(case.floor_bytes, device)
    problems = [make_problem(case, device, seed) for seed in range(count)]
    calls, rows = prepare_all(case, problems[0], native)
    if native and not case.backward:
        calls["filter alone"] = filter_alone(problems[0])

    def bound(call: Contender, problem: Problem) -> Callable[[], Any]:
        return lambda: call(problem)

    sequences = {name: [bound(call, p) for p in problems] for name, call in calls.items()}
    for name, timing in gpu_timing.time_in_turns(sequences, device, rounds=rounds).items():
        row = rows.setdefault(name, {})
        row.update(timing)
        if "failed" in timing or name == "filter alone":
            continue
        seconds = timing["median_s"]
        row["bytes_per_second"] = case.floor_bytes / seconds
        row["fraction_of_copy"] = case.floor_bytes / bandwidth / seconds
        row["fraction_of_h200_copy"] = case.floor_bytes / H200_COPY / seconds
    slowest = rows["torch.fft"].get("median_s")
    for row in rows.values():
        if slowest and "median_s" in row:
            row["times_torch"] = slowest / row["median_s"]
    wrong = [
        name
        for name, row in rows.items()
        if name.startswith("native") and row.get("failed") not in (None, gpu_timing.NO_MEMORY)
    ]
    return {
        **{"id": case.id, "kind": case.kind, "dtype": case.dtype},
        **{"B": case.batch, "H": case.channels, "L": case.length, "input_sets": count},
        **{"floor_bytes": case.floor_bytes, "goal": case.goal(), "contenders": rows},
        "wrong": wrong,
    }


HEADER = (
    "| case | L | B | contender | ms | GB/s | of copy | of 4.3 TB/s | x torch.fft | goal |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def row_texts(result: dict[str, Any]) -> list[str]:
    """Lines of the Markdown table: one for each contender that took part."""
    lines = []
    start = f"| {result['kind']} {result['dtype']} | {result['L']} | {result['B']} |"
    for name, row in result["contenders"].items():
        if "skipped" in row:
            continue
        if "median_s" not in row:
            lines.append(f"{start} {name} | {row['failed']} | | | | | |")
            continue
        shown = f"{name} (no graph)" if row["graph"] is False else name
        text = f"{start} {shown} | {1e3 * row['median_s']:.4f} |"
        if "bytes_per_second" in row:
            text += f" {row['bytes_per_second'] / 1e9:.0f} | {row['fraction_of_copy']:.0%} |"
            text += f" {row['fraction_of_h200_copy']:.0%} |"
        else:
            text += " | | |"
        text += f" {row['times_torch']:.1f} |" if "times_torch" in row else " |"
        if name != "native" or result["goal"] is None:
            lines.append(f"{text} |")
            continue
        times = GOALS[result["kind"]]["times_torch"]
        missed = "" if meets_goal(result) else " (missed)"
        lines.append(f"{text} {result['goal']:.0%}, {times:.0f}x{missed} |")
    return lines


def meets_goal(result: dict[str, Any]) -> bool:
    """Whether "native", which was measured, reaches the goal; True where there is none."""
    if result["goal"] is None:
        return True
    row, times = result["contenders"]["native"], GOALS[result["kind"]]["times_torch"]
    return row["fraction_of_h200_copy"] >= result["goal"] and row.get("times_torch", 0) >= times


def summary(record: dict[str, Any]) -> str:
    """A short Markdown table of what `run` measured of "native", one line for each length."""
    cells, lengths = {}, {}
    for result in record["results"]:
        lengths[result["L"]] = result["B"]
        row = result["contenders"].get("native", {})
        if "median_s" in row:
            cell = f"{1e3 * row['median_s']:.3f} {row['fraction_of_h200_copy']:.0%}"
            cell += f" {row['times_torch']:.1f}x" if "times_torch" in row else ""
            cell += "" if meets_goal(result) else " *"
        else:
            cell = "FAILED" if result["wrong"] else "-"
        cells[f"{result['kind']} {result['dtype']}", result["L"]] = cell
    columns = list(dict.fromkeys(column for column, _ in cells))
    lines = ["| L | B | " + " | ".join(columns) + " |", "| --- " * (2 + len(columns)) + "|"]
    for length, batch in sorted(lengths.items()):
        row = " | ".join(cells.get((column, length), "-") for column in columns)
        lines.append(f"| {length} | {batch} | {row} |")
    gpu, copy = record["gpu"] or {"name": "no GPU"}, record["copy_bytes_per_second"]
    return "\n".join(
        [
            f"{gpu['name']}, copy {copy / 1e9:.0f} GB/s. Each entry: ms, bytes floor at 4.3 TB/s, "
            "times torch.fft's speed; * a goal is missed.",
            "",
            *lines,
        ]
    )


def run(
    chosen: Sequence[Case],
    device: torch.device,
    *,
    rounds: int,
    budget: float,
    native: bool = True,
    output: str | None = None,
) -> dict[str, Any]:
    """Measure cases until `budget` seconds are over; print the table; return the record.

    The record is written to `output` after every case: a run that is ended loses nothing.
    """
    start = time.monotonic()
    bandwidth = gpu_timing.copy_bandwidth(device)
    print(f"copy: {bandwidth / 1e9:.0f} GB/s read and written\n\n{HEADER}", flush=True)
    results, left = [], []
    record = {
        "benchmark": "fft_conv_cuda",
        "machine": harness.describe_machine(),
        "gpu": gpu_timing.describe_gpu(device),
        "copy_bytes_per_second": bandwidth,
        "goals": GOALS,
        "seconds": 0.0,
        "not_measured": left,
        "results": results,
    }
    for case in chosen:
        if time.monotonic() - start > budget:
            left.append(case.id)
            continue
        try:
            result = measure(case, device, bandwidth, rounds=rounds, native=native)
            results.append(result)
            print("\n".join(row_texts(result)), flush=True)
        except torch.OutOfMemoryError:
            left.append(f"{case.id}: the inputs do not fit into memory")
        record["seconds"] = time.monotonic() - start
        if output is not None:
            harness.write_json(output, record)
        gpu_timing.free(device)
    if left:
        print(f"\nnot measured: {', '.join(left)}")
        if output is not None:
            harness.write_json(output, record)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 1 if a result of ours is wrong, or there is no GPU for the kernels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default=",".join(KINDS), help="with commas; default: all")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--lengths", default="", help="only these, e.g. 256,4096")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget", type=float, default=150.0, help="seconds, about")
    parser.add_argument("--output", default=None, help="also write JSON to this file")
    given = parser.parse_args(arguments)
    reason = backends.cuda_unsupported()
    if reason:
        print(f"nothing to measure: {reason}", file=sys.stderr)
        return 1
    kinds, lengths = given.kinds.split(","), [int(n) for n in given.lengths.split(",") if n]
    chosen = [
        case
        for case in cases(given.dtypes.split(","))
        if case.kind in kinds and (not lengths or case.length in lengths)
    ]
    device = torch.device("cuda", torch.cuda.current_device())
    record = run(chosen, device, rounds=given.rounds, budget=given.budget, output=given.output)
    print(f"\n{summary(record)}")
    wrong = [result["id"] for result in record["results"] if result["wrong"]]
    if wrong:
        print(f"WRONG RESULTS of our kernels: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
