"""Encoders: what a specification opens, chunks, token budgets, and several devices."""

import json
import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from m2_bert.loco.encoders import (
    chunk_text,
    count_tokens,
    hash_folder,
    open_encoder,
    token_batches,
)
from m2_bert.tokenizer import load_tokenizer

from tests.m2_bert.makers import text_of

TOKENIZER = load_tokenizer()
MAX_LENGTH = 16
ROOM = MAX_LENGTH - 2  # beside [CLS] and [SEP]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random BERT of one layer as a sentence-transformers folder, with a prompt for queries."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        **sizes, intermediate_size=16, max_position_embeddings=32, initializer_range=0.5
    )
    BertModel(config).save_pretrained(path / "bert")
    TOKENIZER.save_pretrained(path / "bert")
    transformer = Transformer(str(path / "bert"), max_seq_length=MAX_LENGTH)
    model = sentence_transformers.SentenceTransformer(
        modules=[transformer, Pooling(8, "mean")], prompts={"query": "find this: "}, device="cpu"
    )
    model.save(str(path / "whole"))
    return path / "whole"


@pytest.fixture(scope="module")
def model(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


TEXTS = [text_of(5, seed=1), text_of(40, seed=2), text_of(14, seed=3), text_of(100, seed=4)]


def opened(folder, **options):
    return open_encoder(str(folder), device="cpu", **options)


def alone(model, texts):
    """Each text in a batch of its own, by the library itself."""
    return np.stack([model.encode(text) for text in texts])


def test_truncation_gives_the_vectors_of_the_library_and_counts_what_is_cut(folder, model):
    encoder = opened(folder)
    encoded = encoder.encode_documents(TEXTS)
    np.testing.assert_allclose(encoded.vectors, alone(model, TEXTS), atol=1e-5)
    np.testing.assert_array_equal(encoded.owner, [0, 1, 2, 3])
    assert encoded.vectors.dtype == np.float32
    assert encoded.owner.dtype == np.int64
    assert (encoded.cut_texts, encoded.cut_tokens) == (2, 40 - ROOM + 100 - ROOM)
    assert encoder.max_length == MAX_LENGTH


def test_queries_get_their_prompt_which_takes_room(folder, model):
    encoder = opened(folder, long="chunk-max")
    queries = TEXTS[:2]
    encoded = encoder.encode_queries(queries)
    prompted = alone(model, ["find this: " + query for query in queries])
    np.testing.assert_allclose(encoded.vectors, prompted, atol=1e-5)
    assert np.abs(encoded.vectors - alone(model, queries)).max() > 0.01
    assert (encoded.cut_texts, encoded.cut_tokens) == (1, 40 - (ROOM - 3))
    assert encoder.settings["prompts"] == {"query": "find this: "}


def test_chunks_keep_all_vectors_with_their_owners(folder, model):
    encoded = opened(folder, long="chunk-max").encode_documents(TEXTS)
    words = [text.split() for text in TEXTS]
    chunks = [
        (" ".join(of_text[start : start + ROOM]), owner)
        for owner, of_text in enumerate(words)
        for start in range(0, len(of_text), ROOM)
    ]
    assert encoded.owner.tolist() == [owner for _, owner in chunks] == [0] + [1] * 3 + [2] + [3] * 8
    np.testing.assert_allclose(encoded.vectors, alone(model, [c for c, _ in chunks]), atol=1e-5)
    assert encoded.cut_tokens == 0


def test_the_mean_of_chunks_is_one_vector_per_text(folder):
    parts = opened(folder, long="chunk-max").encode_documents(TEXTS)
    means = opened(folder, long="chunk-mean").encode_documents(TEXTS)
    expected = [parts.vectors[parts.owner == text].mean(axis=0) for text in range(4)]
    np.testing.assert_allclose(means.vectors, expected, atol=1e-6)
    np.testing.assert_array_equal(means.owner, [0, 1, 2, 3])


@pytest.mark.parametrize("budget", [1, 16, 40, 10**6])
def test_the_budget_bounds_the_batches_and_not_the_vectors(budget, folder, model):
    encoder = opened(folder, batch_tokens=budget)
    texts = [text_of(length) for length in (3, 30, 9, 1, 12, 7)]
    encode, sizes = encoder._backend._model.encode_document, []

    def spy(batch, **options):
        longest = max(min(len(text.split()), ROOM) + 2 for text in batch)
        sizes.append((len(batch), longest))
        assert options["batch_size"] >= len(batch)
        return encode(batch, **options)

    encoder._backend._model.encode_document = spy
    steps = []
    encoded = encoder.encode_documents(texts, lambda done, total: steps.append((done, total)))
    assert all(count == 1 or count * longest <= budget for count, longest in sizes)
    assert sum(count for count, _ in sizes) == len(texts)
    np.testing.assert_allclose(encoded.vectors, alone(model, texts), atol=1e-5)
    total = sum(min(len(text.split()), ROOM) + 2 for text in texts)
    assert [t for _, t in steps] == [total] * len(sizes)
    assert steps[-1][0] == total


@pytest.mark.parametrize(("budget", "devices"), [(1, 1), (50, 1), (50, 3), (1000, 2)])
def test_batches_hold_every_text_once(budget, devices):
    tokens = np.random.default_rng(0).integers(1, 60, size=101).tolist()
    batches = list(token_batches(tokens, budget, devices))
    assert sorted(np.concatenate([batch for batch, _ in batches]).tolist()) == list(range(101))
    for batch, size in batches:
        assert len(batch) <= size * devices
        assert size == 1 or size * max(tokens[i] for i in batch) <= budget


@pytest.mark.parametrize("limit", [1, 2, 5, 64])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text_of(50), id="words"),
        pytest.param("unbelievable antidisestablishmentarianism rethinking " * 6, id="pieces"),
        pytest.param("  naïve\n\ncafé, 東京タワー!  x" * 5, id="scripts"),
        pytest.param("supercalifragilisticexpialidocious" * 2, id="one word"),
        pytest.param("\u200b \t", id="no tokens"),
    ],
)
def test_chunks_join_to_the_text_and_hold_at_most_the_limit(text, limit):
    chunks = chunk_text(text, TOKENIZER, limit)
    assert "".join(chunk for chunk, _ in chunks) == text
    assert all(tokens <= limit for _, tokens in chunks)
    assert sum(tokens for _, tokens in chunks) == count_tokens([text], TOKENIZER)[0]


