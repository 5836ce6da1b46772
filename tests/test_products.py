"""What block_diagonal, monarch_matmul and glu_mlp have in common, by their table of cases."""

import subprocess
import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from monarch_kernels import _native, backends
from monarch_kernels.testing import (
    PRODUCT_CASES,
    ProductCase,
    check_product,
    product_inputs,
    run_product,
    with_layout,
)

FULL = ("bias", "norm_weight", "norm_bias", "residual")
SMALL = (
    ProductCase("block_diagonal", "small", (3, 7), ((2, 3, 4),), ("bias",)),
    ProductCase("monarch_matmul", "small", (3, 7), ((2, 3, 4), (3, 3, 2)), ("bias",)),
    ProductCase("glu_mlp", "small", (3, 5), ((2, 4, 3), (2, 3, 2)), FULL),
    ProductCase("glu_mlp", "plain", (3, 4), ((2, 3, 2), (2, 2, 3)), FULL[:1], {"gated": False}),
)
# Enough rows and columns for every thread to get work, in every phase.
LARGE = (
    ProductCase("block_diagonal", "few", (6, 200), ((4, 300, 50),), ("bias",)),
    ProductCase("block_diagonal", "many", (1100, 200), ((4, 300, 50),), ("bias",)),
    ProductCase("monarch_matmul", "many", (700, 128), ((4, 64, 32), (16, 16, 16)), ("bias",)),
    ProductCase("glu_mlp", "few", (40, 96), ((4, 200, 24), (4, 24, 100)), FULL),
    ProductCase("glu_mlp", "many", (1100, 96), ((4, 200, 24), (4, 24, 100)), FULL),
    ProductCase(
        "glu_mlp", "bf16", (1100, 96), ((4, 200, 24), (4, 24, 100)), FULL, dtype="bfloat16"
    ),
)
by_small = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
by_large = pytest.mark.parametrize("case", LARGE, ids=lambda case: case.id)


def assert_same_bits(first, second, but=()):
    assert first.keys() == second.keys()
    for name in first.keys() - set(but):
        assert torch.equal(first[name], second[name]), name


@pytest.mark.usefixtures("one_thread", "poison")
@pytest.mark.parametrize("case", PRODUCT_CASES, ids=lambda case: case.id)
def test_result_and_gradients(products, case):
    check_product(products(case.operator), case)


@pytest.mark.usefixtures("one_thread", "poison")
@pytest.mark.parametrize("case", PRODUCT_CASES, ids=lambda case: case.id)
def test_result_without_gradients(native_products, case):
    """glu_mlp normalises by itself then."""
    function = torch.no_grad()(native_products(case.operator))
    check_product(function, case, gradients=False)


@pytest.mark.usefixtures("one_thread")
@by_large
@pytest.mark.parametrize(
    "wrong", [lambda y: 0 * y, lambda y: y.roll(1, -1), lambda y: y.roll(1, 0), lambda y: 1.02 * y]
)
def test_wrong_results_fail(best_products, case, wrong):
    function = best_products(case.operator)
    with pytest.raises(AssertionError, match=case.id):
        check_product(lambda *a, **k: wrong(function(*a, **k)), case)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@by_large
def test_same_bits_for_any_number_of_threads(native_products, case, threads):
    function, inputs = native_products(case.operator), product_inputs(case)
    threads(1)
    first = run_product(function, case, inputs)
    with torch.no_grad():
        alone = function(*_arguments(case, inputs)[0], **_arguments(case, inputs)[1])
    for count in (1, 2, 3):
        threads(count)
        # The norm's own gradients are torch's, which sums each thread's rows first.
        but = ("dnorm_weight", "dnorm_bias")
        assert_same_bits(first, run_product(function, case, inputs), but)
        with torch.no_grad():
            positional, named = _arguments(case, inputs)
            assert torch.equal(function(*positional, **named), alone)


def _arguments(case, inputs):
    count = {"block_diagonal": 2}.get(case.operator, 3)
    given = {n: t for n, t in inputs.items() if n != "dy"}
    names = list(given)
    named = {n: given[n] for n in names[count:]} | case.options
    return [given[n] for n in names[:count]], named


