"""The memories of a launch: exact bounds, natural alignment, and everything poisoned at first.

Global memory is the numpy arrays that the launch was given, at their own host addresses. Shared
and local memory have windows of the address space that no array can have, so a generic address
says by itself which memory it means.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.emulation.ptx_formats import RAW, Fault

SHARED_START = 1024  # an address of 0, or a little more, is a null pointer, not shared memory
SHARED_WINDOW = 1 << 56
LOCAL_WINDOW = 1 << 57
ALIGNMENT = 256  # of cudaMalloc, and of shared memory


def device_array(shape, dtype, fill=None) -> np.ndarray:
    """Return an array as cudaMalloc would: 256-byte aligned; filled with `fill`, or with 0xFF."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    raw = np.full(count * dtype.itemsize + ALIGNMENT, 0xFF, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    array = raw[start : start + count * dtype.itemsize].view(dtype).reshape(shape)
    if fill is not None:
        array[...] = fill
    return array


@dataclass(frozen=True)
class Region:
    """A stretch of addresses of one memory; `rows` says where each thread's copy of it begins."""

    name: str
    start: int
    size: int
    data: np.ndarray  # uint8
    writable: bool = True
    rows: np.ndarray | None = None  # for every slot; None: all threads see the same bytes


def _buffer(name: str, array: np.ndarray) -> Region:
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} is not contiguous: pass the array that it is a part of")
    data = array.reshape(-1).view(np.uint8)
    return Region(name, array.ctypes.data, data.size, data, array.flags.writeable)


