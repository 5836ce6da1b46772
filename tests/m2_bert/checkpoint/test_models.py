"""Loaded, random and extended models, and their fingerprints."""

import json
from pathlib import Path

import pytest
import torch
from m2_bert import M2BertForEmbedding, M2BertForMaskedLM, M2BertModel
from m2_bert.checkpoint import (
    Checkpoint,
    build_model,
    describe_model,
    extend_length,
    fingerprint,
    is_random,
    load_model,
    read_checkpoint,
)

from tests.m2_bert.checkpoint.makers import (
    FILTER,
    LENGTH,
    assert_same,
    made_model,
    output_of,
    with_flashfft,
    without,
)


def test_dtype(tmp_path: Path, model) -> None:
    torch.save(model.to(torch.bfloat16).state_dict(), tmp_path / "a.bin")
    half = load_model(tmp_path / "a.bin", dtype=torch.bfloat16)
    expected = {name: x.dtype for name, x in model.state_dict().items()}
    assert {name: x.dtype for name, x in half.state_dict().items()} == expected
    assert expected[f"{FILTER}bias"] is torch.float32
    assert_same(half, model)
    # None means float32, whatever the file holds; bfloat16 filters of a file are widened.
    state = {n: x.bfloat16() if x.is_floating_point() else x for n, x in model.state_dict().items()}
    torch.save(state, tmp_path / "b.bin")
    dtypes = {x.dtype for x in load_model(tmp_path / "b.bin").parameters()}
    assert dtypes == {torch.float32}


def test_loaded_tensors_are_ones_own(tmp_path: Path, model) -> None:
    """So that a folder can be saved over itself, and no tensor waits for a file."""
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert not any(x.is_meta for x in (*loaded.parameters(), *loaded.buffers()))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    (tmp_path / "model.safetensors").write_bytes(
        bytes((tmp_path / "model.safetensors").stat().st_size)
    )
    assert_same(loaded, model)


def test_two_models_of_one_checkpoint_are_independent(tmp_path: Path, model) -> None:
    torch.save(model.state_dict(), tmp_path / "a.bin")
    checkpoint = read_checkpoint(tmp_path / "a.bin")
    first, second = build_model(checkpoint), build_model(checkpoint)
    with torch.no_grad():
        first.bert.pooler.dense.weight.zero_()
    first.config.pool_all = True
    assert_same(second, model)


def test_random_models() -> None:
    assert is_random("random:small")
    assert not is_random("small")
    assert not is_random(Path("random:small"))
    first, again = load_model("random:small"), load_model("random:small:0")
    other = load_model("random:small:1")
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    assert (first.config.hidden_size, first.config.num_hidden_layers) == (256, 2)
    assert (first.config.max_position_embeddings, first.config.padding) == (8192, "invariant")
    assert not first.training
    checkpoint = read_checkpoint("random:small")
    assert isinstance(checkpoint, Checkpoint)
    assert fingerprint(build_model(checkpoint)) == fingerprint(first)
    with torch.device("meta"):
        masked = load_model("random:m2-bert-110m", M2BertForMaskedLM)
    assert masked.config.hidden_size == 960


def test_random_models_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_model("random:small")
    assert torch.rand(1) == expected


HUGE = f"random:small:{1 << 64}"


@pytest.mark.parametrize(
    "name", ["random:", "random:huge", "random:small:x", "random:small:1:2", HUGE]
)
def test_random_names(name: str) -> None:
    with pytest.raises(ValueError, match="expected random:NAME or random:NAME:SEED"):
        load_model(name)


def test_the_largest_seeds() -> None:
    assert fingerprint(load_model(f"random:small:{10**19 - 1}")) != fingerprint(
        load_model(f"random:small:{10**19 - 2}")
    )


