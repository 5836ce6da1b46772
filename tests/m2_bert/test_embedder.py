"""Embedder against direct calls of the model on ids that are padded by hand."""

import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from m2_bert import M2BertForMaskedLM
from m2_bert.embedder import Embedder, EncodeReport, TruncationWarning
from m2_bert.tokenizer import load_tokenizer

from tests.m2_bert.makers import small_config, small_model, text_of

LONGEST = 64
CLS, SEP = 101, 102
TOKENIZER = load_tokenizer()
TEXTS = [text_of(words, seed=words) for words in (5, 40, 1, 17, 62, 30, 2, 18)] + ["", "Über 日本"]


def _model(padding: str = "max_length", seed: int = 0, **overrides):
    # At the makers' initializer_range of 0.3 float32 itself is 5e-5 away from float64.
    return small_model(seed, **{"padding": padding, "initializer_range": 0.1, **overrides})


def _outputs(model, content: list[int], length: int | None = None):
    """The model on [CLS] content [SEP], padded by hand to `length` (None: not at all)."""
    ids = [CLS, *content, SEP]
    padding = 0 if length is None else length - len(ids)
    with torch.no_grad():
        return model(
            torch.tensor([ids + [0] * padding]),
            attention_mask=torch.tensor([[1] * len(ids) + [0] * padding]),
        )


def _content(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def _direct(model, texts, length: int | None) -> np.ndarray:
    rows = [_outputs(model, _content(text), length).sentence_embedding for text in texts]
    return torch.cat(rows).numpy()


# ---- encode --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 130, 16384])
@pytest.mark.parametrize("padding", ["max_length", "invariant"])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"pool_all": True},
        {"use_cls_token": True},
        {"use_normalized_embeddings": True},
    ],
    ids=str,
)
def test_embeddings_are_those_of_direct_calls(overrides, padding: str, batch_tokens: int) -> None:
    model = _model(padding, **overrides)
    expected = _direct(model, TEXTS, LONGEST if padding == "max_length" else None)
    got = Embedder(model).encode(TEXTS, batch_tokens=batch_tokens)
    assert got.dtype == np.float32
    assert np.abs(expected[0] - expected[1]).max() > 0.05
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("padding", ["max_length", "invariant"])
def test_company_does_not_change_an_embedding(padding: str) -> None:
    embedder = Embedder(_model(padding, seed=3))
    generator = random.Random(0)
    texts = [text_of(generator.randint(0, 62), seed=i) for i in range(24)]
    alone = np.stack([embedder.encode(text) for text in texts])
    for _ in range(15):
        chosen = generator.choices(range(24), k=generator.randint(1, 24))
        budget = generator.choice([1, 64, 100, 300, 1000])
        got = embedder.encode([texts[i] for i in chosen], batch_tokens=budget)
        np.testing.assert_allclose(got, alone[chosen], atol=1e-5)


