"""fft_conv with pytest-benchmark: `pytest benchmarks` (ratios: `python -m benchmarks.fft_conv`)."""

import pytest

from benchmarks import fft_conv, harness


@pytest.mark.parametrize("side", ["torch", "native"])
@pytest.mark.parametrize("case", list(fft_conv.cases()), ids=lambda case: case.id)
def test_fft_conv(benchmark, case, side):
    benchmark.group = case.id
    with harness.threads(case.threads):
        sides = fft_conv.contenders(case)
        fft_conv.check(sides)
        benchmark.extra_info["samples"] = case.samples
        benchmark(sides[side])
