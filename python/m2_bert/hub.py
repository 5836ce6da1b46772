"""Checkpoints of the Hugging Face Hub: the JSON files and one set of weights, nothing else."""

import os
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from m2_bert.containers import (
    SUFFIXES,
    CheckpointError,
    choose_weights,
    printable,
    read_json,
    shard_names,
)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Weights of a Dense module of sentence-transformers (`layout.module_pooler`).
POOLER_FILES = ("*_Dense/model.safetensors", "*_Dense/pytorch_model.bin")
# model_type is "bert" in some published repositories, so it cannot tell M2-BERT from BERT.
M2_FIELDS = {"monarch_mixer_sequence_mixing", "long_conv_l_max", "hyena_filter_order"}


def locate(name_or_path: str | os.PathLike, revision: str | None = None) -> tuple[Path, str]:
    """Return where a checkpoint lies, and what to call it: its path, or "owner/name@commit".

    Raises:
        ValueError: a revision of a local path.
        FileNotFoundError, CheckpointError: neither a path nor to be had; as `download`.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        if revision is not None:
            raise ValueError(
                f"revision: got {revision!r} for the local {printable(str(path))}, expected None"
            )
        return path, str(path)
    if isinstance(name_or_path, str) and HUB_ID.fullmatch(name_or_path):
        folder = download(name_or_path, revision)
        return folder, f"{name_or_path}@{folder.name}"
    raise FileNotFoundError(
        f"{printable(str(path))}: no such file or folder, expected one, a Hub id owner/name, or "
        "random:NAME"
    )


def download(repo_id: str, revision: str | None = None) -> Path:
    """Return the cached snapshot folder of a repository, downloaded if need be.

    A repository that cannot be reached is taken from the cache. One whose config.json has no field
    of M2-BERT is refused before its weights are downloaded.

    Raises:
        FileNotFoundError: naming the repository, why it cannot be had and the remedy.
        CheckpointError: if it is not M2-BERT, or has no weights.
    """
    try:
        return _fetch(repo_id, revision)
    except CheckpointError:
        raise
    except Exception as error:  # the HTTP library, and with it its exceptions, may change
        cached = _cached(repo_id, revision)
        if cached is not None:
            return cached
        raise FileNotFoundError(f"{repo_id}: {_reason(error, revision)}") from error


def _fetch(repo_id: str, revision: str | None) -> Path:
    info = huggingface_hub.HfApi().model_info(repo_id, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    # The same commit throughout, even if someone pushes meanwhile.
    folder = _snapshot(repo_id, info.sha, ["*.json"])
    config = folder / "config.json"
    if config.is_file():
        fields = read_json(config)
        if fields.get("model_type") != "m2_bert" and not fields.keys() & M2_FIELDS:
            raise CheckpointError(
                f"{repo_id}: not M2-BERT, config.json has model_type "
                f"{fields.get('model_type')!r} and none of {', '.join(sorted(M2_FIELDS))}"
            )
    weights = choose_weights(names, repo_id)
    files = shard_names(folder / weights) if weights.endswith(".json") else [weights]
    return _snapshot(repo_id, info.sha, [*files, *POOLER_FILES])


def _snapshot(repo_id: str, revision: str | None, patterns: list[str], **options: bool) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=patterns, **options
        )
    )


def _cached(repo_id: str, revision: str | None) -> Path | None:
    try:
        folder = _snapshot(repo_id, revision, ["config.json"], local_files_only=True)
    except Exception:  # nothing cached: the caller knows the better reason
        return None
    return folder if any(path.suffix in SUFFIXES for path in folder.iterdir()) else None


def _reason(error: Exception, revision: str | None) -> str:
    if isinstance(error, errors.GatedRepoError):
        return "access is restricted: accept its terms on huggingface.co, then run `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the Hub has no revision {revision!r} of it"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "neither a local path nor a public repository of the Hub: check the name, or run "
            "`hf auth login` if it is private"
        )
    cause = printable(f"{type(error).__name__}: {error}".splitlines()[0])[:100]
    return (
        f"neither a local path, nor in the cache {constants.HF_HUB_CACHE}, nor to be had from the "
        f"Hub ({cause}): connect, set HF_HOME to a cache that has it, or pass the path of a folder"
    )
