"""Load PTX and launch its kernels on numpy arrays.

    module = PtxModule(compile_ptx(source, 90))
    kernel = module.kernel(r"fft_conv_kernel<.*float>")
    kernel.launch(grid=(4, 2), block=256, arguments=[u, y, 1024], shared=16384)

An argument is an array (its address is passed, and the kernel may touch exactly its bytes), a
number, or for a struct by value a ctypes.Structure, a numpy record or bytes. Arrays to which only
a struct points are given as `buffers`.
"""

import ctypes
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.emulation import ptx_arithmetic, ptx_bits, ptx_flow, ptx_transfers, ptx_warp
from tests.emulation.ptx_formats import RAW, Fault, number_format
from tests.emulation.ptx_instructions import Operands, compile_instruction
from tests.emulation.ptx_machine import WARP, Threads
from tests.emulation.ptx_memory import LOCAL_WINDOW, SHARED_START, Buffers, Memory, device_array
from tests.emulation.ptx_parser import Entry, Parameter, PtxFile, Variable

# Imported for the instructions that they declare.
DECLARING = (ptx_arithmetic, ptx_bits, ptx_flow, ptx_transfers, ptx_warp)

SLOTS_AT_ONCE = 2048  # threads; more make numpy's loops longer without making them fewer

Extent = int | Sequence[int]


