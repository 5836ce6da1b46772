"""Runs a kernel's instructions for groups of blocks, one array element a thread.

Of all threads that can run, those at the lowest place in the program do, in lock step: threads
that have branched apart meet again where their paths do. Several blocks are run at once, each
with its own shared memory and barriers, because numpy's cost is by the call.

Not modelled, because all threads of a place run together: races, and waiting for another thread by
reading memory in a loop.
"""

from collections.abc import Callable

import numpy as np

from tests.emulation.ptx_formats import FORMATS, RAW, Fault, PtxError, Unsupported
from tests.emulation.ptx_memory import Memory
from tests.emulation.ptx_parser import Instruction

WARP = 32
MAX_STEPS = 20_000_000  # a loop that never ends is a fault, not a test that never ends


class Threads:
    """The threads of a few blocks: who they are, where they are, what their registers hold.

    A block has whole warps of slots; slots without a thread are never live. Register arrays are
    replaced, never written in place, so that a move may share them.
    """

    def __init__(self, block_shape, grid_shape, block_ids: np.ndarray, formats: list[str]) -> None:
        """`block_ids` are the blocks' numbers, x fastest; `formats` are the registers'."""
        size = int(np.prod(block_shape))
        padded = -(-size // WARP) * WARP
        self.block_shape, self.grid_shape, self.block_size = block_shape, grid_shape, size
        number = np.tile(np.arange(padded), len(block_ids))
        self.block = np.repeat(np.arange(len(block_ids)), padded)
        self.thread_index = _coordinates(number, block_shape)
        self.block_index = _coordinates(block_ids[self.block], grid_shape)
        self.slots = np.arange(len(number))
        self.lane = number % WARP
        self.warp = number // WARP
        self.live = number < size
        self.blocks = len(block_ids)
        poison = {name: _poison(name, len(number)) for name in set(formats)}
        self.registers = [poison[name] for name in formats]
        self.ready = {0: self.live.copy()}
        self.barriers = Barriers(self)
        self.copies: list = []  # asynchronous copies that have not landed
        self.copy_group = np.zeros(len(number), np.int64)
        self.memory: Memory | None = None
        self.steps = 0
        self.activate(self.live)

    def activate(self, active: np.ndarray) -> None:
        """Make `active` the threads that the next instructions are for."""
        self.active = active
        self.chosen = np.flatnonzero(active)
        # A register of a thread that has ended may be overwritten: nobody reads it.
        self.all_live = len(self.chosen) == np.count_nonzero(self.live)

    def send(self, threads: np.ndarray, place: int) -> None:
        """Let these threads continue at `place`."""
        if threads.any():
            waiting = self.ready.get(place)
            self.ready[place] = threads if waiting is None else waiting | threads

    def run(self, code: list[Callable[["Threads"], bool | None]]) -> None:
        """Run until every thread has ended. `code` returns True after it has moved the threads."""
        while self.ready or self.barriers.stuck():
            place = min(self.ready)
            self.activate(self.ready.pop(place))
            meeting = min(self.ready, default=-1)
            while not code[place](self):
                place += 1
                if place == meeting:
                    self.activate(self.active | self.ready.pop(place))
                    meeting = min(self.ready, default=-1)

    def describe(self, slot: int) -> str:
        thread = ",".join(str(index[slot]) for index in self.thread_index)
        block = ",".join(str(index[slot]) for index in self.block_index)
        return f"block ({block}) thread ({thread})"

    def whole_warps(self) -> None:
        """Raise a Fault unless all live threads of each active warp are active."""
        active, live = self.active.reshape(-1, WARP), self.live.reshape(-1, WARP)
        divergent = active.any(1) & (active != live).any(1)
        if divergent.any():
            warp = int(np.flatnonzero(divergent)[0])
            lanes = np.flatnonzero(active[warp]).tolist()
            raise Fault(f"only lanes {lanes} of the warp are here", warp * WARP + lanes[0])


class Barriers:
    """The 16 barriers of each block, and who waits at them."""

    COUNT = 16

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.waiting = np.full(len(threads.slots), -1)  # the barrier, numbered over all blocks
        self.resume = np.zeros(len(threads.slots), np.int64)
        self.arrived = np.zeros(threads.blocks * self.COUNT, np.int64)
        self.expected = np.zeros(threads.blocks * self.COUNT, np.int64)

    def arrive(self, number: np.ndarray, count: np.ndarray, place: int, wait: bool) -> None:
        """The active threads reach a barrier that lets `count` pass; those that wait stop."""
        threads = self.threads
        chosen = threads.chosen
        keys = threads.block[chosen] * self.COUNT + number[chosen]
        for key in np.unique(keys).tolist():
            mine = chosen[keys == key]
            expected = count[mine]
            if self.arrived[key] and (expected != self.expected[key]).any():
                raise Fault(f"barrier for {expected[0]}, {self.expected[key]} before", mine[0])
            self.expected[key] = expected[0]
            self.arrived[key] += len(mine)
            if self.arrived[key] > self.expected[key]:
                problem = f"{self.arrived[key]} threads at a barrier for {self.expected[key]}"
                raise Fault(problem, mine[0])
        if wait:
            self.waiting[chosen] = keys
            self.resume[chosen] = place + 1
        else:
            threads.send(threads.active, place + 1)
        for key in np.unique(keys).tolist():
            if self.arrived[key] == self.expected[key]:
                self._release(key)

    def _release(self, key: int) -> None:
        mine = self.waiting == key
        for place in np.unique(self.resume[mine]).tolist():
            self.threads.send(mine & (self.resume == place), place)
        self.waiting[mine] = -1
        self.arrived[key] = 0

    def stuck(self) -> bool:
        """Raise a Fault if threads wait and no other thread is left to run."""
        slots = np.flatnonzero(self.waiting >= 0)
        if len(slots) == 0:
            return False
        key = self.waiting[slots[0]]
        problem = f"deadlock: {self.arrived[key]} of {self.expected[key]} threads at barrier"
        raise Fault(f"{problem} {key % self.COUNT}, the rest has ended or waits", slots[0])


def _coordinates(number: np.ndarray, shape) -> tuple[np.ndarray, ...]:
    x, rest = number % shape[0], number // shape[0]
    return tuple(part.astype(np.uint32) for part in (x, rest % shape[1], rest // shape[1]))


def _poison(name: str, count: int) -> np.ndarray:
    if name == "pred":
        return np.ones(count, bool)
    raw = RAW[FORMATS[name].bytes]
    return np.full(count, np.iinfo(raw).max, raw)


def guarded(run: Callable, index: int, negated: bool) -> Callable[[Threads], None]:
    """Run an instruction for the threads whose predicate (register `index`) holds."""

    def execute(threads: Threads) -> None:
        everybody = threads.active
        chosen = everybody & (threads.registers[index] ^ negated)
        if chosen.any():
            threads.activate(chosen)
            run(threads)
            threads.activate(everybody)

    return execute


def reported(run: Callable, instruction: Instruction) -> Callable[[Threads], bool | None]:
    """Count the step, and add instruction and thread to the problems that `run` raises."""

    def execute(threads: Threads) -> bool | None:
        threads.steps += 1
        if threads.steps > MAX_STEPS:
            raise located(Fault("endless loop"), instruction, threads)
        try:
            return run(threads)
        except PtxError as error:
            raise located(error, instruction, threads) from None

    return execute


def located(error: PtxError, instruction: Instruction, threads: Threads) -> PtxError:
    place = f"{instruction.where}: " if instruction.where else ""
    text = f"{place}{instruction.text}: {error}"
    if isinstance(error, Unsupported):
        return type(error)(text)
    slot = threads.chosen[0] if error.slot is None else error.slot
    return type(error)(f"{text} [{threads.describe(int(slot))}]")
