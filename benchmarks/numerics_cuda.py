"""Accuracy of the CUDA kernels of `fft_conv`, run in the emulator: it needs g++, but no GPU.

Run as `python -m benchmarks.numerics_cuda [length ...]`; prints the tables of docs/numerics.md:
relative L2 errors of the result and of the gradients, over those of torch.fft.
"""

import argparse
import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.numerics import PAIRS, good_period
from monarch_kernels import reference
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lengths", type=int, nargs="*", default=LENGTHS)
    lengths = parser.parse_args().lengths
    op = EmulatedFftConv(Emulator(build(list(SOURCES))))
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
