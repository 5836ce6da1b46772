"""What is no checkpoint is refused with what was found, and no pickled code runs."""

import argparse
import datetime
import os
import pickle
import re
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from m2_bert import hub
from m2_bert.checkpoint import CheckpointError, load_model, read_checkpoint
from safetensors.torch import save_file

from tests.m2_bert.checkpoint.makers import (
    FILTER,
    FIRST,
    WORDS,
    State,
    distinct,
    made_model,
    without,
)


class _Code:
    """Unpickled by a careless reader, it calls a function."""

    def __init__(self, function, *arguments: str) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HARM = {
    "posix.mkdir": lambda witness: _Code(os.mkdir, str(witness)),
    "shutil.copyfile": lambda witness: _Code(shutil.copyfile, __file__, str(witness)),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("beside", [True, False], ids=["beside weights", "alone"])
@pytest.mark.parametrize("harm", HARM)
def test_pickled_code_is_refused_and_never_runs(
    tmp_path: Path, model, harm: str, zipped: bool, beside: bool
) -> None:
    witness = tmp_path / "witness"
    content = (model.state_dict() if beside else {}) | {"x": HARM[harm](witness)}
    torch.save(content, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=re.escape(harm)) as caught:
        load_model(tmp_path / "a.bin")
    assert "\n" not in str(caught.value)
    assert not witness.exists()


def test_stand_ins_do_not_outlive_the_read(tmp_path: Path, model) -> None:
    torch.save(
        {"state": {"model": model.state_dict(), "t": datetime.timedelta(1)}}, tmp_path / "a.pt"
    )
    before = set(torch.serialization.get_safe_globals())
    load_model(tmp_path / "a.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def _bert() -> State:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
    return BertModel(BertConfig(**sizes, num_attention_heads=2)).state_dict()


def _broken(path: Path, state: State) -> None:
    whole = path.with_suffix(".whole")
    save_file(distinct(state), whole)
    path.write_bytes(whole.read_bytes()[:-100])


def _broken_zip(path: Path, state: State) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])


