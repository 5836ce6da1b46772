"""M2-BERT, a long-context retrieval encoder without attention, on the kernels of monarch_kernels.

    load(name)              any checkpoint as a SentenceTransformer
    Embedder(name)          texts to embeddings, without sentence-transformers; late chunking
    load_model(name)        the torch module

Importing this package registers the architecture with transformers, so that AutoConfig, AutoModel
and AutoModelForMaskedLM build it from a config.json whose model_type is "m2_bert".
"""

try:
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedConfig  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"m2_bert needs transformers >= 5.3 ({error}): pip install monarch-kernels[model]"
    ) from error

from m2_bert.checkpoint import CheckpointError, extend_length, load_model
from m2_bert.config import CONFIGS, M2BertConfig, named_config
from m2_bert.embedder import Embedder, EncodeReport, TruncationWarning
from m2_bert.folder import load, save_folder
from m2_bert.model import (
    M2BertEmbeddingOutput,
    M2BertForEmbedding,
    M2BertForMaskedLM,
    M2BertModel,
    M2BertPreTrainedModel,
)

__all__ = [
    "CONFIGS",
    "CheckpointError",
    "Embedder",
    "EncodeReport",
    "M2BertConfig",
    "M2BertEmbeddingOutput",
    "M2BertForEmbedding",
    "M2BertForMaskedLM",
    "M2BertModel",
    "M2BertPreTrainedModel",
    "TruncationWarning",
    "extend_length",
    "load",
    "load_model",
    "named_config",
    "save_folder",
]

# exist_ok: a module reload must not fail.
AutoConfig.register(M2BertConfig.model_type, M2BertConfig, exist_ok=True)
AutoModel.register(M2BertConfig, M2BertModel, exist_ok=True)
AutoModelForMaskedLM.register(M2BertConfig, M2BertForMaskedLM, exist_ok=True)
