"""The throughput benchmark from text to table, on models of two small layers.

Measurements stay in this process (a fresh one takes seconds to start), but for one. Nothing here
depends on how fast anything is.
"""

import io
import json
from dataclasses import asdict, replace

import pytest
from rich.console import Console

pytest.importorskip("transformers")

import torch

from benchmarks import measurement, report, throughput
from benchmarks.isolation import MeasurementFailed, run_in_subprocess
from benchmarks.measurement import Specification
from benchmarks.schedule import (
    ATTENTION,
    ATTENTION_BF16,
    ATTENTIONS,
    MODELS,
    NATIVE,
    NATIVE_BF16,
    NATIVES,
    REFERENCE,
)
from benchmarks.settings import Settings, parse_arguments

TINY = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
TINY |= {"num_attention_heads": 4}
IDS = [101, *range(2000, 2030), 102]
NATIVE_MISSING = throughput.native_unavailable()


def in_process(task, specification, on_event):
    """As ``run_in_subprocess``, without a process; through JSON, as there."""
    specification = Specification(**json.loads(json.dumps(asdict(specification))))
    if task == "check":
        return measurement.check_native(specification)
    return json.loads(json.dumps(measurement.measure(specification, on_event)))


def pretend(task, specification, on_event):
    """A runner that invents agreeing results at once: for tests of what is made of them."""
    if task == "check":
        errors = {"hidden": 1e-7, "embedding": 1e-7}
        return {
            "ok": True,
            "rule": "",
            "length": len(specification.ids),
            "errors": {"native": errors, "reference": errors},
        }
    on_event({"event": "run"})
    layers, measured = 2, specification.layers_measured
    return {
        "model": specification.model,
        "length": len(specification.ids),
        "layers": layers,
        "layers_measured": measured,
        "parameters": 1,
        "peak_bytes": 2**30,
        "other_load_cores": 0.0,
        "peak_is_lower_bound": measured < layers and specification.model not in ATTENTIONS,
        "first_call_s": 2.0 if specification.full_warmup else None,
        "seconds": [1.0] * specification.repeats,
        "first_layer_seconds": [0.1] * specification.repeats,
        "calls_s": 0.0,
        "attention_kernel": None,
        "samples": {name: [1.0, 2.0] for name in ("first_layer", "hidden", "embedding")},
    }


@pytest.fixture
def settings(tmp_path):
    return Settings(
        lengths=(64, 128),
        repeats=2,
        threads=1,
        output=tmp_path / "result.json",
        overrides=TINY,
    )


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=80)


@pytest.fixture
def all_usable(monkeypatch):
    monkeypatch.setattr(throughput, "native_unavailable", lambda: None)
    monkeypatch.setattr(throughput, "matrix_product_rate", lambda count: 1e11)


def text_of(console):
    return console.file.getvalue()


def cells_of(record):
    return [(row["model"], row["length"]) for row in record["results"]]


def test_on_a_gpu_the_budget_ends_the_run(settings, console, all_usable, monkeypatch):
    """There nothing is extrapolated; what has no time left is named."""
    monkeypatch.setattr(throughput, "cuda_unavailable", lambda: None)
    monkeypatch.setattr(throughput, "describe_gpu", lambda device: {"name": "a test"})
    chosen = replace(settings, device="cuda", dtype="bfloat16", budget_seconds=-1.0)
    record = throughput.run(chosen, runner=pretend, console=console)
    assert record["results"] == []
    assert "m2-native at 64" in record["notes"][-1]
    assert "attention at 128" in record["notes"][-1]


# ---- The whole pipeline --------------------------------------------------------------------------


