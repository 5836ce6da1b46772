"""Names and shapes of checkpoint tensors: from any published naming to that of the models here.

The sizes and switches of a model are read off its tensors, so that a checkpoint without a
config.json loads, and one whose config.json tells of another model is noticed.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from m2_bert.config import M2BertConfig
from m2_bert.containers import CheckpointError, listed, read_json, read_weights
from m2_bert.model import M2BertForEmbedding, PredictionHead

# In front of names: DataParallel, torch.compile, and Composer's model wrapper.
PREFIXES = ("module.", "_orig_mod.", "model.")
TRUNK = ("embeddings.", "encoder.", "pooler.")
# Tensors of a checkpoint that no model needs: made anew, or no part of the encoder.
IGNORED = re.compile(
    r"(^|\.)flashfft\."  # twiddle factors of FlashFFTConv
    r"|^bert\.embeddings\.(position_ids|token_type_ids)$"
    r"|^classifier\."  # the head of a classifier
)
# Heads that a checkpoint has whole or not at all.
HEADS = ("bert.pooler.", "cls.predictions.")
WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
POSITIONS = "bert.embeddings.position_embeddings.weight"
LAYER = "bert.encoder.layer."
# Modules of sentence-transformers that are a pooler outside of the encoder's file.
POOLER_MODULES = ["Transformer", "Pooling", "Dense"]


def canonical_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors under the models' names, and the original names of the ignored ones.

    Raises:
        CheckpointError: if they are not M2-BERT's, or two get the same name.
    """
    state: dict[str, Tensor] = {}
    ignored = []
    for original, x in tensors.items():
        name = original
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        if name.startswith(TRUNK):
            name = f"bert.{name}"
        if IGNORED.search(name):
            ignored.append(original)
        elif name in state:
            raise CheckpointError(f"two tensors for {name}, one of them {original}")
        else:
            state[name] = x
    if f"{LAYER}0.attention.filter_fn.pos_emb.z" not in state:
        attention = any(".attention.self.query." in name for name in state)
        what = "those of a BERT with attention" if attention else f"{listed(state)}"
        raise CheckpointError(
            f"not M2-BERT: no {LAYER}0.attention.filter_fn.pos_emb.z among {len(tensors)} tensors "
            f"({what})"
        )
    # transformers may keep a shared tensor under either name.
    if WORDS not in state and DECODER in state:
        state[WORDS] = state[DECODER]
    return state, tuple(ignored)


