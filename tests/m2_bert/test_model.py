"""Behaviour of the model: filter cache, precision, saving, switches and error texts."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import m2_bert.model
import pytest
import torch
from m2_bert import (
    CONFIGS,
    M2BertConfig,
    M2BertForEmbedding,
    M2BertForMaskedLM,
    M2BertModel,
    named_config,
)
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

LENGTH = 24
FILTERS = 4  # two per layer
ALIGNMENT = {"rtol": 1e-4, "atol": 1e-3}  # the sines magnify a last bit by freq = 10, thrice


def _config(**overrides) -> M2BertConfig:
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "max_position_embeddings": LENGTH,
        "hyena_filter_order": 8,
        "hidden_dropout_prob": 0.0,
        "initializer_range": 0.3,  # at 0.02 a model this narrow hardly mixes
    }
    return M2BertConfig(**{**sizes, **overrides})


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 40, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> M2BertModel:
    return M2BertModel(_config()).set_backend("reference").eval()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each spectrum that was made, in order."""
    lengths: list[int] = []
    make = m2_bert.model.filter_spectrum

    def counted(*args, **kwargs):
        lengths.append(kwargs["length"])
        return make(*args, **kwargs)

    monkeypatch.setattr(m2_bert.model, "filter_spectrum", counted)
    return lengths


def _first_filter(model: M2BertModel):
    return model.encoder.layer[0].attention.filter_fn


def _fresh(model: M2BertModel, ids: torch.Tensor) -> torch.Tensor:
    """The output by the differentiable path, which has no cache."""
    with torch.enable_grad():
        return model(ids).last_hidden_state.detach()


# ---- Filter cache --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_filters_are_made_once_in_evaluation(model, ids, made, mode) -> None:
    with mode():
        first = model(ids).last_hidden_state
        second = model(ids).last_hidden_state
    assert made == [LENGTH] * FILTERS
    assert torch.equal(first, second)
    torch.testing.assert_close(first.clone(), _fresh(model, ids))


@pytest.mark.parametrize("name", ["bias", "pos_emb.z", "implicit_filter_rev.5.freq"])
def test_filters_follow_a_parameter_changed_in_place(model, ids, made, name: str) -> None:
    with torch.no_grad():
        before = model(ids).last_hidden_state
        changed = _first_filter(model).state_dict(keep_vars=True)[name]
        changed.mul_(1.5)
        after = model(ids).last_hidden_state
    assert len(made) == FILTERS + 1, "only the filter that changed is made again"
    assert not torch.allclose(before, after, atol=1e-4)
    torch.testing.assert_close(after, _fresh(model, ids))


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_filters_follow_load_state_dict(model, ids, made, assign: bool) -> None:
    other = M2BertModel(_config()).set_backend("reference").eval()
    with torch.no_grad():
        model(ids)
        model.load_state_dict(other.state_dict(), assign=assign)
        after = model(ids).last_hidden_state
    assert len(made) == 2 * FILTERS
    torch.testing.assert_close(after, _fresh(other, ids))


def test_filters_are_made_again_after_a_change_of_dtype(model, ids, made) -> None:
    with torch.no_grad():
        single = model(ids).last_hidden_state
        model.to(torch.float64)
        assert not _first_filter(model)._cache
        double = model(ids).last_hidden_state
    assert len(made) == 2 * FILTERS
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=1e-4, rtol=1e-4)


def test_filters_of_the_two_latest_lengths_are_kept(model, ids, made) -> None:
    with torch.no_grad():
        for length in (24, 16, 24, 16):
            model(ids[:, :length])
        assert len(made) == 2 * FILTERS
        model(ids[:, :8])  # takes the place of 24
        model(ids[:, :16])
        assert len(made) == 3 * FILTERS
        model(ids)
    assert len(made) == 4 * FILTERS
    assert len(_first_filter(model)._cache) == 2