def test_chunks_end_between_words():
    text = "unbelievable antidisestablishmentarianism rethinking " * 6
    longest = max(count_tokens(text.split(), TOKENIZER))
    chunks = chunk_text(text, TOKENIZER, 2 * longest)
    words = [word for chunk, _ in chunks for word in chunk.split()]
    assert words == text.split()
    assert [n for _, n in chunks] == count_tokens([chunk for chunk, _ in chunks], TOKENIZER)


def test_max_length_shortens_what_the_model_reads(folder):
    encoder = opened(folder, max_length=8)
    assert encoder.encode_documents(TEXTS[1:2]).cut_tokens == 40 - 6
    assert encoder.settings["max_length"] == 8


def test_the_fingerprint_is_that_of_the_files_but_the_readme(folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("other words")
    assert hash_folder(copy) == opened(folder).fingerprint
    config = copy / "modules.json"
    config.write_text(config.read_text() + " ")
    assert hash_folder(copy) != opened(folder).fingerprint


@pytest.mark.slow
def test_two_processes_give_the_vectors_of_one(folder, model):
    encoder = open_encoder(str(folder), device=["cpu", "cpu"], batch_tokens=32)
    try:
        found = encoder.encode_documents(TEXTS).vectors
    finally:
        encoder.close()
    np.testing.assert_allclose(found, alone(model, TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"long": "window"}, "long: got 'window', expected one of trun", id="long"),
        pytest.param({"max_length": 2}, "max_length: got 2, expected at least 3", id="short"),
        pytest.param(
            {"max_length": 33}, "max_length: got 33, but .* 32 positions", id="long length"
        ),
        pytest.param({"batch_tokens": 0}, "batch_tokens: got 0", id="budget"),
        pytest.param({"backend": "jax"}, "backend: got 'jax', expected one of torch", id="backend"),
        pytest.param(
            {"revision": "main"}, "revision: got 'main', but .* not on the Hub", id="local"
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message, folder):
    with pytest.raises(ValueError, match=message) as caught:
        opened(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["./nowhere", "/nowhere/model", "a/b/c", "weights.safetensors"])
def test_paths_that_do_not_exist_are_not_looked_up_on_the_hub(spec):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_encoder(spec)


def test_a_hub_id_out_of_reach_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match="nobody/nothing: there is no such folder"
    ) as caught:
        open_encoder("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_models_with_code_of_their_own_are_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "configuration.NewConfig", "AutoModel": "modeling.NewModel"}
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "model_type": "new", "auto_map": own})
    )
    (tmp_path / "configuration.py").write_text("raise SystemExit('this must never run')")
    with pytest.raises(ValueError, match="needs Python code from its repository") as caught:
        open_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "\x00", ""])
def test_a_damaged_config_is_one_line(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"its config\.json is damaged"):
        open_encoder(str(tmp_path))


def test_an_empty_or_broken_model_is_one_line(folder, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="sentence-transformers says") as caught:
        open_encoder(str(broken))
    assert re.fullmatch(r"[^\n]{1,400}", str(caught.value))


