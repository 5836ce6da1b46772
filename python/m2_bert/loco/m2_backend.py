"""M2-BERT as a model of an evaluation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np

from m2_bert.loco.encoders import Progress, naming
from m2_bert.tokenizer import load_tokenizer

SPECIAL_TOKENS = 2  # [CLS] and [SEP]


class M2Backend:
    """An M2-BERT checkpoint, a copy of it on each device.

    Raises:
        ValueError: not an M2-BERT checkpoint, a wrong length, or another backend than torch.
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
        from m2_bert.checkpoint import fingerprint, load_model
        from m2_bert.embedder import Embedder

        if backend != "torch":
            raise ValueError(f"backend: got {backend!r}, but an M2-BERT checkpoint runs in torch")
        model = load_model(spec, revision=revision)
        self.name = spec
        self.revision = revision
        self.fingerprint = fingerprint(model)
        self._embedders = [
            Embedder(
                model if index == 0 else copy.deepcopy(model),
                max_length=max_length,
                batch_tokens=batch_tokens,
                dtype=dtype,
                device=device,
            )
            for index, device in enumerate(devices)
        ]
        self.max_length = self._embedders[0].max_length
        weights = next(self._embedders[0].model.parameters())
        self.settings = {"backend": "torch", "dtype": str(weights.dtype).removeprefix("torch.")}
        self.tokenizer = load_tokenizer()

    def limit(self, kind: str) -> int:
        """Tokens of a text that fit beside [CLS] and [SEP]."""
        return self.max_length - SPECIAL_TOKENS

    def embed(
        self, texts: Sequence[str], tokens: Sequence[int], kind: str, progress: Progress | None
    ) -> np.ndarray:
        """(n, D) float32; the texts are dealt to the devices by length."""
        from m2_bert.embedder import TruncationWarning

        dealt = np.argsort(-np.asarray(tokens), kind="stable")
        shares = [dealt[i :: len(self._embedders)] for i in range(len(self._embedders))]
        shares = [share for share in shares if len(share)]
        counter = _Sum(len(shares), progress)

        def run(device: int) -> np.ndarray:
            share = shares[device]
            update = None if progress is None else counter.of(device)
            with naming([f"texts[{i}]" for i in share]):
                return self._embedders[device].encode([texts[i] for i in share], progress=update)

        with warnings.catch_warnings():
            # The evaluation reports cut tokens itself, over the whole task.
            warnings.simplefilter("ignore", TruncationWarning)
            with ThreadPoolExecutor(len(shares)) as pool:
                parts = list(pool.map(run, range(len(shares))))
        vectors = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
        for share, part in zip(shares, parts, strict=True):
            vectors[share] = part
        return vectors

    def close(self) -> None:
        """Nothing to end: threads live as long as one call."""


class _Sum:
    """The progress of several devices as one."""

    def __init__(self, devices: int, progress: Progress | None) -> None:
        self._counts = [(0, 0)] * devices
        self._progress = progress
        self._lock = Lock()

    def of(self, device: int) -> Progress:
        def update(done: int, total: int) -> None:
            with self._lock:
                self._counts[device] = (done, total)
                self._progress(*map(sum, zip(*self._counts, strict=True)))

        return update
