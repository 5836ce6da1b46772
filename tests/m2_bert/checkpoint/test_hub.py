"""Repositories of the Hub, made up, and huggingface_hub itself without a network."""

import json
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from m2_bert import hub
from m2_bert.checkpoint import CheckpointError, load_model, read_checkpoint
from safetensors.torch import save_file

from tests.m2_bert.checkpoint.makers import assert_same, distinct

REPO, COMMIT = "togethercomputer/m2-bert-80M-8k-retrieval", "a" * 40


class Hub:
    """A repository on the Hub, and the cache it is downloaded to."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.remote, self.cache = root / "remote", root / "cache"
        self.snapshot = self.cache / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT
        self.remote.mkdir()
        self.error: Exception | None = None
        self.downloads: list[str] = []
        real = hub.huggingface_hub.snapshot_download
        monkeypatch.setattr(hub.huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(self.cache))
        monkeypatch.setattr(
            hub.huggingface_hub,
            "snapshot_download",
            lambda *a, **k: real(*a, **k) if k.get("local_files_only") else self.download(*a, **k),
        )

    def model_info(self, repo_id: str, revision: str | None = None) -> SimpleNamespace:
        if self.error:
            raise self.error
        assert (repo_id, revision) in {(REPO, None), (REPO, "v1")}
        names = [SimpleNamespace(rfilename=path.name) for path in self.remote.iterdir()]
        return SimpleNamespace(sha=COMMIT, siblings=names)

    def download(self, repo_id: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert (repo_id, revision) == (REPO, COMMIT), "one commit throughout"
        self.snapshot.mkdir(parents=True, exist_ok=True)
        refs = self.snapshot.parents[1] / "refs"
        refs.mkdir(exist_ok=True)
        (refs / "main").write_text(COMMIT)
        for path in filter(Path.is_file, self.remote.rglob("*")):
            name = str(path.relative_to(self.remote))
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                self.downloads.append(name)
                (self.snapshot / name).parent.mkdir(exist_ok=True)
                (self.snapshot / name).write_bytes(path.read_bytes())
        return str(self.snapshot)


@pytest.fixture
def hub_repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model) -> Hub:
    repo = Hub(tmp_path, monkeypatch)
    model.save_pretrained(repo.remote)
    torch.save(model.state_dict(), repo.remote / "pytorch_model.bin")
    (repo.remote / "vocab.txt").write_text("cased")
    (repo.remote / "bert_layers.py").write_text("raise SystemExit")
    return repo


@pytest.mark.parametrize("revision", [None, "v1"])
def test_hub_downloads_one_set_of_weights(hub_repo: Hub, model, revision: str | None) -> None:
    assert_same(load_model(REPO, revision=revision), model)
    assert sorted(hub_repo.downloads) == ["config.json", "model.safetensors"]
    assert read_checkpoint(REPO, revision=revision).source == f"{REPO}@{COMMIT}"


def test_hub_shards(hub_repo: Hub, model) -> None:
    (hub_repo.remote / "model.safetensors").rename(hub_repo.remote / "part-1.safetensors")
    names = dict.fromkeys(distinct(model.state_dict()), "part-1.safetensors")
    index = hub_repo.remote / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert_same(load_model(REPO), model)
    assert "part-1.safetensors" in hub_repo.downloads
    assert "pytorch_model.bin" not in hub_repo.downloads


def test_hub_pooler_in_a_module_of_its_own(hub_repo: Hub, model) -> None:
    weight, bias = torch.eye(16).flip(0), torch.linspace(-1, 1, 16)
    files = {
        "modules.json": [
            {"type": f"sentence_transformers.models.{kind}", "path": path}
            for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
        ],
        "1_Pooling/config.json": {"pooling_mode_cls_token": True},
        "2_Dense/config.json": {"in_features": 16, "out_features": 16, "bias": True},
    }
    for name, content in files.items():
        (hub_repo.remote / name).parent.mkdir(exist_ok=True)
        (hub_repo.remote / name).write_text(json.dumps(content))
    dense = {"linear.weight": weight, "linear.bias": bias}
    save_file(dense, hub_repo.remote / "2_Dense" / "model.safetensors")
    model.bert.pooler.dense.load_state_dict({"weight": weight, "bias": bias})
    assert_same(load_model(REPO), model)
    assert "pytorch_model.bin" not in hub_repo.downloads


def test_hub_repository_of_another_model_is_not_downloaded(hub_repo: Hub) -> None:
    (hub_repo.remote / "config.json").write_text('{"model_type": "bert", "hidden_size": 768}')
    with pytest.raises(CheckpointError, match=f"{REPO}: not M2-BERT, .*'bert' and none of"):
        load_model(REPO)
    assert hub_repo.downloads == ["config.json"]


def test_hub_model_type_does_not_mislead(hub_repo: Hub, model) -> None:
    config = json.loads((hub_repo.remote / "config.json").read_text())
    (hub_repo.remote / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    assert_same(load_model(REPO), model)


def _http_error(name: str) -> Exception:
    error = getattr(hub.errors, name)
    return error(f"{name}\n\nlong explanation", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("error", "match"),
    [
        ("RepositoryNotFoundError", "neither a local path nor a public repository"),
        ("GatedRepoError", "accept its terms"),
        ("RevisionNotFoundError", "no revision 'v1'"),
        ("HfHubHTTPError", "HfHubHTTPError"),
    ],
)
def test_hub_errors(hub_repo: Hub, error: str, match: str) -> None:
    hub_repo.error = _http_error(error)
    with pytest.raises(FileNotFoundError, match=f"{REPO}: .*{match}") as caught:
        load_model(REPO, revision="v1")
    assert "\n" not in str(caught.value)


def test_cached_repository_serves_without_network(hub_repo: Hub, model) -> None:
    load_model(REPO)
    hub_repo.error = ConnectionError("no route to host")
    assert_same(load_model(REPO), model)
    # Of an interrupted download the cache has the configuration alone.
    (hub_repo.snapshot / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no route to host"):
        load_model(REPO)


def test_offline_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub itself, as HF_HUB_OFFLINE=1 sets it."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=f"{REPO}: .*{tmp_path}.*OfflineModeIsEnabled"
    ) as caught:
        load_model(REPO)
    assert "\n" not in str(caught.value)
    assert "HF_HOME" in str(caught.value)
