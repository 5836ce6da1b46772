"""fft_conv with pytest-benchmark: `pytest benchmarks`.

Ratios and tables: `python -m benchmarks.fft_conv` on the CPU, `python -m benchmarks.fft_conv_cuda`
on a GPU, where these cases skip unless there is one.
"""

import pytest
import torch

from benchmarks import fft_conv, fft_conv_cuda, gpu_timing, harness
from monarch_kernels import backends


@pytest.mark.parametrize("side", ["torch", "native"])
@pytest.mark.parametrize("case", list(fft_conv.cases()), ids=lambda case: case.id)
def test_fft_conv(benchmark, case, side):
    benchmark.group = case.id
    with harness.threads(case.threads):
        sides = fft_conv.contenders(case)
        fft_conv.check(sides)
        benchmark.extra_info["samples"] = case.samples
        benchmark(sides[side])


@pytest.fixture(scope="module")
def bandwidth():
    return gpu_timing.copy_bandwidth(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("case", list(fft_conv_cuda.cases()), ids=lambda case: case.id)
def test_fft_conv_on_gpu(benchmark, request, case):
    """All contenders side by side, in `extra_info`; the time shown is the comparison's own."""
    reason = backends.cuda_unsupported()
    if reason:
        pytest.skip(f"needs a GPU: {reason}")
    bandwidth = request.getfixturevalue("bandwidth")
    result = benchmark.pedantic(
        fft_conv_cuda.measure, (case, torch.device("cuda"), bandwidth), rounds=1
    )
    benchmark.extra_info.update(result)
    assert result["wrong"] == []
