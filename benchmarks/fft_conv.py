"""fft_conv against the same convolution by torch.fft on the CPU: `python -m benchmarks.fft_conv`.

On a GPU: `fft_conv_cuda.py`.

Both are timed in turns in one process, with the same threads, inputs and filter, and with the
filter's spectrum made beforehand (forward) or from the filter in each call (forward and backward).
Each case has a process of its own: how fast torch is depends on the memory that a process has
freed before. A case whose result is wrong is not timed.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

import monarch_kernels as mk
from benchmarks import harness
from monarch_kernels import _native, reference

# (L, B, H) of 16.8 million samples: every float32 tensor is larger than 32 MiB, and malloc takes
# fresh memory from the system for each.
LARGE = ((128, 176, 768), (1024, 64, 256), (8192, 16, 128), (32768, 8, 64))
# 6.3 million samples (24 MiB): malloc uses memory again, in part and not in every round.
MEDIUM = ((128, 64, 768), (1024, 32, 192), (8192, 16, 48), (32768, 8, 24))
# 2^20 samples (4 MiB): everything of both sides fits in a third-level cache of 32 MiB.
CACHED = ((128, 128, 64), (1024, 128, 8), (8192, 64, 2), (32768, 32, 1))
# 2^17 samples (512 KiB): our side fits in a second-level cache of 1 MiB, too. No bar: shown because
# the ratio is smaller here, where torch's temporaries cost little.
SMALL = ((128, 16, 64), (1024, 16, 8), (8192, 8, 2), (32768, 4, 1))

# The bars of the kernels on a machine with AVX-512 (AVX2 forced: 6 everywhere).
BARS = {"plain": 12.0, "gated": 12.0, "gated bf16": 15.0, "cached": 4.0, "backward": 5.0}


@dataclass(frozen=True)
class Case:
    """One comparison: `kind` is plain, gated, gated bf16, backward, cached, or small."""

    kind: str
    length: int
    batch: int
    channels: int
    threads: int

    @property
    def id(self) -> str:
        shape = f"{self.batch}x{self.channels}x{self.length}"
        return f"{self.kind.replace(' ', '-')}-{shape}-{self.threads}thread"

    @property
    def samples(self) -> int:
        return self.batch * self.channels * self.length

    def bar(self, isa: str) -> float | None:
        """The ratio asked for, where one is."""
        if isa == "avx512":
            short = self.length == 128 and self.kind in ("plain", "gated")
            return 10.0 if short else BARS.get(self.kind)
        return 6.0 if isa == "avx2" and self.kind in ("plain", "gated", "gated bf16") else None


def cases(threads: tuple[int, ...] = (1, 2)) -> Iterator[Case]:
    """Every case, for each number of threads."""
    for count in threads:
        for kind in ("plain", "gated", "gated bf16", "backward"):
            yield from (Case(kind, *shape, count) for shape in LARGE + MEDIUM)
        yield from (Case("cached", *shape, count) for shape in CACHED)
        yield from (Case("small", *shape, count) for shape in SMALL)


Contender = Callable[[], Tensor | tuple[Tensor, ...]]


def contenders(case: Case, seed: int = 0) -> dict[str, Contender]:
    """The two sides of a case as functions without arguments: "torch" and "native"."""
    random = torch.Generator().manual_seed(seed)
    shape = (case.batch, case.channels, case.length)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random)

    decay = torch.exp(-4 * torch.arange(case.length) / case.length)
    k, u = normal(case.channels, case.length) * decay, normal(*shape)
    if case.kind == "backward":
        return _backward(u, k, normal(*shape))
    if not case.kind.startswith("gated"):
        spectrum = mk.filter_spectrum(k, length=case.length, backend="native")
        k_f = reference.filter_spectrum(k, None, None, case.length, False)
        return {
            "torch": lambda: reference.fft_conv_spectrum(u, k_f, None, None, False),
            "native": lambda: mk.fft_conv(u, spectrum),
        }
    skip, pregate, postgate = normal(case.channels), normal(*shape), normal(*shape)
    if case.kind.endswith("bf16"):
        u, pregate, postgate = (t.bfloat16() for t in (u, pregate, postgate))
    spectrum = mk.filter_spectrum(k, skip=skip, length=case.length, backend="native")
    k_f = reference.filter_spectrum(k, None, None, case.length, False)
    return {
        "torch": lambda: _gated(u, k_f, skip, pregate, postgate),
        "native": lambda: mk.fft_conv(u, spectrum, pregate=pregate, postgate=postgate),
    }


def _gated(u: Tensor, k_f: Tensor, skip: Tensor, pregate: Tensor, postgate: Tensor) -> Tensor:
    """As code bases write it: products in the input's dtype, transforms in float32."""
    length = u.shape[-1]
    g = (u * pregate).float()
    y = torch.fft.irfft(torch.fft.rfft(g, n=2 * length) * k_f, n=2 * length)[..., :length]
    return ((y + skip.unsqueeze(-1) * g) * postgate.float()).to(u.dtype)


