"""The model in sentence-transformers: stock modules, equal results, saving and training."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import m2_bert.folder
import numpy as np
import pytest
import torch
from m2_bert import M2BertForEmbedding
from m2_bert.checkpoint import CheckpointError, load_model
from m2_bert.folder import load, save_folder
from m2_bert.tokenizer import load_tokenizer
from transformers import BertConfig, BertModel

from tests.m2_bert.makers import small_model, text_of

st = pytest.importorskip("sentence_transformers")

POLICIES = ["max_length", "invariant"]
TEXTS = [text_of(words, seed) for seed, words in enumerate([3, 70, 20, 2, 62, 45])]
LENGTH = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A saved model of each padding policy."""
    made = tmp_path_factory.mktemp("saved")
    return {name: save_folder(small_model(padding=name), made / name) for name in POLICIES}


@pytest.fixture(scope="module")
def models(folders):
    return {name: st.SentenceTransformer(str(folders[name]), device="cpu") for name in POLICIES}


def _direct(model: M2BertForEmbedding, texts=TEXTS) -> np.ndarray:
    """The embeddings by the model itself, each text on its own, padded as the policy says."""
    padding = "max_length" if model.config.padding == "max_length" else False
    tokenizer = load_tokenizer(LENGTH)
    rows = []
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, padding=padding, truncation=True, return_tensors="pt")
            rows.append(model(**ids).sentence_embedding[0])
    return torch.stack(rows).numpy()


# ---- Results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", POLICIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool_all": True},
        {"use_cls_token": True},
        {"use_normalized_embeddings": True},
        {"use_cls_token": True, "use_normalized_embeddings": True},
    ],
    ids=["pooler", "mean", "cls", "normalized", "cls, normalized"],
)
def test_embeddings_are_those_of_the_model(tmp_path, padding, options):
    model = small_model(padding=padding, **options)
    loaded = st.SentenceTransformer(str(save_folder(model, tmp_path / "m")), device="cpu")
    got = loaded.encode(TEXTS)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, _direct(model), atol=1e-5, rtol=0)
    assert loaded.get_embedding_dimension() == 32
    assert loaded.max_seq_length == LENGTH


@pytest.mark.parametrize("padding", POLICIES)
def test_the_same_ids_give_the_same_embedding(models, padding):
    """On one batch of ids, nothing is left to round differently."""
    model = small_model(padding=padding)
    ids = models[padding].preprocess(TEXTS)
    with torch.no_grad():
        given = ids["input_ids"], ids["attention_mask"]
        want = model(*given, embedding_only=True).sentence_embedding
        got = models[padding](ids)["sentence_embedding"]
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("padding", "width"), [("max_length", LENGTH), ("invariant", 22)], ids=POLICIES
)
def test_each_policy_pads_its_way(models, padding, width):
    features = models[padding].preprocess([text_of(3), text_of(20)])
    assert features["input_ids"].shape == (2, width)
    assert features["attention_mask"].sum(1).tolist() == [5, 22]
    assert "token_type_ids" not in features


def test_a_fixed_length_cannot_be_shortened(folders):
    """Fewer [PAD] tokens would be another function of the text, without a word."""
    model = st.SentenceTransformer(str(folders["max_length"]), device="cpu")
    model.max_seq_length = 16
    assert model.preprocess(TEXTS)["input_ids"].shape == (len(TEXTS), LENGTH)


