"""Accuracy of the CUDA kernels of `fft_conv`, run in the emulator: it needs g++, but no GPU.

Run as `python -m benchmarks.numerics_cuda [length ...]`; prints the table of docs/numerics.md.
"""

import argparse

import torch
from torch import Tensor

from monarch_kernels import reference
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lengths", type=int, nargs="*", default=LENGTHS)
    lengths = parser.parse_args().lengths
    op = EmulatedFftConv(Emulator(build(list(SOURCES))))
    print("| L | error | / torch.fft (2 L) | / torch.fft (power of two) |")
    print("| ---: | ---: | ---: | ---: |")
    for length in lengths:
        ours, same, longer = errors(op, length)
        print(f"| {length} | {ours:.2e} | {ours / same:.3f} | {ours / longer:.3f} |", flush=True)


if __name__ == "__main__":
    main()
