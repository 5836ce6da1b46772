"""What the lanes of a warp do together: shuffles, votes, matrices in shared memory, mma."""

import re

import numpy as np

from tests.emulation.ptx_formats import Fault, Format, Unsupported, number_format
from tests.emulation.ptx_instructions import Operands, operation
from tests.emulation.ptx_machine import WARP, Threads
from tests.emulation.ptx_parser import Instruction, Pair, Vector


def check_mask(threads: Threads, mask: np.ndarray) -> None:
    """Raise a Fault unless each active lane is in its mask and all lanes of the mask are here."""
    lanes = np.uint32(1) << threads.lane.astype(np.uint32)
    here = (lanes * threads.active).reshape(-1, WARP).sum(1, dtype=np.uint32).repeat(WARP)
    mask = np.broadcast_to(mask, len(lanes))
    wrong = threads.active & (((mask & lanes) == 0) | ((mask & ~here) != 0))
    if wrong.any():
        slot = int(np.flatnonzero(wrong)[0])
        raise Fault(f"mask {mask[slot]:#010x}, but the lanes here are {here[slot]:#010x}", slot)


def _full(threads: Threads, values: np.ndarray) -> np.ndarray:
    return np.broadcast_to(values, len(threads.slots))


@operation("shfl", modifiers="sync up down bfly idx")
def _shfl(form: Instruction, operands: Operands):
    mode = next(word for word in form.modifiers if word in ("up", "down", "bfly", "idx"))
    target = form.operands[0]
    value_target = target.first if isinstance(target, Pair) else target
    write = operands.write(value_target, "b32")
    write_valid = operands.write(target.second, "pred") if isinstance(target, Pair) else None
    value, lane, limits, mask = (operands.read(each, "b32") for each in form.operands[1:])

    def shuffle(threads: Threads) -> None:
        check_mask(threads, mask(threads))
        own = threads.lane
        source, valid = _source_lane(mode, own, lane(threads) & 31, limits(threads))
        slot = threads.slots - own + np.where(valid, source, own)
        # What an inactive lane would have given is not defined.
        values = np.where(threads.active[slot], _full(threads, value(threads))[slot], 0xFFFFFFFF)
        write(threads, values.astype(np.uint32))
        if write_valid:
            write_valid(threads, valid)

    return shuffle


def _source_lane(mode: str, own: np.ndarray, amount: np.ndarray, limits: np.ndarray):
    """Return (lane to read, whether it exists), as the PTX manual defines shfl.sync."""
    amount, limits = amount.astype(np.int64), limits.astype(np.int64)
    clamp, segment = limits & 31, limits >> 8 & 31
    highest = own & segment | clamp & ~segment
    lowest = own & segment
    if mode == "up":
        return own - amount, own - amount >= highest
    if mode == "down":
        return own + amount, own + amount <= highest
    source = own ^ amount if mode == "bfly" else lowest | amount & ~segment
    return source, source <= highest


@operation("vote", modifiers="sync all any uni ballot")
def _vote(form: Instruction, operands: Operands):
    write = operands.write(form.operands[0], form.format)
    predicate = operands.read(form.operands[1], "pred")
    mask = operands.read(form.operands[2], "b32")
    mode = next(word for word in form.modifiers if word in ("all", "any", "uni", "ballot"))

    def vote(threads: Threads) -> None:
        check_mask(threads, mask(threads))
        active = threads.active.reshape(-1, WARP)
        holds = _full(threads, predicate(threads)).reshape(-1, WARP)
        if mode == "ballot":
            bits = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
            result = ((holds & active) * bits).sum(1, dtype=np.uint32)
        elif mode == "any":
            result = (holds & active).any(1)
        elif mode == "all":
            result = (holds | ~active).all(1)
        else:
            result = (holds | ~active).all(1) | (~holds | ~active).all(1)
        write(threads, result.repeat(WARP))

    return vote


@operation("activemask")
def _activemask(form: Instruction, operands: Operands):
    write = operands.write(form.operands[0], "b32")

    def lanes(threads: Threads) -> None:
        bits = np.uint32(1) << threads.lane.astype(np.uint32)
        here = (bits * threads.active).reshape(-1, WARP).sum(1, dtype=np.uint32)
        write(threads, here.repeat(WARP))

    return lanes


_REDUCE = {
    **{"add": np.add, "min": np.minimum, "max": np.maximum},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor},
}


@operation("redux", modifiers="sync " + " ".join(_REDUCE))
def _redux(form: Instruction, operands: Operands):
    function = next(_REDUCE[word] for word in form.modifiers if word in _REDUCE)
    write = operands.write(form.operands[0], form.format)
    source = operands.read(form.operands[1], form.format)
    mask = operands.read(form.operands[2], "b32")
    if form.format not in ("u32", "s32", "b32"):
        raise Unsupported(f"redux of {form.format}")

    def reduce(threads: Threads) -> None:
        check_mask(threads, mask(threads))
        values = _full(threads, source(threads)).reshape(-1, WARP)
        active = threads.active.reshape(-1, WARP)
        result = values[:, 0].copy()
        for warp in np.flatnonzero(active.any(1)):
            result[warp] = function.reduce(values[warp, active[warp]])
        write(threads, result.repeat(WARP))

    return reduce


# ---- 8x8 matrices of 16-bit elements in shared memory --------------------------------------------


