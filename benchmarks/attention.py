"""The baseline: BERT-base (12 layers, width 768, 12 heads) with torch's fused attention.

It is the ``transformers`` model with ``attn_implementation="sdpa"`` and random weights: time
depends on shapes, not on values. No attention mask is given, as documents fill the whole length;
a mask would only slow it down.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel
from transformers.utils import logging as transformers_logging


def build_attention_model(length: int, **overrides: int) -> BertModel:
    """BERT-base for documents of ``length`` tokens, in evaluation mode.

    Args:
        length: rows of the position table; must be at least the length of the documents.
        overrides: fields of ``BertConfig`` that differ from BERT-base, for tests.
    """
    # It warns about every model made without a pretrained state; that is meant here.
    transformers_logging.set_verbosity_error()
    config = BertConfig(
        **{"max_position_embeddings": length, "attn_implementation": "sdpa", **overrides}
    )
    return BertModel(config).eval()


class _CountCalls(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.calls += 1
            if (kwargs or {}).get("attn_mask") is not None:
                raise RuntimeError(
                    "the baseline builds an attention mask: slower than it needs to be"
                )
        return func(*args, **(kwargs or {}))


class _NameKernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in func.__name__:
            self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def verify_fused_attention(model: BertModel, input_ids: torch.Tensor) -> str:
    """Run the model once; the name of the fused attention kernel that every layer called.

    Raises:
        RuntimeError: a layer computed its attention in another way, with a mask, or torch chose
            no fused kernel.
    """
    # no_grad, not inference_mode: only there is the composite operator resolved in sight of a mode.
    with _CountCalls() as counter, _NameKernels() as kernels, torch.no_grad():
        model(input_ids=input_ids)
    layers = len(model.encoder.layer)
    if counter.calls != layers:
        raise RuntimeError(
            f"{counter.calls} calls of scaled_dot_product_attention in {layers} layers"
        )
    if len(kernels.names) != 1 or not any("flash" in name for name in kernels.names):
        raise RuntimeError(f"torch chose no fused attention kernel, but {sorted(kernels.names)}")
    return kernels.names.pop()
