"""Is this really the model? Tensors, vocabulary, and embeddings against published ones."""

import hashlib
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from m2_bert.checkpoint import (
    Checkpoint,
    CheckpointError,
    PoolerWarning,
    build_model,
    read_checkpoint,
)
from m2_bert.containers import printable
from m2_bert.model import M2BertForEmbedding, M2BertForMaskedLM
from m2_bert.tokenizer import VOCABULARY_SHA256, load_tokenizer


@dataclass(frozen=True)
class GoldenVector:
    """The first components of the embedding of a text, and where they were published."""

    text: str
    components: tuple[float, ...]
    source: str


@dataclass(frozen=True)
class Golden:
    """Embeddings that certain weights give texts padded to `length` tokens.

    `name` is part of the name of every copy of those weights. The tolerances allow for the
    precision the vectors were made in; embeddings of other texts or weights miss them by far.
    """

    name: str
    length: int
    vectors: tuple[GoldenVector, ...]
    min_cosine: float
    max_difference: float


_LANGCHAIN = "LangChain 0.2 documentation, integrations/text_embedding/together"

# From the Together API, which ran in bfloat16 with FlashFFTConv, at a revision it does not name.
GOLDEN = Golden(
    name="m2-bert-80M-8k-retrieval",
    length=8192,
    vectors=(
        GoldenVector(
            "hello world",
            (-0.11657876, -0.012690996, 0.24342081, 0.32781482, 0.022501636),
            "https://developers.llamaindex.ai/python/framework/integrations/embeddings/together/",
        ),
        GoldenVector(
            "LangChain is the framework for building context-aware reasoning applications",
            (
                *(0.3812227, -0.052848946, -0.10564975, 0.03480297),
                *(0.2878488, 0.0084609175, 0.11605915, 0.05303011),
            ),
            _LANGCHAIN,
        ),
        GoldenVector(
            "LangGraph is a library for building stateful, multi-actor applications with LLMs",
            (
                *(0.066308185, -0.032866564, 0.115751594, 0.19082588),
                *(0.14017, -0.26976448, -0.056340694, -0.26923394),
            ),
            _LANGCHAIN,
        ),
    ),
    min_cosine=0.99,
    max_difference=2e-2,
)


@dataclass(frozen=True)
class Check:
    """One result: passed is None where the check does not apply, and detail says why."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Verification:
    """The results for one model."""

    model: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the results as JSON's types."""
        return {**asdict(self), "passed": self.passed}


