"""The matrix products on a GPU. Every test skips without one that the kernels run on."""

import pytest
import torch

import monarch_kernels
from monarch_kernels import reference
from monarch_kernels.testing.products import (
    FULL,
    PRODUCT_CASES,
    ProductCase,
    check_product,
    product_inputs,
    run_product,
)
from tests.conftest import poison_gpu, to_gpu

pytestmark = pytest.mark.gpu

# M2-BERT's MLP with rows for every multiprocessor: one kernel, where shared memory suffices.
MLP = ((4, 1536, 192), (4, 192, 768))
LARGE = (
    ProductCase("block_diagonal", "large", (1000, 768), ((4, 768, 192),), ("bias",)),
    ProductCase("monarch_matmul", "large", (1000, 768), ((32, 96, 24), (32, 96, 96)), ("bias",)),
    ProductCase("glu_mlp", "large", (5000, 768), MLP, FULL),
    ProductCase("glu_mlp", "large_bfloat16", (5000, 768), MLP, FULL, dtype="bfloat16"),
)
by_case = pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name + "-" + case.operator)


def on_gpu(case, *, back=True):
    """The operator of a case on tensors of the CPU, computed on the GPU."""
    operator = getattr(monarch_kernels, case.operator)

    def function(*tensors, **options):
        poison_gpu()
        moved = {name: to_gpu(value) for name, value in options.items()}
        y = operator(*map(to_gpu, tensors), backend="native", **moved)
        return y.cpu() if back else y

    return function


@pytest.mark.parametrize("case", [*PRODUCT_CASES, *LARGE[:3]], ids=lambda case: case.id)
def test_every_case(gpu, case):
    check_product(on_gpu(case), case)


@by_case
def test_the_same_bits_every_time(gpu, case):
    inputs = product_inputs(case)
    first = run_product(on_gpu(case), case, inputs)
    for _ in range(3):
        again = run_product(on_gpu(case), case, inputs)
        for name, value in first.items():
            assert torch.equal(value, again[name]), name


def test_one_kernel_is_within_the_budget(gpu):
    """Without gradients, so that the normalisation is the kernel's own."""
    check_product(on_gpu(LARGE[3]), LARGE[3], gradients=False)


@by_case
def test_a_graph_captures_a_call(gpu, case):
    given = {n: t.to(gpu) for n, t in product_inputs(case).items() if n != "dy"}
    operator = getattr(monarch_kernels, case.operator)
    weights = list(given)[1 : 1 + len(case.weights)]
    rest = {n: t for n, t in given.items() if n not in ("x", *weights)}

    def call():
        return operator(given["x"], *(given[n] for n in weights), backend="native", **rest)

    expected = call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call()
    given["x"].mul_(2)
    graph.replay()
    assert not torch.equal(y, expected)
    assert torch.equal(y, call())


def test_more_rows_than_a_grid_dimension(gpu):
    x = torch.randn(70000 * 128, 8, device=gpu)
    w = torch.randn(2, 3, 4, device=gpu)
    y = monarch_kernels.block_diagonal(x, w, backend="native")
    exact = reference.block_diagonal(x[-1000:].double(), w.double(), None, 6)
    assert (y[-1000:] - exact).norm() <= 1e-6 * exact.norm()


def test_on_a_stream_of_its_own(gpu):
    x, w = torch.randn(4096, 768, device=gpu), torch.randn(4, 768, 192, device=gpu)
    expected = monarch_kernels.block_diagonal(x, w, backend="native")
    stream = torch.cuda.Stream(gpu)
    stream.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1 << 24)
        y = monarch_kernels.block_diagonal(2 * x, w, backend="native")
    stream.synchronize()
    assert torch.equal(y, 2 * expected)
