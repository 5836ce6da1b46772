"""Timing and memory measurement shared by all benchmarks, and the record of where it was done.

Callables that are compared are timed in turns in one process (A B A B ...): a change of clock
frequency or a busy neighbour then meets all of them, which two separate runs cannot promise.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
MAX_CALLS_PER_ROUND = 1_000_000


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one callable, one entry a round, in the order they were measured."""

    seconds: tuple[float, ...]
    calls_per_round: int = 1

    def __post_init__(self) -> None:
        if not self.seconds:
            raise ValueError("a timing needs at least one measured round")

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile; both are the value itself after a single round."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return lower, upper

    def as_dict(self) -> dict[str, Any]:
        lower, upper = self.quartiles
        return {
            "median_s": self.median,
            "min_s": self.minimum,
            "lower_quartile_s": lower,
            "upper_quartile_s": upper,
            "calls_per_round": self.calls_per_round,
            "seconds": list(self.seconds),
        }


@dataclass(frozen=True)
class Comparison:
    """How many times faster one callable is than another (2.0: half the time).

    Attributes:
        ratio_of_medians: median time of the baseline / median time of the candidate.
        median_round_ratio: the median over rounds of the same ratio within a round; the better
            number on a machine whose speed drifts.
    """

    ratio_of_medians: float
    median_round_ratio: float


def time_interleaved(
    callables: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    warmup: int = 1,
    min_round_seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time several callables in turns: each is measured once in every round.

    Args:
        callables: name -> function without arguments. On a GPU it must synchronise itself.
        rounds: measurements of each callable.
        warmup: calls of each before the first measurement, not counted.
        min_round_seconds: a quick callable is repeated within a round until a measurement lasts
            about this long, so that the clock's resolution and the loop do not matter.
        clock: a monotonic clock in seconds.

    Returns:
        name -> :class:`Timing`, in the order of ``callables``.

    Raises:
        ValueError: no callable, no round, or a negative ``warmup``.
    """
    if not callables or rounds < 1 or warmup < 0:
        got = f"{list(callables)}, {rounds}, {warmup}"
        raise ValueError(f"need a callable, rounds >= 1 and warmup >= 0, got {got}")
    for _ in range(warmup):
        for call in callables.values():
            call()
    calls = {
        name: _calls_per_round(call, min_round_seconds, clock) for name, call in callables.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in callables}
    for _ in range(rounds):
        for name, call in callables.items():
            seconds[name].append(_time_calls(call, calls[name], clock) / calls[name])
    return {name: Timing(tuple(seconds[name]), calls[name]) for name in callables}


def _time_calls(call: Callable[[], object], count: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(count):
        call()
    return clock() - start


def _calls_per_round(
    call: Callable[[], object], min_seconds: float, clock: Callable[[], float]
) -> int:
    count = 1
    if min_seconds <= 0:
        return count
    while count < MAX_CALLS_PER_ROUND:
        elapsed = _time_calls(call, count, clock)
        if elapsed >= min_seconds:
            break
        # At most tenfold: the first estimate comes from a time near the clock's resolution.
        wanted = math.ceil(count * min_seconds / elapsed) if elapsed > 0 else 10 * count
        count = min(max(wanted, count + 1), 10 * count, MAX_CALLS_PER_ROUND)
    return count


def compare(timings: Mapping[str, Timing], candidate: str, baseline: str) -> Comparison:
    """How many times faster ``candidate`` is than ``baseline``; both from the same rounds."""
    fast, slow = timings[candidate], timings[baseline]
    if len(fast.seconds) != len(slow.seconds):
        raise ValueError(f"{candidate} and {baseline} have different numbers of rounds")
    rounds = zip(slow.seconds, fast.seconds, strict=True)
    return Comparison(slow.median / fast.median, statistics.median(b / a for b, a in rounds))


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Run the body with ``count`` torch threads (None: as many as there are); restores the old."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def available_cores() -> int:
    """Cores this process may run on (fewer than the machine has, in a container)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class PeakMemory:
    """Filled in when the ``with peak_memory()`` block ends; None where it cannot be measured."""

    growth_bytes: int | None = None


@contextlib.contextmanager
def peak_memory(baseline_bytes: int | None = None) -> Iterator[PeakMemory]:
    """Peak resident memory of the block, above what the process held at its start.

    The kernel's high-water mark (``VmHWM``) is reset first, so earlier peaks do not count.
    Memory that an allocator kept from earlier and reuses is not seen: measure in a fresh process.

    Args:
        baseline_bytes: count from this resident size instead, e.g. one taken (with
            :func:`resident_bytes`) before a model was built, so that its weights count too.
    """
    result = PeakMemory()
    baseline = resident_bytes() if baseline_bytes is None else baseline_bytes
    can_reset = _reset_high_water_mark()
    try:
        yield result
    finally:
        peak = _status_bytes("VmHWM")
        if can_reset and peak is not None and baseline is not None:
            result.growth_bytes = max(0, peak - baseline)


@dataclass
class OtherLoad:
    """Filled in when the ``with other_load()`` block ends.

    Attributes:
        cores: cores that other processes kept busy, on average; None where /proc does not tell,
            or after less than half a second (the machine counts in hundredths).
    """

    cores: float | None = None


@contextlib.contextmanager
def other_load() -> Iterator[OtherLoad]:
    """How much the rest of the machine was working during the block: a timing's worst enemy."""
    result = OtherLoad()
    start, own, busy = time.monotonic(), time.process_time(), _busy_seconds()
    try:
        yield result
    finally:
        wall = time.monotonic() - start
        if busy is not None and wall >= 0.5:
            others = (_busy_seconds() - busy) - (time.process_time() - own)
            result.cores = max(0.0, others / wall)


def _busy_seconds() -> float | None:
    """Seconds all cores together were not idle, time stolen by other virtual machines included."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _iowait, interrupt, soft_interrupt, stolen = map(int, fields[1:9])
    ticks = user + nice + system + interrupt + soft_interrupt + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes() -> int | None:
    """Resident memory of this process; None where /proc does not tell."""
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024  # the file says kB and means KiB
    except OSError:
        pass
    return None


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def describe_machine() -> dict[str, Any]:
    """What a reader must know to judge a measurement; JSON-ready, unknown entries are None."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _processor_name(),
        "cores": available_cores(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": _kernel_report(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "git_commit": commit,
        "git_uncommitted_changes": None if changes is None else bool(changes),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def _processor_name() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _kernel_report() -> Any:
    """What ``monarch_kernels.info`` says, instruction set included; None if it cannot tell."""
    try:
        return importlib.import_module("monarch_kernels.info").collect()
    except (ImportError, AttributeError):
        return None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def write_json(path: Path | str, data: Any) -> None:
    """Write ``data`` to ``path`` so that a reader, or a crash, never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from other users
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
