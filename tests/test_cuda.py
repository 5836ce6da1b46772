"""fft_conv on a GPU: what the operator tests, which run there too, do not ask.

Streams, graphs, several devices, memory, and torch's transformations of CUDA tensors. Every test
skips without a GPU that the kernels run on.
"""

import threading

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from monarch_kernels import FilterSpectrum, _native, backends, fft_conv, filter_spectrum, reference
from monarch_kernels.testing import Case, check_fft_conv, make_inputs, white

pytestmark = pytest.mark.gpu

FULL = {"skip": True, "pregate": True, "postgate": True}
FILTERS = ("k", "k_rev", "skip")
GATES = ("pregate", "postgate")
# A row in registers, a row in shared memory, a row in several passes.
CASES = (
    Case("short", 3, 5, 100, reverse_taps=100, **FULL),
    Case("middle", 3, 5, 3000, reverse_taps=3000, **FULL),
    Case("circular", 3, 5, 1021, circular=True, **FULL),
    Case("bfloat16", 3, 5, 4096, reverse_taps=4096, dtype="bfloat16", **FULL),
    Case("passes", 2, 3, 70000, reverse_taps=70000, **FULL),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# Those that tensor cores take: whole groups of rows and not, causal and not.
SHORT = (
    Case("toeplitz_causal", 32, 40, 128, dtype="bfloat16"),
    Case("toeplitz_gated", 37, 40, 128, reverse_taps=128, dtype="bfloat16", **FULL),
    Case("toeplitz_256", 17, 7, 256, reverse_taps=256, dtype="bfloat16", **FULL),
    Case("toeplitz_float16", 17, 7, 256, reverse_taps=256, dtype="float16", **FULL),
    Case("toeplitz_odd", 5, 3, 99, reverse_taps=99, dtype="float16", layout="sliced", **FULL),
)
by_short_case = pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)


def ops():
    return torch.ops.monarch_kernels


def on(device, case):
    """The inputs of a case there; None where the case has none."""
    return {n: t if t is None else t.detach().to(device) for n, t in make_inputs(case).items()}


def leaves(inputs):
    """Those that a gradient is asked for, by name."""
    given = {n: t for n, t in inputs.items() if t is not None and n != "dy"}
    return {n: t.detach().clone().requires_grad_() for n, t in given.items()}


def call(given, case, function=fft_conv, precision="exact"):
    options = {n: t for n, t in given.items() if n not in ("u", "k", "dy") and t is not None}
    options |= {"circular": case.circular, "backend": "native", "precision": precision}
    return function(given["u"], given["k"], **options)


def all_results(inputs, case, function=fft_conv):
    """y and every gradient, in a fixed order."""
    given = leaves(inputs)
    y = call(given, case, function)
    return [y.detach(), *torch.autograd.grad(y, list(given.values()), inputs["dy"])]


def assert_same_bits(first, second):
    assert len(first) == len(second)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert a.device == b.device
        assert torch.equal(a, b), i


# ---- Results -------------------------------------------------------------------------------------


def test_no_preference_takes_the_kernels(gpu):
    assert backends.select(None, torch.ones(1, 1, 4, device=gpu)) == "native"
    assert backends.select(None, torch.ones(1, 1, 4, device=gpu).double()) == "reference"


@by_case
def test_gradients_have_the_same_bits_every_time(gpu, case):
    inputs = on(gpu, case)
    first = all_results(inputs, case)
    for _ in range(5):
        assert_same_bits(first, all_results(inputs, case))


@by_short_case
def test_tensor_cores(gpu, case):
    """Within the budget, other bits than those of float32 transforms, and the same every time."""

    def moved(u, k, **options):
        options = {n: t.to(gpu) if torch.is_tensor(t) else t for n, t in options.items()}
        return fft_conv(u.to(gpu), k.to(gpu), backend="native", **options).cpu()

    check_fft_conv(moved, case, noise=2.0**-17)
    inputs = on(gpu, case)
    first = call(inputs, case, precision=None)
    for _ in range(5):
        assert torch.equal(call(inputs, case, precision="high"), first)