def module_pooler(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the pooler that sentence-transformers has as modules of its own: Pooling, then Dense.

    The encoder's own pooler, if it has one, is unused there and may be older. Empty where
    modules.json names other modules, or the Dense is not D x D with tanh.

    Returns:
        The fields of the configuration that say the same, and the tensors under our names.

    Raises:
        CheckpointError: files of those modules are missing or damaged.
    """
    listing = folder / "modules.json"
    entries = read_json(listing, list) if listing.is_file() else []
    entries = [entry for entry in entries if isinstance(entry, dict)]
    kinds = [str(entry.get("type")).rpartition(".")[2] for entry in entries]
    if kinds not in (POOLER_MODULES, [*POOLER_MODULES, "Normalize"]):
        return {}, {}
    names = [str(entry.get("path")) for entry in entries[1:3]]
    if any(PurePosixPath(name).name != name or name == ".." for name in names):
        raise CheckpointError(f"{listing}: got paths {listed(names)}, expected folders beside it")
    pooling, dense = (read_json(folder / name / "config.json") for name in names)
    modes = [
        pooling.get("pooling_mode") == mode or pooling.get(f"pooling_mode_{older}") is True
        for mode, older in (("cls", "cls_token"), ("mean", "mean_tokens"))
    ]
    square = dense.get("in_features") == dense.get("out_features") and dense.get("bias", True)
    tanh = str(dense.get("activation_function", ".Tanh")).endswith(".Tanh")
    if sum(modes) != 1 or not square or not tanh or dense.get("use_residual"):
        return {}, {}
    tensors = read_weights(folder / names[1]).tensors
    fields = {"pool_all": modes[1], "use_cls_token": False}
    fields["use_normalized_embeddings"] = kinds[-1] == "Normalize"
    return fields, {name.replace("linear", "bert.pooler.dense"): x for name, x in tensors.items()}


def complete_config(given: Mapping[str, Any], state: Mapping[str, Tensor]) -> M2BertConfig:
    """Return the configuration of a state dict: given fields, and the others from the tensors.

    Raises:
        CheckpointError: if a given field contradicts the tensors, or has an impossible value.
    """
    fields = {f: v for f, v in given.items() if f in M2BertConfig.__annotations__ and v is not None}
    for field, value in fields.items():
        if not _has_type_of(value, getattr(M2BertConfig, field)):
            raise CheckpointError(f"configuration: {field} is {value!r}, of another type")
    inferred = infer_fields(state, fields)
    # The original code rounds the vocabulary up to 8s after reading its configuration.
    words = fields.get("vocab_size")
    if words is not None and -(-words // 8) * 8 == inferred["vocab_size"]:
        del fields["vocab_size"]
    wrong = [
        f"{field} is {fields[field]!r} in the configuration and {value!r} in the tensors"
        for field, value in inferred.items()
        if field in fields and fields[field] != value
    ]
    if wrong:
        raise CheckpointError(f"{'; '.join(wrong)}: correct the one or take the other file")
    if "max_position_embeddings" not in {**fields, **inferred}:
        inferred["max_position_embeddings"] = inferred["long_conv_l_max"]
    try:
        return M2BertConfig(**{**fields, **inferred})
    except ValueError as error:
        raise CheckpointError(f"configuration: {error}") from error


def infer_fields(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration fields that the tensors' names and shapes determine.

    `given` decides among intermediate sizes that pad to the same blocks.

    Raises:
        CheckpointError: if a tensor is missing or has an unusual number of dimensions.
    """
    mixer = f"{LAYER}0.attention."
    vocabulary, width = _shape(state, WORDS, 2)
    _, taps, features = _shape(state, f"{mixer}filter_fn.pos_emb.z", 3)
    fields = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len({name.split(".")[3] for name in state if name.startswith(LAYER)}),
        "type_vocab_size": _shape(state, "bert.embeddings.token_type_embeddings.weight", 2)[0],
        "use_positional_encodings": POSITIONS in state,
        "monarch_mixer_sequence_mixing": True,
        "bidirectional": f"{mixer}filter_fn.implicit_filter_rev.0.weight" in state,
        "residual_long_conv": f"{mixer}filter_fn2.pos_emb.z" in state,
        "hyena_training_additions": f"{mixer}layernorm.weight" in state,
        "long_conv_l_max": taps,
        "hyena_filter_order": _shape(state, f"{mixer}filter_fn.implicit_filter.0.weight", 2)[0],
        "hyena_emb_dim": features,
    }
    if POSITIONS in state:
        fields["max_position_embeddings"] = _shape(state, POSITIONS, 2)[0]
    return fields | _infer_mlp(state, width, given.get("intermediate_size"))


def _infer_mlp(state: Mapping[str, Tensor], width: int, given: int | None) -> dict[str, Any]:
    gate = _shape(state, f"{LAYER}0.mlp.gated_layers.weight", 2, 3)
    out = _shape(state, f"{LAYER}0.mlp.wo.weight", 2, 3)
    # Rows of the gate make 2 I values or I; columns of the output take I.
    fields = {"use_monarch_mlp": len(out) == 3, "use_glu_mlp": gate[-2] > out[-1]}
    if len(out) == 2:
        return fields | {"intermediate_size": out[1]}
    blocks, _, columns = out
    padded = range(blocks * (columns - 1) + 1, blocks * columns + 1)
    size = next((size for size in (given, 4 * width, blocks * columns) if size in padded), 0)
    if size < 1:
        raise CheckpointError(f"{LAYER}0.mlp.wo.weight: got shape {tuple(out)}, expected no zeros")
    return fields | {"monarch_mlp_nblocks": blocks, "intermediate_size": size}


