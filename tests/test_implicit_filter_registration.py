"""implicit_filter as a registered operator: opcheck, fake tensors, torch.compile, autocast."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from monarch_kernels.testing import FilterCase, evaluate_filter, filter_inputs

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_dynamo")

CASES = (
    FilterCase("plain", 2, 20, 5, 4, freq=0.5),
    FilterCase("no_hidden", 1, 7, 3, 2, 1, 0, freq=0.5),
    FilterCase("expanded", 3, 9, 3, 2, layout="expanded"),
    FilterCase("empty", 0, 9, 3, 2),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def ops():
    return torch.ops.monarch_kernels


def op_arguments(case, requires_grad=False):
    """dk, and the operator's other tensors."""
    given = dict(filter_inputs(case))
    dk = given.pop("dk")
    tensors = [t.detach().requires_grad_(requires_grad and n != "t") for n, t in given.items()]
    return dk, tuple(tensors)


@by_case
def test_opcheck(filters_best, case):
    dk, tensors = op_arguments(case)
    torch.library.opcheck(ops().implicit_filter_fwd.default, tensors)
    for needs in ((True, True, True), (True, False, False), (False, True, False)):
        arguments = (dk, *tensors, *needs)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(ops().implicit_filter_bwd.default, arguments, test_utils=tests)


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.name)
def test_opcheck_of_derivatives(filters_best, case):
    dk, tensors = op_arguments(case, requires_grad=True)
    torch.library.opcheck(ops().implicit_filter_fwd.default, tensors)
    torch.library.opcheck(ops().implicit_filter_bwd.default, (dk, *tensors, *[True] * 3))


def test_the_operators_are_tagged(filters_best):
    for name in ("implicit_filter_fwd", "implicit_filter_bwd"):
        assert torch.Tag.pt2_compliant_tag in getattr(ops(), name).default.tags


def test_compile(filters_best):
    """Same bits as without the compiler, in one graph, forward and backward."""
    inputs = filter_inputs(FilterCase("compiled", 2, 70, 5, 4, shared=True))
    compiled = torch.compile(filters_best, fullgraph=True, backend="aot_eager")
    expected = evaluate_filter(filters_best, inputs)
    for name, t in evaluate_filter(compiled, inputs).items():
        assert torch.equal(t, expected[name]), name


def test_compile_dynamic_does_not_recompile(filters_best):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(filters_best, fullgraph=True, dynamic=True, backend=counter)
    # No two sizes are equal in the first call: the compiler would take them for the same number.
    for sizes in ((2, 70, 5, 4, 3, 6), (3, 90, 7, 9, 8, 5), (5, 130, 20, 6, 4, 2)):
        inputs = filter_inputs(FilterCase("dynamic", *sizes))
        expected = evaluate_filter(filters_best, inputs)
        for name, t in evaluate_filter(compiled, inputs).items():
            assert torch.equal(t, expected[name]), (sizes, name)
    assert counter.frame_count == 1


def test_autocast_changes_nothing(filters):
    def under_autocast(**arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return filters(**arguments)

    inputs = filter_inputs(CASES[0])
    expected = evaluate_filter(filters, inputs)
    for name, t in evaluate_filter(under_autocast, inputs).items():
        assert torch.equal(t, expected[name]), name


@by_case
def test_meta_tensors(filters, case):
    inputs = {n: t.to("meta") for n, t in filter_inputs(case).items()}
    for name, t in evaluate_filter(filters, inputs).items():
        like = inputs["dk" if name == "k" else name[1:]]
        assert (t.device.type, t.shape, t.dtype) == ("meta", like.shape, like.dtype), name


def test_result_is_contiguous(filters):
    k = evaluate_filter(filters, filter_inputs(CASES[0]), gradients=False)["k"]
    assert k.is_contiguous()
    assert k.shape == (2, 5, 20)
    assert k.dtype == torch.float32
