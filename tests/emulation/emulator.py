"""Runs kernels of a library that build.py made, and collects what the emulator found."""

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ORDERS = ("forward", "reverse", "random")
_STATISTICS = ("launches", "blocks", "threads", "switches", "barriers", "collectives")
_STATISTICS += ("products", "copies", "accesses", "matrices", "wavefronts")
_STATISTICS += ("vector_accesses", "vector_wavefronts")


@dataclass(frozen=True)
class Finding:
    """Something wrong with a kernel. `frames`: (file, line), innermost of inlined calls first."""

    kind: str
    message: str
    frames: tuple[tuple[str, int], ...]
    other_frames: tuple[tuple[str, int], ...]  # of the other access or the other barrier
    thread: str
    count: int

    @property
    def file(self) -> str:
        return self.frames[0][0] if self.frames else "?"

    @property
    def line(self) -> int:
        return self.frames[0][1] if self.frames else 0

    def __str__(self) -> str:
        text = f"{_show(self.frames)}: {self.kind}: {self.message}"
        if self.other_frames:
            text += f" [the other: {_show(self.other_frames)}]"
        if self.thread:
            text += f" [{self.thread}]"
        return text + (f" [{self.count} times]" if self.count > 1 else "")


def _show(frames: tuple[tuple[str, int], ...]) -> str:
    return " in ".join(f"{file}:{line}" for file, line in frames) or "?"


@dataclass(frozen=True)
class Schedule:
    """One of the many orders of events that CUDA allows."""

    order: str = "forward"
    seed: int = 1
    late_copies: bool = True


def schedules(seed: int = 1) -> Iterator[Schedule]:
    """The three orders, each with asynchronous copies that land late and early."""
    for order in ORDERS:
        for late_copies in (True, False):
            yield Schedule(order, seed, late_copies)


class Emulator:
    """One library. `with emulator:` begins a call; its findings stay until the next one.

    >>> with emulator:
    ...     emulator.buffer(x, "x", readonly=True)
    ...     emulator.buffer(y, "y", uninitialised=True)
    ...     emulator.call("my_launcher", x, y, 128)
    >>> assert emulator.findings() == []
    """

    def __init__(self, library: Path):
        self.path = Path(library)
        self.library = ctypes.CDLL(str(library))
        self.library.emulation_findings.restype = ctypes.c_size_t
        self.checked = bool(self.library.emulation_checked())
        # Address, bytes, name, readonly, and the array itself, which must stay alive.
        self._buffers: list[tuple[int, int, str, bool, Any]] = []

    def __enter__(self) -> "Emulator":
        self.library.emulation_begin_call()
        self._buffers.clear()
        return self

    def __exit__(self, *exception) -> None:
        self._buffers.clear()

    def set(self, order: str = "forward", seed: int = 1, late_copies: bool = True) -> None:
        """Choose the schedule of the launches that follow."""
        self.library.emulation_set(ORDERS.index(order), ctypes.c_uint64(seed), int(late_copies))

    def use(self, schedule: Schedule) -> None:
        self.set(schedule.order, schedule.seed, schedule.late_copies)

    def buffer(
        self, array: Any, name: str, *, readonly: bool = False, uninitialised: bool = False
    ) -> ctypes.c_void_p:
        """Let kernels touch the memory of a contiguous NumPy array or torch tensor.

        `readonly`: a store into it is a finding. `uninitialised`: so is a load of what no launch
        of this call has stored. Returns its address.
        """
        address, size = _memory(array, name)
        for begin, length, other, other_readonly, _ in self._buffers:
            overlap = address < begin + length and begin < address + size
            if overlap and not (readonly and other_readonly):
                raise ValueError(f"buffers {name!r} and {other!r} overlap, and one is written")
        self._buffers.append((address, size, name, readonly, array))
        self.library.emulation_register_buffer(
            ctypes.c_void_p(address),
            ctypes.c_size_t(size),
            name.encode(),
            int(readonly) | 2 * int(uninitialised),
        )
        return ctypes.c_void_p(address)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the library; arrays pass as pointers, floats as C floats."""
        return getattr(self.library, function)(*map(_argument, arguments))

    def findings(self) -> list[Finding]:
        """What was wrong in the last call, in the order in which it showed."""
        size = self.library.emulation_findings(None, ctypes.c_size_t(0)) + 1
        text = ctypes.create_string_buffer(size)
        self.library.emulation_findings(text, ctypes.c_size_t(size))
        rows = [line.split("\t") for line in text.value.decode().splitlines()]
        frames = _frames(self.path, {site for row in rows for site in row[1:3]})
        return [
            Finding(kind, message, frames[site], frames[other], thread, int(count))
            for kind, site, other, message, thread, count in rows
        ]

    def stats(self) -> dict[str, int]:
        """Counts of the last call: launches, blocks, barriers, products, wavefronts, ..."""
        values = (ctypes.c_uint64 * len(_STATISTICS))()
        self.library.emulation_statistics(values)
        return dict(zip(_STATISTICS, values, strict=True))


def _memory(array: Any, name: str) -> tuple[int, int]:
    if hasattr(array, "data_ptr"):
        contiguous, address = array.is_contiguous(), array.data_ptr()
        size = array.numel() * array.element_size()
    else:
        contiguous, address, size = array.flags.c_contiguous, array.ctypes.data, array.nbytes
    if not contiguous:
        raise ValueError(f"buffer {name!r} is not contiguous")
    return address, size


def _argument(value: Any) -> Any:
    if hasattr(value, "data_ptr"):
        return ctypes.c_void_p(value.data_ptr())
    if hasattr(value, "ctypes"):
        return ctypes.c_void_p(value.ctypes.data)
    return ctypes.c_float(value) if isinstance(value, float) else value


def _frames(library: Path, sites: set[str]) -> dict[str, tuple[tuple[str, int], ...]]:
    """Source lines of sites, which are "file:line", "+address" in the library, or empty."""
    addresses = [site for site in sites if site.startswith("+")]
    frames = {site: _location(site) for site in sites if site not in addresses}
    if addresses:
        command = ["addr2line", "-a", "-i", "-e", str(library)]
        command += [hex(int(address)) for address in addresses]
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        found: list[list[str]] = []
        for line in lines:
            if line.startswith("0x"):
                found.append([])
            else:
                found[-1].append(line.split(" ")[0])
        for address, chain in zip(addresses, found, strict=True):
            frames[address] = tuple(frame for line in chain for frame in _location(line))
    return frames


def _location(text: str) -> tuple[tuple[str, int], ...]:
    path, _, line = text.rpartition(":")
    return ((Path(path).name, int(line)),) if line.isdigit() else ()


def sweep(fast: Emulator, checked: Emulator | None, run: Callable[[Emulator], Any]) -> list[Any]:
    """Call `run(emulator)` under every schedule in the fast flavour, and once in the checked one.

    `run` registers its buffers, calls a launcher, and returns a result or asserts about it. Raises
    AssertionError with all findings of the first call that has any; returns the results.
    """
    calls = [(fast, schedule) for schedule in schedules()]
    if checked is not None:
        calls.insert(0, (checked, Schedule()))  # first: it stops at what would crash the others
    results = []
    for emulator, schedule in calls:
        emulator.use(schedule)
        with emulator:
            results.append(run(emulator))
        found = emulator.findings()
        if found:
            text = "\n".join(map(str, found))
            raise AssertionError(f"{emulator.path.name} under {schedule}:\n{text}")
    return results
