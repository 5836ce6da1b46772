"""Folders in the layout of sentence-transformers: what m2_bert.load and load_model make of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from m2_bert import Embedder
from m2_bert.checkpoint import CheckpointError, PoolerWarning, load_model
from m2_bert.folder import load, save_folder
from safetensors.torch import load_file, save_file

from tests.m2_bert.makers import small_model, text_of

st = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

TEXTS = [text_of(words, seed) for seed, words in enumerate([3, 60, 20, 2])]


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_folder(small_model(padding="invariant"), tmp_path / "m")


def _embeddings(model) -> np.ndarray:
    return Embedder(model).encode(TEXTS)


def _cased(folder: Path) -> None:
    """The tokenizer as a cased one, which some published repositories hold."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(content))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": False}))


@pytest.mark.parametrize("padding", ["max_length", "invariant"])
def test_load_always_uses_the_uncased_tokenizer(tmp_path, padding):
    folder = save_folder(small_model(padding=padding), tmp_path / "m")
    _cased(folder)
    texts = [text.title() for text in TEXTS]
    stock = st.SentenceTransformer(str(folder), device="cpu")
    want = _embeddings(small_model(padding=padding))
    assert np.abs(stock.encode(texts) - want).max() > 0.1, "the folder's own keeps case"
    np.testing.assert_allclose(load(folder, device="cpu").encode(texts), want, atol=1e-5, rtol=0)


def test_load_keeps_the_lengths_of_the_folder(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 16}))
    path = folder / "sentence_bert_config.json"
    content = json.loads(path.read_text())
    content["processing_kwargs"]["text"]["padding"] = "max_length"
    path.write_text(json.dumps(content))
    loaded = load(folder, device="cpu")
    assert loaded.max_seq_length == 16
    features = loaded.preprocess(TEXTS)
    assert features["input_ids"].shape == (len(TEXTS), 16)
    assert features["attention_mask"].sum(1).tolist() == [5, 16, 16, 4]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "bert.encoder.layer.1.mlp.wo.bias",
            None,
            r"missing: bert\.encoder\.layer\.1\.mlp\.wo\.bias",
        ),
        ("bert.pooler.dense.bias", None, r"missing: bert\.pooler\.dense\.bias"),
        ("bert.pooler.dense.bias", torch.full((32,), torch.nan), "NaN or infinite: bert.pooler"),
        ("bert.extra", torch.ones(2), r"unexpected: bert\.extra"),
    ],
    ids=["missing", "half a pooler", "NaN", "unexpected"],
)
def test_load_checks_the_weights(folder, name, change, message):
    weights = load_file(folder / "model.safetensors")
    weights.pop(name, None)
    save_file(weights | ({} if change is None else {name: change}), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_missing_pooler_is_made_the_same_each_time(folder, capfd):
    weights = {
        name: x
        for name, x in load_file(folder / "model.safetensors").items()
        if ".pooler." not in name
    }
    save_file(weights, folder / "model.safetensors")
    capfd.readouterr()
    embeddings = []
    for _ in range(2):
        with pytest.warns(PoolerWarning, match="embeddings mean nothing"):
            embeddings.append(load(folder, device="cpu").encode(TEXTS))
    assert capfd.readouterr() == ("", "")
    assert np.array_equal(*embeddings)
    with pytest.warns(PoolerWarning):
        same = load_model(folder)
    np.testing.assert_allclose(embeddings[0], _embeddings(same), atol=1e-5, rtol=0)


def test_load_tells_in_one_line_what_sentence_transformers_refuses(folder):
    path = folder / "modules.json"
    path.write_text(path.read_text().replace("Transformer", "Transfigurer"))
    with pytest.raises(CheckpointError, match="sentence-transformers cannot load it") as caught:
        load(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_load_refuses_a_device_that_is_not_there(folder):
    with pytest.raises(ValueError, match="device: got 'cuda:99', expected one that is here: cpu"):
        load(folder, device="cuda:99")


# ---- A pooler that is modules of its own ------------------------------------------------------


def _with_dense(path: Path, mode: str = "cls", width: int = 32, normalize: bool = False):
    """A folder whose pooler is a Dense module, as people make them; its encoder's is another."""
    model = small_model(padding="invariant")
    encoder = save_folder(model, path / "encoder")
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (encoder / name).unlink()
    transformer = modules.Transformer(str(encoder))
    torch.manual_seed(1)
    made = [transformer, modules.Pooling(32, mode), modules.Dense(32, width)]
    loaded = st.SentenceTransformer(
        modules=[*made, *([modules.Normalize()] if normalize else [])],
        device="cpu",
        prompts={"query": "Find: "},
    )
    loaded.save(str(path / "dense"))
    return loaded, path / "dense"


@pytest.mark.parametrize(
    ("mode", "normalize"), [("cls", False), ("mean", False), ("cls", True)], ids=str
)
def test_a_dense_module_is_the_pooler(tmp_path, mode, normalize):
    made, folder = _with_dense(tmp_path, mode, normalize=normalize)
    want = made.encode(TEXTS)
    assert np.abs(want - _embeddings(small_model(padding="invariant"))).max() > 0.1
    for files in ("as saved", "as sentence-transformers 5 saved"):
        if files != "as saved":
            (folder / "1_Pooling" / "config.json").write_text(
                json.dumps({"word_embedding_dimension": 32})[:-1]
                + f', "pooling_mode_cls_token": {str(mode == "cls").lower()}'
                + f', "pooling_mode_mean_tokens": {str(mode == "mean").lower()}}}'
            )
        loaded = load(folder, device="cpu")
        assert [type(m).__name__ for m in loaded][:3] == ["Transformer", "Pooling", "Dense"]
        assert loaded.prompts["query"] == "Find: "
        np.testing.assert_allclose(loaded.encode(TEXTS), want, atol=1e-5, rtol=0)
        got = Embedder(folder, device="cpu").encode(TEXTS)
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
    again = save_folder(load_model(folder), tmp_path / "again")
    np.testing.assert_allclose(load(again, device="cpu").encode(TEXTS), want, atol=1e-5, rtol=0)


def test_other_dense_modules_are_kept_by_load_alone(tmp_path):
    made, folder = _with_dense(tmp_path, width=8)
    np.testing.assert_allclose(
        load(folder, device="cpu").encode(TEXTS), made.encode(TEXTS), atol=1e-5, rtol=0
    )
    want = _embeddings(small_model(padding="invariant"))
    np.testing.assert_allclose(_embeddings(load_model(folder)), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("place", ["../dense/2_Dense", "..", "/tmp"])
def test_a_dense_module_elsewhere_is_refused(tmp_path, place):
    _, folder = _with_dense(tmp_path)
    path = folder / "modules.json"
    path.write_text(path.read_text().replace('"2_Dense"', json.dumps(place)))
    with pytest.raises(CheckpointError, match="expected folders beside it"):
        load_model(folder)


def test_a_dense_module_without_weights_is_refused(tmp_path):
    _, folder = _with_dense(tmp_path)
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="2_Dense: no weights"):
        load(folder, device="cpu")
