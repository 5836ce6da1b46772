"""The CUDA kernels of the matrix products, forward and backward, and their launchers."""

from dataclasses import replace

import pytest
import torch

from monarch_kernels.testing.products import (
    FULL,
    PRODUCT_CASES,
    ProductCase,
    check_product,
    product_inputs,
    run_product,
)
from tests.emulation.emulator import Schedule, schedules
from tests.emulation.launching import H200, DeviceLimits
from tests.emulation.products import SOURCES, EmulatedProducts

pytestmark = pytest.mark.usefixtures("one_thread")

# A GPU that a single tile of rows fills, and whose blocks have shared memory for the one kernel of
# glu_mlp with three stages of weights, or with two; its cache holds few hidden activations.
FILLED = DeviceLimits(0, 1, 227 << 10, 1 << 20)
TWO_STAGES = DeviceLimits(0, 1, 163 << 10, 1 << 20)
# More than one tile each way, of sizes that divide into copies of 16 bytes, and that do not.
TILES = ProductCase("block_diagonal", "tiles", (136, 160), ((2, 104, 80),), ("bias",))
NO_CHUNKS = ProductCase("block_diagonal", "no_chunks", (136, 162), ((2, 101, 81),), ("bias",))
MONARCH = ProductCase("monarch_matmul", "tiles", (136, 160), ((2, 104, 80), (8, 16, 26)), ("bias",))
GLU = ProductCase("glu_mlp", "tiles", (136, 160), ((2, 144, 80), (2, 80, 72)), FULL)
GLU_ODD = ProductCase("glu_mlp", "no_chunks", (20, 123), ((3, 66, 41), (3, 41, 33)), FULL)
SHAPES = [TILES, NO_CHUNKS]
SHAPES += [replace(c, dtype="bfloat16") for c in (TILES, NO_CHUNKS, MONARCH, GLU, GLU_ODD)]


@pytest.fixture(scope="module")
def flavours(emulators):
    return emulators(SOURCES)


@pytest.fixture(scope="module")
def fast(flavours):
    return flavours[0]


def operator(emulator, case, device=H200):
    op = EmulatedProducts(emulator, device)
    return op, getattr(op, case.operator)


def within_budget(emulator, case, device=H200) -> EmulatedProducts:
    """Result and all gradients are within the error budget, and nothing was found."""
    op, function = operator(emulator, case, device)
    check_product(function, case)
    assert not op.findings, "\n".join(op.findings[:5])
    return op


@pytest.mark.parametrize("case", PRODUCT_CASES, ids=lambda case: case.id)
def test_every_case(fast, case):
    within_budget(fast, case)


FUSED = [case for case in PRODUCT_CASES if case.operator == "glu_mlp" and case.dtype != "float32"]
FUSED += [case for case in SHAPES if case.operator == "glu_mlp"]


@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.id)
def test_glu_mlp_in_one_kernel(fast, case):
    op = within_budget(fast, case, FILLED)
    assert [stats["launches"] for stats in op.stats[:2]] == (
        [0, 0] if case.shape[0] == 0 else [1, 1 + ("norm_weight" in case.vectors)]
    )


@pytest.mark.parametrize("case", FUSED[:2] + FUSED[-2:], ids=lambda case: case.id)
def test_glu_mlp_with_two_stages(fast, case):
    op = within_budget(fast, case, TWO_STAGES)
    assert op.stats[0]["launches"] == 1


def test_blocks_too_wide_for_one_kernel(fast):
    case = ProductCase("glu_mlp", "wide", (9, 193), ((1, 40, 193), (1, 193, 20)), FULL)
    op = within_budget(fast, replace(case, dtype="bfloat16"), FILLED)
    assert op.stats[0]["launches"] == 3


def test_hidden_activations_in_parts(fast):
    """Three parts of rows, the last of few: the same with a cache for all of them."""
    case = ProductCase("glu_mlp", "parts", (300, 24), ((2, 40, 12), (2, 12, 20)), FULL)
    calls = []
    for cache in (1 << 10, 60 << 20):
        op = within_budget(fast, case, DeviceLimits(0, 132, 227 << 10, cache))
        calls.append(op.stats[0]["launches"])
    assert calls == [9, 3]


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_every_schedule(flavours, case):
    """The checked flavour finds nothing; six schedules give the same bits."""
    fast, checked = flavours
    within_budget(checked, case, FILLED)
    first = None
    for schedule in schedules():
        fast.use(schedule)
        op, function = operator(fast, case, FILLED)
        results = run_product(function, case, product_inputs(case))
        assert not op.findings, f"{schedule}: " + "\n".join(op.findings[:5])
        first = first or results
        for name, value in results.items():
            assert torch.equal(value, first[name]), f"{name} under {schedule}"
    fast.use(Schedule())


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_there_are_no_bank_conflicts(fast, case):
    """Of matrix loads, of float32's terms, and of where h is stored."""
    op = within_budget(fast, case, FILLED)
    for stats in op.stats:
        assert stats["wavefronts"] == stats["matrices"]
        assert stats["vector_wavefronts"] == stats["vector_accesses"]
        assert (stats["products"] > 0) == (stats["matrices"] > 0) == (case.dtype != "float32")
    stores_h = case.operator == "glu_mlp"
    assert (op.stats[0]["vector_accesses"] > 0) == (case.dtype == "float32" or stores_h)


@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_rows_in_slices(fast, multiprocessors):
    """A small GPU sums the rows in one slice, a large one in many, one of which may be empty."""
    case = ProductCase("block_diagonal", "rows", (1100, 24), ((2, 10, 12),), ("bias",))
    within_budget(fast, case, DeviceLimits(0, multiprocessors, 99 << 10, 8 << 20))


def test_too_little_shared_memory_is_an_error(fast):
    op = EmulatedProducts(fast, DeviceLimits(3, 8, 48 << 10, 4 << 20))
    with pytest.raises(RuntimeError, match=r"product_kernel for 3 rows and weights \(2, 5, 4\) on"):
        op.block_diagonal(torch.ones(3, 8), torch.ones(2, 5, 4))


def test_a_sum_too_long_is_an_error(fast):
    rows = 1 << 31  # of one number each, and summed in one slice
    op = EmulatedProducts(fast, FILLED)
    x, dy = torch.ones(1, 8).expand(rows, 8), torch.ones(1, 10).expand(rows, 10)
    with pytest.raises(RuntimeError, match="sums are too long"):
        op.block_diagonal_bwd(dy, x, torch.ones(2, 5, 4), (False, True, False))


@pytest.mark.parametrize("name", ["x", "w", "bias"])
def test_one_gradient_alone(fast, name):
    """It is what it is among all of them."""
    case = SHAPES[0]
    inputs = product_inputs(case)
    every = run_product(operator(fast, case)[1], case, inputs)
    given = {n: t.detach().clone() for n, t in inputs.items() if n != "dy"}
    leaf = given[name].requires_grad_()
    op, function = operator(fast, case)
    y = function(given.pop("x"), given.pop("w"), **given)
    (gradient,) = torch.autograd.grad(y, leaf, inputs["dy"])
    assert torch.equal(gradient, every[f"d{name}"])
    assert not op.findings
