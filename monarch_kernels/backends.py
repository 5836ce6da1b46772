"""Which implementation runs.

An explicit request that cannot be met raises and says why; only "no preference" may choose.
"""

import torch

from monarch_kernels import _native

BACKENDS = ("native", "triton", "reference")
NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_NO_TRITON = "this version has no Triton kernels"
_NO_CUDA = "this version has no CUDA kernels: use backend='reference' for tensors on a GPU"


def status() -> dict[str, str | None]:
    """Return for each backend None if it is usable here, else the reason why not."""
    return {"native": _native.reason, "triton": _NO_TRITON, "reference": None}


def unsupported(backend: str, u: torch.Tensor) -> str | None:
    """Return why `backend` cannot run on a tensor like `u`, or None if it can."""
    if backend == "reference":
        return None
    if backend == "triton":
        return _NO_TRITON
    if not _native.available:
        return _native.reason
    if u.device.type == "cuda":
        return _NO_CUDA
    if u.device.type not in ("cpu", "meta"):
        return f"it has no kernels for {u.device.type} tensors"
    if u.dtype not in NATIVE_DTYPES:
        return f"it has no kernels for {u.dtype}: convert, or use backend='reference'"
    return None


def select(backend: str | None, u: torch.Tensor) -> str:
    """Return the backend for an input like `u`: the one asked for, or the fastest that can.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the backend asked for cannot run here, or not on this input.
    """
    if backend is None:
        return "native" if unsupported("native", u) is None else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or None, got {backend!r}")
    reason = unsupported(backend, u)
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} is not available: {reason}")
    return backend
