"""Every published container and naming loads, and gives the same outputs."""

import datetime
import json
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from m2_bert import M2BertForMaskedLM, M2BertModel
from m2_bert.checkpoint import CheckpointError, PoolerWarning, load_model, read_checkpoint
from safetensors.torch import save_file

from tests.m2_bert.checkpoint.makers import (
    WORDS,
    assert_same,
    distinct,
    made_model,
    output_of,
    prefixed,
    with_flashfft,
    without,
)


class Metric:
    """Pickled by name, as Composer's metrics are; importing or restoring it would be an error."""

    def __setstate__(self, state) -> None:
        raise AssertionError("pickled code ran")


# As a training run pickles it: an installed package that is none of ours.
Metric.__module__ = "torchmetrics.classification"


def _save_with_metric(content: dict, path: Path) -> None:
    """torch.save while the metric's package can be imported, which ends with it."""
    metric = Metric()
    metric.total = 3
    content["state"]["train_metrics"] = {"MaskedAccuracy": metric}
    package = SimpleNamespace(Metric=Metric)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torchmetrics", "torchmetrics.classification"):
            patch.setitem(sys.modules, name, package)
        torch.save(content, path)


NAMINGS = {
    "flat": lambda s: s,
    "no prefix": lambda s: {name.removeprefix("bert."): x for name, x in s.items()},
    "DataParallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "wrapped twice": lambda s: prefixed(s, "module.model."),
    "FlashFFTConv buffers": with_flashfft,
    "classifier head": lambda s: s | {"classifier.weight": torch.ones(3, 16)},
    "without buffers": lambda s: without(s, ".pos_emb.t", ".deltas", ".position_ids"),
    "first frequency only": lambda s: {
        name: x for name, x in s.items() if ".freq" not in name or ".implicit_filter.1." in name
    },
    "last frequency only": lambda s: {
        name: x for name, x in s.items() if ".freq" not in name or "_rev.5." in name
    },
    "float64": lambda s: {n: x.double() if x.is_floating_point() else x for n, x in s.items()},
}


CONTAINERS = [("pt", "flat"), ("legacy", "flat"), ("safetensors", "flat")]
CONTAINERS += [("safetensors", "no prefix"), ("safetensors", "FlashFFTConv buffers")]


@pytest.mark.parametrize(
    ("container", "naming"), [*(("bin", naming) for naming in NAMINGS), *CONTAINERS]
)
def test_namings_and_containers(tmp_path: Path, model, naming: str, container: str) -> None:
    state = NAMINGS[naming](model.state_dict())
    path = tmp_path / f"weights.{container}"
    if container == "safetensors":
        save_file(distinct(state), path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container != "legacy")
    with warnings.catch_warnings(action="error"):
        assert_same(load_model(path), model)
    checkpoint = read_checkpoint(path)
    assert checkpoint.container == ("safetensors" if container == "safetensors" else "flat pickle")
    assert checkpoint.source == str(path)
    assert set(checkpoint.state) <= set(model.state_dict())


def test_ignored_tensors_are_listed(tmp_path: Path, model) -> None:
    state = with_flashfft(model.state_dict()) | {"classifier.bias": torch.ones(3)}
    torch.save(state, tmp_path / "a.bin")
    ignored = set(read_checkpoint(tmp_path / "a.bin").ignored)
    flashfft = {name for name in state if ".flashfft." in name}
    assert len(flashfft) == 10
    assert ignored == flashfft | {"bert.embeddings.position_ids", "classifier.bias"}


@pytest.mark.parametrize(
    "keys", [("state", "model"), ("model",), ("state_dict",), ("model_state_dict",)], ids=".".join
)
def test_nested_state_dicts(tmp_path: Path, model, keys: tuple[str, ...]) -> None:
    content = OrderedDict(model.state_dict())
    for key in reversed(keys):
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "a.pt")
    assert_same(load_model(tmp_path / "a.pt"), model)


def test_composer_checkpoint(tmp_path: Path, masked) -> None:
    """The clock, random states and metrics that Composer saves are there, and none of them runs."""
    content = {
        "state": {
            "model": prefixed(masked.state_dict(), "model."),
            "optimizers": {"DecoupledAdamW": {"state": {0: {"step": torch.ones(())}}}},
            "timestamp": {"Timestamp": {"epoch": 1, "total_wct": datetime.timedelta(seconds=5)}},
        },
        "rng": [{"numpy": np.random.get_state(), "torch": torch.get_rng_state()}],
    }
    path = tmp_path / "ep1.pt"
    _save_with_metric(content, path)

    checkpoint = read_checkpoint(path)
    assert checkpoint.container == "Composer pickle"
    assert checkpoint.heads() == ("language model",)
    assert_same(load_model(path, M2BertForMaskedLM), masked)
    pooler = r"bert\.pooler\.dense\.weight, bert\.pooler\.dense\.bias"
    with pytest.warns(PoolerWarning, match=pooler) as caught:
        embedding = load_model(path)
    assert caught[0].filename == __file__, "the warning must point at the caller"
    with pytest.warns(PoolerWarning):
        again = load_model(path)
    assert_same(again, embedding)
    trunk = masked.bert.state_dict()
    assert all(
        torch.equal(x, trunk[n]) for n, x in embedding.bert.state_dict().items() if n in trunk
    )