@by_short_case
def test_a_graph_of_tensor_cores(gpu, case):
    inputs = on(gpu, case)
    expected = call(inputs, case, precision="fast")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call(inputs, case, precision="fast")
    graph.replay()
    torch.cuda.synchronize(gpu)
    assert torch.equal(y, expected)


@by_short_case
def test_a_spectrum_of_a_precision(gpu, case):
    inputs = on(gpu, case)
    options = {"skip": inputs["skip"], "length": case.length, "backend": "native"}
    spectrum = filter_spectrum(inputs["k"], inputs["k_rev"], **options, precision="fast")
    gates = {name: inputs[name] for name in GATES}
    expected = call(inputs, case, precision="fast")
    assert torch.equal(fft_conv(inputs["u"], spectrum, **gates), expected)
    with pytest.raises(ValueError, match="asked for is 'exact': make it by filter_spectrum"):
        fft_conv(inputs["u"], spectrum, **gates, precision="exact")
    with pytest.raises(TypeError, match="u is float32, whose kernels are exact"):
        fft_conv(inputs["u"].float(), spectrum)


LONG = (
    Case("65536", 2, 2, 1 << 16, reverse_taps=1 << 16, **FULL),
    Case("circular_100003", 1, 2, 100003, circular=True, **FULL),
    Case("million", 1, 2, 1 << 20, reverse_taps=1 << 20, postgate=True),
    Case("million_bfloat16", 1, 2, 1 << 20, pregate=True, dtype="bfloat16"),
    Case("longest", 1, 1, 1 << 22, reverse_taps=1 << 22),
)


@pytest.mark.slow
@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_long_rows(gpu, case):
    def moved(u, k, *, circular, **options):
        options = {n: t.to(gpu) for n, t in options.items()}
        return fft_conv(u.to(gpu), k.to(gpu), circular=circular, backend="native", **options).cpu()

    check_fft_conv(moved, case)


def test_many_rows(gpu):
    """More rows than a grid has blocks in its second and third dimension."""
    u, k = torch.randn(70000, 1, 32, device=gpu), torch.randn(1, 32, device=gpu)
    y = fft_conv(u, k, backend="native")
    exact = reference.fft_conv(u.double(), k.double())
    assert (y - exact).norm() <= 1e-6 * exact.norm()
    u, k = torch.randn(1, 70000, 32, device=gpu), torch.randn(70000, 32, device=gpu)
    y = fft_conv(u, k, backend="native")
    exact = reference.fft_conv(u.double(), k.double())
    assert (y - exact).norm() <= 1e-6 * exact.norm()


def test_more_than_2_to_the_31_elements(gpu):
    batch, channels, length = 513, 64, 65536
    needed = 3 * 2 * batch * channels * length
    if torch.cuda.mem_get_info(gpu)[0] < 1.5 * needed:
        pytest.skip(f"needs {1.5 * needed / 2**30:.0f} GiB of free memory")
    u = torch.zeros(batch, channels, length, device=gpu, dtype=torch.bfloat16)
    u[-1, -1] = white(length).to(gpu)
    k = white(channels, length).to(gpu) / 256
    y = fft_conv(u, k, backend="native")
    expected = fft_conv(u[-1:, -1:], k[-1:], backend="native")
    assert torch.equal(y[-1:, -1:], expected)
    assert y[:-1].abs().max() == 0


# ---- Streams and graphs --------------------------------------------------------------------------


