"""Names, shapes and sizes of the published checkpoints, on the meta device."""

from pathlib import Path

import pytest
import torch
from m2_bert import CONFIGS, M2BertForEmbedding, M2BertForMaskedLM, named_config

FIXTURES = Path(__file__).parents[1] / "fixtures"
Listing = dict[str, tuple[tuple[int, ...], str, str]]

# Trainable parameters of the retrieval form (with pooler).
RETRIEVAL_PARAMETERS = {
    "m2-bert-80m-128": 80_235_264,
    "m2-bert-80m-2k": 81_940_224,
    "m2-bert-80m-8k": 87_396_096,
    "m2-bert-80m-32k": 109_219_584,
    "m2-bert-110m": 115_551_168,
    "m2-bert-260m": 259_100_160,
    "m2-bert-341m": 341_004_032,
}
MASKED_LM_PARAMETERS = {
    "m2-bert-80m-128": 80_267_328,
    "m2-bert-80m-2k": 81_972_288,
    "m2-bert-80m-8k": 87_428_160,
    "m2-bert-80m-32k": 109_251_648,
}


def _published(length: str) -> tuple[Listing, Listing]:
    """Return the listing of the retrieval model and that of the language model's head."""
    listings: tuple[Listing, Listing] = ({}, {})
    for line in (FIXTURES / f"m2_bert_80m_{length}_state_dict.txt").read_text().splitlines():
        if "\t" not in line:
            continue  # a comment
        name, shape, dtype, kind = line.split("\t")
        sizes = tuple(int(size) for size in shape.strip("()").split(",") if size.strip())
        listings[name.startswith("cls.")][name] = (sizes, dtype, kind)
    return listings


def _listing(model: torch.nn.Module) -> Listing:
    buffers = {name for name, _ in model.named_buffers()}
    return {
        name: (
            tuple(x.shape),
            str(x.dtype).removeprefix("torch."),
            "buffer" if name in buffers else "parameter",
        )
        for name, x in model.state_dict().items()
    }


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("length", ["128", "2k", "8k", "32k"])
def test_names_shapes_and_dtypes(length: str) -> None:
    config = named_config(f"m2-bert-80m-{length}")
    with torch.device("meta"):
        retrieval, language = M2BertForEmbedding(config), M2BertForMaskedLM(config)
    trunk, head = _published(length)
    assert _listing(retrieval) == trunk
    without_pooler = {name: x for name, x in trunk.items() if not name.startswith("bert.pooler.")}
    assert _listing(language) == {**without_pooler, **head}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_counts(name: str) -> None:
    config = named_config(name)
    with torch.device("meta"):
        assert _parameters(M2BertForEmbedding(config)) == RETRIEVAL_PARAMETERS[name]
        if name in MASKED_LM_PARAMETERS:
            assert _parameters(M2BertForMaskedLM(config)) == MASKED_LM_PARAMETERS[name]


def test_legacy_layernorm_adds_its_two_keys() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 24}
    with torch.device("meta"):
        plain = M2BertForEmbedding(named_config("m2-bert-80m-128", **sizes))
        legacy = M2BertForEmbedding(
            named_config("m2-bert-80m-128", hyena_training_additions=True, **sizes)
        )
    prefix = "bert.encoder.layer.0.attention.layernorm."
    assert _listing(legacy).keys() - _listing(plain).keys() == {f"{prefix}weight", f"{prefix}bias"}