@pytest.mark.usefixtures("one_thread")
@by_large
def test_a_row_does_not_depend_on_the_others(native_products, case):
    """Rows 10 to 29 alone have the same bits; NaN and infinity stay in their row."""
    if case.shape[0] < 30:
        pytest.skip("too few rows")
    function, inputs = native_products(case.operator), product_inputs(case)
    whole = run_product(function, case, inputs)
    by_row = ("x", "residual", "dy")
    part = {n: t[10:30] if n in by_row else t for n, t in inputs.items()}
    found = run_product(function, case, part)
    for name in ("y", "dx"):
        assert torch.equal(found[name], whole[name][10:30]), name
    for value in (float("nan"), float("inf")):
        bad = dict(inputs, x=inputs["x"].clone())
        bad["x"][17, 3] = value
        results = run_product(function, case, bad)
        rows = torch.arange(case.shape[0]) != 17
        for name in ("y", "dx"):
            assert torch.equal(results[name][rows], whole[name][rows]), name
        assert not results["y"][17].isfinite().all()
    assert_same_bits(run_product(function, case, inputs), whole)  # nothing is left in scratch


@pytest.mark.usefixtures("one_thread")
@by_large
@pytest.mark.parametrize("layout", ["transposed", "sliced", "strided"])
def test_layout_does_not_change_a_bit(best_products, case, layout):
    function, inputs = best_products(case.operator), product_inputs(case)
    laid = {n: with_layout(t, layout) if t.dim() > 1 else t for n, t in inputs.items()}
    expected = run_product(function, case, inputs)
    actual = run_product(function, case, laid)
    assert_same_bits(actual, expected)


@pytest.mark.usefixtures("one_thread")
@by_small
def test_one_gradient_alone_has_the_same_bits(products, case):
    function, inputs = products(case.operator), product_inputs(case)
    every = run_product(function, case, inputs)
    for wanted in inputs:
        if wanted == "dy":
            continue
        given = {n: t.detach().clone() for n, t in inputs.items()}
        leaf = given[wanted].requires_grad_()
        positional, named = _arguments(case, given)
        (grad,) = torch.autograd.grad(function(*positional, **named), leaf, inputs["dy"])
        assert torch.equal(grad, every[f"d{wanted}"]), wanted


# ---- Derivatives by finite differences -----------------------------------------------------------


def as_function(function, case, dtype):
    inputs = product_inputs(case)
    names = [n for n in inputs if n != "dy"]
    tensors = [inputs[n].to(dtype).requires_grad_() for n in names]

    def of_tensors(*values):
        positional, named = _arguments(case, dict(zip(names, values, strict=True)))
        return function(*positional, **named)

    return of_tensors, tensors


pytestmark = pytest.mark.filterwarnings("ignore:Input #:UserWarning")


@pytest.mark.usefixtures("one_thread")
@by_small
def test_derivatives_of_the_reference(case):
    from monarch_kernels.testing.products import of_reference

    of_tensors, tensors = as_function(of_reference(case), case, torch.float64)
    assert gradcheck(of_tensors, tensors)
    assert gradgradcheck(of_tensors, tensors)


@pytest.mark.usefixtures("one_thread")
@by_small
def test_derivatives(native_products, case):
    """In float32: a step of 2^-5 divides rounding errors by 2^-4; its own error is of order 2^-10.

    glu_mlp's norm has large third derivatives, hence the tolerance, which a wrong sign or a missing
    term exceeds.
    """
    of_tensors, tensors = as_function(native_products(case.operator), case, torch.float32)
    if case.operator != "glu_mlp":  # linear in each argument
        tolerance = {"eps": 0.5, "atol": 1e-5, "rtol": 1e-5}
    else:
        tolerance = {"eps": 2**-5, "atol": 2e-2, "rtol": 2e-2}
    assert gradcheck(of_tensors, tensors, **tolerance)
    if case.operator == "glu_mlp":
        _same_second_derivatives(native_products, case)
    else:
        assert gradgradcheck(of_tensors, tensors, **tolerance)