@by_case
def test_a_graph_repeats_forward_and_backward(gpu, case):
    inputs = on(gpu, case)
    given = leaves(inputs)
    dy = inputs["dy"].clone()

    def step():
        y = call(given, case)
        return [y, *torch.autograd.grad(y, list(given.values()), dy)]

    side = torch.cuda.Stream(gpu)
    side.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream(gpu).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3):  # other numbers in the same memory
        fresh = {n: t if t is None else t.roll(seed + 1, -1) for n, t in inputs.items()}
        with torch.no_grad():
            for name, t in given.items():
                t.copy_(fresh[name])
            dy.copy_(fresh["dy"])
        graph.replay()
        torch.cuda.synchronize(gpu)
        assert_same_bits([t.detach() for t in captured], all_results(fresh, case))


@by_case
def test_a_side_stream(gpu, case):
    """The kernels wait for what the stream does before, and nothing else."""
    inputs = on(gpu, case)
    expected = all_results(inputs, case)
    torch.cuda.synchronize(gpu)
    side = torch.cuda.Stream(gpu)
    with torch.cuda.stream(side):
        late = {n: t if t is None else torch.empty_like(t).fill_(0) for n, t in inputs.items()}
        torch.cuda._sleep(100_000_000)  # about 50 ms: a launch on another stream would be earlier
        for name, t in late.items():
            if t is not None:
                t.copy_(inputs[name])
        results = all_results(late, case)
    side.synchronize()
    assert_same_bits(results, expected)


def test_two_streams_at_once(gpu):
    """Each call has scratch memory of its own."""
    case = CASES[4]
    inputs = on(gpu, case)
    expected = all_results(inputs, case)
    torch.cuda.synchronize(gpu)
    streams = [torch.cuda.Stream(gpu) for _ in range(2)]
    results = []
    for _ in range(4):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(all_results(inputs, case))
    torch.cuda.synchronize(gpu)
    for result in results:
        assert_same_bits(result, expected)


def test_two_threads_at_once(gpu):
    case = CASES[1]
    inputs = on(gpu, case)
    expected = all_results(inputs, case)
    found = [None] * 4

    def work(index):
        with torch.cuda.device(gpu), torch.cuda.stream(torch.cuda.Stream(gpu)):
            for _ in range(10):
                found[index] = all_results(inputs, case)
            torch.cuda.current_stream().synchronize()

    torch.cuda.synchronize(gpu)
    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(found))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for results in found:
        assert_same_bits(results, expected)


@by_case
def test_nothing_waits(gpu, case):
    """torch's own check of the calls it makes; that of ours is the capture of a graph."""
    inputs = on(gpu, case)
    all_results(inputs, case)
    torch.cuda.set_sync_debug_mode("error")
    try:
        all_results(inputs, case)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def second_gpu(gpu):
    other = next((i for i in range(torch.cuda.device_count()) if i != gpu.index), None)
    if other is None:
        pytest.skip("needs a second GPU")
    reason = backends.cuda_unsupported(other)
    if reason:
        pytest.skip(f"needs a second GPU: {reason}")
    return torch.device("cuda", other)


@by_case
def test_a_device_that_is_not_the_current_one(gpu, second_gpu, case):
    expected = all_results(on(gpu, case), case)
    results = all_results(on(second_gpu, case), case)
    assert torch.cuda.current_device() == gpu.index
    assert all(t.device == second_gpu for t in results)
    for a, b in zip(results, expected, strict=True):
        assert torch.allclose(a.cpu(), b.cpu())  # another model of GPU may have another plan


def test_tensors_of_two_gpus_are_refused(gpu, second_gpu):
    u, k = torch.ones(1, 3, 8, device=gpu), torch.ones(3, 8, device=second_gpu)
    with pytest.raises(ValueError, match=f"k is on {second_gpu}, u on {gpu}"):
        fft_conv(u, k)
    with pytest.raises(RuntimeError, match="k is not on the device"):
        ops().fft_conv_fwd(u, k, None, None, None, None, None, False)


# ---- Memory --------------------------------------------------------------------------------------