def test_language_model_head_stays_tied(tmp_path: Path, masked) -> None:
    torch.save(masked.state_dict(), tmp_path / "a.bin")
    loaded = load_model(tmp_path / "a.bin", M2BertForMaskedLM)
    words = loaded.bert.embeddings.word_embeddings.weight
    assert loaded.cls["predictions"].decoder.weight is words
    assert loaded.num_parameters() == masked.num_parameters()
    # transformers may have kept the other name of the two.
    torch.save(without(masked.state_dict(), WORDS), tmp_path / "b.bin")
    assert_same(load_model(tmp_path / "b.bin", M2BertForMaskedLM), masked)


def test_retrieval_checkpoint_has_no_language_model_head(tmp_path: Path, model) -> None:
    torch.save(model.state_dict(), tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="no language model head"):
        load_model(tmp_path / "a.bin", M2BertForMaskedLM)
    with pytest.raises(TypeError, match="M2BertForEmbedding or M2BertForMaskedLM"):
        load_model(tmp_path / "a.bin", M2BertModel)


def test_both_heads(tmp_path: Path, model, masked) -> None:
    masked.bert.load_state_dict(model.bert.state_dict(), strict=False)
    torch.save(masked.state_dict() | model.state_dict(), tmp_path / "a.bin")
    assert read_checkpoint(tmp_path / "a.bin").heads() == ("pooler", "language model")
    assert_same(load_model(tmp_path / "a.bin"), model)
    assert_same(load_model(tmp_path / "a.bin", M2BertForMaskedLM), masked)


def test_own_folders(tmp_path: Path, model, masked) -> None:
    model.config.use_normalized_embeddings = True
    model.save_pretrained(tmp_path / "embedding")
    masked.save_pretrained(tmp_path / "masked")
    model.bert.save_pretrained(tmp_path / "encoder")
    assert_same(load_model(tmp_path / "embedding"), model)
    assert_same(load_model(str(tmp_path / "encoder")), model)
    assert_same(load_model(tmp_path / "masked", M2BertForMaskedLM), masked)


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_shards(tmp_path: Path, model, kind: str) -> None:
    state = distinct(model.state_dict())
    names = list(state)
    stem, suffix = {"safetensors": ("model", "safetensors"), "pickle": ("pytorch_model", "bin")}[
        kind
    ]
    weight_map = {}
    for part, chosen in enumerate((names[:40], names[40:])):
        file = f"{stem}-{part}.{suffix}"
        (save_file if kind == "safetensors" else torch.save)(
            {name: state[name] for name in chosen}, tmp_path / file
        )
        weight_map |= dict.fromkeys(chosen, file)
    index = tmp_path / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same(load_model(tmp_path), model)
    assert len(read_checkpoint(tmp_path).files) == 3

    (tmp_path / f"{stem}-1.{suffix}").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards are missing"):
        load_model(tmp_path)
    for evil in ("../model.bin", "/etc/model.bin", 7, "config.json", index.name):
        index.write_text(json.dumps({"weight_map": {"a": evil}}))
        with pytest.raises(CheckpointError, match="expected a weight file beside it"):
            load_model(tmp_path)


@pytest.mark.parametrize("buffer", ["modulation.deltas", "pos_emb.t"])
def test_buffers_of_the_file_count(tmp_path: Path, model, buffer: str) -> None:
    before = output_of(model)
    for layer in model.bert.encoder.layer:
        layer.attention.filter_fn.get_buffer(buffer).mul_(0.5)
    torch.save(model.state_dict(), tmp_path / "a.bin")
    loaded = load_model(tmp_path / "a.bin")
    assert_same(loaded, model)
    assert not torch.allclose(output_of(loaded), before)


def test_frequency_of_another_filter_may_differ(tmp_path: Path, model) -> None:
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.filter_fn2.implicit_filter[1].freq.fill_(3.0)
    torch.save(model.state_dict(), tmp_path / "a.bin")
    loaded = load_model(tmp_path / "a.bin")
    assert_same(loaded, model)
    filters = loaded.bert.encoder.layer[1].attention.filter_fn2
    assert filters.implicit_filter_rev[5].freq is filters.implicit_filter[1].freq


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["8k_checkpoint_model.safetensors"], 0),
        (["model.safetensors", "pytorch_model.bin", "model.bin", "other.pt"], 0),
        (["pytorch_model.bin", "pytorch_model_V0.bin", "other.safetensors"], 0),
        (["model.bin", "x.pt"], 0),
        (["x.pt", "optimizer.pt", "training_args.bin"], 0),
    ],
    ids=["odd name", "safetensors first", "pytorch_model", "model.bin", "trainer's files"],
)
def test_weights_of_a_folder(tmp_path: Path, model, names: list[str], chosen: int) -> None:
    for index, name in enumerate(names):
        weights = (model if index == chosen else made_model(initializer_range=0.1)).state_dict()
        if name.endswith("safetensors"):
            save_file(distinct(weights), tmp_path / name)
        else:
            torch.save(weights, tmp_path / name)
    assert_same(load_model(tmp_path), model)
    assert [path.name for path in read_checkpoint(tmp_path).files] == [names[chosen]]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ([], "no weights .*found no files"),
        (["README.md", "config.json"], r"no weights .*found README\.md, config\.json"),
        (["a.pt", "b.pt"], r"several weight files \(a\.pt, b\.pt\).*pass the path of the file"),
    ],
    ids=["empty", "no weights", "several"],
)
def test_folders_without_a_choice(tmp_path: Path, names: list[str], match: str) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=match):
        load_model(tmp_path)
