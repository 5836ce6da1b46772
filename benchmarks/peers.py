"""Other packages' long convolutions, where installed: none is needed, none is preferred.

Each entry gives a function of a causal convolution, or the reason why it takes no part in a case.
Written from the packages' sources and documentation; none has been run by this project so far, so
a peer that fails or computes something else is reported as such, and never timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """What a peer is asked: y = postgate * conv(pregate * u, k) with gates of None for 1.

    u, the gates: (B, H, L); k: (H, L), float32.
    """

    u: Tensor
    k: Tensor
    pregate: Tensor | None
    postgate: Tensor | None


# A peer prepares what it needs once, and returns the call to time.
Peer = Callable[[Problem], Callable[[Problem], Tensor]]


class NotHere(RuntimeError):  # noqa: N818 - it reads as what happened
    """The peer is not installed, or has no kernel for the case."""


def _module(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotHere(f"not installed ({error})") from error


def _gated(convolve: Callable[[Tensor], Tensor], problem: Problem) -> Tensor:
    """Gates of a peer that has none: products of torch."""
    u = problem.u if problem.pregate is None else problem.u * problem.pregate
    y = convolve(u)
    return y if problem.postgate is None else y * problem.postgate


def flash_fft_conv(problem: Problem):
    """FlashFFTConv: 16-bit inputs, a float32 filter, both gates or none; spectrum in each call."""
    package = _module("flashfftconv")
    dtype, length = problem.u.dtype, problem.u.shape[-1]
    if dtype not in (torch.float16, torch.bfloat16):
        raise NotHere("has no float32")
    if length & (length - 1) or not 128 <= length <= 1 << 21:
        raise NotHere("needs a power of two from 128 to 2,097,152")
    module = package.FlashFFTConv(2 * length, dtype=dtype).to(problem.u.device)

    def call(p: Problem) -> Tensor:
        return module(p.u, p.k) if p.pregate is None else module(p.u, p.k, p.pregate, p.postgate)

    return call


def cudnn(problem: Problem):
    """cuDNN's fft_causal_conv1d of nvidia-cudnn-frontend: filter and input of one dtype."""
    operator = getattr(_module("cudnn.ops"), "fft_causal_conv1d", None)
    if operator is None:
        raise NotHere("this version has no fft_causal_conv1d")
    weight = problem.k.to(problem.u.dtype)
    return lambda p: _gated(lambda u: operator(u, weight), p)


def subquadratic(problem: Problem):
    """subquadratic-ops: as cuDNN's."""
    module = _module("subquadratic_ops_torch.fft_causal_conv1d")
    weight = problem.k.to(problem.u.dtype)
    return lambda p: _gated(lambda u: module.fft_causal_conv1d(u, weight), p)


PEERS: dict[str, Peer] = {
    "FlashFFTConv": flash_fft_conv,
    "cuDNN": cudnn,
    "subquadratic-ops": subquadratic,
}
