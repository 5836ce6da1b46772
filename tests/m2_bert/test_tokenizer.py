"""The shipped tokenizer is the uncased BERT one, whole and unlimited."""

import hashlib

import pytest
from m2_bert import tokenizer as tokenizer_module
from m2_bert.tokenizer import VOCABULARY_PATH, VOCABULARY_SHA256, load_tokenizer, read_vocabulary


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def test_shipped_vocabulary_is_the_published_one():
    assert hashlib.sha256(VOCABULARY_PATH.read_bytes()).hexdigest() == VOCABULARY_SHA256
    vocabulary = read_vocabulary()
    assert len(vocabulary) == 30522
    assert sorted(vocabulary.values()) == list(range(30522))


def test_licence_notice_lies_beside_the_vocabulary():
    notice = VOCABULARY_PATH.with_name("vocab.NOTICE").read_text()
    assert "Apache License" in notice
    assert VOCABULARY_SHA256 in notice


def test_special_tokens(tokenizer):
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 100, 101, 102, 103]
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 101, 102)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world", [101, 7592, 2088, 102]),
        ("Hello WORLD", [101, 7592, 2088, 102]),
        ("", [101, 102]),
        ("unaffable", [101, 14477, 20961, 3468, 102]),
        ("café", [101, 7668, 102]),
    ],
    ids=["plain", "case", "empty", "pieces", "accent"],
)
def test_known_ids(tokenizer, text, ids):
    assert tokenizer(text)["input_ids"] == ids


@pytest.mark.parametrize("max_length", [None, 8])
def test_no_hidden_truncation_or_padding(max_length):
    tokenizer = load_tokenizer(max_length)
    assert len(tokenizer("word " * 40_000)["input_ids"]) == 40_002
    assert len(tokenizer("word")["input_ids"]) == 3


def test_max_length_is_the_default_of_truncation_and_padding():
    tokenizer = load_tokenizer(8)
    cut = tokenizer("word " * 100, truncation=True)["input_ids"]
    assert len(cut) == 8
    assert cut[0] == 101
    assert cut[-1] == 102
    padded = tokenizer("word", padding="max_length")
    assert padded["input_ids"] == [101, 2773, 102, 0, 0, 0, 0, 0]
    assert padded["attention_mask"] == [1, 1, 1, 0, 0, 0, 0, 0]


def test_too_small_max_length_is_refused():
    with pytest.raises(ValueError, match="max_length"):
        load_tokenizer(2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-10],
        lambda content: content.replace(b"hello\n", b"hullo\n"),
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: b"",
    ],
    ids=["cut", "one token", "line endings", "empty"],
)
def test_damaged_vocabulary_is_an_error(tmp_path, monkeypatch, damage):
    damaged = tmp_path / "vocab.txt"
    damaged.write_bytes(damage(VOCABULARY_PATH.read_bytes()))
    with pytest.raises(ValueError, match="damaged"):
        read_vocabulary(damaged)
    monkeypatch.setattr(tokenizer_module, "read_vocabulary", lambda: read_vocabulary(damaged))
    with pytest.raises(ValueError, match="damaged"):
        load_tokenizer()


def test_missing_vocabulary_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="reinstall"):
        read_vocabulary(tmp_path / "vocab.txt")


def test_saved_tokenizer_loads_equal(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "Monarch mixers: sub-quadratic, in LENGTH and width (naïve?)"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
