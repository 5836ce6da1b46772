"""Schedules, memory, findings and launches of the emulator."""

import ctypes
import time

import numpy as np
import pytest
import torch

from tests.emulation import cases
from tests.emulation.emulator import Finding, Schedule, schedules, sweep
from tests.emulation.planted_bugs import plant


@pytest.fixture(params=[0, 1], ids=["fast", "checked"])
def emulator(request, kernels):
    return kernels[request.param]


@pytest.fixture
def checked(kernels):
    return kernels[1]


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.__name__)
def test_kernel_under_all_schedules(case, kernels):
    results = sweep(*kernels, case)
    assert len(results) == 7
    assert all(map(cases.correct, results))


def test_matmul_in_bfloat16_is_the_same_under_all_schedules(kernels):
    results = sweep(*kernels, lambda emulator: cases.matmul(emulator, torch.bfloat16))
    assert all(map(cases.correct, results))
    assert all(torch.equal(results[0][0], actual) for actual, _ in results)


# Schedules


def tickets(emulator, schedule) -> np.ndarray:
    emulator.use(schedule)
    start, out = np.zeros(1, np.uint32), np.zeros((12, 64), np.uint32)
    with emulator:
        emulator.buffer(start, "next")
        emulator.buffer(out, "tickets", uninitialised=True)
        assert emulator.call("tickets", start, out) == 0
    assert emulator.findings() == []
    assert sorted(out.reshape(-1)) == list(range(768))
    return out


def test_orders(emulator):
    forward = tickets(emulator, Schedule("forward"))
    assert (forward.reshape(-1) == np.arange(768)).all()
    assert (tickets(emulator, Schedule("reverse")) == forward[::-1, ::-1]).all()
    random = [tickets(emulator, Schedule("random", seed)) for seed in (1, 2, 1)]
    assert (random[0] == random[2]).all()
    assert (random[0] != random[1]).any()
    assert (random[0] != forward).any()


def test_schedules_are_three_orders_with_both_copy_timings():
    assert len({(s.order, s.late_copies) for s in schedules()}) == 6


# Memory


def test_shared_memory_of_a_block_begins_as_nan(kernels):
    fast, checked = kernels
    for emulator in kernels:
        out = torch.zeros(2, 64)
        with emulator:
            emulator.buffer(out, "out", uninitialised=True)
            emulator.call("fresh", out)
        assert out.isnan().all()
    assert fast.findings() == []
    kinds = [finding.kind for finding in checked.findings()]
    assert kinds == ["uninitialised read"] * 2  # one for each of two lines


def test_what_a_launch_stored_is_initialised_for_the_next_and_not_for_another_call(checked):
    with checked:
        assert cases.correct(cases.two_launches(checked))
    assert checked.findings() == []
    assert checked.stats()["launches"] == 2


def test_memory_that_is_not_registered_may_not_be_touched(checked):
    x, total = np.ones(3000, np.float32), np.zeros(1, np.float32)
    with checked:
        checked.buffer(x, "x", readonly=True)
        checked.call("reduction", x, 3000, total, 1)
    (finding,) = checked.findings()
    assert finding.kind == "out of bounds"
    assert "'x'" in finding.message
    with checked:
        checked.call("reduction", x, 3000, total, 1)
    (finding,) = checked.findings()
    assert "no buffer is registered" in finding.message


def test_buffers_are_contiguous_arrays_or_tensors(emulator):
    for array in (np.zeros((4, 4)).T[1:], torch.zeros(4, 4).T[1:]):
        with pytest.raises(ValueError, match="'strided' is not contiguous"):
            emulator.buffer(array, "strided")


def test_only_buffers_that_nothing_writes_may_overlap(kernels):
    memory, total = np.ones(64, np.float32), np.zeros(1, np.float32)
    for emulator in kernels:
        with emulator:
            emulator.buffer(memory[:33], "first", readonly=True)
            with pytest.raises(ValueError, match="'second' and 'first' overlap"):
                emulator.buffer(memory[32:], "second")
            emulator.buffer(memory[1:], "second", readonly=True)
            emulator.buffer(total, "total")
            emulator.call("reduction", memory[1:], 63, total, 1)
        assert emulator.findings() == []


# Findings


