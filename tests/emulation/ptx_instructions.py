"""The table of instructions, and how one of them becomes a Python function over `Threads`.

Each opcode is declared once with the modifiers it may have; any other modifier, opcode or operand
is Unsupported, so that nothing is run as if a word of it were not there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.emulation.ptx_formats import RAW, Unsupported, number_format
from tests.emulation.ptx_machine import Threads, guarded, reported
from tests.emulation.ptx_parser import (
    Address,
    Entry,
    Immediate,
    Instruction,
    Negated,
    Operand,
    Register,
    Sink,
    Special,
    Symbol,
)

Reader = Callable[[Threads], np.ndarray]
Writer = Callable[[Threads, np.ndarray], None]


@dataclass(frozen=True)
class Declared:
    compile: Callable
    modifiers: frozenset[str]
    elementwise: bool


_DECLARED: dict[str, Declared] = {}


def elementwise(*opcodes: str, modifiers: str = "") -> Callable:
    """Declare instructions that compute each thread's result from its own registers.

    The function decorated gets an Instruction and returns (format of the result, formats of the
    sources, function of the sources' values).
    """
    return _declare(opcodes, modifiers, is_elementwise=True)


def operation(*opcodes: str, modifiers: str = "") -> Callable:
    """Declare instructions that do anything else.

    The function decorated gets (Instruction, Operands) and returns a function of Threads, whose
    result is True if it has sent the threads elsewhere.
    """
    return _declare(opcodes, modifiers, is_elementwise=False)


def _declare(opcodes, modifiers: str, is_elementwise: bool) -> Callable:
    def declare(function: Callable) -> Callable:
        declared = Declared(function, frozenset(modifiers.split()), is_elementwise)
        _DECLARED.update(dict.fromkeys(opcodes, declared))
        return function

    return declare


class Operands:
    """Registers, symbols and labels of one kernel, as functions that read and write them."""

    def __init__(self, entry: Entry, symbols: dict[str, int]) -> None:
        """`symbols` are the addresses of the kernel's variables and parameters."""
        self.labels, self.symbols = entry.body.labels, symbols
        self.index: dict[str, int] = {}
        self.formats: list[str] = []
        self.place = 0  # of the instruction that is being compiled
        self.unsupported: list[str] = []  # instructions that will raise if they are reached

    def register(self, register: Register | Negated | None) -> int:
        """Return the number of a register in `Threads.registers`."""
        if not isinstance(register, Register):
            raise Unsupported(f"operand {register}")
        if register.name not in self.index:
            self.index[register.name] = len(self.formats)
            self.formats.append(register.format)
        return self.index[register.name]

    def read(self, operand: Operand, name: str) -> Reader:
        """Return a function that gives the operand's values, decoded as format `name`.

        Its result has a first axis of one element a thread, or of 1 if all are the same.
        """
        number = number_format(name)
        if isinstance(operand, Negated):
            index = self.register(operand.register)
            return lambda threads: ~threads.registers[index]
        if isinstance(operand, Special):
            return _special(operand.name, number)
        if not isinstance(operand, Register):
            value = number.decode(self._constant(operand, number))
            return lambda threads: value
        width = 1 if operand.format == "pred" else number_format(operand.format).bytes
        if width < number.bytes or (operand.format == "pred") != (name == "pred"):
            raise Unsupported(f".{operand.format} register read as .{name}")
        index, decode, raw = self.register(operand), number.decode, RAW[number.bytes]
        if width > number.bytes:
            return lambda threads: decode(threads.registers[index].astype(raw))
        return lambda threads: decode(threads.registers[index])

    def _constant(self, operand: Operand, number) -> np.ndarray:
        if isinstance(operand, Symbol):
            if operand.name not in self.symbols:
                raise Unsupported(f"symbol {operand.name}")
            return np.array([self.symbols[operand.name]], RAW[number.bytes])
        if not isinstance(operand, Immediate):
            raise Unsupported(f"operand {operand}")
        if number.kind == "pred":
            return np.array([bool(operand.value)])
        if operand.float_bits and operand.float_bits != number.bits:
            raise Unsupported(f"a constant of {operand.float_bits} bits for .{number.name}")
        return np.array([operand.value & ((1 << number.bits) - 1)], RAW[number.bytes])

    def write(self, operand: Operand, name: str) -> Writer:
        """Return a function that stores values of format `name` in the active threads' register.

        A register wider than the format is filled with the sign, or with zeros.
        """
        if isinstance(operand, Sink):
            return lambda threads, values: None
        index, number = self.register(operand), number_format(name)
        if (operand.format == "pred") != (name == "pred"):
            raise Unsupported(f".{name} written to a .{operand.format} register")
        encode = number.encode
        width = 1 if name == "pred" else number_format(operand.format).bytes
        if width < number.bytes:
            raise Unsupported(f".{name} written to a .{operand.format} register")
        if width > number.bytes:
            sign = "int" if number.kind == "s" else "uint"
            short, long = f"{sign}{number.bits}", f"{sign}{8 * width}"

            def encode(values):
                return number.encode(values).view(short).astype(long).view(RAW[width])

        def write(threads: Threads, values: np.ndarray) -> None:
            raw, before = encode(values), threads.registers[index]
            if not threads.all_live or raw.shape != before.shape:
                raw = np.where(threads.active, raw, before)
            threads.registers[index] = raw

        return write

    def address(self, operand: Operand) -> Reader:
        """Return a function that gives the address of each active thread, as int64."""
        if not isinstance(operand, Address):
            raise Unsupported(f"operand {operand} instead of an address")
        wide = not isinstance(operand.base, Register) or operand.base.format.endswith("64")
        read, offset = self.read(operand.base, "u64" if wide else "u32"), operand.offset

        def addresses(threads: Threads) -> np.ndarray:
            values = read(threads).astype(np.int64) + offset
            if values.shape[0] == 1:
                return np.broadcast_to(values, len(threads.chosen))
            return values[threads.chosen]

        return addresses


def _special(name: str, number) -> Reader:
    """Return a function that reads a special register."""
    base, _, axis = name.partition(".")
    position = "xyz".find(axis) if axis else -1

    def values(threads: Threads) -> np.ndarray:
        if base == "tid":
            return threads.thread_index[position]
        if base == "ctaid":
            return threads.block_index[position]
        if base in ("ntid", "nctaid"):
            shape = threads.block_shape if base == "ntid" else threads.grid_shape
            return np.array([shape[position]])
        if base == "laneid":
            return threads.lane
        return threads.warp % (-(-threads.block_size // 32))  # warpid

    if base not in ("tid", "ctaid", "ntid", "nctaid", "laneid", "warpid"):
        raise Unsupported(f"special register %{name}")
    return lambda threads: number.decode(values(threads).astype(RAW[number.bytes]))


def compile_instruction(instruction: Instruction, operands: Operands, place: int) -> Callable:
    """Return a function over Threads; what is Unsupported raises only when it is reached."""
    operands.place = place
    try:
        run = _compile(instruction, operands)
        if instruction.guard is not None and instruction.opcode not in ("bra", "ret", "exit"):
            index = operands.register(instruction.guard)
            run = guarded(run, index, instruction.guard_negated)
    except (Unsupported, IndexError, ValueError) as error:
        problem = str(error) if isinstance(error, Unsupported) else f"operands ({error})"
        operands.unsupported.append(f"{instruction.text}: {problem}")
        run = _refuse(problem)
    return reported(run, instruction)


def _refuse(problem: str) -> Callable[[Threads], None]:
    def run(threads: Threads) -> None:
        raise Unsupported(problem)

    return run


def _compile(instruction: Instruction, operands: Operands) -> Callable:
    declared = _DECLARED.get(instruction.opcode)
    if declared is None:
        raise Unsupported(f"opcode {instruction.opcode}")
    known = {*declared.modifiers, *instruction.formats}
    if unknown := [word for word in instruction.modifiers if word not in known]:
        raise Unsupported(f"modifier .{unknown[0]}")
    if not declared.elementwise:
        return declared.compile(instruction, operands)
    result, sources, function = declared.compile(instruction)
    target, *arguments = instruction.operands
    readers = [operands.read(o, name) for o, name in zip(arguments, sources, strict=True)]
    write = operands.write(target, result)
    if len(readers) == 1:
        (only,) = readers
        return lambda threads: write(threads, function(only(threads)))
    if len(readers) == 2:
        left, right = readers
        return lambda threads: write(threads, function(left(threads), right(threads)))
    return lambda threads: write(threads, function(*(read(threads) for read in readers)))