def test_out_of_memory_is_an_error_and_no_more(gpu):
    """The result would fit nowhere; what was computed before and after is right."""
    u, k = torch.randn(2, 3, 64, device=gpu), torch.randn(3, 64, device=gpu)
    before = fft_conv(u, k, backend="native")
    total = torch.cuda.get_device_properties(gpu).total_memory
    batch = total // (3 * 64 * 4) + 1
    huge = u[:1].expand(batch, 3, 64)  # of stride 0: takes no memory itself
    with pytest.raises(RuntimeError, match="out of memory"):
        fft_conv(huge, k, backend="native")
    torch.cuda.synchronize(gpu)
    assert torch.equal(fft_conv(u, k, backend="native"), before)


@by_case
def test_all_memory_is_torchs(gpu, case):
    """Nothing is allocated beside torch's allocator, where graphs and users would not see it."""
    inputs = on(gpu, case)
    for _ in range(3):
        all_results(inputs, case)
    torch.cuda.synchronize(gpu)

    def taken_elsewhere():
        free, total = torch.cuda.mem_get_info(gpu)
        return total - free - torch.cuda.memory_reserved(gpu)

    before = taken_elsewhere()
    for _ in range(10):
        all_results(inputs, case)
    torch.cuda.synchronize(gpu)
    assert taken_elsewhere() == before


def test_memory_is_given_back(gpu):
    case = CASES[4]
    inputs = on(gpu, case)
    all_results(inputs, case)
    torch.cuda.synchronize(gpu)
    before = torch.cuda.memory_allocated(gpu)
    for _ in range(5):
        all_results(inputs, case)
    torch.cuda.synchronize(gpu)
    assert torch.cuda.memory_allocated(gpu) == before


# ---- Spectra -------------------------------------------------------------------------------------


def make(inputs, case):
    return filter_spectrum(
        *(inputs["k"], inputs["k_rev"]),
        **{"skip": inputs["skip"], "length": case.length, "circular": case.circular},
        backend="native",
    )


@by_case
def test_a_spectrum_equals_its_filter(gpu, case):
    inputs = on(gpu, case)
    spectrum = make(inputs, case)
    assert spectrum.device == gpu
    gates = {name: inputs[name] for name in GATES}
    assert torch.equal(fft_conv(inputs["u"], spectrum, **gates), call(inputs, case))


@by_case
def test_the_size_of_a_spectrum_is_known_without_a_gpu(gpu, case):
    """What the compiler believes, from _host, is what the kernels make."""
    data = make(on(gpu, case), case).data
    shared = backends.shared_bytes(gpu.index)
    size = _native.host.spectrum_floats(case.channels, case.length, shared_bytes=shared)
    assert data.shape == (size,)
    with FakeTensorMode():
        k = torch.empty(case.channels, case.length, device="cuda")
        fake = ops().filter_spectrum(k, None, None, case.length, case.circular)
        assert fake.shape == data.shape


def test_a_spectrum_belongs_to_its_device(gpu):
    u, k = torch.ones(1, 3, 8), torch.ones(3, 8)
    there, here = (filter_spectrum(k.to(d), length=8, backend="native") for d in (gpu, "cpu"))
    with pytest.raises(ValueError, match=f"k is on {gpu}, u on cpu"):
        fft_conv(u, there)
    with pytest.raises(ValueError, match=f"k is on cpu, u on {gpu}"):
        fft_conv(u.to(gpu), here)
    moved = FilterSpectrum(here.data.to(gpu), 3, 8, False, "native")  # of the CPU's order
    with pytest.raises(RuntimeError, match="spectrum"):
        fft_conv(u.to(gpu), moved)


def test_data_that_is_no_spectrum(gpu):
    u = torch.ones(2, 3, 8, device=gpu)
    made = filter_spectrum(torch.ones(3, 8, device=gpu), length=8, backend="native").data
    twice = torch.cat([made, made])
    misaligned = twice[1 : 1 + made.numel()]
    for data in (made[:0], made[:-1], made.double(), made[None], twice[::2], misaligned):
        with pytest.raises(RuntimeError, match="spectrum"):
            fft_conv(u, FilterSpectrum(data, 3, 8, False, "native"))


