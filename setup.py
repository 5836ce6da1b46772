"""Builds the native libraries with CMake; all other metadata is in pyproject.toml.

Environment:
  MONARCH_KERNELS_NATIVE      0 installs the Python code alone: no compiler and no CMake are needed
  MONARCH_KERNELS_CUDA        auto (default): if an nvcc is found; 1: fail without one; 0: never
  MONARCH_KERNELS_CUDA_ARCHS  "90;100", "8.0;9.0+PTX", "native" or "all" (TORCH_CUDA_ARCH_LIST
                              is read when this is not set)
  MONARCH_KERNELS_CMAKE_ARGS  appended to the CMake command line
  MONARCH_KERNELS_BUILD_DIR   instead of build/cmake-<configuration>
  MAX_JOBS                    parallel compile jobs
"""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

# Ampere to Blackwell. The last entry adds PTX, for GPUs newer than the release; that of the oldest
# architecture is there anyway (CMakeLists.txt).
DEFAULT_ARCHS = ("80", "86", "89", "90", "100", "120", "80-virtual")

# nvcc and the host compiler need about this much memory for a kernel file.
BYTES_PER_JOB = 2 << 30


def switch(name: str) -> str:
    """Return the environment variable `name` as "0", "1" or "auto"."""
    text = os.environ.get(name, "").strip().lower() or "auto"
    words = {"off": "0", "false": "0", "no": "0", "on": "1", "true": "1", "yes": "1"}
    value = words.get(text, text)
    if value not in ("0", "1", "auto"):
        raise SystemExit(f"{name}={text!r}: expected 0, 1 or auto")
    return value


def find_tool(program: str) -> str | None:
    """Return the path of `program`: of the PyPI package of that name, else from PATH.

    The package comes first, and as a module, because the environment's bin directory is not on
    PATH when its Python is run without activation.
    """
    try:
        module = importlib.import_module(program)
    except ImportError:
        module = None
    for attribute in ("CMAKE_BIN_DIR", "BIN_DIR"):
        candidate = Path(getattr(module, attribute, "")) / program
        if module is not None and candidate.is_file():
            return str(candidate)
    return shutil.which(program) or shutil.which(program, path=sysconfig.get_path("scripts"))


def find_nvcc() -> str | None:
    """Return the nvcc to use: the one named by the environment, on PATH, or in /usr/local/cuda.

    Decided here, not by CMake: its search misses /usr/local/cuda, and it would cache a failure.
    """
    toolkits = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [
        shutil.which(os.environ.get("CUDACXX", "")),
        *(os.path.join(toolkit, "bin", "nvcc") for toolkit in toolkits),
        shutil.which("nvcc"),
        "/usr/local/cuda/bin/nvcc",
    ]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    return None


def parse_archs(spec: str) -> list[str]:
    """Return the architectures in `spec` in CMake's spelling.

    Both spellings in use are read: CMake's ("90a;80-virtual") and torch's ("9.0a 8.0+PTX").
    An entry without a suffix means machine code only.

    >>> parse_archs("90;8.0+PTX")
    ['90-real', '80-real', '80-virtual']
    """
    archs: list[str] = []
    for entry in re.split(r"[;,\s]+", spec.strip()):
        match = re.fullmatch(r"(\d+)\.?(\d)([af]?)(\+PTX|-real|-virtual)?", entry)
        if match is None:
            raise ValueError(f"{entry!r} is not a CUDA architecture such as 90 or 8.0+PTX")
        number = match[1] + match[2] + match[3]
        if match[4] == "-virtual":
            archs.append(f"{number}-virtual")
        else:
            archs.append(f"{number}-real")
        if match[4] == "+PTX":
            archs.append(f"{number}-virtual")
    return list(dict.fromkeys(archs))