def _same_second_derivatives(products, case):
    """Those of the reference in float64, which test_derivatives_of_the_reference has checked."""
    from monarch_kernels.testing.products import of_reference

    found = []
    for function, dtype in (
        (of_reference(case), torch.float64),
        (products(case.operator), torch.float32),
    ):
        of_tensors, tensors = as_function(function, case, dtype)
        y = of_tensors(*tensors)
        weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)
        first = torch.autograd.grad((y * weights).sum(), tensors, create_graph=True)
        total = sum(
            (g * torch.cos(torch.arange(g.numel(), dtype=dtype)).reshape(g.shape)).sum()
            for g in first
        )
        found.append(torch.autograd.grad(total, tensors, allow_unused=True))
    for exact, actual in zip(*found, strict=True):
        if exact is None or actual is None:
            assert exact is None or exact.abs().max() == 0
            assert actual is None or actual.abs().max() == 0
            continue
        scale = exact.square().mean().sqrt()
        assert (actual - exact).abs().max() <= 2e-5 * max(scale, 1)


# ---- As torch's transformations see them ---------------------------------------------------------


def op_arguments(case, *, requires_grad=False):
    """The registered operator's arguments, in its order."""
    inputs = product_inputs(case)
    given = {n: t.clone().requires_grad_(requires_grad) for n, t in inputs.items() if n != "dy"}
    if case.operator == "glu_mlp":
        tensors = [given.get(n) for n in ("x", "w_in", "w_out", "bias", "residual")]
        return (*tensors, None, None, 1e-5, case.options.get("gated", True))
    weights = ("w",) if case.operator == "block_diagonal" else ("w1", "w2")
    return (*(given.get(n) for n in ("x", *weights, "bias")), case.out_features)


@pytest.mark.usefixtures("one_thread")
@by_small
def test_opcheck(best_products, case):
    ops = torch.ops.monarch_kernels
    forward = getattr(ops, f"{case.operator}_fwd").default
    assert torch.Tag.pt2_compliant_tag in forward.tags
    for requires_grad in (False, True):
        torch.library.opcheck(forward, op_arguments(case, requires_grad=requires_grad))
    x, *weights = op_arguments(case)[: {"block_diagonal": 2}.get(case.operator, 3)]
    dy = product_inputs(case)["dy"]
    if case.operator == "block_diagonal":
        torch.library.opcheck(ops.block_diagonal_bwd.default, (dy, x, *weights, True, True, True))
        torch.library.opcheck(ops.block_diagonal_bwd.default, (dy, x, *weights, False, False, True))
    if case.operator == "glu_mlp":
        gated = case.options.get("gated", True)
        for needs in ((True, True, True), (True, False, False), (False, True, False)):
            torch.library.opcheck(ops.glu_mlp_bwd.default, (dy, x, *weights, gated, *needs))


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("one_thread", "fresh_dynamo")
@by_small
def test_compile(best_products, case):
    function = best_products(case.operator)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = product_inputs(case)
    assert_same_bits(run_product(compiled, case, inputs), run_product(function, case, inputs))


@pytest.mark.usefixtures("one_thread", "fresh_dynamo")
@by_small
def test_compile_dynamic_does_not_recompile(best_products, case):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    function = best_products(case.operator)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for rows in (11, 23, 40):  # none is another size: equal sizes share a symbol
        sized = ProductCase(
            case.operator, "rows", (rows, case.shape[-1]), case.weights, case.vectors, case.options
        )
        inputs = product_inputs(sized)
        assert_same_bits(run_product(compiled, sized, inputs), run_product(function, sized, inputs))
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1  # eps, a float, has torch begin the first one twice


@pytest.mark.usefixtures("one_thread")
@by_small
def test_autocast(products, case):
    """x, weights and the residual are cast, vectors are not."""
    function, inputs = products(case.operator), product_inputs(case)
    positional, named = _arguments(case, inputs)
    leaves = [t.detach().clone().requires_grad_() for t in positional]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = function(*leaves, **named)
    assert y.dtype == torch.bfloat16
    if "residual" in named:
        named["residual"] = named["residual"].bfloat16()
    expected = [t.detach().bfloat16().requires_grad_() for t in positional]
    assert torch.equal(y, function(*expected, **named))
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in leaves)


