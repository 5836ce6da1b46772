"""An embedder whose similarities are known, and folders of documents."""

import functools
import time
from pathlib import Path

import numpy as np
from m2_bert.tokenizer import load_tokenizer

from tests.m2_bert.makers import WORDS, small_model

DIMENSION = 64


@functools.cache
def model_of(seed):
    return small_model(seed, padding="invariant")


@functools.cache
def table():
    """A random vector for each entry of the vocabulary."""
    return np.random.default_rng(0).standard_normal((30522, DIMENSION)).astype(np.float32)


class WordEmbedder:
    """Stands in for Embedder: an embedding is the sum of the vectors of the words.

    As strict about spans as the real one. `seen` are the texts that were embedded; `delay` seconds
    are spent on each.
    """

    dimension = DIMENSION
    tokenizer = load_tokenizer()

    def __init__(self, seed=0, max_length=512, long_documents="truncate", delay=0.0):
        self.model = model_of(seed)  # only its fingerprint and configuration matter
        self.max_length, self.long_documents, self.delay = max_length, long_documents, delay
        self.seen = []

    def _ids(self, text):
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.array(encoded["input_ids"])
        kept = len(ids) if self.long_documents == "window" else self.max_length - 2
        return ids[:kept], np.reshape(encoded["offset_mapping"], (-1, 2)), kept

    def encode(self, texts):
        return np.stack([table()[self._ids(text)[0]].sum(0) for text in texts])

    def encode_with_spans(self, texts, spans, progress=None):
        if any("poison" in text for text in texts):
            raise ValueError("texts: got an embedding that is not finite")
        parts = []
        for text, of_text in zip(texts, spans, strict=True):
            time.sleep(self.delay)
            ids, offsets, kept = self._ids(text)
            rows = [
                (offsets[:, 1] > start) & (offsets[:, 0] < end) & (start < end)
                for start, end in of_text
            ]
            for row in rows:
                if not row.any() or row[kept:].any():
                    raise AssertionError("a span without a token, or beyond the cut")
            if progress:
                progress(len(parts), len(texts))
            parts.append(np.stack([table()[ids[row[: len(ids)]]].sum(0) for row in rows]))
        self.seen += texts
        return self.encode(texts), parts


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    """A folder of these files."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def word_files(count: int) -> dict[str, str]:
    """Files of words of which one, twenty times, is the file's own."""
    return {
        f"{i % 3}/{i:03d}.txt": f"{WORDS[i]}\n" * 20 + f"{WORDS[i - 1]} {WORDS[i - 2]}\n"
        for i in range(count)
    }
