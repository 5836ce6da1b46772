"""Compiles CUDA sources to PTX and to machine code with nvcc; what has not changed is kept.

No GPU is needed. The results lie in build/emulation under a hash of everything they depend on.
"""

import hashlib
import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "emulation"
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", "-lineinfo", f"-I{ROOT / 'csrc'}")
HEADERS = ("*.h", "*.cuh", "*.inl", "*.cu")  # .cu: one source may include another


class CompileError(RuntimeError):
    """nvcc's output."""


@cache
def find_nvcc() -> str | None:
    """Return the nvcc that setup.py would use."""
    try:
        spec = importlib.util.spec_from_file_location("monarch_setup", ROOT / "setup.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
    except (ImportError, OSError):  # no setuptools, or no source tree
        return None
    return script.find_nvcc()


def nvcc_missing() -> str:
    """Return why nothing can be compiled, or ""."""
    if not (ROOT / "setup.py").exists():
        return "no source tree"
    if find_nvcc() is None:
        return "no nvcc was found (CUDACXX, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda)"
    return ""


needs_nvcc = pytest.mark.skipif(bool(nvcc_missing()), reason=nvcc_missing())


@cache
def known_archs() -> frozenset[str]:
    """Return the architectures of this nvcc: "80", "90a", ..."""
    done = subprocess.run([find_nvcc(), "--list-gpu-code"], capture_output=True, text=True)
    return frozenset(word.removeprefix("sm_") for word in done.stdout.split())


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of a kernel for one architecture."""

    registers: int
    stack_bytes: int
    spill_bytes: int  # stores and loads
    shared_bytes: int  # static


@dataclass(frozen=True)
class Binary:
    path: Path  # a fatbin: one cubin an architecture
    resources: dict[tuple[str, str], Resources]  # (mangled name, "80")


def compile_ptx(source: Path, arch: int | str, flags: Sequence[str] = ()) -> Path:
    """Return the file with the PTX of `source` for compute_<arch>."""
    return _compile(source, ".ptx", ("-ptx", f"-arch=compute_{arch}", *flags))


def compile_all_ptx(source: Path, archs: Sequence[int | str]) -> dict[int | str, Path]:
    """Return the PTX of several architectures, compiled at the same time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(
            zip(archs, pool.map(lambda arch: compile_ptx(source, arch), archs), strict=True)
        )


def compile_binary(source: Path, archs: Sequence[int | str], flags: Sequence[str] = ()) -> Binary:
    """Return the machine code of `source` for sm_<arch> of each, with what ptxas says of it."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    path = _compile(source, ".fatbin", ("-fatbin", "-Xptxas=-v", *targets, *flags))
    return Binary(path, parse_ptxas(path.with_suffix(".log").read_text()))


def parse_ptxas(text: str) -> dict[tuple[str, str], Resources]:
    """Return the resources of each kernel in the output of `ptxas -v`."""
    found: dict[tuple[str, str], Resources] = {}
    parts = re.split(r"Compiling entry function '([^']+)' for 'sm_(\w+)'", text)
    for name, arch, report in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
        numbers = [
            re.search(pattern, report)
            for pattern in (
                r"Used (\d+) registers",
                r"(\d+) bytes stack frame",
                r"(\d+) bytes smem",
            )
        ]
        registers, stack, shared = (int(match[1]) if match else 0 for match in numbers)
        found[name, arch] = Resources(registers, stack, sum(map(int, spills)), shared)
    return found


@cache
def _toolchain() -> bytes:
    return subprocess.run([find_nvcc(), "--version"], capture_output=True, check=True).stdout


def _key(source: Path, flags: Sequence[str]) -> str:
    digest = hashlib.sha256(_toolchain())
    digest.update(repr((source.name, *FLAGS, *flags)).encode())
    folders = [ROOT / "csrc", source.parent]
    headers = {path for folder in folders for kind in HEADERS for path in folder.rglob(kind)}
    for path in [source, *sorted(headers)]:
        digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def _compile(source: Path, suffix: str, flags: Sequence[str]) -> Path:
    source = Path(source).resolve()
    result = CACHE / f"{source.stem}-{_key(source, flags)}{suffix}"
    if result.exists():
        return result
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        made = Path(folder) / result.name
        command = [find_nvcc(), *FLAGS, *flags, "-o", str(made), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        log = made.with_suffix(".log")
        log.write_text(done.stdout + done.stderr)
        # The log first: whoever sees the result finds its log beside it.
        os.replace(log, result.with_suffix(".log"))
        os.replace(made, result)
    return result
