"""Fixtures of the operator tests: backends and instruction sets, threads, poisoned allocations."""

import ctypes
import functools

import pytest
import torch

from monarch_kernels import _native, fft_conv

# Each instruction set is a compilation of its own, with vectors of another width.
_ISAS = _native.host.available_isas() if _native.available else ["unavailable"]
NATIVE = [f"native-{isa}" for isa in _ISAS]


def _use(name):
    """Select the instruction set of "native-<isa>"; return `fft_conv` with the backend."""
    backend, _, isa = name.partition("-")
    if isa == "unavailable":
        pytest.skip(f"backend 'native' is not available: {_native.reason}")
    if isa:
        _native.host.set_isa(isa)
    return functools.partial(fft_conv, backend=backend)


@pytest.fixture
def restore_isa():
    before = _native.host.isa() if _native.available else None
    yield
    if before:
        _native.host.set_isa(before)


@pytest.fixture(params=[*NATIVE, "reference"])
def implementation(request, restore_isa):
    """`fft_conv` with a backend; for native, with each instruction set."""
    return _use(request.param)


@pytest.fixture(params=NATIVE)
def native(request, restore_isa):
    """`fft_conv` with the native backend and each instruction set."""
    return _use(request.param)


@pytest.fixture(params=NATIVE[-1:])
def native_best(request, restore_isa):
    """`fft_conv` with the native backend and the best instruction set."""
    return _use(request.param)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


M_PERTURB = -6  # malloc.h


@pytest.fixture
def poison():
    """Fresh memory holds 3e38, as float32 and as bfloat16, so that an element nobody wrote shows.

    Of glibc; elsewhere nothing. torch's own filling does not reach what extensions allocate, and
    only malloc knows about the scratch memory of the kernels.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(M_PERTURB, 0x80)  # the complement is what malloc fills with
    yield
    mallopt(M_PERTURB, 0)
