"""mixer_conv on a GPU: `python -m benchmarks.mixer_conv_cuda [--output FILE]`.

In turns, as in `fft_conv_cuda`: the composed torch expression, and ours, forward with the filters'
spectra made beforehand on both sides, and forward with backward for every argument. A result is
first compared with float64 on some channels; one that is wrong gets no time. The floor is the time
in which q and u are read and z is written once (10 bytes an element of z in bfloat16), at 4.3 TB/s,
which a copy reaches on an H200.
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
from benchmarks.fft_conv_cuda import BOUND, H200_COPY
from monarch_kernels import backends, reference

# Issue 6, section 4: fractions of the floor for bfloat16 by the largest length they hold for, and
# what a backward may take of a forward's time.
GOALS = {128: 0.75, 256: 0.60, 1024: 0.50, 8192: 0.45, 32768: 0.35}
BACKWARD_GOAL = 2.2
BATCH, CHANNELS, TAPS = 64, 768, 3
LENGTHS = ((128, 64), (512, 64), (1024, 64), (2048, 64), (8192, 64), (16384, 64), (32768, 32))
FILTERS = (("k", "k_rev", "skip"), ("k2", "k2_rev", "skip2"))
TENSORS = 5  # q is three of the shape of z, u and z


@dataclass(frozen=True)
class Case:
    """One comparison; `columns`: u is (B, L, H), as the model has it."""

    length: int
    batch: int = BATCH
    channels: int = CHANNELS
    dtype: str = "bfloat16"
    columns: bool = True
    backward: bool = False

    @property
    def id(self) -> str:
        parts = ["backward" if self.backward else "forward", self.dtype]
        parts.append("columns" if self.columns else "rows")
        return "-".join([*parts, f"{self.batch}x{self.channels}x{self.length}"])

    @property
    def floor_bytes(self) -> int:
        samples = self.batch * self.channels * self.length
        return TENSORS * samples * getattr(torch, self.dtype).itemsize

    def goal(self) -> float | None:
        if self.backward or self.dtype != "bfloat16":
            return None
        return next((f for length, f in GOALS.items() if length >= self.length), None)


def cases() -> Iterator[Case]:
    for backward in (False, True):
        for length, batch in LENGTHS:
            yield Case(length, batch, backward=backward)
    for length, batch in LENGTHS:
        yield Case(length, batch, columns=False)
        yield Case(length, batch, dtype="float32")


def make_inputs(case: Case, device: torch.device, seed: int) -> dict[str, Tensor]:
    random = torch.Generator(device).manual_seed(seed)
    b, h, n = case.batch, case.channels, case.length

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device=device)

    decay = torch.exp(-4 * torch.arange(n, device=device) / n) / n**0.5
    u = normal(b, n, h).transpose(1, 2) if case.columns else normal(b, h, n)
    inputs = {"q": normal(b, 3 * h, n), "s": normal(3 * h, TAPS), "s_bias": normal(3 * h), "u": u}
    for k, k_rev, skip in FILTERS:
        inputs |= {k: normal(h, n) * decay, k_rev: normal(h, n) * decay, skip: normal(h)}
    dtype = getattr(torch, case.dtype)
    return inputs | {name: inputs[name].to(dtype) for name in ("q", "u")}


def call(function: Callable[..., Tensor], given: dict[str, Tensor]) -> Tensor:
    given = dict(given)
    return function(given.pop("q"), given.pop("k"), **given)


Contender = Callable[[dict[str, Tensor]], Any]


def contenders(case: Case, first: dict[str, Tensor]) -> dict[str, Contender]:
    """By name; spectra are those of the first inputs' filters."""
    plain = {
        "torch": reference.mixer_conv,
        "native": lambda q, k, **options: mk.mixer_conv(q, k, backend="native", **options),
    }
    if case.backward:
        return {name: with_backward(function) for name, function in plain.items()}
    makers = {
        "torch": lambda *f: reference.filter_spectrum(*f, case.length, False),
        "native": lambda k, k_rev, skip: mk.filter_spectrum(
            k, k_rev, skip=skip, length=case.length, backend="native"
        ),
    }
    others = {name: first[name] for name in ("s", "s_bias")}

    def prepared(name: str) -> Contender:
        spectra = {names[0]: makers[name](*(first[n] for n in names)) for names in FILTERS}
        return lambda given: call(
            plain[name], {"q": given["q"], "u": given["u"], **others, **spectra}
        )

    return {name: prepared(name) for name in plain}


