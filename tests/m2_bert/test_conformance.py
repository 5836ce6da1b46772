"""The model against intermediates, outputs and gradients recorded from the original implementation.

The fixture holds a small model (two layers, width 48, length 32) with its weights, one batch and
everything computed from it. Errors are relative in the Euclidean norm over a whole tensor:
||got - want|| / ||want||.
"""

import json
from pathlib import Path

import pytest
import torch
from m2_bert import M2BertConfig, M2BertForEmbedding, M2BertForMaskedLM
from safetensors import safe_open

from monarch_kernels import backends

FIXTURE = Path(__file__).parents[1] / "fixtures" / "m2_bert_reference_l32.safetensors"
VALUE_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    with safe_open(FIXTURE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def metadata() -> dict[str, dict]:
    with safe_open(FIXTURE, "pt") as file:
        return {name: json.loads(text) for name, text in file.metadata().items()}


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = backends.status()[request.param]
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture
def config(metadata: dict[str, dict]) -> M2BertConfig:
    # A property of every transformers configuration, not a field.
    return M2BertConfig(**{k: v for k, v in metadata["config"].items() if k != "use_return_dict"})


@pytest.fixture
def embedder(reference, config, backend) -> M2BertForEmbedding:
    model = M2BertForEmbedding(config).set_backend(backend).eval()
    model.load_state_dict(_group(reference, "state_dict/"))
    return model


@pytest.fixture
def language_model(reference, config, backend) -> M2BertForMaskedLM:
    model = M2BertForMaskedLM(config).set_backend(backend).eval()
    model.load_state_dict(_group(reference, "mlm_state_dict/"))
    return model


def _group(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _assert_close(got: torch.Tensor, want: torch.Tensor, name: str, tolerance: float) -> None:
    assert got.shape == want.shape, name
    assert want.norm() > 0, f"{name}: an all-zero expectation checks nothing"
    error = ((got - want).norm() / want.norm()).item()
    assert error <= tolerance, f"{name}: relative error {error:.2e}, allowed {tolerance:.0e}"


def _intermediates(model: M2BertForEmbedding, reference: dict) -> dict[str, torch.Tensor]:
    """Compute everything recorded for the embedding model, under the recorded names."""
    got: dict[str, torch.Tensor] = {}

    def keep(name: str, transposed: bool = False):
        def hook(module, inputs, output):
            got.setdefault(name, output.mT if transposed else output)  # of the first pass

        return hook

    def keep_input(module, inputs, output):
        got.setdefault("mixer0/input", inputs[0])

    layers = model.bert.encoder.layer
    mixer = layers[0].attention
    mixer.register_forward_hook(keep_input)
    mixer.in_linear.register_forward_hook(keep("mixer0/in_proj", transposed=True))
    mixer.short_filter.register_forward_hook(keep("mixer0/short_conv"))
    mixer.filter_fn2.register_forward_hook(keep("mixer0/residual_conv"))
    for index, layer in enumerate(layers):
        layer.attention.register_forward_hook(keep(f"mixer_outputs/{index}"))

    ids, mask = reference["input_ids"], reference["attention_mask"]
    encoded = model.bert(ids, mask, output_hidden_states=True)
    got["embedding_output"] = encoded.hidden_states[0]
    for index in range(len(layers)):
        got[f"layer_outputs/{index}"] = encoded.hidden_states[index + 1]
    got["last_hidden"], got["pooled"] = encoded.last_hidden_state, encoded.pooler_output
    got["mixer0/k_fwd"], got["mixer0/k_rev"] = mixer.filter_fn.filters(ids.shape[1])
    got["mixer0/k2_fwd"], got["mixer0/k2_rev"] = mixer.filter_fn2.filters(ids.shape[1])
    x1, x2, v = got["mixer0/short_conv"].chunk(3, dim=1)
    got["mixer0/x1"], got["mixer0/x2"], got["mixer0/v"] = x1, x2, v
    got["mixer0/long_conv"] = mixer.filter_fn(v, pregate=x1)  # recorded before the post-gate

    got["sentence_embedding"] = model(ids, mask).sentence_embedding
    model.config.use_normalized_embeddings = True
    got["sentence_embedding_normalized"] = model(ids, mask).sentence_embedding
    model.bert.pooler.pool_all = True
    got["pooled_other"] = model.bert(ids, mask).pooler_output
    model.bert.pooler.pool_all = False
    short = model.bert(ids[:1, : reference["short_last_hidden"].shape[1]])
    got["short_last_hidden"], got["short_pooled"] = short.last_hidden_state, short.pooler_output
    return got


@pytest.mark.parametrize("gradients", [False, True], ids=["cached-filters", "differentiable"])
def test_every_recorded_intermediate(embedder, reference, gradients: bool) -> None:
    with torch.set_grad_enabled(gradients):
        got = _intermediates(embedder, reference)
    for name, tensor in got.items():
        _assert_close(tensor, reference[name], name, VALUE_TOLERANCE)

    elsewhere = {"input_ids", "attention_mask", "grad_loss"}  # inputs; the gradient test
    groups = ("state_dict/", "grads/", "mlm_")
    recorded = {name for name in reference if not name.startswith(groups)} - elsewhere
    assert set(got) == recorded, "the fixture holds something that this test does not compare"


def test_every_recorded_gradient(embedder, reference) -> None:
    """The recorded loss is (1 - cos(e_0, e_1))^2 of the batch's two embeddings."""
    first, second = embedder(reference["input_ids"], reference["attention_mask"])[0]
    loss = (1 - torch.cosine_similarity(first, second, dim=0)) ** 2
    loss.backward()
    _assert_close(loss.detach(), reference["grad_loss"], "grad_loss", VALUE_TOLERANCE)

    want = _group(reference, "grads/")
    got = {name: parameter.grad for name, parameter in embedder.named_parameters()}
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        _assert_close(got[name], gradient, name, GRADIENT_TOLERANCE)


def test_masked_language_model(language_model, reference) -> None:
    ids, mask, labels = (reference[k] for k in ("input_ids", "attention_mask", "mlm_labels"))
    output = language_model(ids, mask, labels=labels)
    _assert_close(output.logits, reference["mlm_logits"], "mlm_logits", VALUE_TOLERANCE)
    _assert_close(output.loss, reference["mlm_loss"], "mlm_loss", VALUE_TOLERANCE)

    labelled = language_model(ids, mask, labels=labels, labelled_only=True)
    assert labelled.logits.shape == ((labels > 0).sum(), output.logits.shape[-1])
    _assert_close(labelled.loss, reference["mlm_loss"], "mlm_loss", VALUE_TOLERANCE)


def test_the_shared_frequency_takes_the_last_of_six_values(embedder, reference) -> None:
    state = _group(reference, "state_dict/")
    prefix = "bert.encoder.layer.0.attention.filter_fn."
    last = state[f"{prefix}implicit_filter_rev.5.freq"] + 1
    embedder.load_state_dict({**state, f"{prefix}implicit_filter_rev.5.freq": last})
    assert torch.equal(embedder.state_dict()[f"{prefix}implicit_filter.1.freq"], last)