def test_pipeline(settings, console):
    record = throughput.run(settings, in_process, console)
    models = [model for model in MODELS if model not in NATIVES or NATIVE_MISSING is None]
    assert cells_of(record) == [(model, length) for length in (64, 128) for model in models]
    assert record["complete"]
    assert record["failed"] == []
    assert record["settings"]["lengths"] == (64, 128)
    stored = json.loads(settings.output.read_text())
    assert stored == json.loads(json.dumps(record))
    for row in stored["results"]:
        assert len(row["seconds"]) == 2
        assert row["tokens_per_second"] > 0
        assert row["first_call_ms"] > 0
        assert (row["layers"], row["scaled"]) == (2, False)
        assert row["vs_attention"] > 0
        assert row["vs_attention_bf16"] > 0
        if row["model"] in NATIVES:
            bound = 5e-2 if row["model"] == NATIVE_BF16 else 1e-4
            assert row["error_against_reference"]["first_layer"] <= bound
            assert row["error_bounds"]["first_layer"] == bound
        if row["model"] in ATTENTIONS:
            assert "flash" in row["attention_kernel"]
    keys = {"machine", "versions", "document", "check", "notes", "elapsed_s", "schema"}
    assert keys <= set(stored)
    assert stored["machine"]["torch"] == torch.__version__
    assert "BERT-base sdpa" in text_of(console)
    if settings.output.with_suffix(".png").exists():
        assert settings.output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_measurement_in_its_own_process():
    events = []
    specification = Specification(ATTENTION, IDS, threads=1, repeats=2, overrides=TINY)
    result = run_in_subprocess("measure", specification, events.append)
    assert [event["event"] for event in events] == ["built", "warm", "run", "run", "result"]
    assert result["length"] == len(IDS)
    assert result["peak_bytes"] is None or result["peak_bytes"] > 0


def test_a_failing_process_tells_why():
    wrong = Specification(ATTENTION, IDS, overrides={**TINY, "num_attention_heads": 5})
    with pytest.raises(MeasurementFailed, match="attention heads"):
        run_in_subprocess("measure", wrong, lambda event: None)


@pytest.mark.usefixtures("all_usable")
def test_a_failed_measurement_is_shown_and_the_others_go_on(settings, console):
    def runner(task, specification, on_event):
        if specification.model == REFERENCE:
            raise MeasurementFailed("no memory")
        return pretend(task, specification, on_event)

    record = throughput.run(settings, runner, console)
    assert cells_of(record) == [(m, n) for n in (64, 128) for m in MODELS if m != REFERENCE]
    assert [row["message"] for row in record["failed"]] == ["no memory"] * 2
    assert "FAILED" in text_of(console)
    assert "no memory" in text_of(console)


# ---- No number without a check -------------------------------------------------------------------


@pytest.mark.usefixtures("all_usable")
def test_failing_check_aborts_before_anything_is_measured(settings, console):
    def runner(task, specification, on_event):
        assert task == "check", "measured in spite of the failed check"
        return {**pretend(task, specification, on_event), "ok": False}

    with pytest.raises(throughput.CheckFailed, match="wrong at 128"):
        throughput.run(settings, runner, console)
    assert "tokens/s" not in text_of(console)
    stored = json.loads(settings.output.read_text())
    assert (stored["complete"], stored["results"]) == (False, [])
    assert "wrong" in stored["failure"]


@pytest.mark.usefixtures("all_usable")
@pytest.mark.parametrize("sample", ["first_layer", "hidden", "embedding"])
@pytest.mark.parametrize("damage", [0.0, 1.4, float("nan")], ids=["zeros", "scaled", "nan"])
@pytest.mark.parametrize("model", NATIVES)
def test_differing_results_at_a_measured_length_abort(settings, console, model, sample, damage):
    def runner(task, specification, on_event):
        result = pretend(task, specification, on_event)
        if task == "measure" and (specification.model, result["length"]) == (model, 128):
            values = result["samples"][sample]
            result["samples"][sample] = [damage * value for value in values]
        return result

    with pytest.raises(throughput.CheckFailed, match="differ at 128"):
        throughput.run(settings, runner, console)
    assert "tokens/s" not in text_of(console)
    stored = json.loads(settings.output.read_text())
    assert all(row["model"] not in NATIVES for row in stored["results"])


def test_exit_status(monkeypatch, capsys, settings):
    def fail(settings):
        raise throughput.CheckFailed("it differs")

    monkeypatch.setattr(throughput, "run", fail)
    assert throughput.main([]) == 1
    assert "it differs" in capsys.readouterr().err
    for record, status in (
        ({"interrupted": False, "failed": []}, 0),
        ({"interrupted": False, "failed": [{}]}, 1),
        ({"interrupted": True, "failed": []}, 130),
    ):
        monkeypatch.setattr(throughput, "run", lambda settings, record=record: record)
        assert throughput.main([]) == status