def _save_legacy(content, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _compressed(path: Path, state: State) -> None:
    """As torch.save writes it, but deflated, with 64 MB of zeros that take 64 kB."""
    whole = path.with_suffix(".whole") / path.name
    whole.parent.mkdir()
    torch.save(state, whole)
    with (
        zipfile.ZipFile(whole) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            padding = bytes(64 << 20) if name.endswith("data.pkl") else b""
            target.writestr(name, source.read(name) + padding)


def _lying_zip(path: Path, state: State) -> None:
    """Deflated, though the directory calls it stored."""
    _compressed(path, state)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\1\2", 10), (b"PK\3\4", 8)):
        at = content.find(signature)
        while at >= 0:
            content[at + offset : at + offset + 2] = b"\0\0"
            at = content.find(signature, at + 4)
    path.write_bytes(content)


NOT_CHECKPOINTS = {
    "empty": (lambda p, s: p.write_bytes(b""), "an empty file"),
    "text": (lambda p, s: p.write_text("hello, this is not a model"), "unknown content"),
    "LFS pointer": (
        lambda p, s: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    "truncated safetensors": (_broken, "damaged safetensors"),
    "truncated pickle": (_broken_zip, "not a readable torch checkpoint"),
    "safetensors header": (lambda p, s: p.write_bytes(b"\xff" * 8 + b"{"), "damaged safetensors"),
    "zip": (lambda p, s: p.write_bytes(b"PK\x03\x04nothing"), "not a readable torch checkpoint"),
    "plain pickle": (lambda p, s: p.write_bytes(pickle.dumps({"a": 1})), "not a readable torch"),
    "list": (lambda p, s: torch.save([1, 2], p), "got a pickled list"),
    "dict": (lambda p, s: torch.save({"a": 1}, p), "got a pickled dict with 'a'"),
    "one tensor": (lambda p, s: torch.save(torch.ones(3), p), "got a pickled Tensor"),
    "whole module": (
        lambda p, s: torch.save(torch.nn.Sigmoid(), p),
        r"whole pickled module of class torch\.nn\.modules\.activation\.Sigmoid rather than tensors"
        r".* torch\.save\(module\.state_dict\(\), path\)",
    ),
    "whole model": (
        lambda p, s: torch.save(made_model(), p),
        r"whole pickled module of class m2_bert\.model\.M2BertForEmbedding rather than tensors",
    ),
    "legacy whole module": (
        lambda p, s: _save_legacy(torch.nn.Sigmoid(), p),
        r"code \(torch\.nn\.modules\.activation\.Sigmoid\).*expected a state dict",
    ),
    "legacy object": (
        lambda p, s: _save_legacy({"a": argparse.Namespace()}, p),
        r"code \(argparse\.Namespace\).*expected a state dict",
    ),
    "an object": (lambda p, s: torch.save(datetime.timedelta(1), p), "got a pickled object"),
    "protocol 4": (
        lambda p, s: torch.save(s, p, pickle_protocol=4),
        "not as torch.save writes a state dict",
    ),
    "TorchScript": (
        lambda p, s: torch.jit.trace(torch.nn.Sigmoid(), torch.ones(1)).save(p),
        r"whole pickled module of class __torch__\.torch\.nn\.modules\.activation\.Sigmoid",
    ),
    "legacy truncated": (
        lambda p, s: (_save_legacy(s, p), p.write_bytes(p.read_bytes()[:-100])),
        "not a readable torch checkpoint .*unexpected EOF",
    ),
    "compressed": (_compressed, r"weights/data\.pkl is compressed, which torch\.save never does"),
    "zip that lies": (_lying_zip, r"weights/data\.pkl is compressed"),
    "large pickle": (
        lambda p, s: torch.save({"a": "x" * (17 << 20)}, p),
        r"\d{8} bytes of pickled objects beside the tensors, expected at most 16777216",
    ),
    "control characters": (
        lambda p, s: torch.save(s | {"bert.\x1b[2J\u202e\x07\n": torch.ones(1)}, p),
        r"unexpected: bert\.\\x1b\[2J\\u202e\\x07\\n",
    ),
    "attention": (lambda p, s: torch.save(_bert(), p), "those of a BERT with attention"),
    "other tensors": (
        lambda p, s: torch.save({"w": torch.ones(3)}, p),
        r"not M2-BERT: no .*pos_emb\.z among 1 tensors \(w\)",
    ),
    "two names": (
        lambda p, s: torch.save(s | {f"module.{WORDS}": s[WORDS]}, p),
        f"two tensors for {WORDS}",
    ),
    "missing": (
        lambda p, s: torch.save(without(s, "out_linear.weight"), p),
        r"missing: bert\.encoder\.layer\.0\.attention\.out_linear\.weight, ",
    ),
    "missing many": (
        lambda p, s: torch.save(without(s, "linear.weight", "linear.bias"), p),
        r"missing: .*, \.\.\. 8 in all",
    ),
    "half a pooler": (
        lambda p, s: torch.save(without(s, "pooler.dense.bias"), p),
        r"missing: bert\.pooler\.dense\.bias",
    ),
    "missing for inference": (
        lambda p, s: torch.save(without(s, "token_type_embeddings.weight"), p),
        r"token_type_embeddings\.weight: missing",
    ),
    "unexpected": (
        lambda p, s: torch.save(s | {"bert.extra": torch.ones(1)}, p),
        r"unexpected: bert\.extra",
    ),
    "shape": (
        lambda p, s: torch.save(s | {f"{FIRST}mlp.wo.bias": torch.ones(15)}, p),
        r"mlp\.wo\.bias is \(15,\) float32, expected \(16,\)",
    ),
    "dimensions": (
        lambda p, s: torch.save(s | {WORDS: torch.ones(40)}, p),
        r"word_embeddings\.weight: got shape \(40,\), expected 2 dimensions",
    ),
    "integers": (
        lambda p, s: torch.save(s | {f"{FIRST}mlp.wo.bias": torch.ones(16).int()}, p),
        r"mlp\.wo\.bias is \(16,\) int32",
    ),
    "sparse": (
        lambda p, s: torch.save(s | {WORDS: torch.eye(40, 16).to_sparse()}, p),
        r"word_embeddings\.weight is \(40, 16\)",
    ),
    "huge from nothing": (
        lambda p, s: torch.save(s | {WORDS: torch.ones(1, 1).expand(1 << 40, 16)}, p),
        r"word_embeddings\.weight is \(1099511627776, 16\)",
    ),
    "NaN": (
        lambda p, s: torch.save(s | {f"{FIRST}mlp.wo.bias": torch.full((16,), torch.nan)}, p),
        r"NaN or infinite: bert\.encoder\.layer\.0\.mlp\.wo\.bias",
    ),
    "infinity": (
        lambda p, s: torch.save(s | {f"{FILTER}bias": torch.full((16,), -torch.inf)}, p),
        r"NaN or infinite: bert\.encoder\.layer\.0\.attention\.filter_fn\.bias",
    ),
    "frequencies differ": (
        lambda p, s: torch.save(s | {f"{FILTER}implicit_filter.3.freq": torch.ones(1, 8)}, p),
        r"differs under its names: .*filter_fn\.implicit_filter\.1\.freq",
    ),
}


@pytest.mark.parametrize("name", NOT_CHECKPOINTS)
def test_refusals(tmp_path: Path, model, name: str) -> None:
    write, match = NOT_CHECKPOINTS[name]
    path = tmp_path / "weights.bin"
    write(path, model.state_dict())
    with pytest.raises(CheckpointError, match=match) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 600
    assert message.isprintable()
    for advice in ("weights_only", "add_safe_globals", "trust", "Please"):
        assert advice not in message


def test_zip_bomb_takes_no_memory(tmp_path: Path, model) -> None:
    _compressed(tmp_path / "a.bin", model.state_dict())
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="compressed"):
            load_model(tmp_path / "a.bin")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


EMBEDDINGS = [f"bert.embeddings.{name}_embeddings.weight" for name in ("position", "token_type")]
MLP = [f"{FIRST}mlp.{name}.weight" for name in ("wo", "gated_layers")]
SIZES_FROM = [WORDS, *EMBEDDINGS, *MLP, f"{FILTER}pos_emb.z", f"{FILTER}implicit_filter.0.weight"]


@pytest.mark.parametrize("config", [True, False], ids=["config.json", "alone"])
@pytest.mark.parametrize("name", SIZES_FROM)
def test_tensors_of_no_size(tmp_path: Path, model, name: str, config: bool) -> None:
    state = model.state_dict()
    if config:
        model.config.save_pretrained(tmp_path)
    for dim, _ in enumerate(state[name].shape):
        shape = list(state[name].shape)
        shape[dim] = 0
        torch.save(state | {name: torch.empty(shape)}, tmp_path / "a.bin")
        with pytest.raises(CheckpointError) as caught:
            load_model(tmp_path / "a.bin")
        assert "\n" not in str(caught.value)


def test_control_characters_of_file_names(tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b[31m"
    folder.mkdir()
    for name in ("b\u202e.pt", "c\x9b.pt"):
        (folder / name).write_text("x")
    with pytest.raises(CheckpointError, match=r"a\\x1b\[31m: several .*b\\u202e\.pt, c\\x9b\.pt"):
        load_model(folder)
    with pytest.raises(FileNotFoundError, match=r"none\\u202e: no such file"):
        load_model("none\u202e")


def test_large_finite_values_are_no_infinity(tmp_path: Path, model) -> None:
    state = model.state_dict() | {f"{FIRST}mlp.wo.bias": torch.full((16,), 3e38)}
    torch.save(state, tmp_path / "a.bin")
    read_checkpoint(tmp_path / "a.bin")


@pytest.mark.parametrize("name", ["no/such/folder", "/nowhere/model.bin", "nothing", "../up/x"])
def test_missing_paths(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_fetch", lambda *_: pytest.fail("not a Hub id"))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_model(name)


def test_revision_of_a_local_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="revision: got 'v1' for the local"):
        load_model(tmp_path, revision="v1")