@pytest.mark.skipif(find_spec("optimum") is not None, reason="optimum is installed")
def test_a_backend_that_is_not_installed_is_one_line(folder):
    with pytest.raises(ValueError, match=r"pip install sentence-transformers\[onnx\]") as caught:
        opened(folder, backend="onnx")
    assert "\n" not in str(caught.value)


def test_opening_a_model_prints_nothing(folder, capfd):
    opened(folder)
    assert capfd.readouterr() == ("", "")


M2_FIELDS = {"model_type": "bert", "monarch_mixer_sequence_mixing": True}


@pytest.mark.parametrize(
    ("fields", "is_m2"),
    [
        pytest.param({"model_type": "m2_bert"}, True, id="named"),
        pytest.param(M2_FIELDS, True, id="published under the name of BERT"),
        pytest.param({"model_type": "bert"}, False, id="BERT"),
        pytest.param([], False, id="no fields"),
    ],
)
def test_the_content_of_the_config_decides_what_a_model_is(fields, is_m2, tmp_path):
    from m2_bert.loco.encoders import _look

    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert _look(str(tmp_path), None) == (is_m2, None)
    assert _look("random:small", None) == (True, None)


# ---- M2-BERT -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def m2_folder(tmp_path_factory):
    from m2_bert.folder import save_folder

    from tests.m2_bert.makers import small_model

    return save_folder(small_model(padding="invariant"), tmp_path_factory.mktemp("m2"))


LONGER = [text_of(5, seed=1), text_of(150, seed=2), text_of(62, seed=3)]


def test_an_m2_folder_is_encoded_by_the_embedder(m2_folder):
    from m2_bert.embedder import Embedder

    encoder = open_encoder(str(m2_folder), device="cpu")
    encoded = encoder.encode_documents(LONGER)
    with pytest.warns(UserWarning, match="cut"):
        expected = Embedder(str(m2_folder), device="cpu").encode(LONGER)
    np.testing.assert_allclose(encoded.vectors, expected, atol=1e-5)
    assert (encoder.max_length, encoded.cut_texts, encoded.cut_tokens) == (64, 1, 150 - 62)
    assert encoder.settings["dtype"] == "float32"
    assert re.fullmatch(r"[0-9a-f]{16}", encoder.fingerprint)
    with pytest.raises(ValueError, match="runs in torch"):
        open_encoder(str(m2_folder), backend="onnx")


def test_m2_chunks_are_scored_by_their_owner(m2_folder):
    encoded = open_encoder(str(m2_folder), long="chunk-max", device="cpu").encode_documents(LONGER)
    assert encoded.owner.tolist() == [0, 1, 1, 1, 2]
    whole = open_encoder(str(m2_folder), device="cpu")
    words = LONGER[1].split()
    third = whole.encode_documents([" ".join(words[124:])]).vectors[0]
    np.testing.assert_allclose(encoded.vectors[3], third, atol=1e-5)


def test_m2_on_two_devices_gives_the_vectors_of_one(m2_folder):
    steps = []
    two = open_encoder(str(m2_folder), device=["cpu", "cpu"], batch_tokens=64)
    found = two.encode_documents(LONGER, lambda done, total: steps.append((done, total)))
    one = open_encoder(str(m2_folder), device="cpu").encode_documents(LONGER)
    np.testing.assert_allclose(found.vectors, one.vectors, atol=1e-5)
    assert steps[-1][0] == steps[-1][1] > 0


def test_random_weights_are_a_model_too():
    encoder = open_encoder("random:small", device="cpu", max_length=32)
    vectors = encoder.encode_queries(["one text", "another"]).vectors
    assert vectors.shape == (2, 256)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4
    assert encoder.fingerprint == open_encoder("random:small", device="cpu").fingerprint
    assert encoder.fingerprint != open_encoder("random:small:1", device="cpu").fingerprint


@pytest.mark.parametrize("long", ["truncate", "chunk-max"])
def test_an_m2_model_that_returns_nan_is_named_with_the_text(long, tmp_path):
    from m2_bert.folder import save_folder
    from m2_bert.loco.cache import embed

    from tests.m2_bert.makers import small_model

    model = small_model(padding="invariant")
    word = TOKENIZER.convert_tokens_to_ids("violin")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[word] = 1e38
    encoder = open_encoder(
        str(save_folder(model, tmp_path / "model")), long=long, device=["cpu", "cpu"]
    )
    texts = {"good": "stone " * 150, "bad": "stone " * 3 + "violin", "fine": "river"}
    costs = {key: len(text.split()) for key, text in texts.items()}
    with pytest.raises(ValueError, match=r"document 'bad' \(model .*model\).* not finite"):
        embed(encoder, texts, "document", cache=None, costs=costs)


def test_half_a_surrogate_pair_is_named():
    with pytest.raises(ValueError, match=r"texts\[1\] holds half of a surrogate pair"):
        count_tokens(["fine", "not \ud800 so"], TOKENIZER)