def _backward(u: Tensor, k: Tensor, dy: Tensor) -> dict[str, Contender]:
    u, k = u.requires_grad_(), k.requires_grad_()

    def run(conv: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(conv(u, k), (u, k), dy)

    return {"torch": lambda: run(reference.fft_conv), "native": lambda: run(mk.fft_conv)}


def check(sides: dict[str, Contender]) -> float:
    """Relative L2 difference of the two results; raises RuntimeError if it is no rounding error."""
    results = [r if isinstance(r, tuple) else (r,) for r in (f() for f in sides.values())]
    worst = 0.0
    for a, b in zip(*results, strict=True):
        # The 16-bit baseline rounds the gated input, the kernel does not: two roundings of 2^-9.
        bound = 1e-2 if a.dtype == torch.bfloat16 else 1e-5
        error = ((a.double() - b.double()).norm() / a.double().norm()).item()
        if not error <= bound:
            raise RuntimeError(f"native and torch differ by {error:.1e} (at most {bound:.0e})")
        worst = max(worst, error)
    return worst


def measure(case: Case, rounds: int, isa: str = "auto") -> dict[str, object]:
    """Time a case whose result is right; a row of the table."""
    _native.host.set_isa(isa)
    with harness.threads(case.threads):
        sides = contenders(case)
        error = check(sides)
        quick = 0.02 if case.kind in ("cached", "small") else 0.0
        timings = harness.time_interleaved(sides, rounds=rounds, min_round_seconds=quick)
    ratio = harness.compare(timings, "native", "torch")
    nanoseconds = 1e9 / case.samples
    isa = _native.host.isa()
    bar = case.bar(isa)
    return {
        "id": case.id,
        "kind": case.kind,
        "isa": isa,
        "threads": case.threads,
        "B": case.batch,
        "H": case.channels,
        "L": case.length,
        "torch_ns_per_sample": timings["torch"].median * nanoseconds,
        "native_ns_per_sample": timings["native"].median * nanoseconds,
        "ratio": ratio.ratio_of_medians,
        "bar": bar,
        "difference": error,
        "timings": {name: t.as_dict() for name, t in timings.items()},
    }


def row_text(row: dict) -> str:
    """A line of the Markdown table."""
    bar = "" if row["bar"] is None else f"{row['bar']:.0f}"
    missed = " (missed)" if row["bar"] and row["ratio"] < row["bar"] else ""
    return (
        f"| {row['kind']} | {row['L']} | {row['B']} x {row['H']} | {row['threads']} | {row['isa']} "
        f"| {row['torch_ns_per_sample']:.2f} | {row['native_ns_per_sample']:.2f} "
        f"| {row['ratio']:.1f}{missed} | {bar} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="numbers of threads, e.g. 1,2")
    parser.add_argument("--isa", default="auto", help="generic, avx2, avx512 or auto")
    parser.add_argument("--kinds", default="", help="only these, e.g. 'plain,gated bf16'")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", default=None, help="also write JSON to this file")
    arguments = parser.parse_args()
    if not _native.available:
        print(f"nothing to measure: {_native.reason}", file=sys.stderr)
        return 1
    counts = tuple(int(n) for n in arguments.threads.split(","))
    kinds = [kind for kind in arguments.kinds.split(",") if kind]
    rows = []
    print("| case | L | B x H | threads | ISA | torch ns | native ns | ratio | bar |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    spawn = multiprocessing.get_context("spawn")
    for case in cases(counts):
        if not kinds or case.kind in kinds:
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                work = process.submit(measure, case, arguments.rounds, arguments.isa)
                rows.append(work.result())
            print(row_text(rows[-1]), flush=True)
    if arguments.output:
        harness.write_json(
            arguments.output, {"machine": harness.describe_machine(), "results": rows}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
