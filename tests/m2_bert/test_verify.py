"""verify_model passes the true model and no other."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from m2_bert import M2BertForMaskedLM
from m2_bert.tokenizer import VOCABULARY_SHA256, load_tokenizer, read_vocabulary
from m2_bert.verify import GOLDEN, Golden, GoldenVector, Verification, verify_model
from transformers import BertTokenizer

from tests.m2_bert.makers import small_config, small_model

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH = 64
# [CLS] ... [SEP] by the published vocabulary, independently of the tokenizer here.
TEXTS = {
    "hello world": [101, 7592, 2088, 102],
    "Monarch Mixer": [101, 11590, 23228, 102],
}


@torch.inference_mode()
def _golden(model, components: int = 8) -> Golden:
    """Vectors from the hidden states and the pooler's formula, padded to the full length."""
    vectors = []
    for text, ids in TEXTS.items():
        padded = torch.tensor([ids + [0] * (LENGTH - len(ids))])
        first = model.bert(padded).last_hidden_state[0, 0]
        dense = model.bert.pooler.dense
        embedding = torch.tanh(dense.weight @ first + dense.bias)
        vectors.append(GoldenVector(text, tuple(embedding[:components].tolist()), "here"))
    return replace(GOLDEN, name="made", length=LENGTH, vectors=tuple(vectors))


@pytest.fixture(scope="module")
def true_model():
    return small_model()


@pytest.fixture(scope="module")
def golden(true_model) -> Golden:
    return _golden(true_model)


def _saved(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def _verdicts(verification: Verification) -> dict[str, bool | None]:
    return {check.name: check.passed for check in verification.checks}


def test_true_model_passes(tmp_path: Path, true_model, golden: Golden) -> None:
    verification = verify_model(_saved(true_model, tmp_path), golden=golden)
    assert verification.passed
    assert _verdicts(verification) == {
        "tensors": True,
        "model.safetensors": True,
        "tokenizer": True,
        "forward pass": True,
        "embedding of 'hello world'": True,
        "embedding of 'Monarch Mixer'": True,
    }
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes())
    details = {check.name: check.detail for check in verification.checks}
    assert digest.hexdigest() in details["model.safetensors"]
    assert VOCABULARY_SHA256 in details["tokenizer"]
    assert "32" in details["tensors"]
    assert json.loads(json.dumps(verification.to_dict()))["passed"] is True


def _shift(model) -> None:
    weight = model.bert.embeddings.position_embeddings.weight
    weight.data = weight.data.roll(1, 0)


WRONG = {
    "zeros": lambda m: [p.data.zero_() for p in m.parameters()],
    "zero pooler": lambda m: [p.data.zero_() for p in m.bert.pooler.parameters()],
    "noise": lambda m: m.bert.encoder.layer[1].attention.out_linear.weight.data.add_(
        torch.randn(32, 32, generator=torch.Generator().manual_seed(3)) * 0.1
    ),
    "pooler's sign": lambda m: m.bert.pooler.dense.weight.data.neg_(),
    "shifted positions": _shift,
    "another seed": lambda m: m.load_state_dict(small_model(seed=1).state_dict()),
}


@pytest.mark.parametrize("change", WRONG)
def test_other_weights_fail(tmp_path: Path, golden: Golden, change: str) -> None:
    model = small_model()
    WRONG[change](model)
    verification = verify_model(_saved(model, tmp_path), golden=golden)
    verdicts = _verdicts(verification)
    assert not verification.passed
    assert verdicts["tensors"]
    assert False in {v for name, v in verdicts.items() if name.startswith("embedding of")}


def test_direction_and_size_each_count(tmp_path: Path, true_model, golden: Golden) -> None:
    folder = _saved(true_model, tmp_path)

    def scaled(factor: float, **tolerances: float) -> bool:
        vectors = tuple(
            replace(v, components=tuple(factor * x for x in v.components)) for v in golden.vectors
        )
        return verify_model(folder, golden=replace(golden, vectors=vectors, **tolerances)).passed

    assert scaled(1.0)
    assert not scaled(1.5), "the cosine alone is 1"
    assert scaled(1.5, max_difference=9.0)
    assert not scaled(-1.0, max_difference=9.0)
    assert not scaled(-1.0, max_difference=9.0, min_cosine=0.0)
    assert scaled(-1.0, max_difference=9.0, min_cosine=-1.1)


def test_zeros_fail_without_golden_vectors(tmp_path: Path) -> None:
    model = small_model()
    WRONG["zeros"](model)
    verdicts = _verdicts(verify_model(_saved(model, tmp_path)))
    assert verdicts["forward pass"] is False


def test_overflow_fails_without_golden_vectors(tmp_path: Path) -> None:
    model = small_model()
    model.bert.encoder.layer[0].attention.out_linear.weight.data.fill_(3e38)
    verdicts = _verdicts(verify_model(_saved(model, tmp_path)))
    assert verdicts["tensors"] is True
    assert verdicts["forward pass"] is False


def test_nan_vector_fails(tmp_path: Path, true_model, golden: Golden) -> None:
    vector = replace(golden.vectors[0], components=(float("nan"),) * 4)
    verification = verify_model(
        _saved(true_model, tmp_path), golden=replace(golden, vectors=(vector,))
    )
    assert not verification.passed