MISTAKES = {
    "foreign_local": ("another's local memory", "*pointers[threadIdx.x ^ 1]"),
    "shift": ("shift", "1u << (threadIdx.x + 1)"),
    "stuck": ("deadlock", "device::sync_warp()"),
    "part_of_a_warp": ("bad collective", "load_matrix_x1(matrix, device::shared_address(rows"),
    "not_shared": ("out of bounds", "load_matrix_x1(matrix, device::shared_address(x))"),
    "too_much_static": ("out of bounds", "MONARCH_STATIC_SHARED(float, more, 8192)"),
    "lost_copy": ("lost copy", "device::copy_async_4("),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_found_at_its_line(name, checked):
    kind, text = MISTAKES[name]
    lines = (cases.KERNELS / "mistakes.cu").read_text().splitlines()
    memory = np.zeros(32, np.float32)
    for schedule in schedules():
        checked.use(schedule)
        with checked:
            checked.buffer(memory, "memory")
            checked.call(name, memory)
        (finding,) = checked.findings()
        assert finding.kind == kind
        assert ("mistakes.cu", True) in [
            (file, text in lines[line - 1]) for file, line in finding.frames
        ], str(finding)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("wild_store", ("fault", "out of bounds")), ("division", ("fault", "fault"))],
)
def test_what_the_processor_stops_is_a_finding(name, kinds, kernels):
    lines = (cases.KERNELS / "mistakes.cu").read_text().splitlines()
    memory = np.zeros(32, np.float32)
    for emulator, kind in zip(kernels, kinds, strict=True):
        for _ in range(2):  # the handler works more than once
            with emulator:
                emulator.buffer(memory, "memory")
                emulator.call(name, memory)
            (finding,) = emulator.findings()
            assert finding.kind == kind
            assert "out[threadIdx.x" in lines[finding.line - 1]
        with emulator:
            assert cases.correct(cases.matmul(emulator))
        assert emulator.findings() == []


def test_a_fatal_finding_ends_the_call_and_not_the_next_one(checked):
    memory = np.zeros(32, np.float32)
    with checked:
        checked.buffer(memory, "memory")
        for _ in range(3):
            checked.call("stuck", memory)
    assert len(checked.findings()) == 1
    assert checked.stats()["launches"] == 1
    assert (memory == 0).all()
    with checked:
        assert cases.correct(cases.reduction(checked))
    assert checked.findings() == []


def test_findings_of_one_line_are_counted_not_repeated(checked):
    memory = np.zeros(1, np.float32)
    with checked:
        checked.buffer(memory, "memory")
        checked.call("storm", memory)
    (finding,) = checked.findings()
    assert finding.kind == "race"
    assert finding.count > 50
    assert finding.line == finding.other_frames[0][1]  # the line races with itself
    assert finding.file == "mistakes.cu"


def test_finding_reads_well():
    finding = Finding(
        kind="race",
        message="write of shared byte 8 races with the read by thread 3 of this block",
        frames=(("tile.cuh", 12), ("kernel.cuh", 40)),
        other_frames=(("kernel.cuh", 44),),
        thread="block (0, 0, 0) thread 0 (warp 0, lane 0)",
        count=2,
    )
    assert str(finding) == (
        "tile.cuh:12 in kernel.cuh:40: race: write of shared byte 8 races with the read by "
        "thread 3 of this block [the other: kernel.cuh:44] "
        "[block (0, 0, 0) thread 0 (warp 0, lane 0)] [2 times]"
    )


def test_sweep_raises_with_the_findings(kernels):
    memory = np.zeros(32, np.float32)

    def run(emulator):
        emulator.buffer(memory, "memory")
        emulator.call("stuck", memory)

    with pytest.raises(AssertionError, match=r"Schedule\(.*\n.*mistakes\.cu:\d+: deadlock"):
        sweep(*kernels, run)
    with pytest.raises(AssertionError, match=r"-fast-.*\n.*mistakes\.cu:\d+: deadlock"):
        sweep(kernels[0], None, run)


# Launches


@pytest.mark.parametrize(
    ("blocks", "threads", "shared_bytes", "error"),
    [
        (0, 32, 0, b"invalid configuration argument"),
        (1, 0, 0, b"invalid configuration argument"),
        (1, 1025, 0, b"invalid configuration argument"),
        (1, 32, 228 << 10, b"invalid argument"),
    ],
)
def test_launches_that_cuda_refuses(blocks, threads, shared_bytes, error, emulator):
    function = emulator.library["launch_of"]
    function.restype = ctypes.c_char_p
    with emulator:
        assert function(blocks, threads, shared_bytes, None) == error
    assert emulator.stats()["blocks"] == 0
    assert emulator.findings() == []


def test_barriers_of_a_large_block_are_cheap(kernels):
    """20 barriers of 1024 threads take about 1 ms, and 7 ms checked; the bounds are for CI."""
    for emulator, seconds in zip(kernels, (0.1, 0.4), strict=True):
        best = float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            with emulator:
                cases.barriers(emulator)
            best = min(best, time.perf_counter() - begin)
        assert emulator.findings() == []
        assert best < seconds


def test_statistics(kernels):
    fast, _ = kernels
    with fast:
        cases.matmul(fast, m=64, n=64, k=64)
    stats = fast.stats()
    assert stats["blocks"] == 1
    assert stats["threads"] == 128
    # 4 warps, 4 steps of 16 along K, 8 products of 16 x 8; 4 loads of 4 matrices
    assert stats["products"] == 4 * 4 * 8
    assert stats["matrices"] == 4 * 4 * 16
    assert stats["copies"] == 2 * 64 * 64 // 8
    assert stats["wavefronts"] == stats["matrices"]  # no two rows in one bank


def test_wavefronts_show_bank_conflicts(emulators):
    source = plant("no-swizzle", "matmul", "(chunk ^ (row / 2 % 4))", "chunk")
    fast, _ = emulators([source])
    with fast:
        assert cases.correct(cases.matmul(fast))
    stats = fast.stats()
    assert stats["wavefronts"] == 4 * stats["matrices"]