@pytest.mark.parametrize("kind", [M2BertForEmbedding, M2BertForMaskedLM, M2BertModel])
@pytest.mark.parametrize("length", [4 * LENGTH, LENGTH + 7, LENGTH])
def test_extend_length(kind, length: int) -> None:
    model = made_model(kind)
    before = fingerprint(model)
    longer = extend_length(model, length)
    assert type(longer) is kind
    assert longer.config.max_position_embeddings == longer.config.long_conv_l_max == length
    fresh = made_model(kind, max_position_embeddings=length).state_dict()
    old = model.state_dict()
    for name, x in longer.state_dict().items():
        assert x.shape == fresh[name].shape, name
        if name.endswith((".t", "position_ids", "deltas")):
            assert torch.equal(x, fresh[name]), name
        elif name.endswith("pos_emb.z"):
            assert torch.equal(x, torch.cat([old[name]] * 4, 1)[:, :length]), name
        elif name.endswith("position_embeddings.weight"):
            assert torch.equal(x, torch.cat([old[name]] * 4)[:length]), name
        else:
            assert torch.equal(x, old[name]), name
            assert x.data_ptr() != old[name].data_ptr(), name
    assert fingerprint(model) == before, "the given model stays as it was"
    assert (fingerprint(longer) == before) == (length == LENGTH)


def test_extended_model_runs_saves_and_loads(tmp_path: Path, model) -> None:
    output_of(model)  # fills the cache of filters
    longer = extend_length(model, 2 * LENGTH)
    assert output_of(longer, 2 * LENGTH).isfinite().all()
    assert not torch.allclose(output_of(longer), output_of(model)), "time is stretched"
    longer.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert fingerprint(loaded) == fingerprint(longer)
    assert torch.equal(output_of(loaded, 2 * LENGTH), output_of(longer, 2 * LENGTH))
    assert all(x.requires_grad for x in longer.parameters())


def test_extension_of_half_precision_and_long_filters() -> None:
    model = made_model(long_conv_l_max=2 * LENGTH).to(torch.bfloat16)
    longer = extend_length(model, LENGTH + 1)
    assert longer.config.long_conv_l_max == 2 * LENGTH
    assert {n: x.dtype for n, x in longer.state_dict().items()} == {
        n: x.dtype for n, x in model.state_dict().items()
    }


def test_shorter_is_refused(model) -> None:
    with pytest.raises(ValueError, match=f"length: got 8, expected at least the present {LENGTH}"):
        extend_length(model, 8)


CHANGES = {
    "weight": lambda m: m.bert.pooler.dense.weight.data[0, 0].add_(1e-6),
    "sign of zero": lambda m: m.bert.pooler.dense.bias.data[0].neg_(),
    "frequency": lambda m: (
        m.bert.encoder.layer[1].attention.filter_fn.implicit_filter[1].freq.data.add_(1)
    ),
    "buffer": lambda m: m.bert.encoder.layer[0].attention.filter_fn2.modulation.deltas.mul_(2),
    "pooling": lambda m: setattr(m.config, "pool_all", True),
    "padding": lambda m: setattr(m.config, "padding", "invariant"),
    "epsilon": lambda m: setattr(m.config, "layer_norm_eps", 1e-5),
    "dtype": lambda m: m.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_tells_apart(model, change: str) -> None:
    before = fingerprint(model)
    CHANGES[change](model)
    assert fingerprint(model) != before


def test_fingerprint_stays(tmp_path: Path, model) -> None:
    digest = fingerprint(model)
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    model.save_pretrained(tmp_path / "a")
    torch.save(model.state_dict(), tmp_path / "b.bin")
    assert fingerprint(load_model(tmp_path / "a")) == digest
    assert fingerprint(load_model(tmp_path / "b.bin")) == digest
    assert fingerprint(M2BertForEmbedding.from_pretrained(tmp_path / "a")) == digest
    model.config.hidden_dropout_prob, model.config.hyena_w_mod = 0.5, 1
    output_of(model)
    assert fingerprint(model.train()) == digest


def test_describe_model(tmp_path: Path, model, masked) -> None:
    torch.save(with_flashfft(model.state_dict()), tmp_path / "a.bin")
    facts = describe_model(tmp_path / "a.bin")
    assert facts["heads"] == "pooler"
    assert (facts["width"], facts["layers"], facts["longest_input"]) == (16, 2, LENGTH)
    assert facts["parameters"] == model.num_parameters()
    assert facts["fingerprint"] == fingerprint(model)
    assert facts["padding"].startswith("max_length")
    assert facts["ignored_tensors"] == 11
    json.dumps(facts)
    torch.save(masked.state_dict(), tmp_path / "b.bin")
    facts = describe_model(tmp_path / "b.bin")
    assert (facts["heads"], facts["fingerprint"]) == ("language model", fingerprint(masked))
    torch.save(without(model.state_dict(), "dense.weight", "dense.bias"), tmp_path / "c.bin")
    assert describe_model(tmp_path / "c.bin")["heads"] == "none"
