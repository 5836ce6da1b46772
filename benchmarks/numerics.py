"""Measures the accuracy of fft_conv and of torch.fft against float64.

Run as `python -m benchmarks.numerics`; writes the Markdown tables of docs/numerics.md.
Every number is the median over several seeds.
"""

import argparse
import datetime
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import describe_machine, threads
from monarch_kernels import _native, fft_conv, reference
from monarch_kernels.testing import hyena_filter, layer_norm_like, white

LENGTHS = (*(1 << a for a in range(7, 21)), 251, 1000, 4099, 65537, 999_983)
ISA_LENGTHS = (128, 1024, 16384, 262_144)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BAR = {"float32": 1.0, "bfloat16": 1.05, "float16": 1.05}
OUTLIERS = 30.0


def white_pair(channels: int, length: int, seed: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """White inputs, white filters of unit norm."""
    k = white(channels, length, seed=seed + 1)
    return white(batch, channels, length, seed=seed), torch.nn.functional.normalize(k, dim=-1)


def model_pair(channels: int, length: int, seed: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """LayerNorm-like inputs with outliers, Hyena-like filters."""
    u = layer_norm_like(batch, channels, length, outliers=OUTLIERS, seed=seed)
    return u, hyena_filter(channels, length, seed=seed + 1)


PAIRS = {"white": white_pair, "model": model_pair}


def relative_error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact).norm() / exact.norm())


def good_period(length: int) -> int:
    """The power of two that torch users pad to; lengths that are one are left as they are."""
    return 1 << (2 * length - 1).bit_length()


def torch_fft(u: Tensor, k: Tensor) -> Tensor:
    """The causal convolution by torch.fft, in the dtype of the arguments."""
    n = good_period(u.shape[-1])
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(k, n=n), n=n)[..., : u.shape[-1]]


def errors(
    pair: Callable[[int, int, int], tuple[Tensor, Tensor]], channels: int, length: int, seed: int
) -> Iterator[tuple[str, float, float]]:
    """Yield for each dtype its name, the error of native, and that of what it is compared with.

    float32: torch.fft in float32. 16 bits: rounding the exact result of the 16-bit inputs.
    """
    u, k = pair(channels, length, seed)
    for name, dtype in DTYPES.items():
        given = u.to(dtype)
        exact = torch_fft(given.double(), k.double())
        native = relative_error(fft_conv(given, k, backend="native"), exact)
        peer = torch_fft(given, k) if dtype == torch.float32 else exact.to(dtype)
        yield name, native, relative_error(peer, exact)