def verify_model(
    name_or_path: str | os.PathLike,
    *,
    revision: str | None = None,
    golden: Golden | Literal["auto"] | None = "auto",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Verification:
    """Check a checkpoint's files, tensors, tokenizer and, for known weights, embeddings.

    Args:
        name_or_path: what `read_checkpoint` reads.
        golden: the vectors its embeddings must match; "auto" compares with GOLDEN if the name
            tells of those weights; None compares with nothing.
        tokenizer: None means the shipped one, which everything in this package uses.

    Raises:
        FileNotFoundError: nothing was found. What was found and is unfit fails a check instead.
    """
    return Verification(
        str(name_or_path), tuple(_checks(name_or_path, revision, golden, tokenizer))
    )


def _checks(
    name_or_path: str | os.PathLike,
    revision: str | None,
    golden: Golden | Literal["auto"] | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Iterator[Check]:
    try:
        checkpoint = read_checkpoint(name_or_path, revision=revision)
    except CheckpointError as error:
        yield Check("tensors", False, str(error))
        return
    yield Check("tensors", True, _contents(checkpoint))
    for path in checkpoint.files:
        yield Check(printable(path.name), True, f"SHA-256 {_sha256(path)}")
    yield _check_tokenizer(tokenizer or load_tokenizer())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoolerWarning)
        model = build_model(checkpoint, checkpoint.kind())
    yield _check_forward(model)
    if "pooler" not in checkpoint.heads():
        absent = "no pooler: fine-tune it for retrieval before embedding texts"
        yield Check("embeddings", False if isinstance(golden, Golden) else None, absent)
        return
    if golden == "auto":
        golden = GOLDEN if _is_named(GOLDEN.name, checkpoint.source) else None
    if golden is None:
        yield Check("embeddings", None, "no published embeddings of these weights")
        return
    yield from _compare(model, golden, tokenizer or load_tokenizer())


def _contents(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    ignored = f", {len(checkpoint.ignored)} ignored" if checkpoint.ignored else ""
    return (
        f"{len(checkpoint.state)} ({checkpoint.container}), all shapes right and all values "
        f"finite{ignored}; width {config.hidden_size}, {config.num_hidden_layers} layers, "
        f"{config.max_position_embeddings} tokens; heads: {', '.join(checkpoint.heads()) or 'none'}"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Check:
    """Check the vocabulary by its hash, and that upper case is lowered, which is a setting."""
    vocabulary = tokenizer.get_vocab()
    content = "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get))
    digest = hashlib.sha256(content.encode("utf-8")).hexdigest()
    if digest != VOCABULARY_SHA256:
        return Check(
            "tokenizer",
            False,
            f"{len(vocabulary)} entries, SHA-256 {digest}, expected bert-base-uncased: "
            f"{VOCABULARY_SHA256}",
        )
    upper, lower = tokenizer("Hello WORLD")["input_ids"], tokenizer("hello world")["input_ids"]
    if upper != lower:
        return Check("tokenizer", False, f"keeps case: Hello WORLD is {upper}, expected {lower}")
    return Check("tokenizer", True, f"bert-base-uncased, SHA-256 {digest}")


@torch.inference_mode()
def _check_forward(model: M2BertForEmbedding | M2BertForMaskedLM) -> Check:
    """Hidden states of a short input, which overflow or coincide where weights are wild or zero."""
    length = min(16, model.config.max_position_embeddings)
    ids = torch.arange(length)[None] % model.config.vocab_size
    hidden = model.bert(ids).last_hidden_state
    if not hidden.isfinite().all():
        return Check("forward pass", False, "hidden states are not finite")
    spread = float(hidden.std(dim=1).mean())
    if spread < 1e-6:
        return Check("forward pass", False, "every token gets the same state")
    return Check("forward pass", True, f"finite; spread over positions {spread:.3g}")


@torch.inference_mode()
def _compare(
    model: M2BertForEmbedding, golden: Golden, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Check]:
    longest = model.config.max_position_embeddings
    if longest != golden.length:
        detail = f"reads {longest} tokens, expected {golden.length} as in {golden.name}"
        yield Check("embeddings", False, detail)
        return
    for vector in golden.vectors:
        tokens = tokenizer(
            vector.text,
            padding="max_length",
            truncation=True,
            max_length=golden.length,
            return_tensors="pt",
        )
        if int(tokens["input_ids"].max()) >= model.config.vocab_size:
            yield Check("embeddings", False, f"only {model.config.vocab_size} word embeddings")
            return
        output = model(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        embedding = output.sentence_embedding[0].float()
        yield _matches(embedding[: len(vector.components)], vector, golden)


def _matches(found: Tensor, vector: GoldenVector, golden: Golden) -> Check:
    published = torch.tensor(vector.components)
    cosine = float(torch.nn.functional.cosine_similarity(found, published, dim=0))
    difference = float((found - published).abs().max())
    # Comparisons with NaN are false, so that it fails.
    passed = cosine >= golden.min_cosine and difference <= golden.max_difference
    text = vector.text if len(vector.text) <= 30 else f"{vector.text[:27]}..."
    return Check(
        f"embedding of {text!r}",
        passed,
        f"cosine {cosine:.5f} (at least {golden.min_cosine}), largest difference {difference:.2e} "
        f"(at most {golden.max_difference}), {len(vector.components)} components",
    )


def _is_named(name: str, source: str) -> bool:
    """Whether a path or Hub id is of those weights, and not of a later version ("...-v2")."""
    # The Hub's cache has folders like models--owner--name.
    parts = re.split(r"[/\\@]|--", source.lower())
    return name.lower() in {*parts, *(Path(part).stem for part in parts)}
