"""Loads the compiled libraries, once, and records what is there and why something is not.

A missing or unusable library is no error here: the package stays importable, and a backend that
needs the library reports the reason found in this module.

Attributes, set when the module is imported:
    available: `_C.so` is loaded: the operators have their CPU implementations.
    reason: why not, in one line; None when available.
    cuda_available: `_C_cuda.so` is loaded, and `torch.ops.monarch_kernels.cuda_runtime` exists.
    cuda_reason: why not, in one line; None when cuda_available.
    host: the module `monarch_kernels._host`, or None.
    build: the build's record as a dictionary; empty when nothing was built.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

# The first torch with every function that csrc/torch/stable_abi.h declares.
MIN_TORCH = (2, 10)

CUDA_RUNTIME_SCHEMA = "cuda_runtime() -> (int runtime, int driver, int devices, str architectures)"

available: bool = False
reason: str | None = None
cuda_available: bool = False
cuda_reason: str | None = None
host: ModuleType | None = None
build: dict[str, Any] = {}

_directory = Path(__file__).parent
_library: torch.library.Library | None = None  # a schema lives as long as its Library object


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_build_info() -> dict[str, Any]:
    try:
        info = importlib.import_module("monarch_kernels._build_info")
    except ImportError:
        return {}
    return {name: value for name, value in vars(info).items() if not name.startswith("_")}


def _import_host() -> ModuleType | None:
    try:
        return importlib.import_module("monarch_kernels._host")
    except ImportError:
        return None


def _load_operators() -> str | None:
    """Load `_C.so`; return the reason if that is not possible."""
    path = _directory / "_C.so"
    if not path.exists():
        default = "the native libraries are not built; install the package with `pip install .`"
        return build.get("native_reason") or default
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if found < MIN_TORCH:
        needed = ".".join(map(str, MIN_TORCH))
        return f"the native libraries need torch >= {needed}, found {torch.__version__}"
    try:
        # Implementations may be registered before their schemas, which follow in Python.
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} cannot be loaded: {_one_line(error)}"
    return None


def _load_cuda() -> str | None:
    """Load `_C_cuda.so`; return the reason if that is not possible."""
    global _library
    if not available:
        return reason
    path = _directory / "_C_cuda.so"
    if not path.exists():
        return f"built without CUDA: {build.get('cuda_reason') or 'reason not recorded'}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} cannot be loaded: {_one_line(error)}"
    _library = torch.library.Library("monarch_kernels", "FRAGMENT")
    _library.define(CUDA_RUNTIME_SCHEMA)
    return None


def load() -> None:
    """Load what can be loaded and set the attributes of this module.

    Called on import. Calling it again does nothing once the operators are loaded.
    """
    global available, reason, cuda_available, cuda_reason, host, build
    if available:
        return
    build = _read_build_info()
    host = _import_host()
    reason = _load_operators()
    available = reason is None
    cuda_reason = _load_cuda()
    cuda_available = cuda_reason is None


load()
