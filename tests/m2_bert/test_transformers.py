"""A saved folder in transformers: the auto classes, precision, pipelines."""

import importlib.util
from pathlib import Path

import pytest
import torch
from m2_bert import M2BertForEmbedding, M2BertForMaskedLM, M2BertModel
from m2_bert.folder import save_folder
from m2_bert.tokenizer import load_tokenizer
from transformers import AutoModel, AutoTokenizer, pipeline

from tests.m2_bert.makers import small_config, small_model, text_of

TEXTS = [text_of(5), text_of(70, seed=1)]
ALIGNMENT = {"rtol": 0, "atol": 1e-5}
NO_ACCELERATE = importlib.util.find_spec("accelerate") is None


@pytest.fixture(scope="module")
def model() -> M2BertForEmbedding:
    return small_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    return save_folder(model, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def batch():
    return load_tokenizer(64)(TEXTS, padding="max_length", truncation=True, return_tensors="pt")


def _embed(model, batch) -> torch.Tensor:
    with torch.no_grad():
        output = model.eval()(**batch)
    return output["sentence_embedding" if "sentence_embedding" in output else "pooler_output"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"low_cpu_mem_usage": True},
        pytest.param(
            {"device_map": "cpu"},
            marks=pytest.mark.skipif(NO_ACCELERATE, reason="needs accelerate"),
        ),
    ],
    ids=["plain", "low_cpu_mem_usage", "device_map"],
)
@pytest.mark.parametrize("kind", [M2BertForEmbedding, AutoModel], ids=lambda kind: kind.__name__)
def test_every_loader_gives_the_same_embedding(model, folder, batch, kind, options):
    loaded, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    assert isinstance(loaded, M2BertForEmbedding if kind is M2BertForEmbedding else M2BertModel)
    torch.testing.assert_close(_embed(loaded, batch), _embed(model, batch), **ALIGNMENT)


@pytest.mark.parametrize("kind", [M2BertForEmbedding, AutoModel], ids=lambda kind: kind.__name__)
def test_half_precision_is_that_of_the_cast_model(model, folder, batch, kind):
    loaded = kind.from_pretrained(folder, dtype=torch.bfloat16)
    cast = small_model().to(torch.bfloat16)
    got, want = _embed(loaded, batch), _embed(cast, batch)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0, atol=2**-7)
    whole = _embed(model, batch)
    assert torch.cosine_similarity(got.float(), whole).min() > 0.99


def test_a_half_precision_model_is_saved_as_it_is(batch, tmp_path):
    model = small_model().to(torch.bfloat16)
    loaded = M2BertForEmbedding.from_pretrained(save_folder(model, tmp_path / "model"))
    assert loaded.dtype == torch.bfloat16
    torch.testing.assert_close(_embed(loaded, batch), _embed(model, batch), rtol=0, atol=2**-7)


def test_the_policy_is_kept(tmp_path):
    folder = save_folder(small_model(padding="invariant"), tmp_path / "model")
    assert M2BertForEmbedding.from_pretrained(folder).config.padding == "invariant"


def test_the_tokenizer_of_a_folder_is_the_uncased_one(folder):
    tokenizer, want = AutoTokenizer.from_pretrained(folder), load_tokenizer(64)
    text = "Monarch MIXERS: naïve, sub-quadratic [MASK] 漢字"
    assert tokenizer(text)["input_ids"] == want(text)["input_ids"]
    assert tokenizer("COPPER")["input_ids"] == tokenizer("copper")["input_ids"] != [101, 100, 102]
    assert tokenizer.model_max_length == 64
    padded = tokenizer(TEXTS, padding="max_length", truncation=True)
    assert padded == want(TEXTS, padding="max_length", truncation=True)


def test_the_fill_mask_pipeline_takes_the_language_model(tmp_path):
    torch.manual_seed(0)
    model = M2BertForMaskedLM(small_config()).eval()
    model.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(64)
    tokenizer.save_pretrained(tmp_path)
    text = "a copper [MASK] by the river"
    best = pipeline("fill-mask", model=str(tmp_path), device="cpu")(text, top_k=3)
    ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**ids).logits[0, 3]
    assert [one["token"] for one in best] == logits.topk(3).indices.tolist()
