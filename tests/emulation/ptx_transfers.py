"""Loads, stores, atomics and asynchronous copies."""

import re
from dataclasses import dataclass

import numpy as np

from tests.emulation.ptx_formats import Unsupported, number_format
from tests.emulation.ptx_instructions import Operands, operation
from tests.emulation.ptx_machine import Threads
from tests.emulation.ptx_parser import Instruction, Vector

_SPACES = {
    **{"global": "global", "const": "global", "param": "global", "param::entry": "global"},
    **{"shared": "shared", "shared::cta": "shared", "local": "local"},
}
# Hints to the caches, and orderings that lock step keeps anyway.
_HINTS = """nc ca cg cs lu cv wb wt volatile relaxed acquire release weak gpu cta sys
    L1::no_allocate L1::evict_first L1::evict_last L1::evict_normal L1::evict_unchanged
    L2::64B L2::128B L2::256B L2::cache_hint"""
_TRANSFER = _HINTS + " " + " ".join(_SPACES) + " v2 v4 v8"


def _space(form: Instruction) -> str:
    return next((_SPACES[word] for word in form.modifiers if word in _SPACES), "generic")


def _parts(form: Instruction, operand) -> tuple:
    """Return the registers of a scalar or a vector operand, which must agree with .v2 or .v4."""
    count = next((int(w[1:]) for w in form.modifiers if re.fullmatch(r"v\d", w)), 1)
    parts = operand.parts if isinstance(operand, Vector) else (operand,)
    if len(parts) != count:
        raise Unsupported(f"{len(parts)} registers for {count} elements")
    return parts


@operation("ld", modifiers=_TRANSFER)
def _ld(form: Instruction, operands: Operands):
    space, number = _space(form), number_format(form.format)
    parts = _parts(form, form.operands[0])
    writers = [operands.write(part, f"{_letter(form)}{number.bits}") for part in parts]
    address = operands.address(form.operands[1])

    def load(threads: Threads) -> None:
        chosen = threads.chosen
        values = threads.memory.load(space, address(threads), chosen, number.bytes, len(writers))
        for position, write in enumerate(writers):
            write(threads, _spread(threads, values[:, position]))

    return load


def _letter(form: Instruction) -> str:
    """Sign extension is the only thing for which the format of a load matters."""
    return "s" if form.format.startswith("s") else "b"


def _spread(threads: Threads, values: np.ndarray) -> np.ndarray:
    """Return values of the active threads as an array over all slots."""
    if len(values) == len(threads.slots):
        return np.ascontiguousarray(values)
    result = np.full(len(threads.slots), ~values.dtype.type(0))
    result[threads.chosen] = values
    return result


def _gather(threads: Threads, values: np.ndarray) -> np.ndarray:
    """Return the active threads' part of operand values."""
    if len(values) == 1:
        return np.broadcast_to(values, len(threads.chosen))
    return values[threads.chosen]


@operation("st", modifiers=_TRANSFER)
def _st(form: Instruction, operands: Operands):
    space, number = _space(form), number_format(form.format)
    parts = _parts(form, form.operands[1])
    readers = [operands.read(part, f"b{number.bits}") for part in parts]
    address = operands.address(form.operands[0])

    def store(threads: Threads) -> None:
        values = np.stack([_gather(threads, read(threads)) for read in readers], 1)
        threads.memory.store(space, address(threads), threads.chosen, values)

    return store


# ---- Atomics -------------------------------------------------------------------------------------

_ATOMIC = {
    **{"add": np.add, "min": np.minimum, "max": np.maximum},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor},
    "exch": lambda old, new: new,
    "inc": lambda old, limit: np.where(old >= limit, 0, old + 1).astype(old.dtype),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - 1),
}
_ATOMIC_WORDS = " ".join(_ATOMIC) + " cas noftz " + _TRANSFER


@operation("atom", modifiers=_ATOMIC_WORDS)
def _atom(form: Instruction, operands: Operands):
    return _atomic(form, operands, operands.write(form.operands[0], form.format), 1)


@operation("red", modifiers=_ATOMIC_WORDS)
def _red(form: Instruction, operands: Operands):
    return _atomic(form, operands, None, 0)


