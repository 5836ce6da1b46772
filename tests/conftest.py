"""Fixtures of the operator tests: backends and instruction sets, threads, poisoned allocations.

Where a GPU can run the kernels, every operator test runs on it too (`native-cuda`, marker gpu):
the inputs go there and the results come back, so that one test serves both. What only a GPU has is
in test_cuda.py.
"""

import ctypes
import functools
import math

import pytest
import torch

from monarch_kernels import (
    FilterSpectrum,
    _native,
    backends,
    fft_conv,
    implicit_filter,
    keep_memory,
    mixer_conv,
    short_conv,
)

# Each instruction set is a compilation of its own, with vectors of another width.
_ISAS = _native.host.available_isas() if _native.available else ["unavailable"]
NATIVE = [f"native-{isa}" for isa in _ISAS]
NO_GPU = backends.cuda_unsupported()
CUDA = [] if NO_GPU else [pytest.param("native-cuda", marks=pytest.mark.gpu)]


class _Copy(torch.autograd.Function):
    """A copy on another device that keeps strides and gaps, which `Tensor.to` closes."""

    @staticmethod
    def forward(ctx, t, device):
        if t.is_neg():  # a property of the view, which the storage does not have
            return t.to(device)
        storage = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
        return storage.to(device).as_strided(t.shape, t.stride(), t.storage_offset())

    @staticmethod
    def backward(ctx, grad):
        return grad.cpu(), None


def to_gpu(value, device="cuda"):
    """A CPU tensor's differentiable copy on the GPU, strides included; else the value itself."""
    return _Copy.apply(value, device) if isinstance(value, torch.Tensor) else value


def poison_gpu():
    """What torch's allocator hands out next is full of NaN: results and scratch memory alike."""
    held = [torch.full((1 << 26,), math.nan, device="cuda")]  # blocks above 1 MiB
    held += [torch.full((1 << 17,), math.nan, device="cuda") for _ in range(64)]  # and below
    del held


def fft_conv_on_gpu(u, k, *, backend, **options):
    """`fft_conv` of CPU tensors, computed on the GPU."""
    if isinstance(k, FilterSpectrum):
        pytest.skip("the spectrum was made on the CPU: test_cuda.py has spectra of the GPU")
    if torch.is_autocast_enabled("cpu"):
        pytest.skip("autocast of the CPU: test_cuda.py has that of the GPU")
    if any(isinstance(t, torch.Tensor) and t.is_meta for t in (u, k, *options.values())):
        return fft_conv(u, k, backend=backend, **options)  # there is nothing to move
    poison_gpu()
    options = {name: to_gpu(value) for name, value in options.items()}
    options.setdefault("precision", "exact")  # the budgets are float32's; test_cuda.py has the rest
    y = fft_conv(to_gpu(u), to_gpu(k), backend=backend, **options)
    return y.cpu()


def short_conv_on_gpu(u, s, s_bias=None, *, backend, **options):
    """`short_conv` of CPU tensors, computed on the GPU."""
    return _on_gpu(short_conv, (u, s, s_bias), backend, options)


def _on_gpu(function, tensors, backend, options):
    if torch.is_autocast_enabled("cpu"):
        pytest.skip("autocast of the CPU: test_cuda.py has that of the GPU")
    given = (*tensors, *options.values())
    if any(isinstance(t, torch.Tensor) and t.is_meta for t in given):
        return function(*tensors, backend=backend, **options)  # there is nothing to move
    poison_gpu()
    options = {name: to_gpu(value) for name, value in options.items()}
    return function(*map(to_gpu, tensors), backend=backend, **options).cpu()


def mixer_conv_on_gpu(q, k, *, backend, **options):
    """`mixer_conv` of CPU tensors, computed on the GPU."""
    if any(isinstance(t, FilterSpectrum) for t in (k, *options.values())):
        pytest.skip("the spectrum was made on the CPU: test_cuda.py has spectra of the GPU")
    return _on_gpu(mixer_conv, (q, k), backend, options)


_ON_GPU = {short_conv: short_conv_on_gpu, mixer_conv: mixer_conv_on_gpu}


def _use(name):
    """Select the instruction set of "native-<isa>"; return `fft_conv` with the backend."""
    backend, _, isa = name.partition("-")
    if isa == "unavailable":
        pytest.skip(f"backend 'native' is not available: {_native.reason}")
    if isa == "cuda":
        return functools.partial(fft_conv_on_gpu, backend=backend)
    if isa:
        _native.host.set_isa(isa)
    return functools.partial(fft_conv, backend=backend)


@pytest.fixture
def gpu():
    """The GPU; skips where there is none that the kernels run on."""
    if NO_GPU:
        pytest.skip(f"needs a GPU: {NO_GPU}")
    yield torch.device("cuda", torch.cuda.current_device())
    torch.cuda.synchronize()  # an error of a kernel belongs to the test that ran it


@pytest.fixture
def restore_isa():
    before = _native.host.isa() if _native.available else None
    yield
    if before:
        _native.host.set_isa(before)


@pytest.fixture(params=[*NATIVE, *CUDA, "reference"])
def implementation(request, restore_isa):
    """`fft_conv` with a backend; for native, with each instruction set and on the GPU."""
    return _use(request.param)


@pytest.fixture(params=[*NATIVE, *CUDA])
def native(request, restore_isa):
    """`fft_conv` with the native backend, with each instruction set and on the GPU."""
    return _use(request.param)


@pytest.fixture(params=NATIVE[-1:])
def native_best(request, restore_isa):
    """`fft_conv` with the native backend and the best instruction set."""
    return _use(request.param)


def _same(implementation, function):
    """Another operator with the backend and instruction set of an `fft_conv`."""
    if implementation.func is fft_conv_on_gpu:
        if function not in _ON_GPU:
            pytest.skip(f"{function.__name__} has no CUDA kernel")
        function = _ON_GPU[function]
    return functools.partial(function, **implementation.keywords)


@pytest.fixture
def mixer(implementation):
    """`mixer_conv` as `implementation` is `fft_conv`."""
    return _same(implementation, mixer_conv)


@pytest.fixture
def native_mixer(native):
    """`mixer_conv` as `native` is `fft_conv`."""
    return _same(native, mixer_conv)


@pytest.fixture
def mixer_best(native_best):
    """`mixer_conv` as `native_best` is `fft_conv`."""
    return _same(native_best, mixer_conv)


@pytest.fixture
def short(implementation):
    """`short_conv` as `implementation` is `fft_conv`."""
    return _same(implementation, short_conv)


@pytest.fixture
def native_short(native):
    """`short_conv` as `native` is `fft_conv`."""
    return _same(native, short_conv)


@pytest.fixture
def filters(implementation):
    """`implicit_filter` as `implementation` is `fft_conv`."""
    return _same(implementation, implicit_filter)


@pytest.fixture
def native_filters(native):
    """`implicit_filter` as `native` is `fft_conv`."""
    return _same(native, implicit_filter)


@pytest.fixture
def filters_best(native_best):
    """`implicit_filter` as `native_best` is `fft_conv`."""
    return _same(native_best, implicit_filter)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads():
    """Sets the number of threads; the one before comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


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
    limit = keep_memory(0)  # memory that does not come from malloc each time
    yield
    keep_memory(limit)
    mallopt(M_PERTURB, 0)


pytest_plugins = ["tests.product_fixtures"]
