"""A sentence-transformers model as a model of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from m2_bert.loco.encoders import Progress, hash_folder, one_line, token_batches

BACKENDS = ("torch", "onnx", "openvino")
# Tokenizers without a limit of their own say 1e30.
NO_LIMIT = 10**6
BATCH_TOKENS = 16384


class SentenceTransformersBackend:
    """A model from a local folder or the Hub, in batches of a bounded number of tokens.

    Raises:
        ValueError: the model cannot be loaded, needs code of its own, or a wrong length is asked.
        ImportError: sentence-transformers is not installed.
    """

    def __init__(
        self,
        spec: str,
        max_length: int | None,
        backend: str,
        devices: Sequence[str | None],
        batch_tokens: int | None,
        dtype: str | None,
        revision: str | None,
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")
        self.name = spec
        self._model = _load(spec, backend, devices[0], dtype, revision)
        self.revision = revision or getattr(self._config(), "_commit_hash", None)
        local = Path(spec).is_dir()
        self.fingerprint = hash_folder(Path(spec)) if local else f"{spec}@{self.revision}"
        self.max_length = self._set_length(max_length)
        self.tokenizer = self._model.tokenizer
        prompts = {name: prompt for name, prompt in self._model.prompts.items() if prompt}
        self.settings = {"backend": backend, "dtype": dtype or "checkpoint", "prompts": prompts}
        self._devices = devices
        self._batch_tokens = batch_tokens or BATCH_TOKENS
        self._pool = None

    def limit(self, kind: str) -> int:
        """Tokens of a text that fit beside the special tokens and the prompt."""
        own = getattr(self._model[0], f"{kind}_length", None) or self.max_length
        limit = min(own, self.max_length) - self._overhead(kind)
        if limit < 1:
            raise ValueError(
                f"{self.name}: {self.max_length} tokens leave no room beside the prompt of a {kind}"
            )
        return limit

    def embed(
        self, texts: Sequence[str], tokens: Sequence[int], kind: str, progress: Progress | None
    ) -> np.ndarray:
        """(n, D) float32, with the model's prompt for queries or documents."""
        encode = self._model.encode_query if kind == "query" else self._model.encode_document
        lengths = [count + self._overhead(kind) for count in tokens]
        total, done = sum(lengths), 0
        order, parts = [], []
        for batch, size in token_batches(lengths, self._batch_tokens, len(self._devices)):
            part = encode(
                [texts[i] for i in batch],
                batch_size=size,
                show_progress_bar=False,
                **self._workers(size),
            )
            order.append(batch)
            parts.append(np.asarray(part, dtype=np.float32))
            done += sum(lengths[i] for i in batch)
            if progress is not None:
                progress(done, total)
        vectors = np.concatenate(parts)
        return vectors[np.argsort(np.concatenate(order))]

    def close(self) -> None:
        """End the processes of the devices."""
        if self._pool is not None:
            self._model.stop_multi_process_pool(self._pool)
            self._pool = None

    def _workers(self, size: int) -> dict[str, object]:
        if len(self._devices) == 1:
            return {}
        if self._pool is None:
            self._pool = self._model.start_multi_process_pool(list(self._devices))
        return {"pool": self._pool, "chunk_size": size}

    def _overhead(self, kind: str) -> int:
        names = ("query",) if kind == "query" else ("document", "passage", "corpus")
        prompts = self._model.prompts
        name = next((name for name in names if name in prompts), self._model.default_prompt_name)
        prompt = self.tokenizer(prompts.get(name) or "", add_special_tokens=False)["input_ids"]
        return len(prompt) + self.tokenizer.num_special_tokens_to_add()

    def _config(self) -> object:
        return getattr(self._model[0], "config", None)

    def _set_length(self, wanted: int | None) -> int:
        positions = getattr(self._config(), "max_position_embeddings", None) or NO_LIMIT
        if wanted is not None and wanted > positions:
            raise ValueError(f"max_length: got {wanted}, but {self.name} has {positions} positions")
        length = wanted or min(self._model.max_seq_length or NO_LIMIT, positions)
        if length >= NO_LIMIT:
            raise ValueError(f"{self.name} names no longest input: give max_length")
        self._model.max_seq_length = length
        return length


def _load(spec: str, backend: str, device: str | None, dtype: str | None, revision: str | None):
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"{spec} needs sentence-transformers ({one_line(error)}): "
            "pip install monarch-kernels[st]"
        ) from None
    try:
        with _quiet():
            return SentenceTransformer(
                spec,
                revision=revision,
                backend=backend,
                device=device,
                model_kwargs={"dtype": dtype} if dtype else None,
                trust_remote_code=False,
            )
    except Exception as error:  # a foreign model may fail in any way, some of them bare Exception
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{spec} needs Python code from its repository, which is never run here: "
                "use a model that transformers and sentence-transformers know themselves"
            ) from None
        raise ValueError(f"{spec}: sentence-transformers says: {one_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bar that transformers draws while it loads weights."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
