"""Moves, conversions between formats, and instructions on bit fields."""

import numpy as np

from tests.emulation.ptx_arithmetic import COMPARISONS, comparison
from tests.emulation.ptx_formats import Format, Unsupported, bf16_bits, f16_bits, number_format
from tests.emulation.ptx_instructions import Operands, elementwise, operation
from tests.emulation.ptx_memory import SHARED_WINDOW
from tests.emulation.ptx_parser import Instruction, Pair, Vector

_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@operation("mov")
def _mov(form: Instruction, operands: Operands):
    target, source = form.operands
    # The bits are moved, whatever the format says.
    size = 0 if form.format == "pred" else number_format(form.format).bits
    if isinstance(source, Vector):
        part = f"b{size // len(source.parts)}"
        readers = [operands.read(each, part) for each in source.parts]
        write = operands.write(target, f"b{size}")

        def pack(threads):
            parts = np.broadcast_arrays(*(read(threads) for read in readers))
            write(threads, np.stack(parts, 1).view(f"uint{size}")[:, 0])

        return pack
    if isinstance(target, Vector):
        read = operands.read(source, f"b{size}")
        count = len(target.parts)
        writers = [operands.write(each, f"b{size // count}") for each in target.parts]

        def unpack(threads):
            raw = np.ascontiguousarray(read(threads))
            parts = raw.view(f"uint{size // count}").reshape(-1, count)
            for position, write in enumerate(writers):
                write(threads, parts[:, position].copy())

        return unpack
    name = f"b{size}" if size else "pred"
    read, write = operands.read(source, name), operands.write(target, name)
    return lambda threads: write(threads, read(threads))


@operation("setp", modifiers=" ".join(COMPARISONS) + " and or xor ftz")
def _setp(form: Instruction, operands: Operands):
    target = form.operands[0]
    targets = [target.first, target.second] if isinstance(target, Pair) else [target]
    writers = [operands.write(each, "pred") for each in targets]
    left, right = (operands.read(each, form.format) for each in form.operands[1:3])
    compare = comparison(form)
    combine = next((w for w in form.modifiers if w in ("and", "or", "xor")), None)
    third = operands.read(form.operands[3], "pred") if combine else None

    def run(threads):
        result = compare(left(threads), right(threads))
        for write, value in zip(writers, (result, ~result), strict=False):
            if combine:
                value = getattr(np, f"logical_{combine}")(value, third(threads))
            write(threads, value)

    return run


@elementwise("cvt", modifiers="rn rz rna tf32 " + " ".join(_ROUND))
def _cvt(form: Instruction):
    if form.has("tf32"):
        return "b32", ["f32"], _to_tf32(form)
    result, source = (number_format(name) for name in form.formats)
    if result.is_packed:
        return _cvt_packed(form, result, source)
    if result.is_integer:
        return result.name, [source.name], _to_integer(form, result, source)
    if any(form.has(word) for word in _ROUND):
        function = next(_ROUND[word] for word in form.modifiers if word in _ROUND)
        return result.name, [source.name], function
    if form.has("rz"):
        return f"b{result.bits}", [source.name], _rounder(form, result)
    return result.name, [source.name], lambda x: x


def _to_tf32(form: Instruction):
    """Keep 10 bits of the fraction: ties away from zero (.rna) or to even (.rn)."""
    if form.has("rz"):
        raise Unsupported("conversion to tf32 toward zero")

    def convert(x):
        bits = x.view(np.uint32)
        half = np.uint32(0x1000) if form.has("rna") else np.uint32(0xFFF) + (bits >> 13 & 1)
        return np.where(np.isfinite(x), (bits + half) & np.uint32(0xFFFFE000), bits)

    return convert


def _cvt_packed(form: Instruction, result: Format, source: Format):
    if source.name != "f32" or result.name not in ("f16x2", "bf16x2"):
        raise Unsupported(f"conversion of {source.name} to {result.name}")
    bits = _rounder(form, result)

    def pack(high, low):  # the first source is the upper half
        return bits(high).astype(np.uint32) << np.uint32(16) | bits(low)

    return "b32", ["f32", "f32"], pack


def _rounder(form: Instruction, result: Format):
    """Return a function to the bits of a 16-bit format, to nearest (.rn) or toward zero (.rz)."""
    half = result.name.startswith("f16")
    if form.has("rn"):
        return f16_bits if half else bf16_bits
    if not form.has("rz") or not result.name.startswith(("f16", "bf16")):
        raise Unsupported(f"rounding of {form.text}")
    if not half:
        return lambda x: (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)

    def truncated(x):
        nearest = x.astype(np.float16)
        below = np.nextafter(nearest, np.float16(0))
        return np.where(np.abs(nearest.astype(x.dtype)) > np.abs(x), below, nearest).view(np.uint16)

    return truncated


def _to_integer(form: Instruction, result: Format, source: Format):
    if source.is_integer:
        return lambda x: x
    function = next((_ROUND[word] for word in form.modifiers if word in _ROUND), None)
    if function is None:
        raise Unsupported("conversion of floating point to integer without rounding")
    limits = np.iinfo(f"{'int' if result.kind == 's' else 'uint'}{result.bits}")

    def convert(x):
        value = function(x.astype(np.float64))
        # float64 cannot hold the largest 64-bit integers: compare, then choose.
        inside = (value >= limits.min) & (value < float(limits.max))
        whole = np.where(inside, value, 0.0).astype(limits.dtype)
        edge = np.where(value > 0, limits.max, limits.min).astype(limits.dtype)
        return np.where(inside | np.isnan(value), whole, edge)

    return convert


