"""Backends and instruction sets for the tests of the matrix products.

An implementation is "reference", or "native" with one instruction set, where AVX-512 counts twice:
with and without the CPU's products of bfloat16.
"""

import functools

import pytest

import monarch_kernels
from monarch_kernels import _native

_ISAS = _native.host.available_isas() if _native.available else ["unavailable"]
NATIVE = [f"native-{isa}" for isa in _ISAS]
if _native.available and _native.host.bf16_instructions():
    NATIVE.append("native-avx512+bf16")


class Implementation:
    """The operators with a backend chosen: `implementation(name)` is the function."""

    def __init__(self, name: str) -> None:
        self.backend, _, isa = name.partition("-")
        if isa == "unavailable":
            pytest.skip(f"backend 'native' is not available: {_native.reason}")
        if isa:
            isa, _, bf16 = isa.partition("+")
            _native.host.set_isa(isa)
            _native.host.use_bf16_instructions(bool(bf16))

    def __call__(self, operator):
        return functools.partial(getattr(monarch_kernels, operator), backend=self.backend)


@pytest.fixture
def restore_instructions():
    if not _native.available:
        yield
        return
    isa = _native.host.isa()
    yield
    _native.host.set_isa(isa)
    _native.host.use_bf16_instructions(True)


@pytest.fixture(params=[*NATIVE, "reference"])
def products(request, restore_instructions):
    """Every backend and instruction set."""
    return Implementation(request.param)


@pytest.fixture(params=NATIVE)
def native_products(request, restore_instructions):
    """The native backend with every instruction set."""
    return Implementation(request.param)


@pytest.fixture(params=NATIVE[-1:])
def best_products(request, restore_instructions):
    """The native backend with the best instruction set."""
    return Implementation(request.param)
