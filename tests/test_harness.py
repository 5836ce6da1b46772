"""The measuring tools, checked with a clock that the test moves: no assertion depends on speed."""

import gc
import json
import mmap
import os
import stat

import numpy as np
import pytest
import torch

from benchmarks import harness
from benchmarks.harness import Timing, compare, peak_memory, threads, time_interleaved, write_json


class FakeClock:
    """Time passes only when :meth:`work` is called."""

    def __init__(self):
        self.now = 100.0
        self.log = []

    def __call__(self):
        return self.now

    def work(self, name, durations):
        """A callable taking the given seconds call after call, the last value for ever."""
        remaining = list(durations)

        def call():
            self.log.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return call


def test_calls_are_interleaved_and_warmup_is_not_counted():
    clock = FakeClock()
    callables = {"a": clock.work("a", [9, 1, 2, 3]), "b": clock.work("b", [9, 4, 5, 6])}
    timings = time_interleaved(callables, rounds=3, clock=clock)
    assert "".join(clock.log) == "ab" * 4
    assert timings["a"].seconds == (1, 2, 3)
    assert timings["b"].seconds == (4, 5, 6)
    assert list(timings) == ["a", "b"]


def test_quick_callables_are_repeated_within_a_round():
    clock = FakeClock()
    timings = time_interleaved(
        {"quick": clock.work("q", [0.25]), "slow": clock.work("s", [8.0])},
        rounds=2,
        warmup=0,
        min_round_seconds=4.0,
        clock=clock,
    )
    assert timings["quick"].calls_per_round == 16
    assert timings["slow"].calls_per_round == 1
    assert timings["quick"].seconds == (0.25, 0.25)
    assert timings["slow"].seconds == (8.0, 8.0)


def test_a_clock_that_stands_still_ends(monkeypatch):
    monkeypatch.setattr(harness, "MAX_CALLS_PER_ROUND", 100)
    timings = time_interleaved(
        {"free": lambda: None}, rounds=1, min_round_seconds=1.0, clock=lambda: 0.0
    )
    assert timings["free"].calls_per_round == 100


@pytest.mark.parametrize(
    ("callables", "options"),
    [({}, {}), ({"a": int}, {"rounds": 0}), ({"a": int}, {"warmup": -1})],
    ids=["none", "no round", "negative warmup"],
)
def test_wrong_arguments(callables, options):
    with pytest.raises(ValueError, match="rounds"):
        time_interleaved(callables, **options)


def test_statistics():
    timing = Timing((5.0, 1.0, 4.0, 2.0, 3.0))
    assert (timing.median, timing.minimum, timing.quartiles) == (3.0, 1.0, (2.0, 4.0))
    assert Timing((2.0,)).quartiles == (2.0, 2.0)
    record = json.loads(json.dumps(timing.as_dict()))
    assert record["seconds"] == [5.0, 1.0, 4.0, 2.0, 3.0]
    assert record["median_s"] == 3.0
    with pytest.raises(ValueError, match="round"):
        Timing(())


def test_round_ratio_is_not_fooled_by_drift():
    # The machine slows down sixteenfold; in each round the candidate takes half the time.
    timings = {"new": Timing((1.0, 4.0, 16.0)), "old": Timing((2.0, 8.0, 32.0))}
    assert compare(timings, "new", "old").median_round_ratio == 2.0
    uneven = {"new": Timing((1.0, 2.0, 10.0)), "old": Timing((3.0, 4.0, 10.0))}
    result = compare(uneven, "new", "old")
    assert (result.ratio_of_medians, result.median_round_ratio) == (2.0, 2.0)
    with pytest.raises(ValueError, match="rounds"):
        compare({"new": Timing((1.0,)), "old": Timing((1.0, 1.0))}, "new", "old")


def test_threads_are_restored_even_after_an_error():
    before = torch.get_num_threads()

    def fail_inside():
        with threads(1) as count:
            assert count == torch.get_num_threads() == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.get_num_threads() == before
    with threads(None) as count:
        assert count == before


@pytest.mark.skipif(harness.resident_bytes() is None, reason="needs /proc")
def test_peak_memory_sees_a_passing_peak_and_forgets_earlier_ones():
    size = 192 * 2**20
    with peak_memory() as first:
        block = np.ones(size, dtype=np.uint8)
        del block
    with peak_memory() as second:
        pass
    assert first.growth_bytes is not None
    assert 0.9 * size < first.growth_bytes < 1.5 * size
    assert second.growth_bytes < 0.5 * size


@pytest.mark.skipif(harness.resident_bytes() is None, reason="needs /proc")
def test_peak_memory_from_an_earlier_baseline():
    size = 64 * 2**20
    gc.collect()  # what earlier tests left must not be freed between the two readings
    baseline = harness.resident_bytes()
    # Not from malloc, which may hold what an earlier test freed.
    block = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
    block[:] = 1
    with peak_memory(baseline) as memory:
        pass
    assert memory.growth_bytes > 0.9 * size
    del block


def test_other_load_leaves_out_this_process(monkeypatch):
    wall, own, busy = iter((0.0, 10.0)), iter((1.0, 9.0)), iter((100.0, 123.0))
    monkeypatch.setattr(harness.time, "monotonic", lambda: next(wall))
    monkeypatch.setattr(harness.time, "process_time", lambda: next(own))
    monkeypatch.setattr(harness, "_busy_seconds", lambda: next(busy))
    with harness.other_load() as load:
        pass
    assert load.cores == 1.5


def test_other_load_is_none_after_too_short_a_time():
    with harness.other_load() as load:
        pass
    assert load.cores is None


def test_memory_is_none_where_it_cannot_be_measured(monkeypatch):
    monkeypatch.setattr(harness, "_reset_high_water_mark", lambda: False)
    with peak_memory() as memory:
        pass
    assert memory.growth_bytes is None


def test_machine_description_is_complete_and_serialisable():
    machine = json.loads(json.dumps(harness.describe_machine(), default=str))
    assert {"cpu", "cores", "torch", "python", "git_commit", "date", "load_average"} <= set(machine)
    assert machine["torch"] == torch.__version__
    assert machine["cores"] >= 1


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert os.listdir(path.parent) == ["result.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(harness.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["result.json"]
