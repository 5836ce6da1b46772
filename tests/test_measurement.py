"""What the throughput benchmark measures and how it checks it, on models of two small layers."""

from dataclasses import replace

import pytest

pytest.importorskip("transformers")

import torch

from benchmarks import attention, corpus, measurement
from benchmarks.measurement import Specification
from benchmarks.schedule import ATTENTION, NATIVE, REFERENCE
from benchmarks.throughput import native_unavailable

TINY = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
TINY |= {"num_attention_heads": 4}
IDS = [101, *range(2000, 2030), 102]
NATIVE_MISSING = native_unavailable()
needs_native = pytest.mark.skipif(NATIVE_MISSING is not None, reason=str(NATIVE_MISSING))


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_check_accepts_the_native_kernels(dtype):
    check = measurement.check_native(Specification(NATIVE, IDS, dtype=dtype, overrides=TINY))
    assert check["ok"], check
    assert 0 < check["errors"]["reference"]["hidden"] < measurement.ERROR_BOUND[dtype]


@pytest.mark.parametrize(
    "damage",
    [torch.zeros_like, lambda y: 1.001 * y, lambda y: y.roll(1, -1), lambda y: y * float("nan")],
    ids=["zeros", "scaled", "shifted", "nan"],
)
@pytest.mark.parametrize("operator", ["mixer_conv", "glu_mlp"])
def test_the_check_rejects_wrong_kernels(monkeypatch, operator, damage):
    from m2_bert import model as model_file

    def stand_in(name, damaged):
        right = getattr(model_file, name)

        def run(*operands, backend, **options):
            # The kernels need not be there: the reference stands in, damaged where asked for.
            y = right(*operands, backend="reference", **options)
            return damage(y) if damaged and backend == "native" else y

        monkeypatch.setattr(model_file, name, run)

    for name in ("filter_spectrum", "mixer_conv", "glu_mlp"):
        stand_in(name, damaged=name == operator)
    assert not measurement.check_native(Specification(NATIVE, IDS, overrides=TINY))["ok"]


@pytest.mark.parametrize("model", [REFERENCE, ATTENTION])
def test_extrapolation_adds_the_first_layers_time(model):
    specification = Specification(
        model, IDS, layers_measured=1, repeats=3, overrides={**TINY, "num_hidden_layers": 4}
    )
    result = measurement.measure(specification)
    assert (result["layers"], result["layers_measured"]) == (4, 1)
    for seconds, layer in zip(result["seconds"], result["first_layer_seconds"], strict=True):
        assert seconds > 4 * layer > 0
    assert result["peak_is_lower_bound"] == (model == REFERENCE)
    whole = measurement.measure(replace(specification, layers_measured=None))
    assert whole["parameters"] == result["parameters"]
    assert set(measurement.compare_samples(whole, result)) == {"first_layer"}
    # Equal seeds, equal weights: the first layer gives the same with or without the others.
    assert measurement.compare_samples(whole, result)["first_layer"] < 1e-6


def test_document_is_real_text_of_the_wanted_length():
    document = corpus.read_document(300)
    ids = document.input_ids[0].tolist()
    assert document.input_ids.shape == (1, 300)
    assert (ids[0], ids[-1]) == (101, 102)
    assert len(set(ids)) > 50
    assert corpus.read_document(100).input_ids[0, :-1].tolist() == ids[:99]


def test_corpus_is_sorted_and_names_what_is_missing(tmp_path):
    (tmp_path / "b.py").write_text("second")
    (tmp_path / "a.py").write_text("first ")
    assert corpus.read_text(9, tmp_path) == "first sec"
    with pytest.raises(ValueError, match="12 characters, 99"):
        corpus.read_text(99, tmp_path)
    with pytest.raises(FileNotFoundError, match="no Python source"):
        corpus.read_text(1, tmp_path / "empty")


def test_baseline_that_does_not_fuse_its_attention_is_refused():
    ids = torch.tensor([IDS])
    fused = attention.build_attention_model(len(IDS), **TINY)
    assert "flash" in attention.verify_fused_attention(fused, ids)
    slow = attention.build_attention_model(len(IDS), attn_implementation="eager", **TINY)
    with pytest.raises(RuntimeError, match="0 calls"):
        attention.verify_fused_attention(slow, ids)