@by_small
def test_meta_tensors(products, case):
    inputs = {n: t.to("meta") for n, t in product_inputs(case).items()}
    for name, t in run_product(products(case.operator), case, inputs).items():
        like = inputs["dy" if name == "y" else name[1:]]
        assert (t.device.type, t.shape, t.dtype) == ("meta", like.shape, like.dtype), name


# ---- Backends ------------------------------------------------------------------------------------


@by_small
def test_backends(best_products, case, monkeypatch):
    x = product_inputs(case)["x"]
    assert backends.select(None, x, case.operator) == "native"
    assert backends.select(None, x.double(), case.operator) == "reference"
    monkeypatch.setattr(_native, "available", False)
    monkeypatch.setattr(_native, "reason", "left at home")
    assert backends.select(None, x, case.operator) == "reference"
    positional, named = _arguments(case, product_inputs(case))
    with pytest.raises(RuntimeError, match="backend 'native' is not available: left at home"):
        best_products(case.operator)(*positional, **named)


@by_small
def test_without_its_kernels_a_gpu_has_the_reference(case, monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(_native, "available", True)
    monkeypatch.setattr(_native, "build", {"cuda_operators": "fft_conv"})
    with FakeTensorMode():
        x = torch.empty(2, 8, device="cuda")
        assert backends.select(None, x, case.operator) == "reference"
        reason = f"{case.operator} has no CUDA kernel yet: use backend="
        with pytest.raises(RuntimeError, match=reason):
            backends.select("native", x, case.operator)
        record = {"cuda_operators": f"fft_conv {case.operator}", "cuda_archs": "90-real"}
        monkeypatch.setattr(_native, "build", record)
        monkeypatch.setattr(backends, "cuda_unsupported", lambda index: None)
        assert backends.select(None, x, case.operator) == "native"


# ---- The operators themselves: whatever they are given, they raise or return, and never crash ----

FUZZ = """
import random, torch
import monarch_kernels
ops = torch.ops.monarch_kernels
torch.set_num_threads(2)
random.seed(0)
size = lambda: random.choice((0, 1, 2, 3, 5, 16, 17, 40, 100))
dtypes = (torch.float32,) * 100 + (torch.bfloat16, torch.float16, torch.float64, torch.int32)

def tensor(*shape):
    if random.random() < 0.05:
        shape = [size() for _ in range(random.randint(0, 4))]
    t = torch.zeros(shape, dtype=random.choice(dtypes))
    if random.random() < 0.2 and t.dim() > 1:
        t = t.transpose(0, -1)
    return t

maybe = lambda *shape: tensor(*shape) if random.random() < 0.5 else None
flag = lambda: random.random() < 0.5
returned = raised = 0
for _ in range(1500):
    m, p, q, c = size(), random.choice((1, 2, 3, 4)), size(), size()
    n, out = max(p * c - random.choice((0, 0, 1)), 0), max(p * q - random.choice((0, 0, 1)), 0)
    try:
        which = random.randrange(5)
        if which == 0:
            ops.block_diagonal_fwd(tensor(m, n), tensor(p, q, c), maybe(out), out)
        elif which == 1:
            needs = flag(), flag(), flag()
            ops.block_diagonal_bwd(tensor(m, out), tensor(m, n), tensor(p, q, c), *needs)
        elif which == 2:
            s = size()
            w2 = tensor(q, s, p)
            ops.monarch_matmul_fwd(tensor(m, n), tensor(p, q, c), w2, maybe(q * s), q * s)
        else:
            gated = flag()
            weights = tensor(p, (1 + gated) * q, c), tensor(p, c, q)
            if which == 3:
                vectors = maybe(n), maybe(m, n), maybe(n), maybe(n)
                ops.glu_mlp_fwd(tensor(m, n), *weights, *vectors, 1e-5, gated)
            else:
                needs = flag(), flag(), flag()
                ops.glu_mlp_bwd(tensor(m, n), tensor(m, n), *weights, gated, *needs)
        returned += 1
    except (RuntimeError, NotImplementedError):
        raised += 1
print(returned, raised)
"""


def test_bad_shapes_never_crash(best_products):
    done = subprocess.run([sys.executable, "-c", FUZZ], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    returned, raised = map(int, done.stdout.split())
    assert min(returned, raised) > 200, "the shapes are all good, or all bad"
