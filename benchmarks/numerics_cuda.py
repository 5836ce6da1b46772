"""Accuracy of the CUDA kernels of `fft_conv`, run in the emulator: it needs g++, but no GPU.

Run as `python -m benchmarks.numerics_cuda [length ...]`; prints the tables of docs/numerics.md:
relative L2 errors of the result and of the gradients, over those of torch.fft. With `--chain` and
`--short` those of 16-bit inputs by precision, over that of rounding.
"""

import argparse
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.numerics import PAIRS, good_period
from monarch_kernels import reference
from monarch_kernels.testing.inputs import hyena_filter, layer_norm_like, white
from tests.emulation.build import build
from tests.emulation.emulator import Emulator
from tests.emulation.fft_conv import SOURCES, EmulatedFftConv

LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
LENGTHS += (12288, 16384, 24576, 32768, 49152, 65536)
SEEDS = 3
BATCH = 4
RESULTS = ("y", "du", "dk", "dk_rev")
TITLES = {
    "white": "White inputs and gradients, white filters",
    "model": "LayerNorm-like inputs and gradients with outliers, Hyena-like filters",
}


def with_period(u: Tensor, k: Tensor, k_rev: Tensor, period: int) -> Tensor:
    """The bidirectional convolution by torch.fft."""
    length = u.shape[-1]
    behind = pad(k, (0, period - length))
    ahead = pad(k_rev[:, : length - 1].flip(-1), (period - length + 1, 0))
    spectrum = torch.fft.rfft(u, n=period) * torch.fft.rfft(behind + ahead, n=period)
    return torch.fft.irfft(spectrum, n=period)[..., :length]


