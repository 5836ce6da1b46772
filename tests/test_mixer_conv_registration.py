"""mixer_conv as torch sees it: opcheck, compile, export, autocast, meta tensors."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from monarch_kernels import filter_spectrum, mixer_conv
from monarch_kernels.testing import MixerCase, evaluate_mixer, make_mixer_inputs, white
from tests.test_fft_conv_registration import ops

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_dynamo")

CASES = (
    MixerCase("plain", 2, 3, 40, s_taps=None, s_bias=False, skip=False, residual=False),
    MixerCase("full", 2, 3, 40, reverse_taps=7),
    MixerCase("rows", 2, 3, 300, reverse_taps=300, u_layout="contiguous"),
    MixerCase("bfloat16", 2, 3, 300, reverse_taps=300, dtype="bfloat16"),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
NEEDS = ("need_q", "need_s", "need_filter", "need_u", "need_filter2")


def op_arguments(case, *, spectrum=False, requires_grad=False):
    given = {n: t if t is None else t.clone() for n, t in make_mixer_inputs(case).items()}
    tensors = [given["q"], given["s"], given["s_bias"]]
    spectra = []
    for names in (("k", "k_rev", "skip"), ("k2", "k2_rev", "skip2")):
        filters = [given[n] for n in names]
        made = None
        if spectrum and filters[0] is not None:
            made = ops().filter_spectrum(*filters, case.length, False)
            spectra.append(made)
            filters = [None] * 3
        tensors += [*filters, made]
        if names[0] == "k":
            tensors.append(given["u"])
    if requires_grad:
        constant = {id(t) for t in spectra}
        tensors = [
            t if t is None or id(t) in constant else t.detach().requires_grad_() for t in tensors
        ]
    return given["dz"], tuple(tensors)


@by_case
@pytest.mark.parametrize("spectrum", [False, True], ids=["filter", "spectrum"])
def test_opcheck(mixer_best, case, spectrum):
    for requires_grad in (False, True):
        dz, arguments = op_arguments(case, spectrum=spectrum, requires_grad=requires_grad)
        torch.library.opcheck(ops().mixer_conv_fwd.default, arguments)
        needs = (True, True, not spectrum, True, not spectrum)
        torch.library.opcheck(ops().mixer_conv_bwd.default, (dz, *arguments, *needs))
    torch.library.opcheck(ops().mixer_conv_bwd.default, (dz, *arguments, *[False] * 5))


@pytest.mark.parametrize("wanted", range(5), ids=lambda i: NEEDS[i])
def test_fake_tensors_of_the_operators_match(mixer_best, wanted):
    dz, arguments = op_arguments(CASES[3])
    needs = [i == wanted for i in range(5)]
    real = ops().mixer_conv_bwd(dz, *arguments, *needs)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in arguments]
        fake = ops().mixer_conv_bwd(mode.from_tensor(dz), *fakes, *needs)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_the_operators_are_tagged(mixer_best):
    for name in ("mixer_conv_fwd", "mixer_conv_bwd", "short_conv_fwd", "short_conv_bwd"):
        assert torch.Tag.pt2_compliant_tag in getattr(ops(), name).default.tags


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(mixer_best, compiler):
    """Same bits as without the compiler, in one graph, forward and backward."""
    case = MixerCase("compiled", 2, 3, 50, reverse_taps=50)
    compiled = torch.compile(mixer_best, fullgraph=True, backend=compiler)
    expected = evaluate_mixer(mixer_best, make_mixer_inputs(case))
    actual = evaluate_mixer(compiled, make_mixer_inputs(case))
    for name, t in expected.items():
        assert torch.equal(actual[name], t), name


def test_compile_dynamic_does_not_recompile(mixer_best):
    """One graph for every batch, length and number of channels, forward and backward."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixer_best, fullgraph=True, dynamic=True, backend=counter)
    for batch, channels, length in [(2, 3, 50), (4, 5, 64), (3, 17, 257), (7, 2, 999)]:
        # Not 3 taps: the compiler takes equal numbers of the first call for the same number.
        case = MixerCase("dynamic", batch, channels, length, reverse_taps=length, s_taps=4)
        expected = evaluate_mixer(mixer_best, make_mixer_inputs(case))
        actual = evaluate_mixer(compiled, make_mixer_inputs(case))
        for name, t in expected.items():
            assert torch.equal(actual[name], t), (case, name)
    assert counter.frame_count == 1


def test_compile_with_spectra(mixer_best):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixer_best, fullgraph=True, dynamic=True, backend=counter)
    k = filter_spectrum(white(3, 64), length=64, backend="native")
    for batch in (2, 3, 5):
        q, u = white(batch, 9, 64).requires_grad_(), white(batch, 3, 64, seed=1)
        z = compiled(q, k, u=u, k2=k)
        expected = mixer_best(q, k, u=u, k2=k)
        assert torch.equal(z, expected)
        (dq,) = torch.autograd.grad(z, q, torch.ones_like(z))
        assert torch.equal(dq, torch.autograd.grad(expected, q, torch.ones_like(z))[0])
    assert counter.frame_count == 1


class Module(torch.nn.Module):
    def __init__(self, length):
        super().__init__()
        self.k = torch.nn.Parameter(white(3, length))
        self.s = torch.nn.Parameter(white(9, 3))

    def forward(self, q, u):
        return mixer_conv(q, self.k, s=self.s, k_rev=self.k, u=u.transpose(1, 2), k2=self.k)


def test_export_with_dynamic_batch(mixer_best):
    module = Module(40)
    batch = torch.export.Dim("batch")
    example = (white(2, 9, 40), white(2, 40, 3))
    shapes = {"q": {0: batch}, "u": {0: batch}}
    program = torch.export.export(module, example, dynamic_shapes=shapes)
    assert ops().mixer_conv_fwd.default in {node.target for node in program.graph.nodes}
    for size in (2, 5):
        given = white(size, 9, 40), white(size, 40, 3, seed=1)
        assert torch.equal(program.module()(*given), module(*given))


def test_autocast(mixer):
    case = MixerCase("autocast", 2, 3, 40, reverse_taps=40)
    inputs = {n: t for n, t in make_mixer_inputs(case).items() if n != "dz"}
    inputs = {n: t.clone().requires_grad_() for n, t in inputs.items()}
    options = {n: t for n, t in inputs.items() if n not in ("q", "k")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = mixer(inputs["q"], inputs["k"], **options)
    assert z.dtype == torch.bfloat16
    cast = options | {"u": inputs["u"].bfloat16()}
    assert torch.equal(z, mixer(inputs["q"].bfloat16(), inputs["k"], **cast))
    z.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in inputs.values())


@by_case
def test_meta_tensors(mixer, case):
    inputs = {n: t if t is None else t.to("meta") for n, t in make_mixer_inputs(case).items()}
    results = evaluate_mixer(mixer, inputs)
    for name, t in results.items():
        like = inputs["dz" if name == "z" else name[1:]]
        assert (t.device.type, t.shape, t.dtype) == ("meta", like.shape, like.dtype), name