class Buffers:
    """Global memory: arrays, found by address."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.starts: list[int] = []

    def add(self, name: str, array: np.ndarray) -> None:
        if array.size == 0:
            return
        region = _buffer(name, array)
        position = bisect.bisect_left(self.starts, region.start)
        if position < len(self.starts) and self.starts[position] == region.start:
            if self.regions[position].size >= region.size:
                return  # the same array given twice, or a part of one that is there
            del self.starts[position], self.regions[position]
        self.starts.insert(position, region.start)
        self.regions.insert(position, region)

    def at(self, address: int) -> Region | None:
        """Return the region that `address` lies in, if there is one."""
        position = bisect.bisect_right(self.starts, address) - 1
        if position < 0:
            return None
        region = self.regions[position]
        return region if address < region.start + region.size else None


class Memory:
    """What a group of blocks can reach: the buffers, a shared memory each, local memory."""

    def __init__(self, buffers: Buffers, blocks: np.ndarray, shared: int, local: int) -> None:
        """`blocks` is the block of every slot; `shared` and `local` are bytes of one copy."""
        self.buffers = buffers
        count, slots = int(blocks.max()) + 1, len(blocks)
        # Rows are a multiple of 16 bytes, so that a row is aligned as its first address is.
        pitch = -(-shared // 16) * 16
        self.shared = Region(
            "shared memory",
            SHARED_START,
            shared,
            np.full(count * pitch, 0xFF, np.uint8),
            rows=blocks * pitch,
        )
        pitch = -(-local // 16) * 16
        self.local = Region(
            "local memory",
            LOCAL_WINDOW,
            local,
            np.full(slots * pitch, 0xFF, np.uint8),
            rows=np.arange(slots) * pitch,
        )

    def load(self, space: str, addresses: np.ndarray, slots, unit: int, count: int) -> np.ndarray:
        """Return (threads, count) raw numbers of `unit` bytes; `slots` are the threads' slots."""
        result = np.empty((len(addresses), count), RAW[unit])
        for region, where, offsets in self._locate(space, addresses, slots, unit * count):
            words, index = _words(region, offsets, unit, count)
            result[where] = words[index].view(RAW[unit]).reshape(-1, count)
        return result

    def store(self, space: str, addresses: np.ndarray, slots, values: np.ndarray) -> None:
        """Write (threads, count) raw numbers. Of several to one address, the last thread's."""
        unit, count = values.itemsize, values.shape[1]
        for region, where, offsets in self._locate(space, addresses, slots, unit * count):
            if not region.writable:
                raise Fault(f"store to {region.name}, which is read-only", slots[where][0])
            words, index = _words(region, offsets, unit, count)
            part = np.ascontiguousarray(values[where])
            words[index] = part.view(words.dtype).reshape(index.shape)

    def _locate(self, space: str, addresses, slots, size: int) -> Iterator[tuple]:
        """Yield (region, its threads, offsets into its data) for accesses of `size` bytes."""
        if len(addresses) == 0:
            return
        if (misaligned := addresses & (size - 1)).any():
            first = int(np.flatnonzero(misaligned)[0])
            raise Fault(f"address {addresses[first]:#x} is not a multiple of {size}", slots[first])
        if space == "generic" and int(addresses.max()) >= SHARED_WINDOW:
            yield from self._locate_generic(addresses, slots, size)
        elif space in ("shared", "local"):
            region = self.shared if space == "shared" else self.local
            yield region, slice(None), _offsets(region, addresses, slots, size)
        else:
            yield from self._locate_global(addresses, slots, size)

    def _locate_generic(self, addresses, slots, size: int) -> Iterator[tuple]:
        shared = (addresses >= SHARED_WINDOW) & (addresses < LOCAL_WINDOW)
        parts = [("shared", shared), ("local", addresses >= LOCAL_WINDOW)]
        parts.append(("global", addresses < SHARED_WINDOW))
        for space, chosen in parts:
            mine = np.flatnonzero(chosen)
            local = addresses[mine] - (SHARED_WINDOW if space == "shared" else 0)
            for region, where, offsets in self._locate(space, local, slots[mine], size):
                yield region, mine[where], offsets

    def _locate_global(self, addresses, slots, size: int) -> Iterator[tuple]:
        low, high = int(addresses.min()), int(addresses.max())
        region = self.buffers.at(low)
        if region and high + size <= region.start + region.size:
            yield region, slice(None), addresses - region.start
            return
        remaining = np.arange(len(addresses))
        while len(remaining):
            address = int(addresses[remaining[0]])
            region = self.buffers.at(address)
            if region is None or address + size > region.start + region.size:
                raise Fault(self._outside(address, size), slots[remaining[0]])
            inside = addresses[remaining] >= region.start
            inside &= addresses[remaining] + size <= region.start + region.size
            mine = remaining[inside]
            yield region, mine, addresses[mine] - region.start
            remaining = remaining[~inside]

    def _outside(self, address: int, size: int) -> str:
        """Say how far an address is from the nearest array."""
        text = f"{size} bytes at {address:#x} are outside of all buffers"

        def distance(region: Region) -> int:
            return max(region.start - address, address + size - region.start - region.size)

        if self.buffers.regions:
            nearest = min(self.buffers.regions, key=distance)
            text += f" (byte {address - nearest.start} of {nearest.name}, {nearest.size} bytes)"
        return text


def _offsets(region: Region, addresses, slots, size: int) -> np.ndarray:
    offsets = addresses - region.start
    outside = (offsets < 0) | (offsets > region.size - size)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise Fault(
            f"{size} bytes at byte {offsets[first]} of {region.name}, which has {region.size}",
            slots[first],
        )
    return offsets + region.rows[slots]


def _words(region: Region, offsets: np.ndarray, unit: int, count: int) -> tuple:
    """Return the region's data as numbers as wide as its own alignment allows, and an index.

    An array may begin anywhere (a view of another), so that an aligned address is not always a
    multiple of `unit` from its beginning; then bytes are moved.
    """
    aligned = region.start % unit == 0 and len(region.data) % unit == 0
    width = unit if aligned else 1
    words = region.data.view(RAW[width])
    step = unit * count // width
    first = offsets // width
    if step == 1:
        return words, first
    return words, first[:, None] + np.arange(step)
