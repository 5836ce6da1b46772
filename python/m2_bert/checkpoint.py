"""Models from checkpoints: released files, own folders, Hub repositories, random weights."""

import copy
import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from m2_bert.config import CONFIGS, M2BertConfig, named_config
from m2_bert.containers import CheckpointError, listed, printable, read_json, read_weights
from m2_bert.hub import locate
from m2_bert.layout import canonical_names, check_state, complete_config, module_pooler
from m2_bert.model import (
    Embeddings,
    ExponentialDecay,
    M2BertForEmbedding,
    M2BertForMaskedLM,
    M2BertPreTrainedModel,
    PositionalFeatures,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "PoolerWarning",
    "build_model",
    "describe_model",
    "extend_length",
    "fingerprint",
    "is_random",
    "load_model",
    "read_checkpoint",
]

RANDOM = "random:"
# A toy for demonstrations: long enough for documents, and seconds rather than hours on a CPU.
SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "max_position_embeddings": 8192,
    "padding": "invariant",
}
# Fields of the configuration that act in training or at initialisation alone, or not at all.
NOT_IN_RESULTS = {
    "hidden_dropout_prob",
    "hyena_w",
    "initializer_range",
    "num_attention_heads",
    "tie_word_embeddings",
}

Model = TypeVar("Model", bound=M2BertPreTrainedModel)


class PoolerWarning(UserWarning):
    """The checkpoint has no pooler; the embeddings of the new one mean nothing before training."""


@dataclass(frozen=True)
class Checkpoint:
    """A configuration and the tensors that fill it, under the names of the models' state dicts.

    The tensors may map the files: copy them before one of the files is overwritten. Buffers
    (time, decay, position ids) may be absent; a shared tensor has all its names.
    """

    config: M2BertConfig
    state: dict[str, Tensor]
    source: str  # a path, or "owner/name@commit"
    container: str
    ignored: tuple[str, ...]
    files: tuple[Path, ...] = ()

    def heads(self) -> tuple[str, ...]:
        """Return which of "pooler" and "language model" the tensors include."""
        return tuple(
            head
            for prefix, head in (("bert.pooler.", "pooler"), ("cls.", "language model"))
            if any(name.startswith(prefix) for name in self.state)
        )

    def kind(self) -> type[M2BertForEmbedding] | type[M2BertForMaskedLM]:
        """Return the class of model that needs no new head, or else M2BertForEmbedding."""
        return M2BertForMaskedLM if self.heads() == ("language model",) else M2BertForEmbedding


def is_random(name_or_path: str | os.PathLike) -> bool:
    """Return whether the name asks for random weights: "random:NAME" or "random:NAME:SEED"."""
    return isinstance(name_or_path, str) and name_or_path.startswith(RANDOM)


def read_checkpoint(
    name_or_path: str | os.PathLike,
    *,
    revision: str | None = None,
    config: M2BertConfig | None = None,
) -> Checkpoint:
    """Read and check a checkpoint in any published container and naming.

    Args:
        name_or_path: a folder or weight file, the id of a Hub repository, or "random:NAME[:SEED]"
            with NAME from CONFIGS, or "small" (a toy for demonstrations).
        revision: branch, tag or commit; of a Hub repository only.
        config: in place of the config.json beside the weights. Fields that neither has are read
            off the tensors where they show, and otherwise have M2BertConfig's defaults. Where
            sentence-transformers pools with modules of its own, those are the pooler.

    Raises:
        CheckpointError: not M2-BERT, damaged, ambiguous, or contradicting its configuration.
        FileNotFoundError: neither a path nor to be had from the Hub.
    """
    if is_random(name_or_path):
        model = _random_model(name_or_path, M2BertForEmbedding)
        return Checkpoint(model.config, model.state_dict(), str(name_or_path), "random", ())
    path, source = locate(name_or_path, revision)
    weights = read_weights(path)
    beside = (path if path.is_dir() else path.parent) / "config.json"
    fields, pooler = module_pooler(path) if path.is_dir() else ({}, {})
    given = {**_fields(config, beside), **fields}
    try:
        state, ignored = canonical_names(weights.tensors)
        state |= pooler
        complete = complete_config(given, state)
        check_state(state, complete)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    return Checkpoint(complete, state, source, weights.container, ignored, weights.files)