@pytest.mark.parametrize("padding", POLICIES)
def test_the_company_of_a_text_changes_nothing(models, padding):
    together = models[padding].encode(TEXTS)
    alone = np.stack([models[padding].encode(text) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_the_policies_are_different_functions(models):
    one, other = (models[padding].encode(TEXTS) for padding in POLICIES)
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize("padding", POLICIES)
def test_queries_and_documents_are_encoded_alike(models, padding):
    model = models[padding]
    assert model.prompts == {"query": "", "document": ""}
    want = model.encode(TEXTS)
    assert np.array_equal(model.encode_query(TEXTS), want)
    assert np.array_equal(model.encode_document(TEXTS), want)


def test_similarity_is_the_cosine(models):
    e = torch.from_numpy(models["max_length"].encode(TEXTS))
    got = models["max_length"].similarity(e, e)
    torch.testing.assert_close(got, torch.cosine_similarity(e[:, None], e[None], dim=-1))


def test_truncated_dimensions_are_the_first(models):
    want = models["invariant"].encode(TEXTS)[:, :8]
    np.testing.assert_allclose(models["invariant"].encode(TEXTS, truncate_dim=8), want)


@pytest.mark.parametrize("precision", ["binary", "ubinary", "int8"])
def test_quantised_embeddings(models, precision):
    whole = models["invariant"].encode(TEXTS)
    got = models["invariant"].encode(TEXTS, precision=precision)
    if precision == "int8":
        step = np.ptp(whole, axis=0) / 255
        assert got.dtype == np.int8
        back = whole.min(axis=0) + (got.astype(np.float32) + 128) * step
        assert (np.abs(back - whole) <= 1.01 * step).all()
    else:
        signed = got.view(np.uint8) if precision == "ubinary" else (got.astype(int) + 128)
        assert np.array_equal(np.unpackbits(signed.astype(np.uint8), axis=1), whole > 0)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(models):
    want = models["invariant"].encode(TEXTS)
    got = models["invariant"].encode(TEXTS, device=["cpu", "cpu"], chunk_size=2)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


# ---- Saving and training -------------------------------------------------------------------------


def _json_files(folder: Path) -> dict[str, dict]:
    files = {str(p.relative_to(folder)): json.loads(p.read_text()) for p in folder.rglob("*.json")}
    files["config_sentence_transformers.json"].pop("__version__", None)
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        files.pop(name)  # transformers' own, of the encoder rather than of M2BertForEmbedding
    return files


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": "invariant", "use_cls_token": True, "use_normalized_embeddings": True}],
    ids=["pooler", "cls, normalized, invariant"],
)
def test_sentence_transformers_would_write_the_same(tmp_path, options):
    folder = save_folder(small_model(**options), tmp_path / "ours")
    st.SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "theirs"))
    assert _json_files(folder) == _json_files(tmp_path / "theirs")
    card = (tmp_path / "theirs" / "README.md").read_text()
    assert card == (folder / "README.md").read_text()
    save_folder(small_model(), tmp_path / "theirs")  # replaced without being asked: it is a model


@pytest.mark.parametrize("padding", POLICIES)
def test_saved_again_and_reloaded_it_is_equal(models, tmp_path, padding):
    models[padding].save(str(tmp_path))
    again = st.SentenceTransformer(str(tmp_path), device="cpu")
    assert np.array_equal(again.encode(TEXTS), models[padding].encode(TEXTS))