def test_unavailable_native_is_said_and_the_rest_measured(settings, console, monkeypatch):
    monkeypatch.setattr(throughput, "native_unavailable", lambda: "compiled for another planet")
    record = throughput.run(replace(settings, lengths=(64,)), pretend, console)
    assert cells_of(record) == [(REFERENCE, 64), (ATTENTION, 64), (ATTENTION_BF16, 64)]
    assert record["complete"]
    assert "another planet" in record["notes"][0]
    assert "another planet" in text_of(console)


@pytest.mark.usefixtures("all_usable")
@pytest.mark.parametrize(("cores", "said"), [(1.3, True), (0.01, False), (None, False)])
def test_a_busy_machine_is_said(settings, console, cores, said):
    def runner(task, specification, on_event):
        return {**pretend(task, specification, on_event), "other_load_cores": cores}

    throughput.run(settings, runner, console)
    assert ("DISTURBED" in text_of(console)) == said


# ---- Interruption --------------------------------------------------------------------------------


@pytest.mark.usefixtures("all_usable")
def test_interrupted_run_keeps_what_was_measured(settings, console):
    def runner(task, specification, on_event):
        if task == "measure" and len(specification.ids) == 128:
            raise KeyboardInterrupt
        return pretend(task, specification, on_event)

    record = throughput.run(settings, runner, console)
    stored = json.loads(settings.output.read_text())
    assert cells_of(stored) == cells_of(record) == [(model, 64) for model in MODELS]
    assert (stored["complete"], stored["interrupted"]) == (False, True)
    assert "INCOMPLETE" in text_of(console)


# ---- Extrapolation from one layer ----------------------------------------------------------------


@pytest.mark.usefixtures("all_usable")
def test_scaled_rows_are_marked_everywhere(settings, console):
    def runner(task, specification, on_event):
        scaled = specification.model == ATTENTION and len(specification.ids) == 128
        specification = replace(specification, layers_measured=1 if scaled else 2)
        return pretend(task, specification, on_event)

    record = throughput.run(settings, runner, console)
    assert [row["scaled"] for row in record["results"]] == [False] * 8 + [True, False]
    lines = [line for line in text_of(console).splitlines() if "bf16" not in line]
    (row,) = [line for line in lines if "BERT-base sdpa" in line and "128" in line]
    assert "1 layer x 2" in row
    assert "~128" in row
    others = [line for line in lines if "BERT-base sdpa" in line and "128" not in line]
    assert all("~" not in line and "2 layers" in line for line in others)
    assert "extrapolated" in text_of(console)


# ---- Parts ---------------------------------------------------------------------------------------


def test_ratios_are_speeds_at_the_same_length():
    rows = [
        {"model": NATIVE, "length": 64, "tokens_per_second": 300.0},
        {"model": ATTENTION, "length": 64, "tokens_per_second": 100.0},
        {"model": REFERENCE, "length": 128, "tokens_per_second": 50.0},
    ]
    report.add_ratios(rows)
    assert [row["vs_attention"] for row in rows] == [3.0, 1.0, None]
    assert [row["vs_reference"] for row in rows] == [None, None, 1.0]


def test_bfloat16_rows_are_for_float32_runs_on_the_cpu(settings, console, all_usable):
    """In another run every row is bfloat16, under autocast."""
    record = throughput.run(replace(settings, dtype="bfloat16"), pretend, console)
    assert cells_of(record) == [(m, n) for n in (64, 128) for m in (NATIVE, REFERENCE, ATTENTION)]
    for model in (NATIVE_BF16, ATTENTION_BF16):
        built = measurement.build_model(Specification(model, IDS, overrides=TINY))
        assert built.embeddings.word_embeddings.weight.dtype == torch.bfloat16


def test_command_line(tmp_path):
    words = "--lengths 64,32 --models attention --threads 3 --full --dtype bfloat16 --seed 7"
    chosen = parse_arguments([*words.split(), "--repeats", "2", "--output", str(tmp_path)])
    assert chosen.lengths == (64, 32)
    assert chosen.models == (ATTENTION,)
    assert (chosen.threads, chosen.repeats, chosen.seed, chosen.full) == (3, 2, 7, True)
    assert parse_arguments([]) == Settings()


@pytest.mark.parametrize(
    "arguments",
    [["--lengths", "2"], ["--lengths", "x"], ["--models", "gpt"], ["--repeats", "0"]],
    ids=" ".join,
)
def test_wrong_command_line(arguments, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(arguments)
    assert "error:" in capsys.readouterr().err