def _shape(state: Mapping[str, Tensor], name: str, *dimensions: int) -> torch.Size:
    found = state[name].shape if name in state else None
    if found is None or len(found) not in dimensions:
        got = "missing" if found is None else f"got shape {tuple(found)}"
        expected = " or ".join(map(str, dimensions))
        raise CheckpointError(f"{name}: {got}, expected {expected} dimensions")
    return found


def expected_tensors(config: M2BertConfig) -> tuple[dict[str, Tensor], list[list[str]]]:
    """Return every tensor of the encoder and both heads on the meta device, and the tied names."""
    with torch.device("meta"):
        model = M2BertForEmbedding(config)
        head = PredictionHead(config)
    expected = model.state_dict()
    expected |= {f"cls.predictions.{name}": x for name, x in head.state_dict().items()}
    return expected, [*tied_names(model), [WORDS, DECODER]]


def tied_names(model: nn.Module) -> list[list[str]]:
    """Return the groups of names that stand for one parameter."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    return [names for names in groups.values() if len(names) > 1]


def check_state(state: dict[str, Tensor], config: M2BertConfig) -> None:
    """Give tied tensors all their names, and check every tensor of a canonical state dict.

    Buffers may be absent, and so may a head, as a whole.

    Raises:
        CheckpointError: naming tensors missing, unexpected, mis-shaped, contradictory, not finite.
    """
    expected, tied = expected_tensors(config)
    buffers = (".pos_emb.t", ".modulation.deltas", ".position_ids")
    absent = tuple(head for head in HEADS if not any(name.startswith(head) for name in state))
    groups = [[name for name in names if not name.startswith(absent)] for names in tied]
    split = _name_tied(state, groups)
    problems = {
        "missing": [
            name
            for name in expected
            if name not in state and not name.endswith(buffers) and not name.startswith(absent)
        ],
        "unexpected": [name for name in state if name not in expected],
        "shape or type": [
            f"{name} is {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}, "
            f"expected {tuple(expected[name].shape)}"
            for name, x in state.items()
            if name in expected and (x.shape != expected[name].shape or not _is_dense(x))
        ],
        "differs under its names": split,
    }
    found = [f"{problem}: {listed(names)}" for problem, names in problems.items() if names]
    if not found:
        broken = [name for name, x in state.items() if not _is_finite(x)]
        found = [f"NaN or infinite: {listed(broken)}"] if broken else []
    if found:
        raise CheckpointError("; ".join(found))


def _name_tied(state: dict[str, Tensor], groups: Iterable[list[str]]) -> list[str]:
    """Give each group its last tensor under every name; return the groups that differ."""
    split = []
    for names in groups:
        present = [state[name] for name in names if name in state]
        if any(not _same(x, present[-1]) for x in present):
            split.append(names[0])
        if present:
            state.update(dict.fromkeys(names, present[-1]))
    return split


def _has_type_of(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is (int if default is None else type(default))


def _same(a: Tensor, b: Tensor) -> bool:
    comparable = a is not b and _is_dense(a) and _is_dense(b)  # other tensors are refused anyway
    return not comparable or (a.dtype == b.dtype and torch.equal(a, b))


def _is_finite(x: Tensor) -> bool:
    # A sum takes a tenth of the time, and hides no NaN or infinity; it may overflow, though.
    return bool(x.sum(dtype=torch.float32).isfinite()) or bool(x.isfinite().all())


def _is_dense(x: Tensor) -> bool:
    """Whether x is a plain tensor of real numbers, not a small storage posing as a large tensor."""
    real = x.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    dense = real and x.layout is torch.strided and x.device.type == "cpu"
    return dense and x.numel() * x.element_size() <= x.untyped_storage().nbytes()