@operation("ldmatrix", modifiers="sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def _ldmatrix(form: Instruction, operands: Operands):
    registers, address = form.operands
    parts = _matrix_registers(form, registers)
    writers = [operands.write(part, "b32") for part in parts]
    addresses = operands.address(address)

    def load(threads: Threads) -> None:
        threads.whole_warps()
        chosen, warps = threads.chosen, len(threads.chosen) // WARP
        slots, rows = _rows(chosen, np.array(addresses(threads)), len(parts))
        words = threads.memory.load("shared", rows, slots, 4, 4)
        matrices = words.view(np.uint16).reshape(warps, len(parts), 8, 8)
        if form.has("trans"):
            matrices = matrices.swapaxes(2, 3)
        # Lane 4 r + c holds elements 2 c and 2 c + 1 of row r.
        fragments = np.ascontiguousarray(matrices).view(np.uint32)
        for position, write in enumerate(writers):
            result = np.full(len(threads.slots), 0xFFFFFFFF, np.uint32)
            result[chosen] = fragments[:, position].reshape(-1)
            write(threads, result)

    return load


@operation("stmatrix", modifiers="sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def _stmatrix(form: Instruction, operands: Operands):
    address, registers = form.operands
    parts = _matrix_registers(form, registers)
    readers = [operands.read(part, "b32") for part in parts]
    addresses = operands.address(address)

    def store(threads: Threads) -> None:
        threads.whole_warps()
        chosen, warps = threads.chosen, len(threads.chosen) // WARP
        values = np.stack([_full(threads, read(threads))[chosen] for read in readers])
        matrices = values.reshape(len(parts), warps, WARP).swapaxes(0, 1).copy()
        matrices = matrices.view(np.uint16).reshape(warps, len(parts), 8, 8)
        if form.has("trans"):
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        slots, rows = _rows(chosen, np.array(addresses(threads)), len(parts))
        threads.memory.store("shared", rows, slots, matrices.view(np.uint32).reshape(-1, 4))

    return store


def _matrix_registers(form: Instruction, operand) -> tuple:
    count = next((int(w[1:]) for w in form.modifiers if re.fullmatch(r"x\d", w)), 0)
    if form.format != "b16" or not form.has("m8n8") or not isinstance(operand, Vector):
        raise Unsupported("form of ldmatrix or stmatrix")
    if len(operand.parts) != count:
        raise Unsupported(f"{len(operand.parts)} registers for x{count}")
    return operand.parts


def _rows(chosen: np.ndarray, addresses: np.ndarray, matrices: int) -> tuple:
    """Return slots and addresses of the matrices' rows: lane i has row i % 8 of matrix i / 8."""
    used = 8 * matrices
    return (part.reshape(-1, WARP)[:, :used].reshape(-1) for part in (chosen, addresses))


# ---- mma -----------------------------------------------------------------------------------------

# Input format: the number of 16- or 32-bit elements in a register.
_ELEMENTS = {"f16": 2, "bf16": 2, "tf32": 1}


@operation("mma", modifiers="sync aligned row col tf32 m16n8k4 m16n8k8 m16n8k16")
def _mma(form: Instruction, operands: Operands):
    shape, inputs = _mma_shape(form)
    depth = int(shape.removeprefix("m16n8k"))
    halves = depth // (4 * _ELEMENTS[inputs])  # of A's columns: 1 or 2
    results, a, b, c = (operand.parts for operand in form.operands)
    if [len(part) for part in (results, a, b, c)] != [4, 2 * halves, halves, 4]:
        raise Unsupported("number of registers of mma")
    writers = [operands.write(part, "f32") for part in results]
    read_a, read_b = ([operands.read(part, "b32") for part in parts] for parts in (a, b))
    read_c = [operands.read(part, "f32") for part in c]

    def multiply(threads: Threads) -> None:
        threads.whole_warps()
        # Lane 4 g + t; in A (row half, g; half, t, element), in B (half, t, element; g).
        left = _fragment(threads, read_a, inputs).reshape(-1, 8, 4, halves, 2, _ELEMENTS[inputs])
        left = left.transpose(0, 4, 1, 3, 2, 5).reshape(-1, 16, depth)
        right = _fragment(threads, read_b, inputs).reshape(-1, 8, 4, halves, _ELEMENTS[inputs])
        right = right.transpose(0, 3, 2, 4, 1).reshape(-1, depth, 8)
        product = (left.astype(np.float64) @ right).reshape(-1, 2, 8, 4, 2)
        # In C, lane 4 g + t holds columns 2 t and 2 t + 1 of rows g and g + 8.
        product = product.transpose(0, 2, 3, 1, 4).reshape(-1, 4)
        # All sums before the first is written: D may be the registers of C in another order.
        sums = [product[:, i] + read(threads) for i, read in enumerate(read_c)]
        for write, values in zip(writers, sums, strict=True):
            write(threads, values)

    return multiply


def _mma_shape(form: Instruction) -> tuple[str, str]:
    """Return the shape and the format of A and B; accumulators are float32."""
    formats = [w for w in form.modifiers if w in ("f16", "bf16", "tf32", "f32")]
    shape = next((w for w in form.modifiers if w.startswith("m16")), "")
    if not form.has("row") or not form.has("col") or len(formats) != 4:
        raise Unsupported("form of mma")
    result, left, right, addend = formats
    depths = {"tf32": ("m16n8k4", "m16n8k8")}.get(left, ("m16n8k8", "m16n8k16"))
    if (result, addend) != ("f32", "f32") or left != right or shape not in depths:
        raise Unsupported("formats of mma")
    if left not in _ELEMENTS:
        raise Unsupported(f"mma of {left}")
    return shape, left


def _fragment(threads: Threads, readers: list, inputs: str) -> np.ndarray:
    """Return (threads, registers, elements) as float."""
    raw = np.stack([_full(threads, read(threads)) for read in readers], 1)
    if inputs == "tf32":  # the hardware does not look at the lowest 13 bits
        return (raw & np.uint32(0xFFFFE000)).view(np.float32)[..., None]
    number: Format = number_format(inputs)
    return number.decode(raw.view(np.uint16).reshape(*raw.shape, 2))
