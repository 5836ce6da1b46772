"""The last layer at the first position alone, where only the embedding is asked for."""

import m2_bert.model
import pytest
import torch
from m2_bert import Embedder, M2BertForEmbedding, M2BertModel

from tests.m2_bert.makers import small_config, small_model, text_of

LENGTH = 23  # no multiple of the tile below
VARIANTS = [
    {},
    {"bidirectional": False},
    {"residual_long_conv": False},
    {"hyena_training_additions": True},
    {"use_cls_token": True, "use_normalized_embeddings": True},
    {"use_glu_mlp": False, "use_monarch_mlp": False},
    {"pool_all": True},
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m2_bert.model, "_TILE", 5)


@pytest.fixture
def mixers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each mixer that ran did, in order."""
    ran: list[str] = []
    for name in ("_fused", "_first"):
        whole = getattr(m2_bert.model.SequenceMixer, name)

        def spy(self, *args, name=name, whole=whole):
            ran.append(name)
            return whole(self, *args)

        monkeypatch.setattr(m2_bert.model.SequenceMixer, name, spy)
    return ran


def _inputs(length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 1000, (3, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    return ids, mask


@pytest.mark.parametrize("padding", ["max_length", "invariant"])
@pytest.mark.parametrize("switches", VARIANTS, ids=str)
def test_in_float64_it_is_the_same_number(switches: dict, padding: str) -> None:
    model = small_model(padding=padding, **switches).double()
    ids, mask = _inputs()
    whole, short = model(ids, mask), model(ids, mask, embedding_only=True)
    expected, found = whole.sentence_embedding, short.sentence_embedding
    assert short.last_hidden_state is None
    assert not torch.equal(expected[0], expected[2])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, LENGTH])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_on_every_backend(backend, length: int, mixers) -> None:
    model = small_model().set_backend(backend)
    ids, _ = _inputs(length)
    with torch.no_grad():
        whole, short = model(ids), model(ids, embedding_only=True)
    assert mixers == ["_fused", "_fused", "_fused", "_first"]
    expected, found = whole.sentence_embedding, short.sentence_embedding
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_every_gradient_is_the_same() -> None:
    model = small_model().double().train()
    ids, _ = _inputs()
    gradients = []
    for only in (False, True):
        model.zero_grad()
        model(ids, embedding_only=only).sentence_embedding.square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-8, atol=1e-10, msg=name)


def test_bfloat16_stays_as_close_as_the_whole() -> None:
    model, ids = small_model(), _inputs()[0]
    exact = model.double()(ids).sentence_embedding.float()
    model = model.to(torch.bfloat16)
    cosine = torch.nn.functional.cosine_similarity
    whole = model(ids).sentence_embedding.float()
    short = model(ids, embedding_only=True).sentence_embedding.float()
    assert cosine(short, exact).min() > cosine(whole, exact).min() - 1e-3


def test_the_first_row_is_made_once_and_follows_its_weights(monkeypatch) -> None:
    model, ids = small_model(), _inputs()[0]
    conv = model.bert.encoder.layer[-1].attention.filter_fn
    made: list[int] = []
    filters = conv.filters
    monkeypatch.setattr(conv, "filters", lambda length: made.append(length) or filters(length))
    with torch.no_grad():
        first = model(ids, embedding_only=True).sentence_embedding
        assert torch.equal(model(ids, embedding_only=True).sentence_embedding, first)
        assert made == [LENGTH]
        conv.bias.add_(1)
        changed = model(ids, embedding_only=True).sentence_embedding
        assert made == [LENGTH, LENGTH]
        torch.testing.assert_close(changed, model(ids).sentence_embedding, rtol=0, atol=2e-5)
    assert not torch.allclose(first, changed, atol=1e-4)


@pytest.mark.parametrize("part", ["in_linear", "short_filter", "filter_fn", "out_linear"])
def test_a_part_that_is_watched_runs(part: str, mixers) -> None:
    model, ids = small_model(), _inputs()[0]
    seen: list[int] = []
    mixer = model.bert.encoder.layer[-1].attention
    getattr(mixer, part).register_forward_hook(lambda *_: seen.append(1))
    short = model(ids, embedding_only=True).sentence_embedding
    assert (seen, mixers) == ([1], ["_fused"])
    torch.testing.assert_close(short, model(ids).sentence_embedding, rtol=0, atol=2e-5)


def test_the_embedder_asks_for_no_more_than_it_returns(mixers) -> None:
    embedder = Embedder(small_model())
    text = text_of(30)
    alone = embedder.encode(text)
    assert mixers == ["_fused", "_first"]
    beside, _ = embedder.encode_with_spans([text], [[(0, 5)]])
    assert mixers[2:] == ["_fused", "_fused"]
    torch.testing.assert_close(torch.from_numpy(alone), torch.from_numpy(beside[0]))


def test_the_mean_needs_every_position(mixers) -> None:
    model = small_model(pool_all=True)
    model(_inputs()[0], embedding_only=True)
    assert mixers == ["_fused", "_fused"]
    with pytest.raises(ValueError, match="first_only: the pooler"):
        model.bert(_inputs()[0], first_only=True)


def test_embed_is_the_pooled_output() -> None:
    model, (ids, mask) = small_model().bert, _inputs()
    output = model.embed(ids, mask)
    assert output.last_hidden_state.shape == (3, 1, model.config.hidden_size)
    expected = model(ids, mask).pooler_output
    torch.testing.assert_close(output.pooler_output, expected, rtol=0, atol=2e-5)
    bare = M2BertModel(small_config(), add_pooling_layer=False).eval()
    assert bare.embed(ids, mask).pooler_output is None


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_with_gradient_checkpointing() -> None:
    model, ids = small_model().train(), _inputs()[0]
    model.gradient_checkpointing_enable()
    model(ids, embedding_only=True).sentence_embedding.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert isinstance(model, M2BertForEmbedding)


def test_one_graph_serves_every_length() -> None:
    model, graphs = small_model(), []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=count)
    with torch.no_grad():
        for length in (11, 23, 40, 57):
            ids, _ = _inputs(length)
            found = compiled(ids, embedding_only=True).sentence_embedding
            expected = model(ids, embedding_only=True).sentence_embedding
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    torch._dynamo.reset()
    assert len(graphs) == 1
