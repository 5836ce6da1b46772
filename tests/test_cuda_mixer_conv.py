"""mixer_conv and short_conv on a GPU: what the operator tests, which run there too, do not ask.

Graphs, streams, memory, the same bits every time, spectra, long rows. Every test skips without a
GPU that the kernels run on; what is common to all operators (devices, threads) is in test_cuda.py.
"""

import pytest
import torch

from monarch_kernels import backends, filter_spectrum, mixer_conv, short_conv
from monarch_kernels.testing import MixerCase, check_mixer_conv, make_mixer_inputs, white
from tests.conftest import mixer_conv_on_gpu, to_gpu

pytestmark = pytest.mark.gpu

# A row in registers, a row in shared memory, a row in several passes; u by rows and by columns.
CASES = (
    MixerCase("short", 3, 5, 100, reverse_taps=100),
    MixerCase("middle", 3, 5, 3000, reverse_taps=3000, u_layout="contiguous"),
    MixerCase("bfloat16", 3, 40, 4096, reverse_taps=4096, dtype="bfloat16"),
    MixerCase("passes", 2, 3, 70000, reverse_taps=70000),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def on(device, case):
    return {n: to_gpu(t, device) for n, t in make_mixer_inputs(case).items() if t is not None}


def step(given, dz):
    """z and every gradient, in a fixed order."""
    leaves = dict(given)
    z = mixer_conv(leaves.pop("q"), leaves.pop("k"), backend="native", **leaves)
    return [z, *torch.autograd.grad(z, list(given.values()), dz)]


def split(inputs):
    """Leaves that a gradient is asked for, and dz."""
    given = {n: t.detach().requires_grad_() for n, t in inputs.items() if n != "dz"}
    return given, inputs["dz"]


def assert_same_bits(first, second):
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), i


def test_no_preference_takes_the_kernels(gpu):
    for operator in ("mixer_conv", "short_conv"):
        assert backends.select(None, torch.ones(1, 3, 4, device=gpu), operator) == "native"


@by_case
def test_results_have_the_same_bits_every_time(gpu, case):
    given, dz = split(on(gpu, case))
    first = step(given, dz)
    for _ in range(4):
        assert_same_bits(first, step(given, dz))


@pytest.mark.slow
@pytest.mark.parametrize("length", [1 << 16, 100003, 1 << 18])
def test_long_rows(gpu, length):
    case = MixerCase("long", 1, 2, length, reverse_taps=length)
    check_mixer_conv(lambda q, k, **o: mixer_conv_on_gpu(q, k, backend="native", **o), case)


def test_many_channels_and_rows(gpu):
    """More than a grid has blocks in its second and third dimension."""
    k = white(1, 32).to(gpu)
    q = torch.randn(70000, 3, 32, device=gpu)
    z = mixer_conv(q, k, backend="native")
    exact = mixer_conv(q.double(), k.double(), backend="reference")
    assert (z - exact).norm() <= 1e-6 * exact.norm()
    x, s = torch.randn(1, 70000, 33, device=gpu), torch.randn(70000, 3, device=gpu)
    y = short_conv(x, s, backend="native")
    exact = short_conv(x.double(), s.double(), backend="reference")
    assert (y - exact).norm() <= 1e-6 * exact.norm()


@by_case
def test_a_graph_repeats_forward_and_backward(gpu, case):
    given, dz = split(on(gpu, case))
    side = torch.cuda.Stream(gpu)
    side.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(side):
        for _ in range(2):
            step(given, dz)
    torch.cuda.current_stream(gpu).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(given, dz)
    with torch.no_grad():  # other numbers in the same memory
        for t in given.values():
            t.copy_(t.roll(1, -1))
    graph.replay()
    torch.cuda.synchronize(gpu)
    assert_same_bits(captured, step(given, dz))


@by_case
def test_two_streams_at_once(gpu, case):
    """Each call has scratch memory of its own."""
    given, dz = split(on(gpu, case))
    expected = step(given, dz)
    torch.cuda.synchronize(gpu)
    results = []
    for stream in [torch.cuda.Stream(gpu) for _ in range(2)] * 3:
        with torch.cuda.stream(stream):
            results.append(step(given, dz))
    torch.cuda.synchronize(gpu)
    for result in results:
        assert_same_bits(result, expected)


@by_case
def test_memory_is_torchs_and_is_given_back(gpu, case):
    given, dz = split(on(gpu, case))
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(given, dz)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize(gpu)
    before = torch.cuda.memory_allocated(gpu)
    for _ in range(5):
        step(given, dz)
    torch.cuda.synchronize(gpu)
    assert torch.cuda.memory_allocated(gpu) == before


@by_case
def test_spectra_equal_their_filters(gpu, case):
    inputs = on(gpu, case)
    filters = {k: [inputs.pop(f"{k}{r}") for r in ("", "_rev")] for k in ("k", "k2")}
    skips = {"k": inputs.pop("skip"), "k2": inputs.pop("skip2")}
    inputs.pop("dz")
    q = inputs.pop("q")
    spectra = {
        k: filter_spectrum(*filters[k], skip=skips[k], length=case.length, backend="native")
        for k in filters
    }
    options = {"k2": filters["k2"][0], "k2_rev": filters["k2"][1], "skip2": skips["k2"]}
    options |= {"k_rev": filters["k"][1], "skip": skips["k"], "backend": "native"}
    expected = mixer_conv(q, filters["k"][0], **inputs, **options)
    assert torch.equal(mixer_conv(q, spectra["k"], k2=spectra["k2"], **inputs), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_short_conv_of_a_graph(gpu, channels_last):
    x = torch.randn(3, 200, 200, device=gpu, dtype=torch.bfloat16)
    s = torch.randn(200, 4, device=gpu).requires_grad_()

    def both():
        y = short_conv(x, s, activation="silu", channels_last=channels_last, backend="native")
        return [y.detach(), torch.autograd.grad(y, s, x)[0]]

    both()
    torch.cuda.synchronize(gpu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    x.copy_(x.roll(1, -1))
    graph.replay()
    torch.cuda.synchronize(gpu)
    assert_same_bits(captured, both())
