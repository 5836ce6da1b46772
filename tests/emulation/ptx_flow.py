"""Branches, exits and barriers: the instructions that decide which threads run next."""

import numpy as np

from tests.emulation.ptx_formats import Fault, Unsupported
from tests.emulation.ptx_instructions import Operands, operation
from tests.emulation.ptx_machine import WARP, Threads
from tests.emulation.ptx_parser import Instruction, Symbol
from tests.emulation.ptx_warp import check_mask


def _guard(form: Instruction, operands: Operands):
    """Return a function that gives the active threads for which the predicate holds."""
    if form.guard is None:
        return lambda threads: threads.active
    index, negated = operands.register(form.guard), form.guard_negated
    return lambda threads: threads.active & (threads.registers[index] ^ negated)


@operation("bra", modifiers="uni")
def _bra(form: Instruction, operands: Operands):
    label = form.operands[0]
    if not isinstance(label, Symbol) or label.name not in operands.labels:
        raise Unsupported(f"branch to {label}")
    target, here = operands.labels[label.name], operands.place
    taken_by = _guard(form, operands)

    def branch(threads: Threads) -> bool:
        taken = taken_by(threads)
        threads.send(taken, target)
        threads.send(threads.active & ~taken, here + 1)
        return True

    return branch


@operation("ret", "exit", modifiers="uni")
def _exit(form: Instruction, operands: Operands):
    ends, here = _guard(form, operands), operands.place

    def end(threads: Threads) -> bool:
        ending = ends(threads)
        threads.live = threads.live & ~ending
        threads.send(threads.active & ~ending, here + 1)
        return True

    return end


@operation("trap", "brkpt")
def _trap(form: Instruction, operands: Operands):
    def stop(threads: Threads) -> None:
        raise Fault("the kernel gives up")

    return stop


@operation("bar", "barrier", modifiers="sync arrive aligned warp cta")
def _barrier(form: Instruction, operands: Operands):
    if form.has("warp"):
        mask = operands.read(form.operands[0], "b32")
        return lambda threads: check_mask(threads, mask(threads))
    if form.guard is not None:
        raise Unsupported("barrier with a predicate")
    number = operands.read(form.operands[0], "u32")
    count = operands.read(form.operands[1], "u32") if len(form.operands) > 1 else None
    here, waits = operands.place, form.has("sync")
    aligned = form.opcode == "bar" or form.has("aligned")

    def barrier(threads: Threads) -> bool:
        if aligned:
            threads.whole_warps()
        slots = len(threads.slots)
        numbers = np.broadcast_to(number(threads), slots).astype(np.int64)
        expected = np.full(slots, threads.block_size)
        if count is not None:
            expected = np.broadcast_to(count(threads), slots).astype(np.int64)
            if (expected[threads.chosen] % WARP).any():
                raise Fault("barrier for a number of threads that is not whole warps")
        if (numbers[threads.chosen] >= threads.barriers.COUNT).any():
            raise Fault("there are 16 barriers")
        threads.barriers.arrive(numbers, expected, here, waits)
        return True

    return barrier


@operation("nanosleep", "griddepcontrol", modifiers="launch_dependents wait")
def _nothing(form: Instruction, operands: Operands):
    return lambda threads: None