def with_backward(function: Callable[..., Tensor]) -> Contender:
    """Forward and backward for every argument, with z's own values as the gradient."""

    def run(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        leaves = {name: t.detach().requires_grad_() for name, t in given.items()}
        z = call(function, leaves)
        return (z.detach(), *torch.autograd.grad(z, list(leaves.values()), z.detach()))

    return run


def error_of(result: Any, given: dict[str, Tensor], case: Case) -> float:
    """Largest relative L2 error of z, or of every result of a backward, on some channels."""
    h = case.channels
    chosen = torch.arange(0, h, max(1, h // 5), device=given["q"].device)
    thrice = torch.cat([chosen, chosen + h, chosen + 2 * h])

    def part(name: str, t: Tensor) -> Tensor:
        rows = thrice if name in ("q", "s", "s_bias") else chosen
        return t.detach().index_select(1 if t.dim() == 3 else 0, rows).double()

    exact = {name: part(name, t).requires_grad_(case.backward) for name, t in given.items()}
    z = call(reference.mixer_conv, exact)
    results, right = [part("z", result[0] if case.backward else result)], [z.detach()]
    if case.backward:
        right += torch.autograd.grad(z, list(exact.values()), results[0])
        results += [part(name, t) for name, t in zip(given, result[1:], strict=True)]
    worst = 0.0
    for found, expected in zip(results, right, strict=True):
        if not bool(torch.isfinite(found).all()):
            return float("inf")
        worst = max(worst, float((found - expected).norm() / expected.norm()))
    return worst


def measure(case: Case, device: torch.device, bandwidth: float, rounds: int = 9) -> dict[str, Any]:
    """A case's times, ready for JSON; `bandwidth` is the copy's, in bytes a second."""
    count = gpu_timing.input_sets(case.floor_bytes, device)
    inputs = [make_inputs(case, device, seed) for seed in range(count)]
    rows, sequences = {}, {}
    for name, run in contenders(case, inputs[0]).items():
        try:
            error = error_of(run(inputs[0]), inputs[0], case)
        except Exception as failure:
            rows[name] = {"failed": gpu_timing.in_words(failure)}
            continue
        rows[name] = {"error": error}
        if error <= BOUND[getattr(torch, case.dtype)]:
            sequences[name] = [lambda run=run, given=given: run(given) for given in inputs]
        else:
            rows[name]["failed"] = f"wrong result: relative L2 error {error:.1e}"
    for name, timing in gpu_timing.time_in_turns(sequences, device, rounds=rounds).items():
        rows[name].update(timing)
        if "failed" not in timing:
            seconds = timing["median_s"]
            rows[name]["fraction_of_copy"] = case.floor_bytes / bandwidth / seconds
            rows[name]["fraction_of_h200_copy"] = case.floor_bytes / H200_COPY / seconds
    failed = rows["native"].get("failed")
    return {
        **{"id": case.id, "L": case.length, "B": case.batch, "H": case.channels},
        **{"dtype": case.dtype, "columns": case.columns, "backward": case.backward},
        **{"floor_bytes": case.floor_bytes, "goal": case.goal(), "contenders": rows},
        "wrong": failed is not None and failed != gpu_timing.NO_MEMORY,
    }


HEADER = "| case | ms | of 4.3 TB/s | goal | x torch |\n| --- | ---: | ---: | ---: | ---: |"


def row_text(result: dict[str, Any], forward_s: float | None = None) -> str:
    """A line of the Markdown table; of a backward with what it takes beyond `forward_s`."""
    row, torch_row = result["contenders"]["native"], result["contenders"]["torch"]
    if "median_s" not in row:
        return f"| {result['id']} | {row['failed']} | | | |"
    goal = "" if result["goal"] is None else f"{result['goal']:.0%}"
    if result["backward"] and forward_s:
        times = row["median_s"] / forward_s - 1
        goal = f"{times:.2f} of {BACKWARD_GOAL} forward"
    times = torch_row["median_s"] / row["median_s"] if "median_s" in torch_row else float("nan")
    fraction = f"{row['fraction_of_h200_copy']:.0%}"
    return f"| {result['id']} | {1e3 * row['median_s']:.4f} | {fraction} | {goal} | {times:.1f} |"


def run(
    chosen: Sequence[Case], device: torch.device, rounds: int, budget: float, output: str | None
) -> dict[str, Any]:
    """Measure cases until `budget` seconds are over; print the table; return the record."""
    start = time.monotonic()
    bandwidth = gpu_timing.copy_bandwidth(device)
    print(f"copy: {bandwidth / 1e9:.0f} GB/s read and written\n\n{HEADER}", flush=True)
    record = {
        "benchmark": "mixer_conv_cuda",
        "machine": harness.describe_machine(),
        "gpu": gpu_timing.describe_gpu(device),
        "copy_bytes_per_second": bandwidth,
        "goals": {str(length): fraction for length, fraction in GOALS.items()},
        "not_measured": [],
        "results": [],
    }
    forward = {}
    for case in chosen:
        if time.monotonic() - start > budget:
            record["not_measured"].append(case.id)
            continue
        try:
            result = measure(case, device, bandwidth, rounds)
        except torch.OutOfMemoryError:
            record["not_measured"].append(f"{case.id}: the inputs do not fit into memory")
            continue
        record["results"].append(result)
        key = case.length, case.batch, case.dtype, case.columns
        if not case.backward:
            forward[key] = result["contenders"]["native"].get("median_s")
        print(row_text(result, forward.get(key)), flush=True)
        if output is not None:
            harness.write_json(output, record)
        gpu_timing.free(device)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 1 if a result of ours is wrong, or there is no GPU for the kernels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="", help="only these, e.g. 128,8192")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds, about")
    parser.add_argument("--output", default=None, help="also write JSON to this file")
    given = parser.parse_args(arguments)
    reason = backends.cuda_unsupported()
    if reason:
        print(f"nothing to measure: {reason}", file=sys.stderr)
        return 1
    lengths = [int(n) for n in given.lengths.split(",") if n]
    chosen = [case for case in cases() if not lengths or case.length in lengths]
    device = torch.device("cuda", torch.cuda.current_device())
    record = run(chosen, device, given.rounds, given.budget, given.output)
    wrong = [result["id"] for result in record["results"] if result["wrong"]]
    if wrong:
        print(f"WRONG RESULTS of our kernels: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
