"""fft_conv as torch's transformations see it: opcheck, compile, export, autocast, meta tensors."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from monarch_kernels import fft_conv, filter_spectrum
from monarch_kernels.testing import Case, evaluate, make_inputs, white

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_dynamo")

FULL = {"skip": True, "pregate": True, "postgate": True}
FILTERS = ("k", "k_rev", "skip")
CASES = (
    Case("plain", 2, 3, 40),
    Case("full", 2, 3, 40, reverse_taps=7, **FULL),
    Case("circular", 2, 3, 300, circular=True, skip=True),
    Case("bfloat16", 2, 3, 300, reverse_taps=300, dtype="bfloat16", **FULL),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def ops():
    return torch.ops.monarch_kernels


def op_arguments(case, *, spectrum=False, requires_grad=False):
    given = {n: t if t is None else t.clone() for n, t in make_inputs(case).items()}
    filters = [given[n] for n in FILTERS]
    made = None
    if spectrum:
        made = ops().filter_spectrum(*filters, case.length, case.circular)
        filters = [None] * 3
    tensors = [given["u"], *filters, made, given["pregate"], given["postgate"]]
    if requires_grad:
        tensors = [t if t is None or t is made else t.detach().requires_grad_() for t in tensors]
    return given["dy"], (*tensors, case.circular)


@by_case
@pytest.mark.parametrize("spectrum", [False, True], ids=["filter", "spectrum"])
def test_opcheck(native_best, case, spectrum):
    for requires_grad in (False, True):
        dy, arguments = op_arguments(case, spectrum=spectrum, requires_grad=requires_grad)
        torch.library.opcheck(ops().fft_conv_fwd.default, arguments)
        needs = (True, not spectrum, True, True)
        torch.library.opcheck(ops().fft_conv_bwd.default, (dy, *arguments, *needs))
    nothing = (False, False, False, False)
    torch.library.opcheck(ops().fft_conv_bwd.default, (dy, *arguments, *nothing))


# Poisoned alike for both of opcheck's runs: tests/test_spectrum.py has the header's unused part.
@pytest.mark.usefixtures("poison")
@by_case
def test_opcheck_filter_spectrum(native_best, case):
    inputs = make_inputs(case)
    arguments = (*(inputs[n] for n in FILTERS), case.length, case.circular)
    torch.library.opcheck(ops().filter_spectrum.default, arguments)


def test_the_operators_are_tagged(native_best):
    for op in (ops().fft_conv_fwd, ops().fft_conv_bwd, ops().filter_spectrum):
        assert torch.Tag.pt2_compliant_tag in op.default.tags


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(native_best, compiler):
    """Same bits as without the compiler, in one graph, forward and backward."""
    case = Case("compiled", 2, 3, 50, reverse_taps=50, **FULL)
    compiled = torch.compile(native_best, fullgraph=True, backend=compiler)
    expected = evaluate(native_best, make_inputs(case), circular=False)
    actual = evaluate(compiled, make_inputs(case), circular=False)
    for name, t in expected.items():
        assert torch.equal(actual[name], t), name


def test_compile_dynamic_does_not_recompile(native_best):
    """One graph for every batch, length and number of channels, forward and backward."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(native_best, fullgraph=True, dynamic=True, backend=counter)
    for batch, channels, length in [(2, 3, 50), (4, 5, 64), (3, 17, 257), (7, 2, 999)]:
        case = Case("dynamic", batch, channels, length, reverse_taps=length, **FULL)
        expected = evaluate(native_best, make_inputs(case), circular=False)
        actual = evaluate(compiled, make_inputs(case), circular=False)
        for name, t in expected.items():
            assert torch.equal(actual[name], t), (case, name)
    assert counter.frame_count == 1


def test_compile_with_a_spectrum(native_best):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(native_best, fullgraph=True, dynamic=True, backend=counter)
    k = white(3, 64)
    spectrum = filter_spectrum(k, length=64, backend="native")
    for batch in (2, 3, 5):
        u = white(batch, 3, 64).requires_grad_()
        y = compiled(u, spectrum)
        assert torch.equal(y, native_best(u, spectrum))
        (du,) = torch.autograd.grad(y, u, torch.ones_like(y))
        (expected,) = torch.autograd.grad(native_best(u, k), u, torch.ones_like(y))
        assert torch.equal(du, expected)
    assert counter.frame_count == 1


def test_compile_makes_a_spectrum(native_best):
    """Its size depends on the length by a table: each length is a graph of its own."""

    def both(u, k):
        return fft_conv(u, filter_spectrum(k, length=u.shape[-1], backend="native"))

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for length in (64, 300):
        u, k = white(2, 3, length), white(3, length, seed=1)
        assert torch.equal(compiled(u, k), both(u, k))


class Module(torch.nn.Module):
    def __init__(self, length):
        super().__init__()
        self.k = torch.nn.Parameter(white(3, length))

    def forward(self, u):
        return fft_conv(u, self.k, k_rev=self.k, pregate=u)


def test_export_with_dynamic_batch(native_best):
    module = Module(40)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (white(2, 3, 40),), dynamic_shapes={"u": {0: batch}})
    targets = {node.target for node in program.graph.nodes}
    assert ops().fft_conv_fwd.default in targets
    for size in (2, 5):
        u = white(size, 3, 40)
        assert torch.equal(program.module()(u), module(u))


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_autocast(implementation, gated):
    u, k = white(2, 3, 40).requires_grad_(), white(3, 40, seed=1).requires_grad_()
    gates = {"pregate": white(2, 3, 40, seed=2).requires_grad_()} if gated else {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = implementation(u, k, **gates)
    assert y.dtype == torch.bfloat16
    expected = implementation(u.bfloat16(), k, **{n: t.bfloat16() for n, t in gates.items()})
    assert torch.equal(y, expected)
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in (u, k, *gates.values()))
    with torch.autocast("cpu", enabled=False):
        assert implementation(u, k).dtype == torch.float32


@by_case
def test_meta_tensors(implementation, case):
    inputs = {n: t if t is None else t.to("meta") for n, t in make_inputs(case).items()}
    results = evaluate(implementation, inputs, circular=case.circular)
    for name, t in results.items():
        like = inputs["u" if name == "y" else name[1:]]
        assert (t.device.type, t.shape, t.dtype) == ("meta", like.shape, like.dtype), name


def test_fake_tensors_of_the_operators_match(native_best):
    dy, arguments = op_arguments(CASES[3])
    real = ops().fft_conv_bwd(dy, *arguments, True, True, True, False)
    with FakeTensorMode() as mode:
        fake_arguments = [
            mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in arguments
        ]
        fake = ops().fft_conv_bwd(mode.from_tensor(dy), *fake_arguments, True, True, True, False)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
