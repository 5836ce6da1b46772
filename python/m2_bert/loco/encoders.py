"""Models that embed texts, behind one interface: M2-BERT and sentence-transformers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LONG = ("truncate", "chunk-mean", "chunk-max")

# Called with (tokens done, tokens in all) while a list of texts is being embedded.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Encoded:
    """Embeddings of n texts, one or several vectors each.

    Args:
        vectors: (m, D) float32, as the model returns them (not normalised by the encoder).
        owner: (m,) int64, non-decreasing: ``vectors[j]`` belongs to text ``owner[j]``. A text with
            several vectors scores the maximum over them. Equals ``arange(n)`` where m = n.
        cut_texts, cut_tokens: texts that lost their end, and how many tokens they lost.
    """

    vectors: np.ndarray
    owner: np.ndarray
    cut_texts: int = 0
    cut_tokens: int = 0


class TextEncoder(Protocol):
    """What an evaluation needs of a model.

    Args:
        name: what the user calls the model.
        revision: commit of the Hub, or None.
        fingerprint: changes with the weights and everything else that the files of the model hold.
        settings: what else decides the embeddings, as JSON values; in "long" one of `LONG`.
        max_length: tokens one pass sees, special tokens included.
    """

    name: str
    revision: str | None
    fingerprint: str
    settings: Mapping[str, Any]
    max_length: int

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> Encoded: ...

    def encode_documents(
        self, texts: Sequence[str], progress: Progress | None = None
    ) -> Encoded: ...


class Backend(Protocol):
    """A loaded model: a tokenizer, and one vector per text of at most `limit(kind)` tokens."""

    name: str
    revision: str | None
    fingerprint: str
    settings: Mapping[str, Any]
    max_length: int
    tokenizer: Any

    def limit(self, kind: str) -> int: ...  # tokens of the text itself; kind: "query" | "document"

    def embed(
        self, texts: Sequence[str], tokens: Sequence[int], kind: str, progress: Progress | None
    ) -> np.ndarray: ...

    def close(self) -> None: ...


def open_encoder(
    spec: str,
    *,
    long: str = "truncate",
    max_length: int | None = None,
    backend: str | None = None,
    device: str | Sequence[str] | None = None,
    batch_tokens: int | None = None,
    dtype: str | None = None,
    revision: str | None = None,
) -> Encoder:
    """Load a model by what its files hold: M2-BERT, or else anything sentence-transformers loads.

    Args:
        spec: local folder or file, Hub id, or "random:NAME" (an M2-BERT with random weights).
        long: what happens to a document beyond the length of the model. "truncate": its end is
            cut off; "chunk-mean": the mean of the embeddings of its chunks; "chunk-max": it keeps
            all of them and scores the best. Queries are always truncated.
        max_length: tokens of one pass; None: as many as the model is made for.
        backend: "torch", "onnx" or "openvino" of sentence-transformers.
        device: one device, or several that share the work.
        batch_tokens: tokens of one batch on one device, padding included; bounds the memory. None:
            what is fast (Embedder's for M2-BERT, else 16384).
        dtype: "float32", "bfloat16" or "float16"; None: that of the checkpoint.
        revision: commit, tag or branch on the Hub.

    Raises:
        ValueError: an argument is wrong, the model is damaged, or it needs Python code of its own.
        FileNotFoundError: there is no such model.
        ImportError: sentence-transformers, or what a backend of it needs, is not installed.
    """
    if long not in LONG:
        raise ValueError(f"long: got {long!r}, expected one of {', '.join(LONG)}")
    if max_length is not None and max_length < 3:
        raise ValueError(f"max_length: got {max_length}, expected at least 3 tokens")
    if batch_tokens is not None and batch_tokens < 1:
        raise ValueError(f"batch_tokens: got {batch_tokens}, expected a positive number")
    devices = [device] if device is None or isinstance(device, str) else list(device) or [None]
    is_m2, revision = _look(spec, revision)
    options = (max_length, backend or "torch", devices, batch_tokens, dtype, revision)
    if is_m2:
        from m2_bert.loco.m2_backend import M2Backend as Opened
    else:
        from m2_bert.loco.st_backend import SentenceTransformersBackend as Opened
    return Encoder(Opened(spec, *options), long)


class Encoder:
    """A `TextEncoder` over a `Backend`; it applies one of the policies `LONG` to documents."""

    def __init__(self, backend: Backend, long: str = "truncate") -> None:
        self.name = backend.name
        self.revision = backend.revision
        self.fingerprint = backend.fingerprint
        self.max_length = backend.max_length
        self.settings = {"long": long, "max_length": backend.max_length, **backend.settings}
        self._backend = backend
        self._long = long
        if long != "truncate" and not backend.tokenizer.is_fast:
            raise ValueError(
                f"{self.name}: chunks need a tokenizer with offsets (a fast one), and the model "
                "has none: use long='truncate'"
            )

    def encode_queries(self, texts: Sequence[str], progress: Progress | None = None) -> Encoded:
        """One vector per text, of its first tokens."""
        return self._first_tokens(texts, "query", progress)

    def encode_documents(self, texts: Sequence[str], progress: Progress | None = None) -> Encoded:
        """One vector per text, or per chunk of it with "chunk-max"."""
        if self._long == "truncate":
            return self._first_tokens(texts, "document", progress)
        limit = self._backend.limit("document")
        chunks = [chunk_text(text, self._backend.tokenizer, limit) for text in texts]
        counts = np.array([len(of_text) for of_text in chunks], dtype=np.int64)
        owner = np.repeat(np.arange(len(texts)), counts)
        pieces, tokens = zip(*(piece for of_text in chunks for piece in of_text), strict=True)
        with naming([f"texts[{text}]" for text in owner]):
            vectors = self._backend.embed(pieces, tokens, "document", progress)
        if self._long == "chunk-max":
            return Encoded(vectors, owner)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        means = np.add.reduceat(vectors, starts, axis=0) / counts[:, None].astype(np.float32)
        return Encoded(means, np.arange(len(texts)))

    def close(self) -> None:
        """End the processes that several devices need."""
        self._backend.close()

    def _first_tokens(self, texts: Sequence[str], kind: str, progress: Progress | None) -> Encoded:
        limit = self._backend.limit(kind)
        counts = np.array(count_tokens(texts, self._backend.tokenizer), dtype=np.int64)
        kept = np.minimum(counts, limit)
        vectors = self._backend.embed(texts, kept.tolist(), kind, progress)
        cut = counts - kept
        return Encoded(vectors, np.arange(len(texts)), int((cut > 0).sum()), int(cut.sum()))


@contextmanager
def naming(names: Sequence[str]) -> Iterator[None]:
    """Errors from within that speak of texts[i] speak of names[i] instead."""
    try:
        yield
    except ValueError as error:
        message = re.sub(r"\btexts\[(\d+)\]", lambda match: names[int(match[1])], str(error))
        raise ValueError(message) from error


def count_tokens(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """Tokens of each text, uncut and without special tokens.

    Raises:
        ValueError: a text holds half a surrogate pair.
    """
    counts = []
    # In blocks: the ids of a whole corpus as Python integers would take gigabytes.
    for start in range(0, len(texts), 64):
        block = list(texts[start : start + 64])
        for index, text in enumerate(block, start):
            if not text.isascii() and _SURROGATE.search(text):
                raise ValueError(
                    f"texts[{index}] holds half of a surrogate pair, which is no character: "
                    "decode the file again, or take it out"
                )
        ids = tokenizer(block, add_special_tokens=False, truncation=False, verbose=False)
        counts += [len(row) for row in ids["input_ids"]]
    return counts


def chunk_text(text: str, tokenizer: Any, limit: int) -> list[tuple[str, int]]:
    """Cut a text into (chunk, tokens) of at most `limit` tokens, at the starts of words.

    The chunks joined are the text. A word of more than half the limit may be cut too.
    """
    encoding = tokenizer(
        text,
        add_special_tokens=False,
        truncation=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    offsets, words = encoding["offset_mapping"], encoding.word_ids()
    starts = [0]
    while starts[-1] + limit < len(offsets):
        cut = end = starts[-1] + limit
        # In the middle of a word, the rest of it would be other tokens when seen alone.
        while cut > starts[-1] and words[cut] == words[cut - 1]:
            cut -= 1
        starts.append(cut if cut > starts[-1] + limit // 2 else end)
    characters = [0, *(offsets[start][0] for start in starts[1:]), len(text)]
    tokens = np.diff([*starts, len(offsets)]).tolist()
    return [
        (text[begin:end], count)
        for begin, end, count in zip(characters, characters[1:], tokens, strict=False)
    ]


def token_batches(
    tokens: Sequence[int], budget: int, devices: int = 1
) -> Iterator[tuple[np.ndarray, int]]:
    """Batches (indices, size per device) of similar lengths, the longest texts first.

    The size times the longest text of the batch is at most `budget`, unless one text alone
    exceeds it.
    """
    order = np.argsort(-np.asarray(tokens), kind="stable")
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, tokens[order[start]]))
        yield order[start : start + size * devices], size
        start += size * devices


def _look(spec: str, revision: str | None) -> tuple[bool, str | None]:
    """Whether the files of a model are those of an M2-BERT, and their commit if on the Hub."""
    path = Path(spec).expanduser()
    if revision is not None and (spec.startswith("random:") or path.exists()):
        raise ValueError(f"revision: got {revision!r}, but {spec} is not on the Hub")
    if spec.startswith("random:") or path.is_file():
        return True, None
    if path.is_dir():
        config = path / "config.json"
        if not config.is_file():
            return not (path / "modules.json").is_file(), None
        return _is_m2(config, spec), None
    if spec.count("/") > 1 or spec.startswith((".", "/", "~")) or path.suffix in _SUFFIXES:
        raise FileNotFoundError(f"{spec}: there is no such file or folder")
    config = _hub_config(spec, revision)
    if config is None:
        return False, revision
    commit = config.parent.name
    return _is_m2(config, spec), commit if len(commit) == 40 else revision


def _is_m2(config: Path, spec: str) -> bool:
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{spec}: its config.json is damaged ({error})") from None
    # The published checkpoints say "bert" or "m2_bert", so the name alone does not decide.
    return isinstance(fields, dict) and (
        fields.get("model_type") == "m2_bert" or bool(fields.get("monarch_mixer_sequence_mixing"))
    )


def _hub_config(spec: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(spec, "config.json", revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{spec}: there is no such folder here, and the Hub does not give it "
            f"({one_line(error)})"
        ) from None


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of an error without line breaks, cut to `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def hash_folder(folder: Path) -> str:
    """16 hex digits of SHA-256 over the names and bytes of a model's files, its README aside."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.suffix != ".md" and not name.startswith("."):
            content = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    content.update(block)
            digest.update(f"{name}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


_SURROGATE = re.compile("[\ud800-\udfff]")
_SUFFIXES = (".bin", ".pt", ".pth", ".safetensors", ".onnx")