def _atomic(form: Instruction, operands: Operands, write, first: int):
    if any(re.fullmatch(r"v\d", word) for word in form.modifiers):
        raise Unsupported("atomics on vectors")
    space, number = _space(form), number_format(form.format)
    address = operands.address(form.operands[first])
    sources = [operands.read(each, form.format) for each in form.operands[first + 1 :]]
    update = _updater(form)

    def run(threads: Threads) -> None:
        where = np.array(address(threads))
        values = [_gather(threads, read(threads)) for read in sources]
        before = np.zeros(len(where), f"uint{number.bits}")
        remaining = np.arange(len(where))
        while len(remaining):  # one thread an address at a time, in the order of the threads
            mine = remaining[np.unique(where[remaining], return_index=True)[1]]
            slots = threads.chosen[mine]
            old = threads.memory.load(space, where[mine], slots, number.bytes, 1)[:, 0]
            new = number.encode(update(number.decode(old), *(value[mine] for value in values)))
            threads.memory.store(space, where[mine], slots, new[:, None])
            before[mine] = old
            remaining = np.setdiff1d(remaining, mine)
        if write is not None:
            write(threads, number.decode(_spread(threads, before)))

    return run


def _updater(form: Instruction):
    if form.has("cas"):
        return lambda old, expected, new: np.where(old == expected, new, old)
    return next(_ATOMIC[word] for word in form.modifiers if word in _ATOMIC)


# ---- cp.async ------------------------------------------------------------------------------------


@dataclass
class _Copy:
    """A copy that was issued. It lands when it is waited for: as late as hardware may do it."""

    slots: np.ndarray
    target: np.ndarray
    values: np.ndarray  # (threads, bytes)
    group: np.ndarray


@operation(
    "cp", modifiers=_HINTS + " async global shared shared::cta commit_group wait_group wait_all"
)
def _cp(form: Instruction, operands: Operands):
    if form.modifiers[0] != "async":
        raise Unsupported("cp other than cp.async")
    if form.has("commit_group"):
        return _commit
    if form.has("wait_group"):
        allowed = form.operands[0].value
        return lambda threads: _land(threads, threads.copy_group - allowed)
    if form.has("wait_all"):
        return lambda threads: _land(threads, threads.copy_group + 1)
    return _issue(form, operands)


def _issue(form: Instruction, operands: Operands):
    size = form.operands[2].value
    if size not in ((16,) if form.has("cg") else (4, 8, 16)):
        raise Unsupported(f"copy of {size} bytes")
    target, source = (operands.address(each) for each in form.operands[:2])
    hinted = form.has("L2::cache_hint")
    has_count = len(form.operands) - hinted > 3
    count = operands.read(form.operands[3], "u32") if has_count else None

    def issue(threads: Threads) -> None:
        chosen, memory = threads.chosen, threads.memory
        wanted = np.full(len(chosen), size)
        if count is not None:
            wanted = np.minimum(_gather(threads, count(threads)), size).astype(np.int64)
        reads = np.flatnonzero(wanted)  # with 0 bytes the source may be any address
        values = np.zeros((len(chosen), size), np.uint8)
        words = memory.load("global", np.array(source(threads))[reads], chosen[reads], 4, size // 4)
        values[reads] = words.view(np.uint8)
        values[np.arange(size) >= wanted[:, None]] = 0
        where = np.array(target(threads))
        nothing_yet = np.full((len(chosen), size // 4), 0xFFFFFFFF, np.uint32)
        memory.store("shared", where, chosen, nothing_yet)
        threads.copies.append(_Copy(chosen, where, values, threads.copy_group[chosen]))

    return issue


def _commit(threads: Threads) -> None:
    threads.copy_group = threads.copy_group + threads.active


def _land(threads: Threads, first_kept: np.ndarray) -> None:
    """Complete the active threads' copies of groups before `first_kept` (one number a slot)."""
    remaining = []
    for copy in threads.copies:
        due = threads.active[copy.slots] & (copy.group < first_kept[copy.slots])
        values = np.ascontiguousarray(copy.values[due]).view(np.uint32)
        threads.memory.store("shared", copy.target[due], copy.slots[due], values)
        if not due.all():
            keep = ~due
            parts = (copy.slots, copy.target, copy.values, copy.group)
            remaining.append(_Copy(*(part[keep] for part in parts)))
    threads.copies = remaining


# ---- Nothing to do -------------------------------------------------------------------------------


@operation("membar", "fence", modifiers="gl cta sys gpu cluster acq_rel sc acquire release")
def _fence(form: Instruction, operands: Operands):
    return lambda threads: None


@operation("prefetch", "prefetchu", modifiers="global L1 L2 L2::evict_last L2::evict_normal")
def _prefetch(form: Instruction, operands: Operands):
    return lambda threads: None


@operation(
    "createpolicy", modifiers="fractional L2::evict_first L2::evict_last L2::evict_unchanged"
)
def _createpolicy(form: Instruction, operands: Operands):
    write = operands.write(form.operands[0], "b64")
    return lambda threads: write(threads, np.zeros(1, np.uint64))
