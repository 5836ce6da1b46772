"""The configuration: from the file, from the tensors, and where the two disagree."""

import json
from pathlib import Path

import pytest
import torch
from m2_bert import CONFIGS, M2BertConfig, M2BertForMaskedLM, named_config
from m2_bert.checkpoint import CheckpointError, load_model, read_checkpoint
from m2_bert.layout import canonical_names, complete_config

from tests.m2_bert.checkpoint.makers import (
    LENGTH,
    SIZES,
    assert_same,
    made_model,
    output_of,
    prefixed,
)

VARIANTS = {
    "as released": {},
    "legacy": {"hyena_training_additions": True},
    "causal": {"bidirectional": False},
    "one convolution": {"residual_long_conv": False},
    "plain MLP": {"use_glu_mlp": False},
    "dense MLP": {"use_monarch_mlp": False},
    "dense plain MLP": {"use_monarch_mlp": False, "use_glu_mlp": False},
    "no positions": {"use_positional_encodings": False},
    "longer filters": {"long_conv_l_max": 32},
    "other sizes": {
        "hidden_size": 12,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "monarch_mlp_nblocks": 2,
        "hyena_filter_order": 6,
        "hyena_emb_dim": 7,
        "type_vocab_size": 1,
    },
    "padded blocks": {"hidden_size": 14, "intermediate_size": 56, "monarch_mlp_nblocks": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_and_switches_are_read_off_the_tensors(tmp_path: Path, variant: str) -> None:
    model = made_model(**VARIANTS[variant])
    torch.save(model.state_dict(), tmp_path / "a.bin")
    found = read_checkpoint(tmp_path / "a.bin").config
    shapes = set(M2BertConfig.__annotations__) - {
        *("initializer_range", "hidden_dropout_prob", "hyena_w", "hyena_w_mod")
    }
    assert {f: getattr(found, f) for f in shapes} == {f: getattr(model.config, f) for f in shapes}
    assert_same(load_model(tmp_path / "a.bin"), model)


@pytest.mark.parametrize("name", CONFIGS)
def test_published_sizes(name: str) -> None:
    config = named_config(name)
    with torch.device("meta"):
        state = M2BertForMaskedLM(config).state_dict()
    renamed, ignored = canonical_names(prefixed(state, "model."))
    found = complete_config({}, renamed)
    assert ignored == ("model.bert.embeddings.position_ids",)
    assert {f: getattr(found, f) for f in M2BertConfig.__annotations__} == {
        f: getattr(config, f) for f in M2BertConfig.__annotations__
    }


# Published files say "bert" or "m2_bert", list the fields of other code, or leave most out.
CONFIG_FILES = {
    "complete": lambda c: c.to_dict(),
    "model_type bert": lambda c: c.to_dict() | {"model_type": "bert"},
    "other fields": lambda c: (
        c.to_dict()
        | {
            "auto_map": {"AutoModel": "bert_layers.BertModel"},
            "use_flash_fft": True,
            "num_labels": 3,
        }
        | {"alibi_starting_size": 512, "hyena_w": 10, "hyena_w_mod": 1, "classifier_dropout": None}
    ),
    "without M2 fields": lambda c: {"model_type": "bert", "hidden_size": 16},
    "nulls": lambda c: {"model_type": "m2_bert", "long_conv_l_max": None, "hidden_act": None},
    "empty": lambda c: {},
}


@pytest.mark.parametrize("content", CONFIG_FILES)
def test_config_files(tmp_path: Path, model, content: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_FILES[content](model.config)))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_model(tmp_path)
    assert_same(loaded, model)
    assert loaded.config.model_type == "m2_bert"
    assert loaded.config.padding == "max_length"
    assert not hasattr(loaded.config, "auto_map"), "saved again, it would ask for remote code"


def test_fields_that_tensors_do_not_show(tmp_path: Path, model) -> None:
    fields = {
        "pool_all": True,
        "use_normalized_embeddings": True,
        "hyena_w_mod": 2,
        "padding": "invariant",
    }
    (tmp_path / "config.json").write_text(json.dumps(fields | {"layer_norm_eps": 1e-3}))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    expected = made_model(**fields, layer_norm_eps=1e-3)
    assert not torch.allclose(output_of(expected), output_of(model))
    assert_same(load_model(tmp_path), expected)
    # A given configuration replaces the file; for a file, the one beside it counts.
    assert_same(load_model(tmp_path, config=M2BertConfig(**SIZES)), model)
    assert_same(load_model(tmp_path / "pytorch_model.bin"), expected)


def test_vocabulary_that_was_rounded_up(tmp_path: Path, model) -> None:
    """bert-base-uncased has 30522 entries, and the original code makes 30528 rows."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 37}))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert load_model(tmp_path).config.vocab_size == 40


@pytest.mark.parametrize(
    ("field", "wrong", "true"),
    [
        ("hidden_size", 32, 16),
        ("vocab_size", 50, 40),
        ("num_hidden_layers", 12, 2),
        ("max_position_embeddings", 128, LENGTH),
        ("long_conv_l_max", 128, LENGTH),
        ("hyena_filter_order", 64, 8),
        ("bidirectional", False, True),
        ("use_monarch_mlp", False, True),
        ("intermediate_size", 64, 32),
        ("hyena_training_additions", True, False),
        ("monarch_mixer_sequence_mixing", False, True),
    ],
)
def test_config_that_contradicts_the_tensors(tmp_path, model, field, wrong, true) -> None:
    (tmp_path / "config.json").write_text(json.dumps({field: wrong}))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=f"{field} is {wrong} in .* and {true} in the tensors"
    ):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "config.json: not valid JSON"),
        ("[1]", "expected an object"),
        ('{"layer_norm_eps": "small"}', "layer_norm_eps is 'small', of another type"),
        ('{"bidirectional": "no"}', "bidirectional is 'no', of another type"),
        ('{"hidden_act": "relu"}', "hidden_act"),
        ('{"attention_pooling": true}', "attention_pooling"),
        ('{"hidden_dropout_prob": 2}', "hidden_dropout_prob: got 2"),
    ],
    ids=["syntax", "list", "float", "bool", "activation", "unsupported", "range"],
)
def test_unfit_config_files(tmp_path: Path, model, text: str, match: str) -> None:
    (tmp_path / "config.json").write_text(text)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=match) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