def test_short_input_is_not_mistaken_for_the_padded_one(tmp_path: Path, true_model) -> None:
    """The golden vectors are of padded text: a pad-invariant copy of the weights gives others."""
    model = small_model(padding="invariant")
    model.load_state_dict(true_model.state_dict())
    assert not verify_model(_saved(model, tmp_path), golden=_golden(true_model)).passed


def _cased() -> BertTokenizer:
    return BertTokenizer(vocab=read_vocabulary(), do_lower_case=False)


def _damaged() -> BertTokenizer:
    tokens = sorted(read_vocabulary(), key=read_vocabulary().get)
    del tokens[2000]
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=True)


@pytest.mark.parametrize(
    ("tokenizer", "match"),
    [(_cased, "keeps case"), (_damaged, "30521 entries")],
    ids=["cased", "damaged"],
)
def test_wrong_tokenizer_fails(tmp_path, true_model, golden, tokenizer, match: str) -> None:
    verification = verify_model(_saved(true_model, tmp_path), golden=golden, tokenizer=tokenizer())
    checks = {check.name: check for check in verification.checks}
    assert checks["tokenizer"].passed is False
    assert match in checks["tokenizer"].detail
    assert checks["embedding of 'Monarch Mixer'"].passed is False


def test_damaged_and_foreign_files_fail(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("nothing")
    verification = verify_model(tmp_path)
    assert not verification.passed
    assert [check.name for check in verification.checks] == ["tensors"]
    assert "unknown content" in verification.checks[0].detail
    with pytest.raises(FileNotFoundError):
        verify_model(tmp_path / "absent")


def test_names_in_files_cannot_forge_the_output(tmp_path: Path) -> None:
    """Escape sequences and reversed text of tensor and file names arrive as escapes."""
    state = small_model().state_dict()
    path = tmp_path / "a\x1b[31m\u202e.bin"
    torch.save(state, path)
    assert verify_model(path).checks[1].name == r"a\x1b[31m\u202e.bin"
    torch.save(state | {"bert.\x1b]0;owned\x07\u202e\n": torch.ones(1)}, path)
    (tensors,) = verify_model(path).checks
    assert tensors.passed is False
    assert r"unexpected: bert.\x1b]0;owned\x07\u202e\n" in tensors.detail
    assert tensors.detail.isprintable()


def test_not_finite_weights_fail(tmp_path: Path) -> None:
    model = small_model()
    model.bert.pooler.dense.bias.data[3] = torch.nan
    verification = verify_model(_saved(model, tmp_path))
    assert not verification.passed
    assert "bert.pooler.dense.bias" in verification.checks[0].detail


def test_length_and_vocabulary_of_the_golden_vectors(tmp_path: Path, golden: Golden) -> None:
    short = verify_model(_saved(small_model(max_position_embeddings=32), tmp_path), golden=golden)
    assert _verdicts(short)["embeddings"] is False
    assert "reads 32 tokens, expected 64" in short.checks[-1].detail
    few = verify_model(_saved(small_model(vocab_size=5000), tmp_path / "few"), golden=golden)
    assert "only 5000 word embeddings" in few.checks[-1].detail
    assert not few.passed


def test_masked_language_model(tmp_path: Path, golden: Golden) -> None:
    torch.manual_seed(0)
    folder = _saved(M2BertForMaskedLM(small_config()).eval(), tmp_path)
    verification = verify_model(folder)
    assert verification.passed
    assert _verdicts(verification)["embeddings"] is None
    assert not verify_model(folder, golden=golden).passed, "asked for embeddings, there are none"


@pytest.mark.parametrize(
    ("name", "applies"),
    [
        ("m2-bert-80M-8k-retrieval", True),
        ("M2-BERT-80m-8K-Retrieval.bin", True),
        ("models--togethercomputer--m2-bert-80M-8k-retrieval/snapshots", True),
        ("m2-bert-80M-8k-retrieval-v2", False),
        ("M2-BERT-8K-Retrieval-Encoder-V1", False),
        ("mine", False),
    ],
)
def test_published_vectors_apply_by_name(tmp_path, true_model, name: str, applies: bool) -> None:
    path = tmp_path / name
    if name.endswith(".bin"):
        torch.save(true_model.state_dict(), path)
    else:
        _saved(true_model, path)
    last = verify_model(path).checks[-1]
    assert last.passed is (False if applies else None), "these weights are not the published ones"
    assert ("reads 64 tokens, expected 8192" in last.detail) == applies
    assert verify_model(path, golden=None).passed


def test_published_vectors() -> None:
    """Their size says that they are tanh outputs, not unit vectors of 768 components."""
    assert GOLDEN.length == 8192
    assert [len(vector.components) for vector in GOLDEN.vectors] == [5, 8, 8]
    for vector in GOLDEN.vectors:
        components = torch.tensor(vector.components)
        assert 0.02 < float(components.square().mean()) < 0.05
        assert len(load_tokenizer()(vector.text)["input_ids"]) < 30
