"""Embeddings of a task's texts, kept on disk in shards so that an evaluation can resume."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as memoise
from pathlib import Path
from typing import Any

import numpy as np

from m2_bert.loco.encoders import Encoded, Progress, TextEncoder, count_tokens, naming
from m2_bert.tokenizer import load_tokenizer

# What is lost when an evaluation is killed: a second on a GPU, minutes on a CPU.
SHARD_TOKENS = 1 << 18


class CacheWarning(UserWarning):
    """A file of the cache is damaged; its content is computed again."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a set of texts.

    Args:
        ids: text ids, in the order of `owner`.
        encoded: vectors (m, D) float32 and the text of each, as an index into `ids`.
        seconds: time that the encoder took, whether in this run or in an earlier one.
    """

    ids: list[str]
    encoded: Encoded
    seconds: float


def digest(texts: Mapping[str, str]) -> str:
    """SHA-256 over ids and texts, whatever their order; 64 hex digits."""
    total = hashlib.sha256()
    for key in sorted(texts):
        for part in (key, texts[key]):
            # surrogatepass: a lone surrogate is a legal str, and must not stop an evaluation.
            content = part.encode("utf-8", "surrogatepass")
            total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def token_lengths(texts: Mapping[str, str], cache: Path | None) -> dict[str, int]:
    """Text id -> tokens of the uncased BERT vocabulary, without special tokens."""
    ids = sorted(texts)
    path = None if cache is None else cache / "lengths" / f"{digest(texts)[:24]}.safetensors"
    found = _load(path, lambda tensors, _: tensors["tokens"].shape == (len(ids),))
    if found is None:
        with naming([repr(key) for key in ids]):
            counted = count_tokens([texts[key] for key in ids], _bert_tokenizer())
        found = {"tokens": np.array(counted, dtype=np.int64)}, {}
        _save(path, *found)
    return dict(zip(ids, found[0]["tokens"].tolist(), strict=True))


def encoding_costs(encoder: TextEncoder, kind: str, lengths: Mapping[str, int]) -> dict[str, int]:
    """Text id -> tokens that the encoder has to look at: the cut end of a text costs nothing."""
    cuts = kind == "query" or encoder.settings.get("long") == "truncate"
    return {
        key: max(1, min(length, encoder.max_length) if cuts else length)
        for key, length in lengths.items()
    }


def embed(
    encoder: TextEncoder,
    texts: Mapping[str, str],
    kind: str,
    *,
    cache: Path | None,
    costs: Mapping[str, int],
    progress: Progress | None = None,
) -> Embeddings:
    """Embed texts shard by shard, the longest first, with what the cache has already.

    Args:
        encoder: the model.
        texts: id -> text.
        kind: "query" or "document".
        cache: folder of the shards; None: nothing is kept.
        costs: id -> tokens to encode; they decide the shards and weigh the progress.
        progress: called with (tokens done, tokens in all).

    Raises:
        ValueError: the model returned NaN, or vectors of another number or width than before.
    """
    folder = None
    if cache is not None:
        folder = cache / _encoder_key(encoder) / f"{kind}-{digest(texts)[:24]}"
    shards, done, total, width = [], 0, sum(costs.values()), None
    encode = encoder.encode_queries if kind == "query" else encoder.encode_documents
    for number, ids in enumerate(plan_shards(costs)):
        path = None if folder is None else folder / f"{number:05d}.safetensors"
        shard = _load_shard(path, ids, width)
        tokens = sum(costs[key] for key in ids)
        if shard is None:
            update = _part_of(progress, done, tokens, total)
            started = time.perf_counter()
            with naming([f"{kind} {key!r} (model {encoder.name})" for key in ids]):
                encoded = encode([texts[key] for key in ids], update)
            encoded = _checked(encoded, ids, encoder.name, kind, width)
            shard = Embeddings(ids, encoded, time.perf_counter() - started)
            _save_shard(path, shard)
        shards.append(shard)
        width = shard.encoded.vectors.shape[1]
        done += tokens
        if progress is not None:
            progress(done, total)
    return _join(shards)


def plan_shards(costs: Mapping[str, int], budget: int | None = None) -> list[list[str]]:
    """Ids in shards of about `budget` tokens (default SHARD_TOKENS), the longest texts first."""
    budget = budget or SHARD_TOKENS
    shards: list[list[str]] = []
    room = 0
    for key in sorted(costs, key=lambda key: (-costs[key], key)):
        if not shards or room < costs[key]:
            shards.append([])
            room = budget
        shards[-1].append(key)
        room -= costs[key]
    return shards


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a killed writer, never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@memoise
def _bert_tokenizer() -> Any:
    return load_tokenizer()  # a third of a second


def _encoder_key(encoder: TextEncoder) -> str:
    identity = {"fingerprint": encoder.fingerprint, "settings": dict(encoder.settings)}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


def _part_of(progress: Progress | None, before: int, tokens: int, total: int) -> Progress | None:
    """The encoder's own count, in its own tokens, as a part of the whole."""
    if progress is None:
        return None
    return lambda done, of: progress(before + tokens * min(done, of) // max(1, of), total)


def _checked(
    encoded: Encoded, ids: Sequence[str], name: str, kind: str, width: int | None
) -> Encoded:
    vectors = np.asarray(encoded.vectors, dtype=np.float32)
    owner = np.asarray(encoded.owner, dtype=np.int64)
    if vectors.ndim != 2 or owner.shape != vectors.shape[:1] or not _covers(owner, len(ids)):
        raise ValueError(
            f"model {name} returned vectors of shape {vectors.shape} for {len(ids)} texts of kind "
            f"{kind}; expected one row for each text"
        )
    if width is not None and vectors.shape[1] != width:
        raise ValueError(
            f"model {name} returned vectors of width {vectors.shape[1]} for {kind} {ids[0]!r} "
            f"after vectors of width {width}"
        )
    wrong = ~np.isfinite(vectors).all(axis=1)
    if wrong.any():
        first = ids[owner[int(np.argmax(wrong))]]
        raise ValueError(
            f"model {name} returned NaN or infinity for {kind} {first!r} "
            f"({len(set(owner[wrong].tolist()))} of {len(ids)} texts of its batch)"
        )
    return Encoded(vectors, owner, encoded.cut_texts, encoded.cut_tokens)


def _covers(owner: np.ndarray, texts: int) -> bool:
    steps = np.diff(owner, prepend=-1)
    return bool(((steps == 0) | (steps == 1)).all()) and owner.size > 0 and owner[-1] == texts - 1


def _join(shards: Iterable[Embeddings]) -> Embeddings:
    shards = list(shards)
    starts = np.cumsum([0] + [len(shard.ids) for shard in shards])
    owners = [shard.encoded.owner + start for shard, start in zip(shards, starts, strict=False)]
    encoded = Encoded(
        np.concatenate([shard.encoded.vectors for shard in shards]),
        np.concatenate(owners),
        sum(shard.encoded.cut_texts for shard in shards),
        sum(shard.encoded.cut_tokens for shard in shards),
    )
    ids = [key for shard in shards for key in shard.ids]
    return Embeddings(ids, encoded, sum(shard.seconds for shard in shards))


def _load_shard(path: Path | None, ids: Sequence[str], width: int | None) -> Embeddings | None:
    def valid(tensors: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> bool:
        vectors, owner = tensors["vectors"], tensors["owner"]
        return (
            notes["ids"] == _ids_digest(ids)
            and min(int(notes["cut_texts"]), int(notes["cut_tokens"]), float(notes["seconds"])) >= 0
            and vectors.dtype == np.float32
            and vectors.ndim == 2
            and vectors.shape[1] == (width or vectors.shape[1])
            and owner.shape == vectors.shape[:1]
            and _covers(owner, len(ids))
            and bool(np.isfinite(vectors).all())
        )

    found = _load(path, valid)
    if found is None:
        return None
    tensors, notes = found
    cuts = int(notes["cut_texts"]), int(notes["cut_tokens"])
    encoded = Encoded(tensors["vectors"], tensors["owner"], *cuts)
    return Embeddings(list(ids), encoded, float(notes["seconds"]))


def _save_shard(path: Path | None, shard: Embeddings) -> None:
    notes = {
        "ids": _ids_digest(shard.ids),
        "cut_texts": str(shard.encoded.cut_texts),
        "cut_tokens": str(shard.encoded.cut_tokens),
        "seconds": f"{shard.seconds:.3f}",
    }
    _save(path, {"vectors": shard.encoded.vectors, "owner": shard.encoded.owner}, notes)


def _ids_digest(ids: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def _load(
    path: Path | None, valid: Callable[[Mapping, Mapping], bool]
) -> tuple[dict[str, np.ndarray], dict[str, str]] | None:
    if path is None or not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            notes = file.metadata() or {}
        if valid(tensors, notes):
            return tensors, notes
        reason = "it does not fit the texts"
    except (SafetensorError, OSError, LookupError, ValueError) as error:
        reason = str(error)
    warnings.warn(
        f"{path} is damaged ({reason}); its content is computed again", CacheWarning, stacklevel=2
    )
    return None


def _save(path: Path | None, tensors: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> None:
    if path is None:
        return
    from safetensors.numpy import save

    # save() writes the buffer as it lies in memory, whatever the strides say.
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, metadata=dict(notes) or None))
