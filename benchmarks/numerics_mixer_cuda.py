"""Accuracy of the CUDA kernels of `mixer_conv`, run in the emulator: it needs g++, but no GPU.

Run as `python -m benchmarks.numerics_mixer_cuda [length ...]`; prints the table of
docs/numerics.md. Every part of the operator is given, inputs and filters are white.
"""

import argparse

import torch
from torch import Tensor

from monarch_kernels import reference
from monarch_kernels.testing import MixerCase, evaluate_mixer, make_mixer_inputs
from tests.emulation.build import build
from tests.emulation.emulator import Emulator
from tests.emulation.mixer_conv import SOURCES, EmulatedMixerConv

LENGTHS = (128, 512, 2048, 8192, 16384)
SHOWN = ("z", "dq", "ds", "du", "dk", "dk_rev", "dk2", "dk2_rev")


def composed(q: Tensor, k: Tensor, **options: Tensor) -> Tensor:
    return reference.mixer_conv(q, k, **options)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def row(op: EmulatedMixerConv, length: int) -> list[str]:
    """z's error; each result's by that of torch in float32; 16 bits by rounding the exact one."""
    cells = [str(length)]
    for dtype in ("float32", "bfloat16", "float16"):
        channels = 4 if length < 8192 else 2
        case = MixerCase("white", 2, channels, length, reverse_taps=length, dtype=dtype)
        inputs, exactly = make_mixer_inputs(case), dtype == "float32"
        exact = evaluate_mixer(composed, inputs, dtype=torch.float64, gradients=exactly)
        found = evaluate_mixer(op, inputs, gradients=exactly)
        if exactly:
            cells.append(f"{error(found['z'], exact['z']):.2e}")
            peer = evaluate_mixer(composed, inputs)
            cells += [f"{error(found[n], exact[n]) / error(peer[n], exact[n]):.3f}" for n in SHOWN]
        else:
            rounded = exact["z"].to(getattr(torch, dtype))
            cells.append(f"{error(found['z'], exact['z']) / error(rounded, exact['z']):.3f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lengths", type=int, nargs="*", default=LENGTHS)
    lengths = parser.parse_args().lengths
    torch.set_num_threads(1)
    op = EmulatedMixerConv(Emulator(build(list(SOURCES))))
    print(f"| L | error of z | {' | '.join(SHOWN)} | bfloat16 | float16 |")
    print("| ---: " * (len(SHOWN) + 4) + "|")
    for length in lengths:
        print(f"| {' | '.join(row(op, length))} |", flush=True)


if __name__ == "__main__":
    main()
