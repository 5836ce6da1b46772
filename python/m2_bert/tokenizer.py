"""The tokenizer M2-BERT was trained with: WordPiece over the uncased BERT vocabulary.

The vocabulary ships with the package, so nothing is downloaded. The tokenizer files in some of the
published M2-BERT repositories are those of *cased* BERT and give wrong token ids; these do not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from transformers import BertTokenizer

VOCABULARY_PATH = Path(__file__).with_name("vocab.txt")
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


def read_vocabulary(path: Path = VOCABULARY_PATH) -> dict[str, int]:
    """Token -> id of the shipped vocabulary (30,522 entries).

    Args:
        path: the vocabulary file, one token a line, the line number being its id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its content is not the uncased BERT vocabulary. One token lost or added would
            shift every later id and silently change each embedding, hence the check.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the vocabulary file {path} is missing: reinstall the package"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != VOCABULARY_SHA256:
        raise ValueError(
            f"the vocabulary file {path} is damaged ({len(content)} bytes, SHA-256 {digest}, "
            f"expected {VOCABULARY_SHA256}): reinstall the package; in a git checkout, see "
            "whether line endings were converted"
        )
    # Not splitlines(): that would also split at the Unicode line separators.
    tokens = content.decode("utf-8").removesuffix("\n").split("\n")
    return {token: index for index, token in enumerate(tokens)}


def load_tokenizer(max_length: int | None = None) -> BertTokenizer:
    """The uncased BERT tokenizer; equals ``BertTokenizer.from_pretrained("bert-base-uncased")``.

    A text is never cut or padded unless the call asks for it (``truncation=True``,
    ``padding="max_length"``). Ids: [PAD] 0, [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103.

    Args:
        max_length: tokens a document may have, including [CLS] and [SEP]: what
            ``truncation=True`` and ``padding="max_length"`` mean when a call names no length.
            None: no limit.

    Returns:
        A ``transformers`` tokenizer: ``tokenizer(text)["input_ids"]``.

    Raises:
        ValueError: ``max_length`` leaves no room for a token, or the vocabulary is damaged.
        FileNotFoundError: the vocabulary is missing.
    """
    if max_length is not None and max_length < 3:
        raise ValueError(
            f"max_length must be at least 3 ([CLS], one token, [SEP]), got {max_length}"
        )
    limit = {} if max_length is None else {"model_max_length": max_length}
    return BertTokenizer(
        vocab=read_vocabulary(),
        do_lower_case=True,
        padding_side="right",
        truncation_side="right",
        **limit,
    )