@elementwise("cvta", modifiers="to global shared local const param")
def _cvta(form: Instruction):
    """Only shared memory has addresses of its own; every other address is generic already."""
    if not form.has("shared"):
        return "u64", ["u64"], lambda address: address
    window = np.uint64(SHARED_WINDOW)
    if form.has("to"):
        return "u64", ["u64"], lambda address: address - window
    return "u64", ["u64"], lambda address: address + window


@elementwise("shl", "shr")
def _shift(form: Instruction):
    number = number_format(form.format)
    left = form.opcode == "shl"

    def shift(values, amount):
        limit = number.bits - 1
        part = np.minimum(amount, limit).astype(values.dtype)
        if left:
            return np.where(amount > limit, values.dtype.type(0), values << part)
        shifted = values >> part  # keeps the sign of signed numbers
        return shifted if number.kind == "s" else np.where(amount > limit, 0, shifted)

    return number.name, [number.name, "u32"], shift


@elementwise("shf", modifiers="l r wrap clamp")
def _funnel_shift(form: Instruction):
    """Shift the 64 bits of (high, low) by `amount`; give the upper half (l) or the lower (r)."""

    def shift(low, high, amount):
        limited = amount & 31 if form.has("wrap") else np.minimum(amount, 32)
        both = high.astype(np.uint64) << np.uint64(32) | low
        limited = limited.astype(np.uint64)
        if form.has("l"):
            return (both << limited >> np.uint64(32)).astype(np.uint32)
        return (both >> limited).astype(np.uint32)

    return "b32", ["b32", "b32", "u32"], shift


@elementwise("bfe")
def _bfe(form: Instruction):
    number = number_format(form.format)

    def extract(values, start, length):
        bits = number.bits
        start = np.minimum(start & 255, bits).astype(np.int64)
        length = np.minimum(length & 255, bits).astype(np.int64)
        start, length = np.broadcast_arrays(start, length)
        # The field's upper end to the top, then its lower end to the bottom. Past the top of
        # the number, a signed field is continued with the sign.
        end = np.minimum(start + length, bits)
        missing = np.where(end > start, bits - end, 0).astype(values.dtype)
        width = np.minimum(np.where(end > start, bits - (end - start), 0), bits - 1)
        field = values << missing >> width.astype(values.dtype)
        beyond = values >> (bits - 1) if number.kind == "s" else np.zeros_like(values)
        return np.where(length == 0, 0, np.where(end > start, field, beyond)).astype(values.dtype)

    return number.name, [number.name, "u32", "u32"], extract


@elementwise("bfi")
def _bfi(form: Instruction):
    number = number_format(form.format)

    def insert(source, target, start, length):
        start, length = (
            np.minimum(v & 255, number.bits).astype(np.uint64) for v in (start, length)
        )
        every = (1 << number.bits) - 1
        ones = _below(length) & np.uint64(every)
        mask = _shifted(ones, start) & np.uint64(every)
        moved = _shifted(source.astype(np.uint64), start) & mask
        return (target.astype(np.uint64) & ~mask | moved).astype(source.dtype)

    return number.name, [number.name, number.name, "u32", "u32"], insert


def _below(length: np.ndarray) -> np.ndarray:
    """Return numbers whose lowest `length` bits, up to 64, are set."""
    one = np.uint64(1)
    return np.where(length >= 64, ~np.uint64(0), (one << (length & np.uint64(63))) - one)


def _shifted(values: np.ndarray, amount: np.ndarray) -> np.ndarray:
    return np.where(amount >= 64, np.uint64(0), values << (amount & np.uint64(63)))


@elementwise("prmt")
def _prmt(form: Instruction):
    def permute(low, high, selector):
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        result = np.zeros(np.broadcast_shapes(both.shape, selector.shape), np.uint32)
        for position in range(4):
            choice = (selector >> np.uint32(4 * position)) & np.uint32(15)
            byte = (both >> ((choice & 7).astype(np.uint64) * np.uint64(8))) & np.uint64(255)
            sign = np.where(byte >> np.uint64(7), np.uint64(255), np.uint64(0))
            byte = np.where(choice & 8, sign, byte)
            result |= byte.astype(np.uint32) << np.uint32(8 * position)
        return result

    return "b32", ["b32", "b32", "b32"], permute


@elementwise("lop3")
def _lop3(form: Instruction):
    table = form.operands[4].value

    def look_up(a, b, c, _):
        result = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), np.uint32)
        for row in range(8):
            if table >> row & 1:
                terms = (v if row & bit else ~v for v, bit in ((a, 4), (b, 2), (c, 1)))
                first, second, third = terms
                result |= first & second & third
        return result

    return "b32", ["b32"] * 4, look_up


@elementwise("popc", "clz", "brev", "bfind", modifiers="shiftamt")
def _count(form: Instruction):
    bits = number_format(form.format).bits
    raw = f"b{bits}"

    def digits(values):
        return (values[..., None] >> np.arange(bits, dtype=values.dtype)) & values.dtype.type(1)

    def highest(values):
        return np.where(digits(values), np.arange(bits), -1).max(-1)

    def find(values):  # the highest bit that differs from the sign, or -1; or the shift to the top
        place = highest(values ^ (values >> (bits - 1)) if form.format[0] == "s" else values)
        return np.where(place >= 0, bits - 1 - place, -1) if form.has("shiftamt") else place

    if form.opcode == "popc":
        return "u32", [raw], lambda values: digits(values).sum(-1)
    if form.opcode == "clz":
        return "u32", [raw], lambda values: bits - 1 - highest(values)
    if form.opcode == "bfind":
        return "s32", [form.format], find
    places = np.arange(bits)[::-1]
    return raw, [raw], lambda values: (digits(values) << places.astype(values.dtype)).sum(-1)
