"""Accuracy of the CUDA kernels of `fft_conv`, run in the emulator: it needs g++, but no GPU.

Run as `python -m benchmarks.numerics_cuda [length ...]`; prints the table of docs/numerics.md for
float32, and with `--short` that for 16-bit inputs by precision.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from monarch_kernels import reference
from monarch_kernels.testing import hyena_filter, layer_norm_like, white
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="16-bit inputs, by precision")
    parser.add_argument("lengths", type=int, nargs="*", default=LENGTHS)
    given = parser.parse_args()
    emulator, lengths = Emulator(build(list(SOURCES))), given.lengths
    if given.short:
        print("| L | input | bfloat16, fast | float16, high |")
        print("| ---: | --- | --- | --- |")
        for length in (64, 128, 256) if lengths == LENGTHS else lengths:
            short_rows(emulator, length)
        return
    op = EmulatedFftConv(emulator)
    print("| L | error | / torch.fft (2 L) | / torch.fft (power of two) |")
    print("| ---: | ---: | ---: | ---: |")
    for length in lengths:
        ours, same, longer = errors(op, length)
        print(f"| {length} | {ours:.2e} | {ours / same:.3f} | {ours / longer:.3f} |", flush=True)


if __name__ == "__main__":
    main()
