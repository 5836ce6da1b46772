"""Which implementation runs.

An explicit request that cannot be met raises and says why; only "no preference" may choose.
"""

import re

import torch

from monarch_kernels import _native

BACKENDS = ("native", "triton", "reference")
NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_NO_TRITON = "this version has no Triton kernels"
# With asynchronous copies and the matrix instructions of bfloat16: Ampere and later.
_MIN_CAPABILITY = (8, 0)


def status() -> dict[str, str | None]:
    """Return for each backend None if it is usable here, else the reason why not."""
    return {"native": _native.reason, "triton": _NO_TRITON, "reference": None}


def unsupported(backend: str, u: torch.Tensor, operator: str = "fft_conv") -> str | None:
    """Return why `backend` cannot run `operator` on a tensor like `u`, or None if it can."""
    if backend == "reference":
        return None
    if backend == "triton":
        return _NO_TRITON
    if not _native.available:
        return _native.reason
    if u.device.type not in ("cpu", "cuda", "meta"):
        return f"it has no kernels for {u.device.type} tensors"
    if u.dtype not in NATIVE_DTYPES:
        return f"it has no kernels for {u.dtype}: convert, or use backend='reference'"
    if u.device.type != "cuda":
        return None
    if operator not in ("fft_conv", *_native.build.get("cuda_operators", "").split()):
        return f"{operator} has no CUDA kernel yet: use backend='reference'"
    return cuda_unsupported(u.device.index)


def cuda_unsupported(index: int | None = None) -> str | None:
    """Return why the CUDA kernels cannot run on a GPU (None: torch's current one), or None."""
    if index in _gpu_reasons:
        return _gpu_reasons[index]
    reason = _missing_cuda()
    if reason is not None:
        return reason
    index = torch.cuda.current_device() if index is None else index
    _gpu_reasons[index] = _gpu_unsupported(
        torch.cuda.get_device_name(index),
        torch.cuda.get_device_capability(index),
        _native.build.get("cuda_archs", ""),
    )
    return _gpu_reasons[index]


# The compiler takes the answer as a fact and looks no further. This is all that
# torch.compiler.assume_constant_result does, which imports the compiler: two seconds.
cuda_unsupported._dynamo_marked_constant = True

# What was found for each GPU: asking torch costs as much as a small convolution.
_gpu_reasons: dict[int, str | None] = {}


def _missing_cuda() -> str | None:
    if not _native.cuda_available:
        return f"it has no CUDA kernels here ({_native.cuda_reason}): use backend='reference'"
    if "fft_conv" not in _native.build.get("cuda_operators", "").split():
        return "it was built without CUDA kernels of fft_conv: use backend='reference'"
    return None if torch.cuda.is_available() else "torch finds no GPU"


def _gpu_unsupported(name: str, capability: tuple[int, int], archs: str) -> str | None:
    """`archs` as CMake spells them: "80-real 90-virtual"."""
    found = f"{name} (compute capability {capability[0]}.{capability[1]})"
    if capability < _MIN_CAPABILITY:
        return f"{found} is older than 8.0: use backend='reference'"
    for number, kind in re.findall(r"(\d+)[af]?-(real|virtual)", archs):
        built = divmod(int(number), 10)
        # Machine code runs on its own generation, PTX on every later one.
        if built <= capability and (kind == "virtual" or built[0] == capability[0]):
            return None
    return (
        f"{found} is none of the GPUs it was built for ({archs}): "
        "install again with MONARCH_KERNELS_CUDA_ARCHS=native"
    )


def shared_bytes(index: int | None = None) -> int:
    """Return the shared memory of a block on a GPU; without a GPU, that of the largest."""
    if not torch.cuda.is_available():
        return 227 << 10
    return torch.cuda.get_device_properties(index).shared_memory_per_block_optin


def select(backend: str | None, u: torch.Tensor, operator: str = "fft_conv") -> str:
    """Return `operator`'s backend for an input like `u`: as asked for, or the fastest that can.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the backend asked for cannot run here, or not on this input.
    """
    if backend is None:
        return "native" if unsupported("native", u, operator) is None else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or None, got {backend!r}")
    reason = unsupported(backend, u, operator)
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} is not available: {reason}")
    return backend