def load_model(
    name_or_path: str | os.PathLike,
    kind: type[Model] = M2BertForEmbedding,
    *,
    revision: str | None = None,
    config: M2BertConfig | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """Return a model in evaluation mode, with the weights of a checkpoint (`read_checkpoint`).

    Args:
        kind: M2BertForEmbedding or M2BertForMaskedLM.
        dtype: of the weights; None means float32. The filters' weights are float32 regardless.

    Raises:
        CheckpointError, FileNotFoundError: as `read_checkpoint`; also if `kind` needs a language
            model's head and there is none. A missing pooler is made new, with a PoolerWarning.
    """
    if is_random(name_or_path):
        return _random_model(name_or_path, kind).to(dtype or torch.float32)
    checkpoint = read_checkpoint(name_or_path, revision=revision, config=config)
    return build_model(checkpoint, kind, dtype=dtype)


def build_model(
    checkpoint: Checkpoint,
    kind: type[Model] = M2BertForEmbedding,
    *,
    dtype: torch.dtype | None = None,
) -> Model:
    """Return a model with its own copy of a checkpoint's tensors; see `load_model`."""
    if not issubclass(kind, M2BertForEmbedding | M2BertForMaskedLM):
        raise TypeError(f"kind: got {kind}, expected M2BertForEmbedding or M2BertForMaskedLM")
    # Nothing is drawn or allocated on the meta device; it still tells each tensor's dtype.
    with torch.device("meta"):
        model = kind(copy.deepcopy(checkpoint.config)).to(dtype or torch.float32)
    available = {**_fixed_tensors(model), **checkpoint.state}
    wanted = model.state_dict()
    absent = [name for name in wanted if name not in available]
    if any(name.startswith("cls.") for name in absent):
        raise CheckpointError(
            f"{checkpoint.source}: no language model head ({listed(absent)}), as retrieval "
            "checkpoints have none: load it as M2BertForEmbedding"
        )
    if absent:
        available |= _new_pooler(absent, wanted, checkpoint)
    # One copy of each tensor, in its final dtype: files are mapped, and may be overwritten.
    model.load_state_dict(
        {name: available[name].to(x.dtype, copy=True) for name, x in wanted.items()}, assign=True
    )
    model.tie_weights()
    return model.eval()


def describe_model(
    name_or_path: str | os.PathLike, *, revision: str | None = None
) -> dict[str, str | int]:
    """Return what a checkpoint is: sizes, length, heads, padding policy, fingerprint.

    Raises:
        CheckpointError, FileNotFoundError: as `read_checkpoint`.
    """
    checkpoint = read_checkpoint(name_or_path, revision=revision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoolerWarning)
        model = build_model(checkpoint, checkpoint.kind())
    config = checkpoint.config
    padding = {
        "max_length": "padding changes an embedding: every text is padded to the longest input",
        "invariant": "padding and batch change nothing",
    }
    return {
        "source": printable(checkpoint.source),
        "container": checkpoint.container,
        "heads": ", ".join(checkpoint.heads()) or "none",
        "parameters": model.num_parameters(),
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "longest_input": config.max_position_embeddings,
        "vocabulary": config.vocab_size,
        "filter_order": config.hyena_filter_order,
        "dtype": ", ".join(sorted({str(x.dtype)[6:] for x in checkpoint.state.values()})),
        "padding": f"{config.padding} ({padding[config.padding]})",
        "ignored_tensors": len(checkpoint.ignored),
        "fingerprint": fingerprint(model),
    }


def extend_length(model: Model, length: int) -> Model:
    """Return a copy of a model that reads inputs of that length, to be trained on.

    Position embeddings and filter features are repeated along the positions (and cut, where the
    length is no multiple); time and position ids are made anew, so that filters decay over the new
    length. This is how the 32k models were started from the 8k ones (arXiv 2402.07440).

    Raises:
        ValueError: if the length is below the present one; models read shorter inputs as they are.
    """
    present = model.config.max_position_embeddings
    if length < present:
        raise ValueError(f"length: got {length}, expected at least the present {present}")
    model = copy.deepcopy(model)
    taps = max(length, model.config.long_conv_l_max)
    model.config.max_position_embeddings, model.config.long_conv_l_max = length, taps
    for module in list(model.modules()):
        if isinstance(module, PositionalFeatures):
            module.length = taps
            module.z = nn.Parameter(_tiled(module.z, taps, 1), module.z.requires_grad)
        elif isinstance(module, Embeddings) and module.position_embeddings is not None:
            table = module.position_embeddings
            weight, trained = _tiled(table.weight, length, 0), table.weight.requires_grad
            module.position_embeddings = nn.Embedding.from_pretrained(weight, freeze=not trained)
    for name, x in _fixed_tensors(model).items():
        owner, _, buffer = name.rpartition(".")
        old = model.get_buffer(name)
        setattr(model.get_submodule(owner), buffer, x.to(old.device, old.dtype, copy=True))
    return model


def fingerprint(model: M2BertPreTrainedModel) -> str:
    """Return 16 hexadecimal digits that tell models of different results apart.

    SHA-256 over the configuration's fields that act in evaluation, and over name, dtype, shape and
    bytes of every tensor: equal after saving and loading in the same dtype.
    """
    digest = hashlib.sha256()
    for field in sorted(M2BertConfig.__annotations__.keys() - NOT_IN_RESULTS):
        value = getattr(model.config, field)
        # A published 1 and our own 1.0 are the same number.
        value = float(value) if isinstance(value, int | float) else value
        digest.update(f"{field}={value!r};".encode())
    for name, x in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)};".encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _fields(config: M2BertConfig | None, beside: Path) -> Mapping[str, Any]:
    if config is not None:
        return {field: getattr(config, field) for field in M2BertConfig.__annotations__}
    return read_json(beside) if beside.is_file() else {}