# ---- Mixed devices, and torch's transformations --------------------------------------------------


@pytest.mark.parametrize("name", ["k", "k_rev", "skip", "pregate", "postgate"])
def test_a_tensor_left_on_the_cpu(gpu, name):
    """The public function and the operator both refuse it; a kernel would read wild memory."""
    case = CASES[0]
    inputs = on(gpu, case)
    inputs[name] = inputs[name].cpu()
    with pytest.raises(ValueError, match=r"is on (cpu|cuda)"):
        call(inputs, case)
    arguments = [inputs[n] for n in ("u", *FILTERS)], [inputs[n] for n in GATES]
    with pytest.raises(RuntimeError, match=f"{name} is not on the device"):
        ops().fft_conv_fwd(*arguments[0], None, *arguments[1], False)


def test_u_left_on_the_cpu(gpu):
    with pytest.raises(RuntimeError, match="expected CUDA tensors"):
        ops().fft_conv_fwd(
            torch.ones(1, 3, 8), torch.ones(3, 8, device=gpu), None, None, None, None, None, False
        )


@by_case
@pytest.mark.parametrize("spectrum", [False, True], ids=["filter", "spectrum"])
def test_opcheck(gpu, case, spectrum):
    inputs = on(gpu, case)
    filters, made = [inputs[n] for n in FILTERS], None
    if spectrum:
        made, filters = make(inputs, case).data, [None] * 3
    arguments = (inputs["u"], *filters, made, *(inputs[n] for n in GATES), case.circular)
    torch.library.opcheck(ops().fft_conv_fwd.default, arguments)
    needs = (True, not spectrum, True, True)
    torch.library.opcheck(ops().fft_conv_bwd.default, (inputs["dy"], *arguments, *needs))


@by_case
def test_opcheck_filter_spectrum(gpu, case):
    inputs = on(gpu, case)
    arguments = (*(inputs[n] for n in FILTERS), case.length, case.circular)
    torch.library.opcheck(ops().filter_spectrum.default, arguments)


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(gpu, fresh_dynamo, compiler):
    if compiler == "inductor":
        pytest.importorskip("triton")
    compiled = torch.compile(fft_conv, fullgraph=True, backend=compiler)
    for case in CASES[:4]:
        inputs = on(gpu, case)
        assert_same_bits(all_results(inputs, case, compiled), all_results(inputs, case))


def test_compile_dynamic_does_not_recompile(gpu, fresh_dynamo):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fft_conv, fullgraph=True, dynamic=True, backend=counter)
    for batch, channels, length in [(2, 3, 50), (4, 5, 64), (3, 17, 257), (7, 2, 999)]:
        case = Case("dynamic", batch, channels, length, reverse_taps=length, **FULL)
        inputs = on(gpu, case)
        assert_same_bits(all_results(inputs, case, compiled), all_results(inputs, case))
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(gpu, dtype):
    case = Case("autocast", 2, 3, 300, **FULL)
    inputs = on(gpu, case)
    with torch.autocast("cuda", dtype=dtype):
        y = call(inputs, case)
    assert y.dtype == dtype
    rounded = {n: t.to(dtype) if n in ("u", *GATES) else t for n, t in inputs.items()}
    assert torch.equal(y, call(rounded, case))


def test_the_profiler_shows_the_operators_and_their_kernels(gpu):
    case = CASES[1]
    inputs = on(gpu, case)
    all_results(inputs, case)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        all_results(inputs, case)
        torch.cuda.synchronize(gpu)
    times = {e.key: e.device_time_total for e in profile.key_averages()}
    assert times["monarch_kernels::fft_conv_fwd"] > 0
    assert times["monarch_kernels::fft_conv_bwd"] > 0
