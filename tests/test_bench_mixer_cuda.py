"""The GPU benchmark of mixer_conv on the CPU with a clock: what it does, not how fast."""

import json

import pytest
import torch

from benchmarks import gpu_timing, mixer_conv_cuda
from benchmarks.mixer_conv_cuda import Case

pytestmark = pytest.mark.usefixtures("native_best", "one_thread")
CPU = torch.device("cpu")


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_case(dtype, columns, backward):
    case = Case(64, 2, 8, dtype, columns, backward)
    result = mixer_conv_cuda.measure(case, CPU, 1e10, rounds=1)
    json.dumps(result, allow_nan=False)
    assert not result["wrong"], result["contenders"]
    for row in result["contenders"].values():
        assert row["median_s"] > 0
    text = mixer_conv_cuda.row_text(result, 1e-3)
    assert text.count("|") == mixer_conv_cuda.HEADER.splitlines()[0].count("|")
    assert ("forward |" in text) == backward


@pytest.mark.parametrize("factor", [0.0, 1.05, float("nan")])
@pytest.mark.parametrize("backward", [False, True])
def test_no_time_of_a_wrong_result(monkeypatch, factor, backward):
    right = mixer_conv_cuda.mk.mixer_conv

    def wrong(*args, **options):
        return factor * right(*args, **options)

    monkeypatch.setattr(mixer_conv_cuda.mk, "mixer_conv", wrong)
    case = Case(64, 2, 8, backward=backward)
    result = mixer_conv_cuda.measure(case, CPU, 1e10, rounds=1)
    assert "wrong result" in result["contenders"]["native"]["failed"]
    assert result["wrong"]
    assert "wrong result" in mixer_conv_cuda.row_text(result)


def test_goals_and_floors(monkeypatch):
    assert Case(128).floor_bytes == 10 * 64 * 768 * 128
    goals = [Case(length, batch).goal() for length, batch in mixer_conv_cuda.LENGTHS]
    assert goals == [0.75, 0.50, 0.50, 0.45, 0.45, 0.35, 0.35]
    assert Case(128, dtype="float32").goal() is None
    assert len({case.id for case in mixer_conv_cuda.cases()}) == len(list(mixer_conv_cuda.cases()))
    monkeypatch.setattr(mixer_conv_cuda.backends, "cuda_unsupported", lambda: "no GPU (a test)")
    assert mixer_conv_cuda.main([]) == 1


def test_a_run_writes_what_it_could_not_measure(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_timing, "copy_bandwidth", lambda device: 1e10)
    chosen, path = [Case(64, 2, 8), Case(64, 2, 8, backward=True)], tmp_path / "record.json"
    assert len(mixer_conv_cuda.run(chosen, CPU, 1, -1.0, None)["not_measured"]) == 2
    record = mixer_conv_cuda.run(chosen, CPU, 1, 60.0, str(path))
    assert json.loads(path.read_text())["results"] == record["results"]
    assert "of 2.2 forward" in capsys.readouterr().out