def _fixed_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of a model, which its sizes determine."""
    fixed = {}
    time = None  # the same in each filter
    for name, module in model.named_modules():
        if isinstance(module, PositionalFeatures):
            time = module.initial_values()[1] if time is None else time
            fixed[f"{name}.t"] = time
        elif isinstance(module, ExponentialDecay):
            fixed[f"{name}.deltas"] = module.initial_deltas()
        elif isinstance(module, Embeddings) and module.position_embeddings is not None:
            positions = module.position_embeddings.weight.shape[0]
            fixed[f"{name}.position_ids"] = torch.arange(positions)[None]
    return fixed


def _new_pooler(
    names: list[str], wanted: Mapping[str, Tensor], checkpoint: Checkpoint
) -> dict[str, Tensor]:
    warnings.warn(
        f"{printable(checkpoint.source)}: no {', '.join(names)}: made new, so that embeddings mean "
        "nothing before training",
        PoolerWarning,
        stacklevel=4,
    )
    # The same each time, so that what is computed with it can be compared.
    generator = torch.Generator().manual_seed(0)
    scale = checkpoint.config.initializer_range
    return {
        name: torch.randn(wanted[name].shape, generator=generator) * scale
        if name.endswith("weight")
        else torch.zeros(wanted[name].shape)
        for name in names
    }


def _random_model(name: str, kind: type[Model]) -> Model:
    parts = name.removeprefix(RANDOM).split(":")
    size, seed = parts[0], parts[1] if len(parts) > 1 else "0"
    numeral = seed.isdecimal() and len(seed) < 20  # what the generator takes: below 2 ** 64
    if size not in (*CONFIGS, "small") or len(parts) > 2 or not numeral:
        raise ValueError(
            f"name: got {name[:80]!r}, expected {RANDOM}NAME or {RANDOM}NAME:SEED with NAME one of "
            f"small, {', '.join(CONFIGS)}, and SEED of at most 19 digits"
        )
    config = M2BertConfig(**SMALL) if size == "small" else named_config(size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return kind(config).eval()


def _tiled(x: Tensor, size: int, dim: int) -> Tensor:
    """Repeat x along a dimension up to that size."""
    rows = torch.arange(size, device=x.device) % x.shape[dim]
    return x.detach().index_select(dim, rows)
