"""mixer_conv against the same expression composed of torch's operators, on the CPU.

`python -m benchmarks.mixer_conv`. Both sides are timed in turns in one process, with the same
threads and inputs, and with the spectra of the two filters made beforehand (forward) or in each
call (forward and backward). u lies in memory as the model has it, (B, L, H). Each case has a
process of its own; one whose result is wrong is not timed. `--memory` prints the peak memory of the
operator instead.
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
from torch.nn.functional import conv1d

import monarch_kernels as mk
from benchmarks import harness
from monarch_kernels import _native, reference

TAPS = 3
# (L, B, H): M2-BERT's width; 12.6 to 25.2 million samples of z.
SHAPES = ((2048, 8, 768), (8192, 2, 768), (32768, 1, 768))
# A quarter of that: torch keeps ten tensors of the size of q for its backward.
BACKWARD_SHAPES = ((2048, 2, 768), (8192, 1, 384), (32768, 1, 192))
BARS = {"forward": 12.0, "forward bf16": 14.0, "backward": 6.0}
MEMORY_BAR = 32 << 20  # of the forward at B = 1, H = 768, L = 32768, beside inputs and result


@dataclass(frozen=True)
class Case:
    """One comparison: `kind` is forward, forward bf16, or backward (which is both directions)."""

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
        return BARS[self.kind] if isa == "avx512" and self.threads == 2 else None


def cases(threads: tuple[int, ...] = (2,)) -> Iterator[Case]:
    """Every case, for each number of threads."""
    for count in threads:
        for kind in ("forward", "forward bf16", "backward"):
            shapes = BACKWARD_SHAPES if kind == "backward" else SHAPES
            yield from (Case(kind, *shape, count) for shape in shapes)


def inputs(case: Case, seed: int = 0) -> dict[str, Tensor]:
    """The arguments of mixer_conv, and "dz"."""
    random = torch.Generator().manual_seed(seed)
    b, h, n = case.batch, case.channels, case.length

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random)

    decay = torch.exp(-4 * torch.arange(n) / n)
    dtype = torch.bfloat16 if case.kind.endswith("bf16") else torch.float32
    return {
        "q": normal(b, 3 * h, n).to(dtype),
        "u": normal(b, n, h).to(dtype).transpose(1, 2),
        "dz": normal(b, h, n).to(dtype),
        "s": normal(3 * h, TAPS),
        "s_bias": normal(3 * h),
        **{name: normal(h, n) * decay for name in ("k", "k_rev", "k2", "k2_rev")},
        **{name: normal(h) for name in ("skip", "skip2")},
    }


def composed(
    q: Tensor,
    u: Tensor,
    s: Tensor,
    s_bias: Tensor,
    k_f: Tensor,
    skip: Tensor,
    k2_f: Tensor,
    skip2: Tensor,
) -> Tensor:
    """As code bases write it: products in the input's dtype, transforms in float32."""
    length = q.shape[-1]
    weight, bias = s.to(q.dtype).unsqueeze(1), s_bias.to(q.dtype)
    c = conv1d(q, weight, bias, padding=TAPS - 1, groups=q.shape[1])[..., :length]
    x1, x2, v = c.chunk(3, dim=1)
    y = _convolve(x1 * v, k_f, skip) * x2
    return y + _convolve(u.contiguous(), k2_f, skip2)


def _convolve(g: Tensor, k_f: Tensor, skip: Tensor) -> Tensor:
    length, x = g.shape[-1], g.float()
    y = torch.fft.irfft(torch.fft.rfft(x, n=2 * length) * k_f, n=2 * length)[..., :length]
    return (y + skip.unsqueeze(-1) * x).to(g.dtype)


Contender = Callable[[], Tensor | tuple[Tensor, ...]]


def contenders(case: Case) -> dict[str, Contender]:
    """The two sides of a case as functions without arguments: "torch" and "native"."""
    given = inputs(case)
    if case.kind == "backward":
        return _backward(given)
    n = case.length
    names = (("k", "k_rev", "skip"), ("k2", "k2_rev", "skip2"))
    native, spectra = [], []
    for k, k_rev, skip in names:
        native.append(mk.filter_spectrum(given[k], given[k_rev], skip=given[skip], length=n))
        spectra.append(reference.filter_spectrum(given[k], given[k_rev], None, n, False))
    activations = {name: given[name] for name in ("q", "u", "s", "s_bias")}
    rest = {"k_f": spectra[0], "skip": given["skip"]}
    rest |= {"k2_f": spectra[1], "skip2": given["skip2"]}
    return {
        "torch": lambda: composed(**activations, **rest),
        "native": lambda: mk.mixer_conv(k=native[0], k2=native[1], **activations),
    }