def evaluate(function: Callable, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradients of u, k and k_rev; `tensors` are these and dy."""
    *leaves, dy = (t.to(dtype, copy=True) for t in tensors)
    y = function(*(leaf.requires_grad_() for leaf in leaves))
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def errors(op: EmulatedFftConv, kind: str, length: int, seeds: int = SEEDS) -> Tensor:
    """Relative L2 errors, a column for each result; rows: ours, torch's with period 2 L and with
    the next power of two.
    """
    channels = max(2, min(128, 65536 // length))
    peers = (2 * length, good_period(length))
    functions = [lambda u, k, k_rev: op(u, k, k_rev=k_rev)]
    functions += [functools.partial(with_period, period=period) for period in peers]
    squares = torch.zeros(3, len(RESULTS), dtype=torch.float64)
    total = torch.zeros(len(RESULTS), dtype=torch.float64)
    for seed in range(seeds):
        u, k = PAIRS[kind](channels, length, 1000 * seed, BATCH)
        dy, k_rev = PAIRS[kind](channels, length, 1000 * seed + 500, BATCH)
        tensors = [u, k, k_rev, dy]
        exact = evaluate(
            lambda u, k, k_rev: reference.fft_conv(u, k, k_rev=k_rev), tensors, torch.float64
        )
        total += torch.stack([e.square().sum() for e in exact])
        for row, function in zip(squares, functions, strict=True):
            actual = evaluate(function, tensors, torch.float32)
            pairs = zip(actual, exact, strict=True)
            row += torch.stack([(a.double() - e).square().sum() for a, e in pairs])
    return (squares / total).sqrt()


CHAIN_LENGTHS = (1000, 1024, 2048, 4096, 8192)
# Inputs of the accuracy of chains: name, and (u, k) from a seed and a length.
CHAIN_INPUTS = {
    "white": lambda n, seed: (white(4, 8, n, seed=seed), white(8, n, seed=seed + 50) / n**0.5),
    "LayerNorm-like, Hyena's filter": lambda n, seed: (
        layer_norm_like(4, 8, n, outliers=30.0, seed=seed),
        hyena_filter(8, n, seed=seed + 50),
    ),
    "white + 10": lambda n, seed: (
        white(4, 8, n, seed=seed) + 10,
        white(8, n, seed=seed + 50) / n**0.5,
    ),
    "one value 1000 times": lambda n, seed: (
        white(4, 8, n, seed=seed).index_fill(2, torch.tensor([n // 2]), 1000.0),
        white(8, n, seed=seed + 50) / n**0.5,
    ),
    "times e^-8 ... e^8": lambda n, seed: (
        white(4, 8, n, seed=seed) * torch.linspace(-8, 8, n).exp(),
        white(8, n, seed=seed + 50) / n**0.5,
    ),
    "white, 1e-8": lambda n, seed: (
        1e-8 * white(4, 8, n, seed=seed),
        white(8, n, seed=seed + 50) / n**0.5,
    ),
}


def chain_errors(emulator: Emulator, name: str, length: int) -> list[float]:
    """Errors of chains divided by that of rounding: bfloat16 fast and high, float16 the same."""
    ratios = []
    for dtype in (torch.bfloat16, torch.float16):
        for precision in ("fast", "high"):
            op = EmulatedFftConv(emulator, precision=precision)
            error = rounding = 0.0
            for seed in range(SEEDS):
                u, k = CHAIN_INPUTS[name](length, seed)
                u = u.to(dtype)
                exact = reference.fft_conv(u.double(), k.double())
                error += float((op(u, k).double() - exact).square().sum())
                rounding += float((exact.to(dtype).double() - exact).square().sum())
            ratios.append((error / rounding) ** 0.5)
    return ratios


def chain_table(emulator: Emulator) -> None:
    print("| input | L | bfloat16 fast | bfloat16 high | float16 fast | float16 high |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in CHAIN_INPUTS:
        for length in CHAIN_LENGTHS:
            ratios = " | ".join(f"{r:.3f}" for r in chain_errors(emulator, name, length))
            print(f"| {name} | {length} | {ratios} |", flush=True)


# ---- 16-bit inputs: errors divided by that of rounding the exact result


def envelope(length: int) -> Tensor:
    """From e^-8 to e^8 along a row."""
    return torch.exp(torch.linspace(-8.0, 8.0, length))


def outlier(x: Tensor) -> Tensor:
    """One sample of each row a thousand times larger."""
    x = x.clone()
    x[..., x.shape[-1] // 3] = 1000.0
    return x


SIGNALS: dict[str, Callable[[int, int, int], Tensor]] = {
    "white": white,
    "LayerNorm": lambda b, h, n: layer_norm_like(b, h, n, outliers=30.0),
    "white + 10": lambda b, h, n: white(b, h, n) + 10.0,
    "one sample of 1000": lambda b, h, n: outlier(white(b, h, n)),
    "e^-8 .. e^8": lambda b, h, n: white(b, h, n) * envelope(n),
    "white * 1e-8": lambda b, h, n: white(b, h, n) * 1e-8,
}
FILTERS = {"white": lambda h, n: white(h, n, seed=7) / n**0.5, "Hyena": hyena_filter}


def rounding_ratio(
    op: EmulatedFftConv, u: Tensor, k: Tensor, gate: Tensor | None, backward: bool = False
) -> float:
    """The error of y, or of the gradient of u for the gradient u of y, over that of rounding."""
    if backward:
        x = torch.zeros_like(u, requires_grad=True)
        (found,) = torch.autograd.grad(op(x, k, pregate=gate, postgate=gate), x, u)
    else:
        found = op(u, k, pregate=gate, postgate=gate)
    u, k = u.double(), k.double()
    gate = gate if gate is None else gate.double()
    if backward:
        x = torch.zeros_like(u, requires_grad=True)
        y = reference.fft_conv(x, k, None, None, gate, gate)
        (exact,) = torch.autograd.grad(y, x, u)
    else:
        exact = reference.fft_conv(u, k, None, None, gate, gate)
    rounded = exact.to(found.dtype).double()
    return float((found.double() - exact).norm() / (rounded - exact).norm())


def short_rows(emulator: Emulator, length: int) -> None:
    """Lines of the table for a length: each signal, with both filters, plain and gated."""
    kinds = ((torch.bfloat16, "fast"), (torch.float16, "high"))
    for name, signal in SIGNALS.items():
        cells = []
        for dtype, precision in kinds:
            op = EmulatedFftConv(emulator, precision=precision)
            backward = name == "white * 1e-8"
            u = signal(16, 16, length).to(dtype)
            if backward and dtype == torch.float16:
                cells.append("-")  # below the smallest float16
                continue
            gate = white(16, 16, length, seed=3).to(dtype)
            ratios = [
                rounding_ratio(op, u, make(16, length), by, backward)
                for make in FILTERS.values()
                for by in (None, gate)
            ]
            cells.append(" / ".join(f"{ratio:.3f}" for ratio in ratios))
        label = f"{name} (as dy)" if name == "white * 1e-8" else name
        print(f"| {length} | {label} | {' | '.join(cells)} |", flush=True)


def short_table(emulator: Emulator, lengths: Sequence[int]) -> None:
    print("| L | input | bfloat16, fast | float16, high |")
    print("| ---: | --- | --- | --- |")
    for length in lengths:
        short_rows(emulator, length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--chain", action="store_true", help="the chains, by inputs and precision")
    parser.add_argument("--short", action="store_true", help="rows up to 256, by inputs")
    arguments = parser.parse_args()
    lengths = arguments.lengths
    emulator = Emulator(build(list(SOURCES)))
    if arguments.chain:
        return chain_table(emulator)
    if arguments.short:
        return short_table(emulator, (64, 128, 256) if lengths == LENGTHS else lengths)
    op = EmulatedFftConv(emulator)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    names = [*RESULTS, *(f"{name}, power of two" for name in RESULTS)]
    for kind, title in TITLES.items():
        print(f"\n### {title}\n\n| L | error of y | {' | '.join(names)} |")
        print(f"| ---: | ---: |{' ---: |' * len(names)}")
        for length in lengths:
            ours, same, longer = errors(op, kind, length)
            ratios = " | ".join(f"{ratio:.3f}" for ratio in torch.cat([ours / same, ours / longer]))
            print(f"| {length} | {ours[0]:.2e} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
