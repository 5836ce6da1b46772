"""What save_folder writes, and what it leaves alone."""

import json
import re
import sys
from pathlib import Path

import m2_bert.folder
import pytest
import torch
from m2_bert import M2BertForMaskedLM, M2BertModel
from m2_bert.folder import load, save_folder
from m2_bert.model_card import model_card
from m2_bert.tokenizer import read_vocabulary

from tests.m2_bert.makers import small_config, small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_files(model, tmp_path):
    folder = save_folder(model, tmp_path / "deep" / "model")
    assert folder == tmp_path / "deep" / "model"
    assert sorted(_contents(folder)) == [
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["model"], "a temporary file remains"
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert vocabulary == read_vocabulary()


@pytest.mark.parametrize(
    ("options", "modules"),
    [
        ({}, ["Transformer"]),
        ({"pool_all": True}, ["Transformer"]),
        ({"use_cls_token": True}, ["Transformer", "Pooling"]),
        ({"use_normalized_embeddings": True}, ["Transformer", "Normalize"]),
        (
            {"use_cls_token": True, "use_normalized_embeddings": True},
            ["Transformer", "Pooling", "Normalize"],
        ),
    ],
    ids=["pooler", "mean", "cls", "normalized", "cls, normalized"],
)
def test_the_modules_are_stock(tmp_path, options, modules):
    folder = save_folder(small_model(**options), tmp_path / "model")
    entries = json.loads((folder / "modules.json").read_text())
    assert [entry["type"].rsplit(".", 1)[1] for entry in entries] == modules
    assert all(entry["type"].startswith("sentence_transformers.") for entry in entries)
    assert all((folder / entry["path"]).is_dir() for entry in entries)


# ---- What is at the path already -----------------------------------------------------------------


def test_a_saved_model_is_replaced(model, tmp_path):
    folder = save_folder(small_model(1, use_normalized_embeddings=True), tmp_path / "model")
    before = _contents(folder)
    save_folder(model, folder)
    after = _contents(folder)
    assert after["model.safetensors"] != before["model.safetensors"]
    assert before.keys() - after.keys() == {"1_Normalize/config.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_is_filled(model, tmp_path):
    assert "config.json" in _contents(save_folder(model, tmp_path))


def test_other_content_is_kept_unless_asked(model, tmp_path):
    folder = save_folder(model, tmp_path / "model")
    (folder / "notes.txt").write_text("mine")
    before = _contents(folder)
    with pytest.raises(FileExistsError, match=r"notes\.txt.*--overwrite\) deletes everything"):
        save_folder(small_model(1), folder)
    assert _contents(folder) == before
    save_folder(model, folder, overwrite=True)
    assert _contents(folder).keys() == before.keys() - {"notes.txt"}


def test_a_file_is_not_replaced(model, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        save_folder(model, tmp_path / "model", overwrite=True)
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize("parent", ["/proc/1", "/proc/none", "file"])
def test_a_place_that_cannot_be_written_is_named(model, tmp_path, parent):
    if parent == "file":
        parent = tmp_path / "file"
        parent.write_text("mine")
    with pytest.raises(OSError, match="no folder can be made in") as caught:
        save_folder(model, Path(parent, "model"))
    message = str(caught.value)
    assert message.endswith(f"{str(Path(parent, 'model'))!r}"), "no temporary path"
    assert message.count("model") == 1
    assert "\n" not in message


@pytest.mark.parametrize("stage", ["model_card", "_move_into_place", "rename"])
def test_a_failure_leaves_the_former_folder(model, tmp_path, monkeypatch, stage):
    folder = save_folder(small_model(1), tmp_path / "model")
    before = _contents(folder)

    def full(*args):
        raise OSError("no space left")

    if stage == "rename":
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda self, to: full() if self.name == "new" else rename(self, to)
        )
    else:
        monkeypatch.setattr(m2_bert.folder, stage, full)
    with pytest.raises(OSError, match="no space"):
        save_folder(model, folder)
    assert _contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [M2BertModel, M2BertForMaskedLM])
def test_only_embedding_models_are_saved(tmp_path, kind):
    with pytest.raises(TypeError, match=f"{kind.__name__}, expected M2BertForEmbedding"):
        save_folder(kind(small_config()), tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_a_model_of_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vocab_size: got 40, expected at least 30522"):
        save_folder(small_model(vocab_size=40), tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_saving_needs_no_sentence_transformers(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # importing it fails
    folder = save_folder(model, tmp_path / "model")
    with pytest.raises(ImportError, match=r"pip install monarch-kernels\[st\]") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


# ---- Model card ----------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["max_length", "invariant"])
def test_the_card_states_the_policy_and_the_base(tmp_path, padding):
    folder = save_folder(small_model(padding=padding), tmp_path / "model", base="someone/a{b}")
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    assert f"| padding policy | `{padding}` |" in card
    assert ("padded with [PAD] to 64 tokens" in card) == (padding == "max_length")
    assert "| base | `someone/a{b}` |" in card
    assert "not recorded" in model_card(small_config(), 1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "tanh(W h + b), h the state of [CLS]; "),
        ({"pool_all": True}, "tanh(W h + b), h the mean of the tokens' states; "),
        ({"use_cls_token": True}, "the state of [CLS]; "),
        ({"use_normalized_embeddings": True}, "h the state of [CLS], of unit length; "),
    ],
    ids=["pooler", "mean", "cls", "normalized"],
)
def test_the_card_states_the_embedding(options, text):
    assert text in model_card(small_config(**options), 1)


@pytest.mark.parametrize(
    ("length", "batch"), [(128, 32), (2048, 16), (8192, 4), (32768, 1), (131072, 1)]
)
def test_the_card_names_a_batch_size(length, batch):
    assert f"batch_size={batch})" in model_card(small_config(max_position_embeddings=length), 1)


@pytest.mark.parametrize("padding", ["max_length", "invariant"])
def test_the_code_of_the_card_runs(tmp_path, padding):
    pytest.importorskip("sentence_transformers")
    folder = save_folder(small_model(padding=padding), tmp_path / "model")
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    embeddings = []
    for block in blocks:
        names: dict = {}
        exec(block.replace("path/of/this/folder", str(folder)), names)
        embeddings.append(torch.as_tensor(names["embeddings"][0]).detach())
    for other in embeddings[1:]:
        torch.testing.assert_close(other, embeddings[0], atol=1e-5, rtol=0)
