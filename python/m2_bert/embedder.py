"""Embedder: texts to embeddings, in batches of a token budget, with a report of what was cut."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m2_bert.batches import LONG_DOCUMENTS, Piece, cut, pad, plan_batches, tokenize
from m2_bert.model import M2BertForEmbedding
from m2_bert.placement import evaluating, placed
from m2_bert.progress import Progress, reporting
from m2_bert.spans import add_states, span_embeddings, token_ranges
from m2_bert.tokenizer import load_tokenizer

Array = np.ndarray | Tensor
Spans = Sequence[tuple[int, int]]


class TruncationWarning(UserWarning):
    """Texts were cut to max_length; says how many, and how many tokens."""


@dataclass(frozen=True)
class EncodeReport:
    """What one call did.

    Attributes:
        texts, tokens: as given; tokens with [CLS] and [SEP], before any cut, without padding.
        cut_texts, cut_tokens: texts that were truncated, and the tokens they lost.
        windows: windows that too long texts were split into.
        seconds: wall time, tokenisation included.
    """

    texts: int
    tokens: int
    cut_texts: int
    cut_tokens: int
    windows: int
    seconds: float


class Embedder:
    """Encodes texts with an M2-BERT model, each as if it were alone.

    Padding follows `model.config.padding`: "max_length" pads every text to the model's
    max_position_embeddings, as the released weights expect; "invariant" to about the longest text
    of the batch, which does not change the embeddings.

    Args:
        model: a model, or what `m2_bert.checkpoint.load_model` takes. A model that `dtype` or
            `device` would change is copied.
        max_length: tokens read of a text, with [CLS] and [SEP]; None means
            max_position_embeddings. It does not change what "max_length" pads to.
        long_documents: what to do with longer texts. "truncate": keep the first max_length - 1
            tokens and [SEP], with a TruncationWarning. "error": raise. "window": the mean of the
            embeddings of windows of max_length tokens that share an eighth with their neighbours
            (`m2_bert.batches.window_starts`).
        batch_tokens: most tokens in a batch, padding included; a batch has at least one text.
            None: 2048 on a CPU, where larger batches are slower, else 16384.
        dtype: torch.dtype or its name; "auto" is bfloat16 where the device has it in hardware,
            else float32; None leaves the model as it is. The filters are float32 regardless.
        device: None leaves a model where it is, and puts one given by name on the GPU if there
            is one.

    Raises:
        TypeError: `model` is neither a name nor an M2BertForEmbedding.
        ValueError: an option is none of the above, or the model lacks rows for the vocabulary.
    """

    def __init__(
        self,
        model: M2BertForEmbedding | str | os.PathLike,
        *,
        max_length: int | None = None,
        long_documents: str = "truncate",
        batch_tokens: int | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.model = placed(model, dtype, device)
        self.tokenizer = load_tokenizer()
        config = self.model.config
        if config.vocab_size < len(self.tokenizer):
            raise ValueError(
                f"vocab_size: got {config.vocab_size}, expected at least {len(self.tokenizer)}, "
                "the entries of the tokenizer's vocabulary"
            )
        longest = config.max_position_embeddings
        self.max_length = longest if max_length is None else max_length
        if type(self.max_length) is not int or not 3 <= self.max_length <= longest:
            raise ValueError(
                f"max_length: got {self.max_length!r}, expected an integer from 3 to "
                f"max_position_embeddings={longest}"
            )
        self.long_documents = _one_of("long_documents", long_documents, LONG_DOCUMENTS)
        if batch_tokens is None:
            batch_tokens = 2048 if self.device.type == "cpu" else 16384
        self.batch_tokens = _positive("batch_tokens", batch_tokens)
        self.dimension: int = config.hidden_size
        self.report: EncodeReport | None = None  # of the latest call that ended well

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        normalize: bool = False,
        output: str = "numpy",
        progress: Progress = None,
        long_documents: str | None = None,
        batch_tokens: int | None = None,
    ) -> Array:
        """Return the embeddings (n, D), float32, in the order of the texts; (D,) for one str.

        Args:
            normalize: scale to unit length.
            output: "numpy", or "torch" for a tensor on the CPU.
            progress: True for a bar on standard error; or a function of (tokens done, tokens in
                all), padding included, which is called before the first batch and after each.
            long_documents, batch_tokens: instead of the Embedder's.

        Raises:
            TypeError: a text is not a str.
            ValueError: a text is too long under "error", holds half a surrogate pair, or has an
                embedding that is not finite; or an option is none of the above.
        """
        single = isinstance(texts, str)
        options = (normalize, output, progress, long_documents, batch_tokens)
        embeddings, _ = self._encode([texts] if single else texts, None, *options)
        return embeddings[0] if single else embeddings

    def encode_spans(
        self,
        text: str,
        spans: Spans,
        *,
        normalize: bool = False,
        output: str = "numpy",
        progress: Progress = None,
        long_documents: str | None = None,
    ) -> Array:
        """Return embeddings (len(spans), D) of parts of a text, each seen in its whole context.

        Late chunking: the model runs over the text once. A span's embedding is
        tanh(W p + b), the model's own pooler, with p the mean of the last states of the tokens
        that overlap the span; p itself if config.use_cls_token; of unit length if
        config.use_normalized_embeddings. Under "window" a token's state comes from the window in
        which the token is farthest from an edge.

        Args:
            spans: pairs (start, end) of characters of `text`; they may overlap.

        Raises:
            ValueError: a span is not within the text, holds no token, or reaches beyond what
                truncation keeps; and as `encode`.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: got {type(text).__name__}, expected str")
        options = (normalize, output, progress, long_documents, None)
        return self._encode([text], [spans], *options)[1][0]

    def encode_with_spans(
        self,
        texts: Sequence[str],
        spans: Sequence[Spans],
        *,
        normalize: bool = False,
        output: str = "numpy",
        progress: Progress = None,
        long_documents: str | None = None,
        batch_tokens: int | None = None,
    ) -> tuple[Array, list[Array]]:
        """Return (`encode(texts)`, [`encode_spans(text, spans)` of each]) from one pass.

        Args:
            spans: for each text its spans, possibly none.

        Raises:
            TypeError, ValueError: as `encode` and `encode_spans`; not one list for each text.
        """
        if isinstance(texts, str):
            raise TypeError("texts: got one str, expected a sequence of them: use encode_spans")
        options = (normalize, output, progress, long_documents, batch_tokens)
        return self._encode(texts, spans, *options)

    def count_tokens(self, texts: str | Sequence[str]) -> list[int]:
        """Return how many tokens each text has, with [CLS] and [SEP], before any cut."""
        texts = _checked([texts] if isinstance(texts, str) else texts)
        return [len(ids) for ids, _ in tokenize(texts, self.tokenizer)]

    def _encode(
        self,
        texts: Sequence[str],
        spans: Sequence[Spans] | None,
        normalize: bool,
        output: str,
        progress: Progress,
        long_documents: str | None,
        batch_tokens: int | None,
    ) -> tuple[Array, list[Array]]:
        started = time.perf_counter()
        _one_of("output", output, ("numpy", "torch"))
        policy = self.long_documents if long_documents is None else long_documents
        budget = self.batch_tokens if batch_tokens is None else batch_tokens
        texts = _checked(texts)
        if spans is not None and len(spans) != len(texts):
            raise ValueError(f"spans: got {len(spans)} lists, expected one for each text")
        pieces, ranges, counts = self._read(
            texts, spans, _one_of("long_documents", policy, LONG_DOCUMENTS)
        )
        if counts["cut_texts"]:
            _warn_of_truncation(self.max_length, len(texts), counts, stacklevel=4)

        rows, sums = self._run(pieces, ranges, _positive("batch_tokens", budget), progress)
        embeddings = self._mean_of_windows(rows, [piece.text for piece in pieces], len(texts))
        parts = [span_embeddings(self.model, s, r) for s, r in zip(sums, ranges, strict=True)]
        for index, part in enumerate(parts):
            _check_finite(part, [index] * len(part))
        results = [F.normalize(x, dim=-1) if normalize else x for x in (embeddings, *parts)]
        if output == "numpy":
            results = [x.numpy() for x in results]
        self.report = EncodeReport(len(texts), **counts, seconds=time.perf_counter() - started)
        return results[0], results[1:]

    def _read(
        self, texts: Sequence[str], spans: Sequence[Spans] | None, long_documents: str
    ) -> tuple[list[Piece], list[np.ndarray], dict[str, int]]:
        """Pieces, the token ranges of the spans of each text, and the counts of the report."""
        pieces: list[Piece] = []
        ranges: list[np.ndarray] = []
        counts = {"tokens": 0, "cut_texts": 0, "cut_tokens": 0, "windows": 0}
        tokenized = tokenize(texts, self.tokenizer, offsets=spans is not None)
        for index, (ids, offsets) in enumerate(tokenized):
            new = cut(index, ids, self.max_length, long_documents)
            kept = new[-1].owned[1]
            lost = len(ids) - 2 - kept
            pieces += new
            counts["tokens"] += len(ids)
            counts["cut_texts"] += lost > 0
            counts["cut_tokens"] += lost
            counts["windows"] += len(new) if len(new) > 1 else 0
            if spans is not None:
                try:
                    ranges.append(token_ranges(spans[index], offsets, len(texts[index]), kept))
                except ValueError as error:
                    raise ValueError(f"spans of texts[{index}]: {error}") from None
        return pieces, ranges, counts

    def _run(
        self, pieces: Sequence[Piece], ranges: list[np.ndarray], budget: int, progress: Progress
    ) -> tuple[Tensor, list[Tensor]]:
        """The embedding of each piece (pieces, D), and of each text the state sums of its spans."""
        config = self.model.config
        batches = plan_batches(
            [len(piece.ids) for piece in pieces],
            budget,
            longest=config.max_position_embeddings,
            full_length=config.padding == "max_length",
        )
        # Made out here: autograd refuses tensors made in inference mode.
        rows = torch.empty(len(pieces), self.dimension)
        sums = [torch.zeros(len(r), self.dimension) for r in ranges]
        done, total = 0, sum(length * len(members) for length, members in batches)
        with evaluating(self.model), torch.inference_mode(), reporting(progress, total) as report:
            report(done)
            for length, members in batches:
                batch = pad([pieces[i] for i in members], length, self.tokenizer.pad_token_id)
                ids, mask = (x.to(self.device) for x in batch)
                outputs = self.model(ids, attention_mask=mask, embedding_only=not ranges)
                rows[members] = outputs.sentence_embedding.float().cpu()
                _check_finite(rows[members], [pieces[i].text for i in members])
                if ranges:
                    for i, states in zip(members, outputs.last_hidden_state, strict=True):
                        text = pieces[i].text
                        add_states(sums[text], states, pieces[i], ranges[text])
                done += length * len(members)
                report(done)
        return rows, sums

    def _mean_of_windows(self, rows: Tensor, texts: list[int], count: int) -> Tensor:
        """(pieces, D) -> (texts, D)."""
        if len(rows) == count:
            return rows
        owner = torch.tensor(texts)
        totals = torch.zeros(count, self.dimension).index_add_(0, owner, rows)
        means = totals / owner.bincount(minlength=count)[:, None]
        return F.normalize(means, dim=-1) if self.model.config.use_normalized_embeddings else means


def _checked(texts: Sequence[str]) -> list[str]:
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}]: got {type(text).__name__}, expected str")
    return texts


def _check_finite(embeddings: Tensor, texts: list[int]) -> None:
    wrong = ~embeddings.isfinite().all(dim=1)
    if wrong.any():
        raise ValueError(
            f"texts[{texts[int(wrong.int().argmax())]}]: the embedding is not finite: look for NaN "
            "in the model's weights, or use a wider dtype"
        )


def _warn_of_truncation(
    max_length: int, texts: int, counts: dict[str, int], stacklevel: int
) -> None:
    cut_tokens, tokens = counts["cut_tokens"], counts["tokens"]
    warnings.warn(
        f"{counts['cut_texts']} of {texts} texts have more than {max_length} tokens: "
        f"{cut_tokens} of {tokens} tokens ({cut_tokens / tokens:.1%}) were cut; "
        "long_documents='window' reads them all, 'error' refuses",
        TruncationWarning,
        stacklevel=stacklevel,
    )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(allowed)}")
    return value


def _positive(name: str, value: int) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected a positive integer")
    return value
