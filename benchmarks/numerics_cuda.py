"""Accuracy of the CUDA kernels of `fft_conv`, run in the emulator: it needs g++, but no GPU.

Run as `python -m benchmarks.numerics_cuda [length ...]`; prints the table of docs/numerics.md.
"""

import argparse

import torch
from torch import Tensor

from monarch_kernels import reference
from monarch_kernels.testing.inputs import hyena_filter, layer_norm_like, white
from tests.emulation.build import build
from tests.emulation.emulator import Emulator
from tests.emulation.fft_conv import SOURCES, EmulatedFftConv

LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
LENGTHS += (12288, 16384, 24576, 32768, 49152, 65536)
SEEDS = 3


def with_period(u: Tensor, k: Tensor, period: int) -> Tensor:
    """The causal convolution by torch.fft."""
    spectrum = torch.fft.rfft(u, n=period) * torch.fft.rfft(k, n=period)
    return torch.fft.irfft(spectrum, n=period)[..., : u.shape[-1]]


def errors(op: EmulatedFftConv, length: int) -> tuple[float, float, float]:
    """Relative L2 errors: ours, torch's with period 2 L, and with the next power of two."""
    channels = max(2, min(256, 262144 // length))
    power = 1 << (2 * length - 1).bit_length()
    squares = torch.zeros(3, dtype=torch.float64)
    total = 0.0
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        u, k = torch.randn(4, channels, length), torch.randn(channels, length) / length**0.5
        exact = reference.fft_conv(u.double(), k.double())
        results = (op(u, k), with_period(u, k, 2 * length), with_period(u, k, power))
        squares += torch.stack([(y.double() - exact).square().sum() for y in results])
        total += float(exact.square().sum())
    ours, same, longer = (squares / total).sqrt().tolist()
    return ours, same, longer


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--chain", action="store_true", help="the chains, by inputs and precision")
    arguments = parser.parse_args()
    lengths = arguments.lengths
    if arguments.chain:
        return chain_table(Emulator(build(list(SOURCES))))
    op = EmulatedFftConv(Emulator(build(list(SOURCES))))
    print("| L | error | / torch.fft (2 L) | / torch.fft (power of two) |")
    print("| ---: | ---: | ---: | ---: |")
    for length in lengths:
        ours, same, longer = errors(op, length)
        print(f"| {length} | {ours:.2e} | {ours / same:.3f} | {ours / longer:.3f} |", flush=True)


if __name__ == "__main__":
    main()