@pytest.mark.parametrize("reader", [M2BertForEmbedding.from_pretrained, load_model])
def test_a_model_trained_there_comes_back_whole(folders, tmp_path, reader):
    """The pooler too: there is no second copy of it that training could leave behind."""
    model = st.SentenceTransformer(str(folders["invariant"]), device="cpu").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model(model.preprocess(TEXTS))["sentence_embedding"].square().mean().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unused, "DistributedDataParallel refuses parameters without a gradient"
    optimizer.step()
    model.save(str(tmp_path))

    trained = model.encode(TEXTS)
    assert np.abs(trained - _direct(small_model(padding="invariant"))).max() > 0.01
    read = reader(str(tmp_path)).eval()
    assert read.config.padding == "invariant"
    np.testing.assert_allclose(_direct(read), trained, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_folder_needs_one_import_and_no_remote_code(folders):
    script = (
        "import m2_bert, sys\n"
        "from sentence_transformers import SentenceTransformer\n"
        "from transformers import AutoModel, AutoTokenizer\n"
        "text, folder = 'copper lantern', sys.argv[1]\n"
        "model = SentenceTransformer(folder, device='cpu', local_files_only=True)\n"
        "print(float(model.encode(text)[5]))\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "ids = tokenizer(text, padding='max_length', return_tensors='pt')\n"
        "print(float(AutoModel.from_pretrained(folder)(**ids).pooler_output[0, 5]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(folders["max_length"])],
        capture_output=True,
        text=True,
        check=True,
    )
    want = _direct(small_model(), ["copper lantern"])[0, 5]
    assert [float(line) for line in result.stdout.split()] == pytest.approx([want] * 2, abs=1e-5)


# ---- load ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["save_folder", "save_pretrained"])
@pytest.mark.parametrize("padding", POLICIES)
def test_load_reads_either_layout(tmp_path, capfd, padding, layout):
    model = small_model(padding=padding)
    if layout == "save_folder":
        save_folder(model, tmp_path / "model")
    else:
        model.save_pretrained(tmp_path / "model")
    capfd.readouterr()
    loaded = load(tmp_path / "model", device="cpu")
    if layout == "save_pretrained":
        assert capfd.readouterr() == ("", "")
    assert type(loaded) is st.SentenceTransformer
    np.testing.assert_allclose(loaded.encode(TEXTS), _direct(model), atol=1e-5, rtol=0)


def test_load_keeps_what_sentence_transformers_saved(models, tmp_path):
    models["invariant"].save(str(tmp_path))
    path = tmp_path / "config_sentence_transformers.json"
    path.write_text(path.read_text().replace('"query": ""', '"query": "Find: "'))
    assert load(tmp_path, device="cpu").prompts["query"] == "Find: "


@pytest.mark.parametrize("layout", ["save_folder", "save_pretrained"])
def test_load_in_half_precision(tmp_path, layout):
    model = small_model()
    if layout == "save_folder":
        save_folder(model, tmp_path / "model")
    else:
        model.save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu", dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    got = loaded.encode(TEXTS)
    assert got.dtype == np.float32
    want = _direct(model)
    cosine = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert cosine.min() > 0.99
    assert not np.allclose(got, want, atol=1e-5)


def test_load_makes_a_random_model(tmp_path):
    loaded = load("random:small", device="cpu")
    assert loaded.max_seq_length == 8192
    got = loaded.encode(TEXTS[:2])
    assert got.shape == (2, 256)
    assert np.array_equal(got, load("random:small", device="cpu").encode(TEXTS[:2]))
    loaded.save(str(tmp_path))
    assert "| base | `random:small` |" in (tmp_path / "README.md").read_text()


def test_load_leaves_no_files(monkeypatch, tmp_path):
    monkeypatch.setattr(m2_bert.folder.tempfile, "tempdir", str(tmp_path))
    load("random:small", device="cpu")
    assert not any(tmp_path.iterdir())


def test_load_refuses_another_architecture(tmp_path):
    config = BertConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    load_tokenizer().save_pretrained(tmp_path / "bert")
    st.SentenceTransformer(str(tmp_path / "bert"), device="cpu").save(str(tmp_path / "st"))
    with pytest.raises(CheckpointError):
        load(tmp_path / "st", device="cpu")


def test_load_refuses_a_revision_of_a_folder(folders):
    with pytest.raises(ValueError, match="revision: got 'v2'"):
        load(folders["invariant"], device="cpu", revision="v2")


@pytest.mark.slow
def test_load_reads_the_hub_as_sentence_transformers_left_it(folders, tmp_path):
    """From a cache, without a network: prompts, modules and tokenizer of the repository."""
    repository, commit = tmp_path / "hub" / "models--someone--m2", "0" * 40
    snapshot = repository / "snapshots" / commit
    shutil.copytree(folders["invariant"], snapshot)
    path = snapshot / "config_sentence_transformers.json"
    path.write_text(path.read_text().replace('"query": ""', '"query": "find: "'))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    script = (
        "import m2_bert.folder\n"
        "model = m2_bert.folder.load('someone/m2', device='cpu')\n"
        "print(model.prompts['query'], model.encode_query('river')[5])\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    prompt, value = result.stdout.split()
    want = _direct(small_model(padding="invariant"), ["find: river"])[0, 5]
    assert (prompt, float(value)) == ("find:", pytest.approx(want, abs=1e-5))


def test_token_states_of_a_cls_model_are_those_of_all_tokens(tmp_path):
    model = small_model(use_cls_token=True)
    loaded = st.SentenceTransformer(str(save_folder(model, tmp_path / "m")), device="cpu")
    states = loaded.encode(TEXTS[:1], output_value="token_embeddings")[0]
    assert len(states) > 1
