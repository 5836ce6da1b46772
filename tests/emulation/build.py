"""Compiles kernels and the emulator into a shared library; what has not changed is not rebuilt."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = sorted((ROOT / "tests" / "emulation" / "runtime").glob("*.cpp"))
INCLUDE = [ROOT / "csrc", ROOT / "tests"]
CACHE = ROOT / "build" / "emulation"

_COMMON = ["-std=c++20", "-fPIC", "-fno-strict-aliasing", "-fno-gnu-unique"]
# Checked code needs all of -g: a finding names the callers of inlined functions too.
FLAVOURS = {
    "fast": ["-O1", "-g1"],
    "checked": [
        "-O1",
        "-g",
        "-fsanitize=thread,alignment,bounds,shift",
        "--param=tsan-instrument-func-entry-exit=0",
    ],
}

_locks: defaultdict[Path, Lock] = defaultdict(Lock)


class BuildError(RuntimeError):
    """The compiler's output, or why there is no compiler."""


@cache
def compiler() -> str:
    """Path of g++ (or of $CXX); BuildError if there is none that can build the emulator."""
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        raise BuildError(f"the emulator needs g++ 12 or later; there is no {name!r} in PATH")
    version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    if "clang" in version or "Free Software Foundation" not in version:
        raise BuildError(
            f"the emulator needs g++ 12 or later; {path} is {version.splitlines()[:1]}"
        )
    if int(_version(path).split(".")[0]) < 12:
        raise BuildError(f"the emulator needs g++ 12 or later; {path} is {_version(path)}")
    return path


@cache
def _version(path: str) -> str:
    full = subprocess.run([path, "-dumpfullversion"], capture_output=True, text=True)
    return full.stdout.strip()


@cache
def _contraction() -> list[str]:
    """Flags for a * b + c in one rounding, as nvcc does it, or every sum of products differs."""
    if platform.machine() != "x86_64":
        return ["-ffp-contract=fast"]
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    fma = flags is not None and "fma" in flags.group(1).split()
    return ["-mfma", "-ffp-contract=fast"] if fma else []


def _inputs(source: Path, include: list[Path]) -> list[Path]:
    """The file and all it includes by quotes, sorted; conditions are not evaluated."""
    found, pending = set(), [source]
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found.add(path)
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            candidates = (folder / name for folder in [path.parent, *include])
            pending += [c.resolve() for c in candidates if c.is_file()][:1]
    return sorted(found)


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else str(part).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:20]


def _make(target: Path, command: list[str]) -> Path:
    """Run `command`, which ends with -o, into a temporary name; then `target` appears at once.

    Two threads do not make the same file; two processes may, and the later one wins.
    """
    with _locks[target]:
        return target if target.exists() else _run(target, command)


def _run(target: Path, command: list[str]) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".tmp" + target.suffix)
    os.close(handle)
    try:
        done = subprocess.run([*command, temporary], capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def _compile(source: Path, include: list[Path], flags: list[str]) -> Path:
    folders = [f"-I{folder}" for folder in include]
    command = [compiler(), *_COMMON, *flags, *folders, "-x", "c++", "-c", str(source), "-o"]
    key = _digest(_version(compiler()), *command, *_inputs(source, include))
    return _make(CACHE / f"{source.stem}-{key}.o", command)


def build(
    sources: list[str | Path],
    include: list[str | Path] = (),
    defines: dict[str, object] | None = None,
    flavour: str = "fast",
) -> Path:
    """A shared library of `sources` (.cu, .cpp; paths relative to the repository) and the emulator.

    `include` adds folders to csrc and tests. `defines` gives macros their values. Flavour "fast"
    runs at full speed; "checked" has every memory access looked at.
    """
    kernel = [*FLAVOURS[flavour], "-Wno-unknown-pragmas", *_contraction()]
    kernel += [f"-D{name}={value}" for name, value in (defines or {}).items()]
    folders = [*INCLUDE, *((ROOT / folder).resolve() for folder in include)]
    # Kernels first: one of them may take longer than all of the emulator.
    jobs = [((ROOT / path).resolve(), folders, kernel) for path in sources]
    jobs += [(path, INCLUDE, ["-O2", "-g1"]) for path in RUNTIME]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda job: _compile(*job), jobs))
    # -Bsymbolic: several such libraries live in one process, each with its own emulator.
    command = [compiler(), "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs", *map(str, objects), "-o"]
    name = Path(sources[0]).stem if sources else "empty"
    return _make(CACHE / f"{name}-{flavour}-{_digest(*command)}.so", command)