def output_words(*command: str) -> list[str]:
    """Return the words `command` prints, or none if it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split()


def cuda_archs(nvcc: str) -> list[str]:
    """Return the architectures to build for: those asked for, this machine's, or the default."""
    spec = os.environ.get("MONARCH_KERNELS_CUDA_ARCHS", "").strip()
    spec = spec or os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if spec not in ("", "native", "all"):
        try:
            return parse_archs(spec)
        except ValueError as error:
            raise SystemExit(f"CUDA architectures {spec!r}: {error}") from None
    if spec != "all":
        found = output_words("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
        if found and all(re.fullmatch(r"\d+\.\d", capability) for capability in found):
            return parse_archs(" ".join(sorted(found)))
    # An older nvcc does not know the newest GPUs, a newer one drops the oldest.
    known = {word.removeprefix("sm_") for word in output_words(nvcc, "--list-gpu-code")}
    wanted = [arch for arch in DEFAULT_ARCHS if not known or arch.split("-")[0] in known]
    return parse_archs(";".join(wanted))


def job_count() -> int:
    """Return how many files to compile at once: MAX_JOBS, else what cores and memory allow."""
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // BYTES_PER_JOB))


def announce(text: str) -> None:
    """Print one line of build output, in order with the output of the programs it runs."""
    print(f"monarch_kernels: {text}", flush=True)


class CMakeBuild(build_ext):
    """Configures, builds and installs the native libraries into the package directory.

    In an editable install that is the source tree, else setuptools' build directory.
    """

    def run(self) -> None:
        package = Path(self.get_ext_fullpath("monarch_kernels._host")).resolve().parent
        package.mkdir(parents=True, exist_ok=True)
        if switch("MONARCH_KERNELS_NATIVE") == "0":
            reason = "installed without native code (MONARCH_KERNELS_NATIVE=0)"
            announce(f"{reason}: nothing to compile")
            self.replace_libraries(package)
            self.write_build_info(package, {"native": False, "native_reason": reason})
            return
        if not sys.platform.startswith("linux"):
            raise SystemExit(
                "monarch_kernels: native code is built on Linux only; "
                "MONARCH_KERNELS_NATIVE=0 installs the Python code alone"
            )
        self.build_native(package)

    def build_native(self, package: Path) -> None:
        cmake = find_tool("cmake")
        try:
            import pybind11
        except ImportError:
            pybind11 = None
        if cmake is None or pybind11 is None:
            raise SystemExit(
                "monarch_kernels: cmake or pybind11 was not found: "
                "pip install cmake ninja pybind11, or drop --no-build-isolation"
            )
        nvcc, cuda_reason = self.choose_cuda()
        build = self.build_directory(with_cuda=nvcc is not None)
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build)),
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DMONARCH_CUDA={'OFF' if nvcc is None else self.cuda_mode()}",
            f"-DMONARCH_CUDA_REASON={cuda_reason}",
        ]
        environment = {"NINJA_STATUS": "[%f/%t %es] ", **os.environ}
        if nvcc is not None:
            configure.append(f"-DMONARCH_CUDA_ARCHS={';'.join(cuda_archs(nvcc))}")
            environment["CUDACXX"] = nvcc
        ninja = find_tool("ninja")
        if ninja is not None:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        if shutil.which("ccache"):
            configure += [f"-DCMAKE_{name}_COMPILER_LAUNCHER=ccache" for name in ("CXX", "CUDA")]
        configure += shlex.split(os.environ.get("MONARCH_KERNELS_CMAKE_ARGS", ""))

        stamp = self.toolchain_stamp(build, nvcc)
        if not stamp:
            configure.insert(1, "--fresh")
        started = time.monotonic()
        self.call(configure, environment, build)
        self.call(
            [cmake, "--build", str(build), "--parallel", str(job_count())], environment, build
        )
        self.replace_libraries(package)
        install = [cmake, "--install", str(build), "--prefix", str(package)]
        self.call([*install, "--component", "monarch"], environment, build)

        info = json.loads((build / "build_info.json").read_text())
        self.write_build_info(package, info)
        announce(f"native code built in {time.monotonic() - started:.1f} s into {package}")
        if info["cuda"]:
            announce(f"CUDA: built with nvcc {info['cuda_compiler']} for {info['cuda_archs']}")
        else:
            announce(f"CUDA: NOT built: {info['cuda_reason']}")

    @staticmethod
    def cuda_mode() -> str:
        return "ON" if switch("MONARCH_KERNELS_CUDA") == "1" else "AUTO"

    @staticmethod
    def choose_cuda() -> tuple[str | None, str]:
        """Return the nvcc to use, or None and the reason why CUDA is not built."""
        wanted = switch("MONARCH_KERNELS_CUDA")
        if wanted == "0":
            return None, "switched off by MONARCH_KERNELS_CUDA=0"
        nvcc = find_nvcc()
        if nvcc is not None:
            return nvcc, ""
        if wanted == "1":
            raise SystemExit(
                "monarch_kernels: MONARCH_KERNELS_CUDA=1, but no nvcc was found: "
                "set CUDA_HOME or CUDACXX, or put nvcc on PATH"
            )
        return None, "no nvcc was found (CUDACXX, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda)"

    def build_directory(self, with_cuda: bool) -> Path:
        """Return the CMake directory of this configuration.

        One each, so that a cached "no CUDA compiler" or another Python does not leak into this
        build; kept between builds, which are therefore incremental.
        """
        parts = [sysconfig.get_platform(), sys.implementation.cache_tag]
        parts.append("cuda" if with_cuda else "cpu")
        if self.debug:
            parts.append("debug")
        chosen = os.environ.get("MONARCH_KERNELS_BUILD_DIR")
        build = Path(chosen) if chosen else ROOT / "build" / f"cmake-{'-'.join(parts)}"
        build.mkdir(parents=True, exist_ok=True)
        return build

    @staticmethod
    def toolchain_stamp(build: Path, nvcc: str | None) -> bool:
        """Return whether `build` was configured with the present toolchain; record the present.

        A compiler changed under an existing cache makes CMake drop the cache together with every
        -D of the command line, and then fail; such a cache must be started afresh.
        """
        variables = ("CC", "CXX", "CUDAHOSTCXX", "CMAKE_GENERATOR")
        toolchain = [nvcc or "", sys.executable, *(os.environ.get(name, "") for name in variables)]
        text = "\n".join(toolchain)
        stamp = build / "toolchain.txt"
        if stamp.exists() and stamp.read_text() == text:
            return True
        stamp.write_text(text)
        return False

    @staticmethod
    def call(command: list[str], environment: dict[str, str], build: Path) -> None:
        """Run `command`; a failure ends the build in one line (its output has been shown)."""
        print("+", shlex.join(command), flush=True)
        done = subprocess.run(command, env=environment, check=False)
        if done.returncode != 0:
            (build / "toolchain.txt").unlink(missing_ok=True)  # a half-made cache must not be kept
            raise SystemExit(
                f"monarch_kernels: the native build failed (exit code {done.returncode}): "
                "see the output above; MONARCH_KERNELS_NATIVE=0 installs the Python code alone"
            )

    @staticmethod
    def replace_libraries(package: Path) -> None:
        """Delete the libraries of a former build.

        setuptools packs whatever lies in the directory: a build without CUDA must not ship the
        CUDA library of the build before.
        """
        for library in package.glob("*.so"):
            library.unlink()

    @staticmethod
    def write_build_info(package: Path, info: dict[str, object]) -> None:
        lines = ['"""How the native code was built. Written by setup.py."""', ""]
        lines += [f"{name} = {value!r}" for name, value in info.items()]
        (package / "_build_info.py").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":  # setuptools runs this file as __main__; the tests import it
    setup(
        # The name decides the directory that receives all libraries, and the wheel's tag.
        ext_modules=[Extension("monarch_kernels._host", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
    )