def test_filter_cache_can_be_switched_off(model, ids, made) -> None:
    with torch.no_grad():
        kept = model(ids).last_hidden_state
        model.set_filter_cache(0)
        torch.testing.assert_close(model(ids).last_hidden_state, kept)
    assert len(made) == FILTERS
    assert not _first_filter(model)._cache


def test_training_mode_drops_the_filters(model, ids, made) -> None:
    with torch.no_grad():
        model(ids)
        assert _first_filter(model)._cache
        model.train()
        assert not _first_filter(model)._cache
        model(ids)
    assert len(made) == FILTERS, "training mode never makes a spectrum"


def test_the_cache_is_neither_saved_nor_copied(model, ids) -> None:
    names = set(model.state_dict())
    with torch.no_grad():
        want = model(ids).last_hidden_state
    assert set(model.state_dict()) == names
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not _first_filter(other)._cache
        with torch.no_grad():
            assert torch.equal(other(ids).last_hidden_state, want)
    assert _first_filter(model)._cache


# ---- Gradients and precision ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", [M2BertForEmbedding, M2BertForMaskedLM])
def test_every_parameter_gets_a_gradient(kind, ids, checkpointing: bool) -> None:
    model = kind(_config()).set_backend("reference").train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    (model(ids, labels=ids).loss if kind is M2BertForMaskedLM else model(ids)[0].sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.norm() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(model, ids, dtype) -> None:
    with torch.no_grad():
        want = model(ids).pooler_output
        k = _first_filter(model).filters(LENGTH)[0]
        model.to(dtype)
        got = model(ids).pooler_output
    assert got.dtype == model.dtype == dtype
    assert torch.cosine_similarity(got.float(), want).min() > 0.999
    assert _first_filter(model).filters(LENGTH)[0].dtype == torch.float32
    assert torch.equal(_first_filter(model).filters(LENGTH)[0], k), "filter weights keep float32"


def test_autocast_leaves_the_filters_in_float32(model, ids) -> None:
    want = _first_filter(model).filters(LENGTH)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(_first_filter(model).filters(LENGTH)[0], want)
        assert model(ids).pooler_output.dtype == torch.bfloat16


# ---- Saving and loading --------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("kind", [M2BertModel, M2BertForEmbedding, M2BertForMaskedLM])
def test_a_saved_model_comes_back_equal(kind, ids, tmp_path: Path, bidirectional: bool) -> None:
    model = kind(_config(bidirectional=bidirectional)).set_backend("reference").eval()
    model.save_pretrained(tmp_path)
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(x, loaded.state_dict()[n]) for n, x in model.state_dict().items())
    # Not bit-equal: a file's tensors are aligned otherwise, which changes the order of BLAS sums.
    with torch.no_grad():
        got, want = loaded.set_backend("reference").eval()(ids)[0], model(ids)[0]
    torch.testing.assert_close(got, want, **ALIGNMENT)


def test_buffers_absent_from_a_file_are_rebuilt(tmp_path: Path) -> None:
    """A change of length drops position_ids and t; from_pretrained builds on the meta device."""
    model = M2BertForEmbedding(_config())
    buffers = {name for name, _ in model.named_buffers()}
    state = {name: x for name, x in model.state_dict().items() if name not in buffers}
    model.save_pretrained(tmp_path, state_dict=state)
    assert not buffers & load_file(tmp_path / "model.safetensors").keys()
    loaded = M2BertForEmbedding.from_pretrained(tmp_path)
    for name, want in model.named_buffers():
        assert torch.equal(loaded.get_buffer(name), want), name


def test_loading_in_half_precision_keeps_the_filters_whole(model, ids, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = M2BertModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    loaded.set_backend(model.backend)
    assert loaded.dtype == torch.bfloat16
    for got, want in zip(
        _first_filter(loaded).filters(LENGTH), _first_filter(model).filters(LENGTH), strict=True
    ):
        assert torch.equal(got, want)


def test_auto_classes_build_the_model(tmp_path: Path, ids) -> None:
    model = M2BertForMaskedLM(_config()).set_backend("reference").eval()
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), M2BertConfig)
    assert isinstance(AutoModelForMaskedLM.from_pretrained(tmp_path), M2BertForMaskedLM)
    encoder = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    with torch.no_grad():
        got, want = encoder.set_backend("reference")(ids)[0], model.bert(ids).last_hidden_state
    torch.testing.assert_close(got, want, **ALIGNMENT)


