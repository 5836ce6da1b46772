"""A few calls of fft_conv for a profiler: `python -m benchmarks.profile_case --help`.

nsys and ncu are told by cudaProfilerStart and -Stop which part to look at: what comes after the
first calls.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence

import torch

import monarch_kernels as mk
from benchmarks.fft_conv_cuda import Case, make_problem


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A few calls of fft_conv for a profiler.")
    parser.add_argument("--kind", choices=("plain", "gated"), default="gated")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--backward", action="store_true", help="for all inputs")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--trace", default=None, help="write a Chrome trace to this file")
    given = parser.parse_args(arguments)
    case = Case(given.kind, given.length, given.batch, given.channels, given.dtype)
    problem = make_problem(case, torch.device(given.device), seed=0)
    gates = {"pregate": problem.pregate, "postgate": problem.postgate}
    leaves = [problem.u, problem.k, *(gate for gate in gates.values() if gate is not None)]
    for leaf in leaves:
        leaf.requires_grad_(given.backward)

    def work() -> None:
        for _ in range(given.repeats):
            y = mk.fft_conv(problem.u, problem.k, backend="native", **gates)
            if given.backward:
                torch.autograd.grad(y, leaves, y.detach())
        if given.device != "cpu":
            torch.cuda.synchronize()

    work()  # the first calls load kernels and fill torch's cache of memory
    if given.trace is None:
        on_gpu = given.device != "cpu"
        with torch.cuda.profiler.profile() if on_gpu else contextlib.nullcontext():
            work()
        return
    with torch.profiler.profile() as profile:
        work()
    profile.export_chrome_trace(given.trace)
    print(f"{given.trace}: open it at chrome://tracing or https://ui.perfetto.dev")


if __name__ == "__main__":
    main()
