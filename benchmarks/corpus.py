"""Real long text that is on every machine: the source files of the Python standard library."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from m2_bert.tokenizer import load_tokenizer

# Source code has at least this many characters a token, so this much text is always enough to
# try first; read_document doubles it until it is.
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Document:
    """One document of exactly the wanted number of tokens, [CLS] and [SEP] included.

    Attributes:
        input_ids: (1, L) int64.
        source: where the text came from, for the record of a measurement.
    """

    input_ids: torch.Tensor
    source: dict[str, str | int]


def library_sources(folder: Path | None = None) -> list[Path]:
    """The library's own top-level modules, sorted by name; packages installed later are not there.

    Raises:
        FileNotFoundError: this Python was installed without its sources.
    """
    folder = folder or Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py"), key=lambda path: path.name)
    if not files:
        raise FileNotFoundError(
            f"no Python source file in {folder}: the benchmark reads its text there"
        )
    return files


def read_text(characters: int, folder: Path | None = None) -> str:
    """The first ``characters`` characters of the sorted, concatenated library sources.

    Raises:
        ValueError: the library is shorter than that.
    """
    parts, total = [], 0
    for path in library_sources(folder):
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        total += len(parts[-1])
        if total >= characters:
            return "".join(parts)[:characters]
    raise ValueError(f"the library's sources have {total} characters, {characters} are needed")


def read_document(length: int) -> Document:
    """The beginning of the library sources as a document of exactly ``length`` tokens."""
    if length < 3:
        raise ValueError(f"a document needs at least 3 tokens, got {length}")
    tokenizer = load_tokenizer()
    characters = length * CHARACTERS_PER_TOKEN
    while True:
        text = read_text(characters)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        # One token more than wanted: the last one may have been cut in the middle.
        if len(ids) > length - 2:
            break
        characters *= 2
    ids = [tokenizer.cls_token_id, *ids[: length - 2], tokenizer.sep_token_id]
    source = {
        "text": "Python standard library, top-level modules in the order of their names",
        "python": platform.python_version(),
        "tokens": length,
        "sha256_of_ids": hashlib.sha256(repr(ids).encode()).hexdigest(),
    }
    return Document(torch.tensor([ids], dtype=torch.int64), source)
