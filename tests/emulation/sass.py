"""Reads the machine code in a library, fatbin or cubin: resources, instructions, loops.

cuobjdump unpacks the file, one nvdisasm a cubin prints its code; several run at once and their
output is read as it comes, because a library holds millions of instructions. Both tools are in
the CUDA toolkit, if all of it is installed, and in the triton package.
"""

import bisect
import heapq
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Branch:
    """A jump from one instruction to another, by their numbers in the kernel."""

    at: int
    target: int
    conditional: bool


@dataclass
class KernelCode:
    """The machine code of one kernel for one architecture."""

    name: str  # mangled
    arch: str  # "80", "90a"
    opcodes: Counter[str] = field(default_factory=Counter)  # without suffixes: LDS, not LDS.128
    loop_opcodes: Counter[str] = field(default_factory=Counter)
    loop: tuple[int, int] = (0, 0)  # numbers of its first and last instruction
    branches: list[Branch] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)  # numbers of the loads of global memory
    products: list[int] = field(default_factory=list)  # and of the tensor-core products

    @property
    def instructions(self) -> int:
        return self.opcodes.total()

    @property
    def loop_instructions(self) -> int:
        """Instructions from the target of the longest backward branch to that branch.

        All instructions for a kernel without a loop. An inner loop is counted once.
        """
        return self.loop_opcodes.total()

    @property
    def local_accesses(self) -> int:
        """Loads and stores of local memory: spilled registers, or arrays with a run-time index."""
        return self.opcodes["LDL"] + self.opcodes["STL"]

    def shortest_turn(self, loads: int = 0, products: int = 0) -> int:
        """Instructions on the shortest way through the loop with at least `loads` global loads.

        And with at least so many tensor-core products.

        Blocks that are optional, such as what a gate costs, are left out, except where the loads
        are found only in them.
        """
        first, last = self.loop
        jumps = {b.at + 1: b for b in self.branches}
        nodes = {first, self.instructions, *jumps, *(b.target for b in self.branches)}
        after = dict(itertools.pairwise(sorted(nodes)))
        heap, seen = [(0, first, 0, 0)], set()  # instructions, where, loads and products so far
        while heap:
            done, here, *passed = heapq.heappop(heap)
            if (here, *passed) in seen or here not in after:
                continue
            seen.add((here, *passed))
            end = after[here]
            branch = jumps.get(end)
            found = [
                min(wanted, count + bisect.bisect_left(at, end) - bisect.bisect_left(at, here))
                for wanted, count, at in zip(
                    (loads, products), passed, (self.loads, self.products), strict=True
                )
            ]
            done += end - here
            closes = branch is not None and branch.target == first
            if (closes or end == last + 1) and found == [loads, products]:
                return done
            # Not backwards, so that an inner loop is gone through once; but blocks that lie behind
            # the loop come back into it.
            if branch and not closes and (branch.at < branch.target or last < branch.at):
                heapq.heappush(heap, (done, branch.target, *found))
            if not branch or branch.conditional:
                heapq.heappush(heap, (done, end, *found))
        raise ValueError(
            f"{self.name}: no way through the loop has {loads} global loads and {products} products"
        )


@dataclass(frozen=True)
class Usage:
    """What a cubin says that a kernel needs."""

    registers: int
    stack_bytes: int
    local_bytes: int


@cache
def find_tool(name: str) -> str | None:
    """Return the path of cuobjdump or nvdisasm: from PATH, the toolkit or the triton package."""
    folders = [
        Path(os.environ[key], "bin") for key in ("CUDA_HOME", "CUDA_PATH") if key in os.environ
    ]
    folders.append(Path("/usr/local/cuda/bin"))
    # Not imported: importing triton takes a second and looks for a GPU.
    spec = importlib.util.find_spec("triton")
    for location in (spec.submodule_search_locations or []) if spec else []:
        folders.append(Path(location, "backends", "nvidia", "bin"))
    found = shutil.which(name)
    candidates = [Path(found)] if found else []
    candidates += [folder / name for folder in folders]
    return next((str(path) for path in candidates if os.access(path, os.X_OK)), None)


