"""Fixtures of the operator tests: backends and instruction sets, threads, poisoned allocations."""

import functools

import pytest
import torch

from monarch_kernels import _native, fft_conv

# Each instruction set is a compilation of its own, with vectors of another width.
_ISAS = _native.host.available_isas() if _native.available else ["unavailable"]
NATIVE = [f"native-{isa}" for isa in _ISAS]


def _use(name):
    """Select the instruction set of "native-<isa>"; return `fft_conv` with the backend of `name`."""
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


@pytest.fixture
def poison():
    """Every fresh tensor holds NaN, so that an element nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # then torch.empty fills
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(before)
