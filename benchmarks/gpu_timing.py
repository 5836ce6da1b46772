"""Time on a GPU: CUDA events around graph replays, over inputs that no cache holds.

On the CPU the same functions use a clock, so that what is built on them can be tested without a
GPU; the numbers then mean nothing.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.harness import Timing

Call = Callable[[], object]
# Each set of inputs is used once before the first comes again: together several times the cache.
CACHE_MULTIPLE = 4
MAX_SETS = 16
# A measurement lasts at least this long, or the resolution of the events (0.5 us) shows.
MIN_SECONDS = 2e-3
NO_MEMORY = "out of memory"


def input_sets(bytes_per_set: int, device: torch.device) -> int:
    """How many sets of inputs a case needs so that none is found in the second-level cache."""
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(MAX_SETS, max(1, math.ceil(CACHE_MULTIPLE * cache / max(1, bytes_per_set))))


class _Sequence:
    """The calls of one contender, one for each set of inputs, as one thing to repeat.

    A CUDA graph where the calls can be captured: short kernels then follow one another without the
    CPU's help. Results are kept until the end, so that each call writes memory of its own.
    """

    def __init__(self, calls: Sequence[Call], device: torch.device) -> None:
        self.calls, self.device, self.graph = list(calls), device, None
        self.no_graph: str | None = None
        self.results: list[object] = []
        if device.type == "cuda":
            self._capture()

    def _capture(self) -> None:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for call in self.calls:
                call()
        free(self.device)  # the graph has a pool of its own
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                self.results = [call() for call in self.calls]
            self.graph = graph
        except RuntimeError as error:  # a peer that uses the default stream, or waits
            self.no_graph = in_words(error)
            torch.cuda.synchronize(self.device)

    def run(self) -> None:
        if self.graph is not None:
            self.graph.replay()
        else:
            self.results = [call() for call in self.calls]

    def seconds(self, repeats: int) -> float:
        """Of one call, the mean over `repeats` times all sets."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(repeats):
                self.run()
            return (time.perf_counter() - start) / (repeats * len(self.calls))
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            self.run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / (repeats * len(self.calls))


def time_in_turns(
    contenders: Mapping[str, Sequence[Call]], device: torch.device, *, rounds: int = 9
) -> dict[str, dict[str, Any]]:
    """Time contenders in turns, A B A B ...; each is a call for every set of inputs.

    Returns:
        name -> `Timing.as_dict()`, "graph", whether its calls were replayed as a CUDA graph (None
        on the CPU), and "no_graph", why not. A contender that fails has {"failed": message}.
    """
    sequences, repeats, found = {}, {}, {}
    for name, calls in contenders.items():
        try:
            sequence = _Sequence(calls, device)
            sequence.run()
            once = sequence.seconds(1) * len(calls)
        except RuntimeError as error:
            found[name] = {"failed": in_words(error)}
            free(device)
            continue
        sequences[name] = sequence
        repeats[name] = max(1, math.ceil(MIN_SECONDS / max(once, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in sequences}
    for _ in range(rounds):
        for name, sequence in sequences.items():
            seconds[name].append(sequence.seconds(repeats[name]))
    for name, sequence in sequences.items():
        timing = Timing(tuple(seconds[name]), repeats[name] * len(sequence.calls))
        graph = None if device.type != "cuda" else sequence.graph is not None
        found[name] = {**timing.as_dict(), "graph": graph, "no_graph": sequence.no_graph}
    return {name: found[name] for name in contenders}


def in_words(error: Exception) -> str:
    """A failure in one line."""
    if "out of memory" in str(error):
        return NO_MEMORY
    return f"{type(error).__name__}: {error}".splitlines()[0]


def free(device: torch.device) -> None:
    """Give torch's unused memory back to the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def copy_bandwidth(device: torch.device, size: int | None = None, rounds: int = 15) -> float:
    """Bytes read and written per second by a large copy within the device: the memory's ceiling."""
    size = (2 << 30 if device.type == "cuda" else 64 << 20) if size is None else size
    source = torch.randint(0, 100, (size // 4,), dtype=torch.int32, device=device)
    sequence = _Sequence([functools.partial(torch.empty_like(source).copy_, source)], device)
    sequence.seconds(2)
    seconds = statistics.median(sequence.seconds(2) for _ in range(rounds))
    del sequence, source
    free(device)
    return 2 * size / seconds


def describe_gpu(device: torch.device) -> dict[str, Any] | None:
    """What a reader must know of the GPU; None on the CPU."""
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "l2_bytes": found.L2_cache_size,
        "cuda": torch.version.cuda,
    }