def test_frequency_is_one_tensor_under_six_names(model) -> None:
    frequencies = [
        x
        for name, x in _first_filter(model).state_dict(keep_vars=True).items()
        if name.endswith("freq")
    ]
    assert len(frequencies) == 6
    assert all(x is frequencies[0] for x in frequencies)


def test_decoder_is_tied_to_the_word_embedding() -> None:
    model = M2BertForMaskedLM(_config())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    resized = model.resize_token_embeddings(48)
    assert model.get_output_embeddings().weight is resized.weight


# ---- The fused mixer -----------------------------------------------------------------------------


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each mixer that ran as one operator."""
    runs: list[int] = []
    fuse = m2_bert.model.SequenceMixer._fused
    monkeypatch.setattr(
        m2_bert.model.SequenceMixer, "_fused", lambda self, u: runs.append(1) or fuse(self, u)
    )
    return runs


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"bidirectional": False},
        {"residual_long_conv": False},
        {"hyena_training_additions": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_fused_mixer_equals_its_parts(switches: dict, backend, ids, fused, monkeypatch) -> None:
    model = M2BertModel(_config(**switches)).set_backend(backend).eval()
    output = model(ids)
    gradient = _gradient(model, output[1].sum())
    assert len(fused) == 2
    monkeypatch.setattr(m2_bert.model.SequenceMixer, "_is_plain", lambda self: False)
    parts = model(ids)
    assert len(fused) == 2
    torch.testing.assert_close(output[0], parts[0], rtol=0, atol=1e-5)
    # The filters' frequencies magnify rounding: 5e-6 of the largest, as each differs from float64.
    atol = 5e-6 * gradient.abs().max().item()
    torch.testing.assert_close(gradient, _gradient(model, parts[1].sum()), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("part", ["in_linear", "short_filter", "filter_fn", "out_linear"])
def test_a_part_that_is_watched_or_replaced_runs(part: str, model, ids, fused) -> None:
    mixer = model.encoder.layer[0].attention
    seen: list[int] = []
    handle = getattr(mixer, part).register_forward_hook(lambda *_: seen.append(1))
    model(ids)
    assert (len(seen), len(fused)) == (1, 1)  # the other layer's mixer is still fused
    handle.remove()

    class Adapter(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0 * self.inner(x)

    if part.endswith("linear"):
        before = model(ids)[0]
        setattr(mixer, part, Adapter(getattr(mixer, part)))
        assert not torch.allclose(model(ids)[0], before)


@pytest.mark.parametrize(
    "switches",
    [{}, {"use_glu_mlp": False}, {"intermediate_size": 30}, {"use_monarch_mlp": False}],
    ids=str,
)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_fused_mlp_equals_its_parts(switches: dict, backend, ids, monkeypatch) -> None:
    model = M2BertModel(_config(**switches)).set_backend(backend).eval()
    mlp = model.encoder.layer[0].mlp
    whole = "use_monarch_mlp" not in switches and "intermediate_size" not in switches
    assert mlp._can_fuse() == whole
    output = model(ids)
    gradient = _gradient(model, output[1].sum())
    monkeypatch.setattr(m2_bert.model.MLP, "_can_fuse", lambda self: False)
    parts = model(ids)
    torch.testing.assert_close(output[0], parts[0], rtol=0, atol=1e-5)
    # The filters' frequencies magnify rounding: 5e-6 of the largest, as each differs from float64.
    atol = 5e-6 * gradient.abs().max().item()
    torch.testing.assert_close(gradient, _gradient(model, parts[1].sum()), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_fused_filters_equal_their_modules(bidirectional: bool, backend, monkeypatch) -> None:
    model = M2BertModel(_config(bidirectional=bidirectional)).set_backend(backend)
    conv = _first_filter(model)
    parameters = [p for name, p in conv.named_parameters() if name != "bias"]

    def filters_and_gradients(length: int) -> list[torch.Tensor]:
        filters = [k for k in conv.filters(length) if k is not None]
        assert len(filters) == 1 + bidirectional
        loss = sum((k * torch.linspace(-1, 1, k.numel()).view(k.shape)).sum() for k in filters)
        return [*filters, *torch.autograd.grad(loss, parameters)]

    for length in (1, 7, LENGTH):
        assert conv._can_fuse()
        fused = filters_and_gradients(length)
        with monkeypatch.context() as patch:
            patch.setattr(m2_bert.model.ImplicitLongConv, "_can_fuse", lambda self: False)
            parts = filters_and_gradients(length)
        for actual, expected in zip(fused, parts, strict=True):
            assert (actual - expected).norm() <= 1e-4 * expected.norm()
            assert actual.is_contiguous() == expected.is_contiguous()


def test_a_changed_filter_network_is_not_fused(model) -> None:
    conv = _first_filter(model)
    assert conv._can_fuse()
    handle = conv.implicit_filter_rev[2].register_forward_hook(lambda *_: None)
    assert not conv._can_fuse()
    handle.remove()
    sine = conv.implicit_filter[3]
    conv.implicit_filter[3] = copy.deepcopy(sine)
    assert not conv._can_fuse()
    conv.implicit_filter[3] = sine
    assert conv._can_fuse()
    conv.implicit_filter[4] = torch.nn.Sequential(conv.implicit_filter[4])
    assert not conv._can_fuse()


def test_dropout_and_hooks_act_on_the_hidden_activations(model) -> None:
    mlp = M2BertModel(_config(hidden_dropout_prob=0.5)).encoder.layer[0].mlp
    assert not mlp.train()._can_fuse()
    assert mlp.eval()._can_fuse()
    handle = mlp.wo.register_forward_hook(lambda *_: None)
    assert not mlp._can_fuse()
    handle.remove()
    assert mlp._can_fuse()


def test_no_copy_stands_between_projections_and_mixer() -> None:
    model = M2BertModel(_config(max_position_embeddings=512)).eval()
    mixer, u = model.encoder.layer[0].attention, torch.randn(2, 512, 16)
    with torch.inference_mode():
        mixer(u)
        with torch.profiler.profile(record_shapes=True) as profile:
            mixer(u)
    names = [event.name for event in profile.events()]
    assert names.count("monarch_kernels::mixer_conv_fwd") == 1
    assert names.count("monarch_kernels::projection_fwd") == 2
    assert not {"aten::contiguous", "aten::clone", "aten::copy_"} & set(names)


# ---- Inputs, switches and heads ------------------------------------------------------------------


def test_padding_changes_the_embedding(model, ids) -> None:
    """The mixer has no mask: [PAD] tokens are part of the text. A fact of the architecture."""
    text = ids[:, :8]
    padded = torch.nn.functional.pad(text, (0, LENGTH - 8), value=0)
    mask = (padded != 0).long()
    with torch.no_grad():
        short, long = model(text).pooler_output, model(padded, mask).pooler_output
        unmasked = model(padded).pooler_output
    assert torch.cosine_similarity(short, long).max() < 0.99
    assert torch.equal(long, unmasked)


@pytest.mark.parametrize("switches", [{}, {"pool_all": True}], ids=str)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_padding_does_not_change_an_invariant_model(switches: dict, ids, backend) -> None:
    """Any length of padding, any [PAD] content, any company in the batch; gradients as well."""
    model = M2BertModel(_config(padding="invariant", **switches)).set_backend(backend).eval()
    text = ids[:1, :9]
    for padded_length in (9, 10, 17, LENGTH):
        padded = torch.nn.functional.pad(text, (0, padded_length - 9), value=7)
        batch = torch.cat([padded, ids[1:, :padded_length]])
        mask = torch.ones_like(batch)
        mask[0, 9:] = 0
        model.zero_grad()
        alone, together = model(text), model(batch, mask)
        torch.testing.assert_close(together[0][0, :9], alone[0][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together[1][0], alone[1][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(  # the masked states must not leak into the gradient either
            *(_gradient(model, output[1][0].sum()) for output in (alone, together)),
            rtol=1e-4,
            atol=1e-4,
        )
    with torch.no_grad():  # the mask does act: without it the padding is part of the text
        assert (model(batch)[1][0] - alone[1][0]).abs().max() > 1e-3


def _gradient(model: M2BertModel, loss: torch.Tensor) -> torch.Tensor:
    parameters = [p for name, p in model.named_parameters() if "embeddings" not in name]
    gradients = torch.autograd.grad(loss, parameters)
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_a_mask_of_another_shape_is_refused(model, ids) -> None:
    with pytest.raises(ValueError, match=r"attention_mask: got shape \(2, 3\)"):
        model(ids, torch.ones(2, 3))


@pytest.mark.parametrize("length", [1, 2, 7, LENGTH])
def test_filters_of_a_shorter_input_are_the_first_taps(model, ids, length: int) -> None:
    k, k_rev = _first_filter(model).filters(LENGTH)
    short, short_rev = _first_filter(model).filters(length)
    assert short.is_contiguous()
    torch.testing.assert_close(short, k[:, :length])
    torch.testing.assert_close(short_rev, k_rev[:, :length])
    with torch.no_grad():
        assert model(ids[:, :length]).last_hidden_state.shape == (2, length, 16)


def test_pool_all_is_the_mean_over_the_mask(ids) -> None:
    model = M2BertModel(_config(pool_all=True)).set_backend("reference").eval()
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        output = model(ids, mask)
        mean = torch.stack([output[0][0].mean(0), output[0][1, :5].mean(0)])
        torch.testing.assert_close(output.pooler_output, torch.tanh(model.pooler.dense(mean)))
        torch.testing.assert_close(
            model(ids).pooler_output, model(ids, torch.ones_like(ids)).pooler_output
        )


def test_embedding_options(ids) -> None:
    model = M2BertForEmbedding(_config()).set_backend("reference").eval()
    with torch.no_grad():
        encoded = model.bert(ids)
        assert torch.equal(model(ids)["sentence_embedding"], encoded.pooler_output)
        model.config.use_cls_token = True
        assert torch.equal(model(ids).sentence_embedding, encoded.last_hidden_state[:, 0])
        model.config.use_normalized_embeddings = True
        torch.testing.assert_close(model(ids).sentence_embedding.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize(
    "switches",
    [
        {"bidirectional": False},
        {"residual_long_conv": False},
        {"hyena_training_additions": True},
        {"use_glu_mlp": False},
        {"use_monarch_mlp": False},
        {"use_positional_encodings": False},
        {"monarch_mlp_nblocks": 3},
        {"hyena_emb_dim": 3},
        {"long_conv_l_max": 2 * LENGTH},
    ],
    ids=lambda switches: next(iter(switches)),
)
def test_every_variant_runs_and_trains(switches: dict, ids) -> None:
    model = M2BertModel(_config(**switches)).set_backend("reference")
    model(ids).pooler_output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        cached = model(ids).last_hidden_state
    torch.testing.assert_close(cached, _fresh(model, ids))


def test_a_causal_mixer_sees_no_later_token(ids) -> None:
    model = M2BertModel(_config(bidirectional=False)).set_backend("reference").eval()
    changed = ids.clone()
    changed[:, 12:] = 1
    with torch.no_grad():
        one, other = model(ids).last_hidden_state, model(changed).last_hidden_state
    torch.testing.assert_close(one[:, :12], other[:, :12])
    assert not torch.allclose(one[:, 12:], other[:, 12:])


def test_block_diagonal_linear_equals_its_dense_matrix() -> None:
    linear = m2_bert.model.BlockDiagonalLinear(10, 7, bias=True, blocks=4)  # padded to 12, 8
    dense = torch.block_diag(*linear.weight)[:7, :10]
    x = torch.randn(2, 3, 10)
    torch.testing.assert_close(linear(x), x @ dense.T + linear.bias)


def test_labels_at_or_below_zero_are_not_predicted(ids) -> None:
    model = M2BertForMaskedLM(_config()).set_backend("reference").eval()
    labels = torch.full_like(ids, -100)
    labels[0, 3], labels[1, 4] = 7, 9
    loss = model(ids, labels=labels).loss
    assert torch.equal(model(ids, labels=labels.clamp(min=0)).loss, loss)
    torch.testing.assert_close(model(ids, labels=labels, labelled_only=True).loss, loss)


def test_initialisation() -> None:
    torch.manual_seed(3)
    config = _config(hidden_size=64, hyena_filter_order=64, vocab_size=400, initializer_range=0.02)
    model = M2BertModel(config)
    mixer = model.encoder.layer[0].attention
    assert mixer.in_linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert mixer.filter_fn.implicit_filter[2].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not mixer.in_linear.bias.any()
    assert not model.embeddings.word_embeddings.weight[0].any()
    assert mixer.filter_fn.bias.std().item() == pytest.approx(1.0, rel=0.4)
    assert (mixer.filter_fn.implicit_filter[1].freq == 10).all()
    bounds = [
        (model.encoder.layer[0].mlp.gated_layers.weight, (64 / 4) ** -0.5),
        (model.encoder.layer[0].mlp.wo.bias, 64**-0.5),
        (mixer.short_filter.weight, 3**-0.5),
    ]
    for x, bound in bounds:
        assert 0.8 * bound < x.abs().max().item() <= bound


# ---- Errors --------------------------------------------------------------------------------------


def test_too_long_an_input_is_refused(model) -> None:
    with pytest.raises(ValueError, match="got length 25, expected at most max_position_embeddings"):
        model(torch.ones(1, LENGTH + 1, dtype=torch.long))
    with pytest.raises(ValueError, match="got 25, expected at most long_conv_l_max=24"):
        _first_filter(model).filters(LENGTH + 1)


def test_labelled_only_needs_labels(ids) -> None:
    with pytest.raises(ValueError, match="labelled_only: got True without labels"):
        M2BertForMaskedLM(_config())(ids, labelled_only=True)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"name: got 'm2-bert-7b', expected one of .*m2-bert-341m"):
        named_config("m2-bert-7b")


def test_named_config_takes_overrides() -> None:
    config = named_config("m2-bert-80m-2k", max_position_embeddings=64, pool_all=True)
    assert (config.hidden_size, config.intermediate_size) == (768, 3072)
    assert (config.max_position_embeddings, config.long_conv_l_max) == (64, 64)
    assert config.pool_all
    assert CONFIGS["m2-bert-80m-2k"]["max_position_embeddings"] == 2048


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("hidden_size", 0, "a positive integer"),
        ("num_hidden_layers", 2.5, "a positive integer"),
        ("max_position_embeddings", 1, "an integer >= 2"),
        ("long_conv_l_max", 4, "an integer >= max_position_embeddings=24"),
        ("hyena_emb_dim", 4, "an odd integer >= 3"),
        ("hidden_dropout_prob", 1.0, r"a number in \[0, 1\)"),
        ("pad_token_id", 40, "None or an integer in"),
        ("hidden_act", "relu", "'gelu'"),
        ("padding", "longest", "'max_length' or 'invariant'"),
        ("monarch_mixer_sequence_mixing", False, "True"),
        ("attention_pooling", True, "not supported"),
        ("sequence_token_planting", True, "not supported"),
    ],
)
def test_config_names_the_field_it_refuses(field: str, value, expected: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: got {value!r}, expected .*{expected}"):
        _config(**{field: value})


def test_import_without_transformers_names_the_extra() -> None:
    code = "import sys; sys.modules['transformers'] = None; import m2_bert"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert run.returncode != 0
    assert "pip install monarch-kernels[model]" in run.stderr