def demangle(names: Sequence[str]) -> dict[str, str]:
    """Return readable names by mangled name; without c++filt, the mangled ones."""
    if not names:
        return {}
    try:
        done = subprocess.run(
            ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {name: name for name in names}
    return dict(zip(names, done.stdout.splitlines(), strict=True))


@dataclass(frozen=True)
class Launch:
    """What a launch did."""

    steps: int  # instructions run, over all groups of blocks; divergent paths count once each


class PtxModule:
    """A PTX file with its device variables, which live as long as it does."""

    def __init__(self, ptx: Path | str) -> None:
        """`ptx` is a file, or the text itself."""
        self.file = PtxFile(ptx.read_text() if isinstance(ptx, Path) else ptx)
        self.names = demangle(list(self.file.entries))
        self.variables = {
            each.name: _filled(each)
            for each in self.file.variables
            if each.space in ("global", "const") and each.bytes
        }
        self._kernels: dict[str, Kernel] = {}

    def kernel(self, pattern: str) -> "Kernel":
        """Return the kernel whose mangled name is `pattern` or whose readable one it matches.

        `pattern` is a regular expression, searched in names such as
        "void monarch::fft_conv_kernel<float>(Params)"; one kernel must fit.
        """
        found = [n for n in self.names if n == pattern]
        found = found or [n for n, readable in self.names.items() if re.search(pattern, readable)]
        if len(found) != 1:
            candidates = "\n  ".join(sorted(self.names.values()))
            raise LookupError(f"{len(found)} kernels fit {pattern!r} among:\n  {candidates}")
        if found[0] not in self._kernels:
            self._kernels[found[0]] = Kernel(self, self.file.entries[found[0]])
        return self._kernels[found[0]]


class Kernel:
    """A kernel that can be launched."""

    def __init__(self, module: PtxModule, entry: Entry) -> None:
        self.module, self.entry = module, entry
        self.parameters = {
            each.name: device_array(each.bytes, np.uint8) for each in entry.parameters
        }
        symbols = {name: data.ctypes.data for name, data in self._global_data().items()}
        variables = [*module.file.variables, *entry.body.variables]
        shared, self.shared_bytes = self._layout(variables, "shared", SHARED_START)
        local, self.local_bytes = self._layout(variables, "local", LOCAL_WINDOW)
        self.operands = Operands(entry, {**symbols, **shared, **local})
        self.code = [
            compile_instruction(instruction, self.operands, place)
            for place, instruction in enumerate(entry.body.instructions)
        ]

    @property
    def unsupported(self) -> list[str]:
        """Instructions of the kernel that would raise Unsupported if they were reached."""
        return self.operands.unsupported

    def _global_data(self) -> dict[str, np.ndarray]:
        return {**self.module.variables, **self.parameters}

    def _layout(self, variables: list[Variable], space: str, start: int):
        """Return addresses by name, and the bytes taken. Dynamic shared memory comes last."""
        mine = [v for v in variables if v.space == space and v.name in self.entry.text]
        end, addresses = start, {}
        for variable in sorted(mine, key=lambda v: v.bytes == 0):
            end = -(-end // variable.align) * variable.align
            addresses[variable.name] = end
            end += variable.bytes
        return addresses, end - start

    def launch(
        self,
        grid: Extent,
        block: Extent,
        arguments: Sequence,
        shared: int = 0,
        buffers: Sequence[np.ndarray] = (),
    ) -> Launch:
        """Run the kernel; `shared` is the dynamic shared memory in bytes. Arrays are changed."""
        grid_shape, block_shape = _extent(grid), _extent(block)
        self._check_block(block_shape)
        memory = self._buffers(arguments, buffers)
        padded = -(-int(np.prod(block_shape)) // WARP) * WARP
        group = max(1, SLOTS_AT_ONCE // padded)
        blocks, steps = np.arange(int(np.prod(grid_shape))), 0
        for first in range(0, len(blocks), group):
            threads = Threads(
                block_shape, grid_shape, blocks[first : first + group], self.operands.formats
            )
            threads.memory = Memory(
                memory, threads.block, self.shared_bytes + shared, self.local_bytes
            )
            with np.errstate(all="ignore"):
                threads.run(self.code)
            steps += threads.steps
        return Launch(steps)

    def _check_block(self, shape: tuple[int, int, int]) -> None:
        for kind, limit in self.entry.thread_limits.items():
            if kind == "reqntid" and shape[: len(limit)] != limit:
                raise Fault(f"block of {shape}, but the kernel requires {limit}")
            if np.prod(shape) > np.prod(limit):
                raise Fault(f"block of {shape}, but the kernel is compiled for {limit}")

    def _buffers(self, arguments: Sequence, extra: Sequence[np.ndarray]) -> Buffers:
        """Store the arguments in the parameters' memory; return all that may be touched."""
        if len(arguments) != len(self.entry.parameters):
            wanted = len(self.entry.parameters)
            raise TypeError(f"{len(arguments)} arguments, the kernel has {wanted} parameters")
        memory = Buffers()
        for position, argument in enumerate(arguments):
            if isinstance(argument, np.ndarray):
                memory.add(f"argument {position}", argument)
        for position, array in enumerate(extra):
            memory.add(f"buffer {position}", array)
        for parameter, argument in zip(self.entry.parameters, arguments, strict=True):
            stored = self.parameters[parameter.name]
            stored[:] = np.frombuffer(_argument_bytes(parameter, argument), np.uint8)
        for name, data in self._global_data().items():
            memory.add(name, data)
        return memory


def _filled(variable: Variable) -> np.ndarray:
    """Return a device variable: its initial value, then zeros. Constants are read-only."""
    data = device_array(variable.bytes, np.uint8, fill=0)
    data[: len(variable.initial)] = np.frombuffer(variable.initial, np.uint8)
    data.flags.writeable = variable.space != "const"
    return data


def _extent(extent: Extent) -> tuple[int, int, int]:
    values = (extent,) if isinstance(extent, int) else tuple(extent)
    x, y, z = (*values, 1, 1)[:3]
    return int(x), int(y), int(z)


def _argument_bytes(parameter: Parameter, argument) -> bytes:
    if isinstance(argument, np.ndarray):
        argument = np.uint64(argument.ctypes.data)
    if isinstance(argument, (bytes, np.void, ctypes.Structure)):
        data = bytes(argument)
    elif isinstance(argument, np.generic):
        data = argument.tobytes()
    else:
        number = number_format(parameter.format)
        if number.kind == "f":
            data = number.encode(np.array([argument], np.float64)).tobytes()
        else:
            bits = int(argument) & ((1 << number.bits) - 1)
            data = np.array([bits], RAW[number.bytes]).tobytes()
    if len(data) != parameter.bytes:
        raise TypeError(f"{len(data)} bytes for {parameter.name}, which has {parameter.bytes}")
    return data