def measure(pair: str, length: int, seeds: int) -> dict[str, tuple[float, float]]:
    """Medians over the seeds of (native, peer) by dtype."""
    channels = max(2, min(32, (1 << 20) // length))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in DTYPES}
    for seed in range(seeds):
        for name, native, peer in errors(PAIRS[pair], channels, length, 1000 * seed):
            found[name].append((native, peer))
    return {
        name: tuple(statistics.median(values) for values in zip(*rows, strict=True))
        for name, rows in found.items()
    }


def main_table(pair: str, lengths: list[int], seeds: int) -> tuple[list[str], list[str]]:
    """Rows of Markdown, and what exceeds the bar."""
    rows = [
        "| L | native, float32 | torch.fft, float32 | ratio | bfloat16 / rounding "
        "| float16 / rounding |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    exceeded = []
    for length in lengths:
        found = measure(pair, length, seeds)
        ratios = {name: native / peer for name, (native, peer) in found.items()}
        native, peer = found["float32"]
        cells = [f"{length:,}", f"{native:.2e}", f"{peer:.2e}"]
        rows.append(f"| {' | '.join([*cells, *(f'{r:.3f}' for r in ratios.values())])} |")
        print(rows[-1], file=sys.stderr)
        exceeded += [
            f"{pair}, L = {length:,}, {name}: {ratio:.3f}"
            for name, ratio in ratios.items()
            if ratio > BAR[name]
        ]
    return rows, exceeded


def isa_table(lengths: list[int], seeds: int) -> tuple[list[str], list[str]]:
    """float32 error of each instruction set over torch.fft's, white data; what exceeds the bar."""
    isas = _native.host.available_isas()
    rows = [f"| L | {' | '.join(isas)} |", f"| ---: |{' ---: |' * len(isas)}"]
    exceeded = []
    before = _native.host.isa()
    try:
        for length in lengths:
            cells = []
            for isa in isas:
                _native.host.set_isa(isa)
                native, peer = measure("white", length, seeds)["float32"]
                cells.append(f"{native / peer:.3f}")
                if native / peer > BAR["float32"]:
                    exceeded.append(f"{isa}, white, L = {length:,}, float32: {cells[-1]}")
            rows.append(f"| {length:,} | {' | '.join(cells)} |")
    finally:
        _native.host.set_isa(before)
    return rows, exceeded


def gradient_table(lengths: list[int], seeds: int) -> list[str]:
    """float32 error of the gradients over torch.fft's; white data, 4 rows of a batch."""
    rows = ["| L | du | dk | dk_rev |", "| ---: | ---: | ---: | ---: |"]
    for length in lengths:
        ratios = []
        for seed in range(seeds):
            channels = max(1, min(8, (1 << 18) // length))
            tensors = [white(4, channels, length, seed=100 * seed)]
            tensors += [white(channels, length, seed=100 * seed + i) for i in (1, 2)]
            dy = white(4, channels, length, seed=100 * seed + 3)

            def gradients(function, dtype, tensors=tensors, dy=dy):
                leaves = [t.to(dtype, copy=True).requires_grad_() for t in tensors]
                return torch.autograd.grad(function(*leaves), leaves, dy.to(dtype))

            exact = gradients(reference.fft_conv, torch.float64)
            native = gradients(
                lambda u, k, k_rev: fft_conv(u, k, k_rev=k_rev, backend="native"), torch.float32
            )
            peer = gradients(reference.fft_conv, torch.float32)
            triples = zip(native, peer, exact, strict=True)
            ratios.append([relative_error(n, e) / relative_error(p, e) for n, p, e in triples])
        medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
        rows.append(f"| {length:,} | {' | '.join(f'{m:.3f}' for m in medians)} |")
    return rows


def report(lengths: list[int], isa_lengths: list[int], seeds: int) -> str:
    machine = describe_machine()
    titles = {
        "white": "White inputs, white filters",
        "model": f"LayerNorm-like inputs with outliers ({OUTLIERS:.0f}x), Hyena-like filters",
    }
    lines = [
        f"{datetime.date.today()}, {machine['cpu']}, {_native.host.isa()}, "
        f"torch {torch.__version__}, medians over {seeds} seeds; command: "
        f"`python -m benchmarks.numerics --seeds {seeds}`.",
    ]
    failures = []
    for pair, title in titles.items():
        rows, exceeded = main_table(pair, lengths, seeds)
        lines += ["", f"### {title}", "", *rows]
        failures += exceeded
    lines += ["", "### Instruction sets, float32, native / torch.fft", ""]
    rows, exceeded = isa_table(isa_lengths, seeds)
    lines += rows
    lines += ["", "### Gradients, float32, native / torch.fft", ""]
    lines += gradient_table(isa_lengths, seeds)
    failures += exceeded
    verdict = "Nothing exceeds the bar." if not failures else "Above the bar:"
    lines += ["", verdict, *(f"* {failure}" for failure in failures), ""]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numerics", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=sorted(LENGTHS))
    parser.add_argument("--isa-lengths", type=int, nargs="+", default=list(ISA_LENGTHS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write there instead of to the terminal")
    arguments = parser.parse_args(argv)
    if not _native.available:
        parser.error(f"the native backend is not available: {_native.reason}")
    with threads(1):
        text = report(arguments.lengths, arguments.isa_lengths, arguments.seeds)
    if arguments.output:
        arguments.output.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