def _backward(given: dict[str, Tensor]) -> dict[str, Contender]:
    dz, n = given.pop("dz"), given["q"].shape[-1]
    leaves = {name: t.requires_grad_() for name, t in given.items()}

    def run(z: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(z, list(leaves.values()), dz)

    def by_torch(q, u, s, s_bias, k, k_rev, skip, k2, k2_rev, skip2):
        k_f, k2_f = (
            reference.filter_spectrum(*f, None, n, False) for f in ((k, k_rev), (k2, k2_rev))
        )
        return composed(q, u, s, s_bias, k_f, skip, k2_f, skip2)

    return {
        "torch": lambda: run(by_torch(**leaves)),
        "native": lambda: run(mk.mixer_conv(**leaves)),
    }


def check(sides: dict[str, Contender]) -> float:
    """Relative L2 difference of the two results; raises RuntimeError if it is no rounding error."""
    results = [r if isinstance(r, tuple) else (r,) for r in (f() for f in sides.values())]
    worst = 0.0
    for a, b in zip(*results, strict=True):
        # The 16-bit baseline rounds what lies between its operators: five roundings of 2^-9.
        bound = 2e-2 if a.dtype == torch.bfloat16 else 2e-5
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
        timings = harness.time_interleaved(sides, rounds=rounds)
    ratio = harness.compare(timings, "native", "torch")
    nanoseconds = 1e9 / case.samples
    isa = _native.host.isa()
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
        "ratio": ratio.median_round_ratio,
        "bar": case.bar(isa),
        "difference": error,
        "load_average": os.getloadavg()[0],
        "timings": {name: t.as_dict() for name, t in timings.items()},
    }


def row_text(row: dict) -> str:
    """A line of the Markdown table."""
    bar = "" if row["bar"] is None else f"{row['bar']:.0f}"
    missed = " (missed)" if row["bar"] and row["ratio"] < row["bar"] else ""
    return (
        f"| {row['kind']} | {row['L']} | {row['B']} x {row['H']} | {row['threads']} | {row['isa']} "
        f"| {row['torch_ns_per_sample']:.2f} | {row['native_ns_per_sample']:.2f} "
        f"| {row['ratio']:.1f}{missed} | {bar} | {row['load_average']:.1f} |"
    )


def peak_memory(dtype: str, threads: int) -> int | None:
    """Bytes of the forward at B = 1, H = 768, L = 32768 beside inputs and result."""
    kind = "forward bf16" if dtype == "bfloat16" else "forward"
    case = Case(kind, 32768, 1, 768, threads)
    with harness.threads(threads):
        native = contenders(case)["native"]
        small = Case(kind, 32768, 1, 16, threads)
        contenders(small)["native"]()  # makes threads and tables
        with harness.peak_memory() as peak:
            z = native()
    return None if peak.growth_bytes is None else peak.growth_bytes - z.numel() * z.itemsize


def _print_memory(threads: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    for dtype in ("float32", "bfloat16"):
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            used = process.submit(peak_memory, dtype, threads).result()
        text = "not measurable here" if used is None else f"{used / 2**20:.1f} MiB"
        print(f"{dtype}, {threads} threads: {text} beside inputs and result (bar: 32 MB)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="2", help="numbers of threads, e.g. 1,2")
    parser.add_argument("--isa", default="auto", help="generic, avx2, avx512 or auto")
    parser.add_argument("--kinds", default="", help="only these, e.g. 'forward,backward'")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", action="store_true", help="the peak memory, not times")
    parser.add_argument("--output", default=None, help="also write JSON to this file")
    arguments = parser.parse_args()
    if not _native.available:
        print(f"nothing to measure: {_native.reason}", file=sys.stderr)
        return 1
    counts = tuple(int(n) for n in arguments.threads.split(","))
    if arguments.memory:
        for count in counts:
            _print_memory(count)
        return 0
    kinds = [kind for kind in arguments.kinds.split(",") if kind]
    rows = []
    print("| case | L | B x H | threads | ISA | torch ns | native ns | ratio | bar | load |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
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