def tools_missing() -> str:
    """Return why machine code cannot be read, or ""."""
    absent = [name for name in ("cuobjdump", "nvdisasm") if find_tool(name) is None]
    if not absent:
        return ""
    return f"{' and '.join(absent)} not found (PATH, CUDA toolkit, triton package)"


needs_tools = pytest.mark.skipif(bool(tools_missing()), reason=tools_missing())


def read_usage(path: Path) -> dict[tuple[str, str], Usage]:
    """Return the resources of each (mangled name, architecture)."""
    text = _output(find_tool("cuobjdump"), "--dump-resource-usage", str(path))
    found, arch = {}, ""
    pattern = re.compile(
        r"^arch = sm_(?P<arch>\w+)|^ *Function (?P<name>\S+):\s+"
        r"REG:(?P<registers>\d+) STACK:(?P<stack>\w+) SHARED:\d+ LOCAL:(?P<local>\d+)",
        re.MULTILINE,
    )
    for match in pattern.finditer(text):
        if match["arch"]:
            arch = match["arch"]
        else:
            stack = match["stack"]  # "UNKNOWN" for recursion
            size = int(stack) if stack.isdigit() else 1 << 30
            usage = Usage(int(match["registers"]), size, int(match["local"]))
            found[match["name"], arch] = usage
    return found


def read_code(path: Path) -> list[KernelCode]:
    """Return the code of all kernels for all architectures in a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(path).resolve()
        _output(find_tool("cuobjdump"), "--extract-elf", "all", str(path), cwd=folder)
        cubins = sorted(Path(folder).glob("*.cubin"), key=lambda p: p.stat().st_size, reverse=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [code for codes in pool.map(_disassemble, cubins) for code in codes]


def _output(*command: str, cwd: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _disassemble(cubin: Path) -> list[KernelCode]:
    command = [find_tool("nvdisasm"), "--print-code", str(cubin)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        codes = list(parse_code(process.stdout))
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed ({process.returncode})")
    return codes


_INSTRUCTION = re.compile(r" +/\*[0-9a-f]{4,}\*/ +(?:\{ *)?(?:@!?U?P\w+ +)?(\w+)")
_TARGET = re.compile(r"`\((\.L\w+)\)")
_SECTION = re.compile(r"\s*\.section\s+\.text\.(\S+?),")
_LABEL = re.compile(r"(\.L\w+):")


def parse_code(lines: Iterable[str]) -> Iterator[KernelCode]:
    """Yield the kernels in the output of nvdisasm."""
    arch, name = "", ""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    branches: list[tuple[int, str, bool]] = []
    for line in lines:
        if match := _INSTRUCTION.match(line):
            opcode = match[1]
            if opcode == "BRA" and (target := _TARGET.search(line)):
                branches.append((len(opcodes), target[1], "@" in line))
            opcodes.append(opcode)
        elif match := _LABEL.match(line):
            labels[match[1]] = len(opcodes)
        elif match := _SECTION.match(line):
            if name:
                yield _kernel(name, arch, opcodes, labels, branches)
            name, opcodes, labels, branches = match[1], [], {}, []
        elif line.lstrip().startswith(".target"):
            arch = line.split()[1].removeprefix("sm_")
    if name:
        yield _kernel(name, arch, opcodes, labels, branches)


def _kernel(name: str, arch: str, opcodes: list[str], labels, branches) -> KernelCode:
    while opcodes[-1:] == ["NOP"]:  # padding
        opcodes.pop()
    first, last = 0, len(opcodes) - 1
    # A branch to itself is where the padding begins.
    jumps = [Branch(at, labels.get(to, at), conditional) for at, to, conditional in branches]
    backward = [(jump.target, jump.at) for jump in jumps if jump.target < jump.at]
    if backward:
        # A block behind the loop comes back into its middle: the loop is what begins first among
        # the long ones.
        longest = max(at - target for target, at in backward)
        first = min(target for target, at in backward if at - target > longest / 2)
        last = max(at for target, at in backward if target == first)
    loop = Counter(opcodes[first : last + 1])
    loads, products = (
        [at for at, opcode in enumerate(opcodes) if opcode == kind] for kind in ("LDG", "HMMA")
    )
    return KernelCode(name, arch, Counter(opcodes), loop, (first, last), jumps, loads, products)