def test_max_length_shortens_the_text_not_the_padding() -> None:
    model = _model()
    text = text_of(40)
    with pytest.warns(TruncationWarning):
        got = Embedder(model, max_length=18).encode(text)
    expected = _outputs(model, _content(text)[:16], LONGEST).sentence_embedding[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_batches_are_the_longest_first_and_within_the_budget() -> None:
    shapes: list[tuple[int, ...]] = []
    model = _model("invariant")
    model.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    Embedder(model, batch_tokens=130).encode([*TEXTS, text_of(61)])
    assert shapes[0] == (2, 64)
    assert len(shapes) > 2
    assert all(rows * length <= 130 for rows, length in shapes)
    assert [length for _, length in shapes] == sorted((x for _, x in shapes), reverse=True)


def test_batches_are_small_on_a_cpu_unless_told_otherwise() -> None:
    assert Embedder(_model()).batch_tokens == 2048
    assert Embedder(_model(), batch_tokens=16384).batch_tokens == 16384


def test_normalize_and_output() -> None:
    embedder = Embedder(_model())
    plain = embedder.encode(TEXTS[:3])
    unit = embedder.encode(TEXTS[:3], normalize=True, output="torch")
    assert isinstance(unit, torch.Tensor)
    assert unit.dtype == torch.float32
    np.testing.assert_allclose(unit.norm(dim=1), 1.0, atol=1e-6)
    assert np.abs(np.linalg.norm(plain, axis=1) - 1).max() > 0.1
    np.testing.assert_allclose(
        plain / np.linalg.norm(plain, axis=1, keepdims=True), unit, atol=1e-6
    )


def test_torch_output_can_enter_autograd() -> None:
    embedder = Embedder(_model())
    weight = torch.ones(32, requires_grad=True)
    embeddings, (spans,) = embedder.encode_with_spans(["a b"], [[(0, 1)]], output="torch")
    (embeddings @ weight + spans @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, embeddings[0] + spans[0])


def test_shapes_of_one_text_and_of_none() -> None:
    embedder = Embedder(_model())
    assert embedder.encode("a text").shape == (32,)
    assert embedder.encode([]).shape == (0, 32)
    assert embedder.report.texts == embedder.report.tokens == 0
    np.testing.assert_array_equal(embedder.encode("a text"), embedder.encode(("a text",))[0])


def test_count_tokens() -> None:
    embedder = Embedder(_model(), max_length=10)
    assert embedder.count_tokens(["", text_of(100), "Über 日本"]) == [2, 102, 5]
    assert embedder.count_tokens("a") == [3]


def test_text_that_is_no_str_is_named() -> None:
    with pytest.raises(TypeError, match=r"texts\[1\]: got NoneType, expected str"):
        Embedder(_model()).encode(["a", None])
    with pytest.raises(TypeError, match="texts: got one str"):
        Embedder(_model()).encode_with_spans("a", [])


def test_embedding_that_is_not_finite_names_the_text() -> None:
    model = _model("invariant")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[_content("river")[0]] = torch.nan
    texts = ["a stone", "a stone by a river", "a stone"]
    with pytest.raises(ValueError, match=r"texts\[1\]: the embedding is not finite"):
        Embedder(model).encode(texts)


# ---- Long documents ------------------------------------------------------------------------------


def test_truncation_keeps_sep_and_says_what_was_cut() -> None:
    model = _model()
    embedder = Embedder(model)
    texts = [text_of(10), text_of(100, seed=1), text_of(62), text_of(63)]
    with pytest.warns(TruncationWarning) as caught:
        got = embedder.encode(texts)
    (warning,) = caught
    assert warning.filename == __file__
    assert str(warning.message).startswith(
        "2 of 4 texts have more than 64 tokens: 39 of 243 tokens (16.0%) were cut"
    )
    expected = torch.cat(
        [_outputs(model, _content(text)[:62], LONGEST).sentence_embedding for text in texts]
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)
    report = embedder.report
    assert report == EncodeReport(4, 243, 2, 39, windows=0, seconds=report.seconds)
    assert report.seconds > 0


def test_error_policy_names_the_first_long_text() -> None:
    embedder = Embedder(_model(), long_documents="error")
    assert embedder.encode([text_of(62)]).shape == (1, 32)
    with pytest.raises(ValueError, match=r"texts\[1\]: got 66 tokens, expected at most 64"):
        embedder.encode(["a", text_of(64), text_of(200)])


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("padding", ["max_length", "invariant"])
def test_window_policy_is_the_mean_of_windows(padding: str, normalized: bool) -> None:
    model = _model(padding, use_normalized_embeddings=normalized)
    long, short = text_of(40, seed=2), text_of(16, seed=4)
    content = _content(long)
    length = LONGEST if padding == "max_length" else None
    windows = [
        _outputs(model, content[a:b], length).sentence_embedding[0]
        for a, b in ((0, 16), (14, 30), (24, 40))
    ]
    expected = torch.stack(windows).mean(0)
    if normalized:
        expected = F.normalize(expected, dim=0)
    embedder = Embedder(model, max_length=18, long_documents="window", batch_tokens=70)
    got = embedder.encode([short, long, short])
    np.testing.assert_allclose(got[1], expected, atol=1e-5)
    np.testing.assert_allclose(got[[0, 2]], _direct(model, [short, short], length), atol=1e-5)
    report = embedder.report
    assert (report.tokens, report.cut_texts, report.cut_tokens, report.windows) == (78, 0, 0, 3)


def test_policy_of_a_call_comes_before_the_embedders() -> None:
    embedder = Embedder(_model(), long_documents="error")
    text = text_of(100)
    embedder.encode(text, long_documents="window")
    assert embedder.report.windows == 2
    with pytest.raises(ValueError, match="expected at most 64"):
        embedder.encode(text)


# ---- Spans ---------------------------------------------------------------------------------------

MIXED = "Café déjà vu,  日本語 İstanbul ﬁne e\u0301te\u0301 😀 naïve."
TOKENS_OF = {  # worked out by hand from the vocabulary
    "Café": ["cafe"],
    "déjà": ["de", "##ja"],
    "é": ["cafe"],  # the first one
    "jà vu": ["##ja", "vu"],
    ",  日": [",", "日"],
    "日本語": ["日", "本", "語"],
    "本": ["本"],
    "İstanbul ﬁ": ["istanbul", "ﬁ"],
    "e\u0301t": ["et"],
    "naïve.": ["naive", "."],
    MIXED: None,
}


def _span_head(model, states: torch.Tensor) -> torch.Tensor:
    pooled = states.mean(0)
    if not model.config.use_cls_token:
        dense = model.bert.pooler.dense
        pooled = torch.tanh(dense.weight @ pooled + dense.bias)
    return F.normalize(pooled, dim=0) if model.config.use_normalized_embeddings else pooled


@pytest.mark.parametrize("padding", ["max_length", "invariant"])
@pytest.mark.parametrize(
    "overrides",
    [{}, {"use_cls_token": True}, {"use_normalized_embeddings": True}, {"pool_all": True}],
    ids=str,
)
def test_spans_are_pooled_states_of_their_tokens(overrides, padding: str) -> None:
    model = _model(padding, **overrides)
    content = _content(MIXED)
    tokens = TOKENIZER.convert_ids_to_tokens(content)
    length = LONGEST if padding == "max_length" else None
    with torch.no_grad():
        states = _outputs(model, content, length).last_hidden_state[0, 1 : 1 + len(content)]
        expected = []
        for part in TOKENS_OF.values():
            wanted = tokens if part is None else part
            starts = [i for i in range(len(tokens)) if tokens[i : i + len(wanted)] == wanted]
            assert len(starts) == 1
            span = states[starts[0] : starts[0] + len(wanted)]
            expected.append(_span_head(model, span))
    spans = [(MIXED.index(part), MIXED.index(part) + len(part)) for part in TOKENS_OF]
    got = Embedder(model).encode_spans(MIXED, spans)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("padding", ["max_length", "invariant"])
def test_spans_of_a_long_text_take_states_far_from_the_edges(padding: str) -> None:
    model = _model(padding)
    text = text_of(40, seed=2)
    content = _content(text)
    length = LONGEST if padding == "max_length" else None
    states = torch.empty(40, 32)
    # Windows (0, 16), (14, 30), (24, 40): each gives way in the middle of what two share.
    for start, first, last in ((0, 0, 15), (14, 15, 27), (24, 27, 40)):
        window = _outputs(model, content[start : start + 16], length).last_hidden_state[0]
        states[first:last] = window[1 + first - start : 1 + last - start]
    offsets = TOKENIZER(text, return_offsets_mapping=True)["offset_mapping"][1:-1]
    ranges = [(0, 1), (0, 40), (13, 17), (15, 27), (20, 31), (27, 28), (39, 40)]
    spans = [(offsets[a][0], offsets[b - 1][1]) for a, b in ranges]
    with torch.no_grad():
        expected = torch.stack([_span_head(model, states[a:b]) for a, b in ranges])
    embedder = Embedder(model, max_length=18, long_documents="window", batch_tokens=40)
    np.testing.assert_allclose(embedder.encode_spans(text, spans), expected, atol=1e-5)


@pytest.mark.parametrize("padding", ["max_length", "invariant"])
def test_one_pass_gives_embeddings_and_spans(padding: str) -> None:
    model = _model(padding)
    embedder = Embedder(model)
    texts = [*TEXTS, MIXED, text_of(100)]
    spans = [[(0, 1)] if text else [] for text in texts]
    spans[3] = []
    spans[4] = [(0, len(texts[4])), (5, 20), (3, 9), (5, 20)]
    embeddings = embedder.encode(texts, long_documents="window")
    alone = [
        embedder.encode_spans(text, asked, long_documents="window", normalize=True)
        for text, asked in zip(texts, spans, strict=True)
    ]
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    together, parts = embedder.encode_with_spans(texts, spans, long_documents="window")
    assert sum(calls) == len(texts) + 1  # the last text has two windows
    np.testing.assert_allclose(together, embeddings, atol=1e-5)
    assert [part.shape for part in parts] == [(len(asked), 32) for asked in spans]
    for part, expected in zip(parts, alone, strict=True):
        unit = part / np.linalg.norm(part, axis=1, keepdims=True)
        np.testing.assert_allclose(unit, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "spans", "message"),
    [
        (
            ["ab", "a  b"],
            [[(0, 1)], [(0, 1), (1, 3)]],
            r"texts\[1\]: span 1: got \(1, 3\), without",
        ),
        (["ab"], [[(0, 3)]], r"texts\[0\]: span 0: got \(0, 3\), expected .* <= 2"),
        ([text_of(80)], [[(0, 5), (0, 500)]], r"span 1: .*keeps 62 tokens, up to character \d+"),
        (["ab", "c"], [[(0, 1)]], "spans: got 1 lists, expected one for each text"),
    ],
)
def test_wrong_spans_name_text_and_span(texts, spans, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Embedder(_model()).encode_with_spans(texts, spans)


# ---- The model, its dtype, its mode --------------------------------------------------------------


def test_model_is_used_as_it_is_unless_a_cast_is_asked_for() -> None:
    model = _model()
    assert Embedder(model, dtype="float32", device="cpu").model is model
    before = {name: x.clone() for name, x in model.state_dict().items()}
    embedder = Embedder(model, dtype=torch.bfloat16)
    assert embedder.model is not model
    weights = embedder.model.bert
    assert weights.pooler.dense.weight.dtype == torch.bfloat16
    assert weights.encoder.layer[0].attention.filter_fn.pos_emb.z.dtype == torch.float32
    for name, x in model.state_dict().items():
        torch.testing.assert_close(x, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("padding", ["max_length", "invariant"])
def test_bfloat16_is_near_float32(padding: str) -> None:
    model = _model(padding)
    embedder = Embedder(model, dtype="bfloat16")
    got, (spans,) = embedder.encode_with_spans([TEXTS[1]], [[(0, 30)]])
    expected, (expected_spans,) = Embedder(model).encode_with_spans([TEXTS[1]], [[(0, 30)]])
    for a, b in ((got, expected), (spans, expected_spans)):
        assert a.dtype == np.float32
        cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        assert 0.99 < cosine < 1 - 1e-7


@pytest.mark.parametrize("supported", [True, False])
def test_auto_dtype_asks_the_cpu(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    embedder = Embedder(_model(), dtype="auto")
    assert embedder.model.dtype == (torch.bfloat16 if supported else torch.float32)


def test_model_by_name_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    monkeypatch.setattr(
        "m2_bert.checkpoint.load_model", lambda name: names.append(name) or _model("invariant")
    )
    embedder = Embedder("random:small", device="cpu", dtype="bfloat16")
    assert names == ["random:small"]
    assert embedder.model.dtype == torch.bfloat16
    assert (embedder.max_length, embedder.dimension) == (64, 32)
    assert embedder.device == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta", "cuda:-3", 1.5], ids=str)
@pytest.mark.parametrize("named", [False, True], ids=["model", "name"])
def test_a_device_that_is_not_there_is_named(device, named: bool, monkeypatch) -> None:
    monkeypatch.setattr("m2_bert.checkpoint.load_model", lambda _: pytest.fail("loaded first"))
    with pytest.raises(ValueError, match=f"device: got '{device}', expected one .*: cpu") as caught:
        Embedder("random:small" if named else _model(), device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^device: got 'cuda', expected one .*: cpu$"):
        Embedder(_model(), device="cuda")


def test_dropout_is_off_while_encoding_and_modes_are_restored() -> None:
    model = _model(hidden_dropout_prob=0.5)
    expected = Embedder(model).encode(TEXTS[:3])
    model.train()
    model.bert.encoder.layer[0].eval()
    np.testing.assert_allclose(Embedder(model).encode(TEXTS[:3]), expected, atol=1e-5)
    assert model.training
    assert model.bert.encoder.layer[1].mlp.dropout.training
    assert not any(module.training for module in model.bert.encoder.layer[0].modules())


def test_interrupt_leaves_the_embedder_as_it_was() -> None:
    model = _model().train()
    embedder = Embedder(model)
    embedder.encode("a text")
    report = embedder.report

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedder.encode(TEXTS, progress=interrupt, batch_tokens=64)
    assert model.training
    assert embedder.report is report
    assert embedder.encode(TEXTS).shape == (len(TEXTS), 32)


# ---- Progress and options ------------------------------------------------------------------------


def test_progress_counts_padded_tokens() -> None:
    seen: list[tuple[int, int]] = []
    embedder = Embedder(_model(), batch_tokens=192)
    embedder.encode(TEXTS, progress=lambda *counts: seen.append(counts))
    assert seen == [(done, 640) for done in (0, 192, 384, 576, 640)]


def test_bar_goes_to_standard_error_and_nothing_elsewhere(capsys: pytest.CaptureFixture) -> None:
    embedder = Embedder(_model())
    embedder.encode(TEXTS)
    assert capsys.readouterr() == ("", "")
    embedder.encode(TEXTS, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "100%" in err
    assert "tokens/s" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 65}, "max_length: got 65, expected an integer from 3 to .*=64"),
        ({"max_length": 2}, "max_length: got 2, expected"),
        ({"long_documents": "cut"}, "long_documents: got 'cut', expected one of truncate, error"),
        ({"batch_tokens": 0}, "batch_tokens: got 0, expected a positive integer"),
        ({"dtype": "int8"}, "dtype: got 'int8', expected 'auto' or one of float32"),
    ],
)
def test_wrong_options_are_named(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Embedder(_model(), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"long_documents": ""}, ValueError, "long_documents: got ''"),
        ({"batch_tokens": 0}, ValueError, "batch_tokens: got 0"),
        ({"output": "list"}, ValueError, "output: got 'list', expected one of numpy, torch"),
        ({"progress": "yes"}, TypeError, "progress: got str, expected None"),
    ],
)
def test_wrong_options_of_a_call_are_named(options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        Embedder(_model()).encode("a", **options)


def test_other_models_are_refused() -> None:
    with pytest.raises(
        TypeError, match="model: got M2BertForMaskedLM, expected M2BertForEmbedding"
    ):
        Embedder(M2BertForMaskedLM(small_config()))
    with pytest.raises(ValueError, match="vocab_size: got 100, expected at least 30522"):
        Embedder(small_model(vocab_size=100))


def test_no_warning_when_nothing_is_cut() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Embedder(_model()).encode(TEXTS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_agrees_with_the_cpu() -> None:
    model = _model("invariant")
    spans = [[(0, 4)] if len(text) > 3 else [] for text in TEXTS]
    expected, expected_spans = Embedder(model).encode_with_spans(TEXTS, spans)
    embedder = Embedder(model, device="cuda")
    assert (embedder.device.type, model.device.type) == ("cuda", "cpu")
    got, got_spans = embedder.encode_with_spans(TEXTS, spans)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    for a, b in zip(got_spans, expected_spans, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
