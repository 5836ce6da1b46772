"""Where and in which dtype and mode an Embedder's model runs."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from m2_bert.model import M2BertForEmbedding

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def placed(
    model: M2BertForEmbedding | str | os.PathLike,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
) -> M2BertForEmbedding:
    """Return the model, or the one of that name, in that dtype and on that device.

    A model that would have to change for it is copied; arguments as `Embedder`'s.

    Raises:
        TypeError, ValueError: what `Embedder` raises for `model`, `dtype` and `device`.
    """
    target = None if device is None else available_device(device)
    named = isinstance(model, str | os.PathLike)
    if named:
        from m2_bert.checkpoint import load_model

        model = load_model(model)
        if target is None and torch.cuda.is_available():
            target = available_device("cuda")
    elif not isinstance(model, M2BertForEmbedding):
        raise TypeError(
            f"model: got {type(model).__name__}, expected M2BertForEmbedding, a path or a name"
        )
    target = model.device if target is None else target
    # The filters are float32 in every model: the word embedding tells what it was cast to.
    current = model.bert.embeddings.word_embeddings.weight.dtype
    wanted = current if dtype is None else _dtype(dtype, target)
    if wanted == current and target == model.device:
        return model
    return (model if named else copy.deepcopy(model)).to(target, wanted)


def available_device(device: torch.device | str) -> torch.device:
    """Return the device with its index ("cuda:0" for "cuda").

    Raises:
        ValueError: there is no such device here, or it computes nothing ("meta").
    """
    try:
        # Of a tensor, because "cuda" is not equal to the "cuda:0" that it means.
        found = torch.zeros(1, device=device).device
    except Exception as error:  # torch raises AssertionError, RuntimeError and more
        raise _no_device(device) from error
    if found.type == "meta":
        raise _no_device(device)
    return found


def _no_device(device: torch.device | str) -> ValueError:
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    names += ["mps"] * torch.backends.mps.is_available()
    return ValueError(f"device: got {str(device)!r}, expected one that is here: {', '.join(names)}")


def _dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype: got {dtype!r}, expected 'auto' or one of {', '.join(DTYPES)}")
    return found


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    # Private in torch, which has no public name for them.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


@contextmanager
def evaluating(model: M2BertForEmbedding) -> Iterator[None]:
    """The model in evaluation mode, and each module as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    if not any(mode for _, mode in modes):
        yield
        return
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # parents come first, so that the last word is each module's own
            module.train(mode)
