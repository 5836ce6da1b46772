"""The GPU benchmark from inputs to table, on the CPU with a clock: what it does, not how fast."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import fft_conv_cuda, gpu_timing, measurement, peers
from benchmarks.fft_conv_cuda import Case
from benchmarks.measurement import Specification
from benchmarks.schedule import ATTENTION, NATIVE
from benchmarks.settings import Settings, parse_arguments
from monarch_kernels.testing import white

CPU = torch.device("cpu")
SMALL = {"batch": 2, "channels": 8, "length": 64}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", fft_conv_cuda.KINDS)
def test_a_case(native_best, kind, dtype):
    case = Case(kind, dtype=dtype, **SMALL)
    result = fft_conv_cuda.measure(case, CPU, 1e10, rounds=2)
    json.dumps(result, allow_nan=False)
    rows = result["contenders"]
    assert result["wrong"] == []
    for name in ("torch.fft", "native"):
        assert rows[name]["median_s"] > 0
        assert rows[name]["error"] < fft_conv_cuda.BOUND[getattr(torch, dtype)]
        fraction = case.floor_bytes / 1e10 / rows[name]["median_s"]
        assert rows[name]["fraction_of_copy"] == pytest.approx(fraction)
    assert rows["torch.fft"]["times_torch"] == 1
    text = "\n".join(fft_conv_cuda.row_texts(result))
    columns = fft_conv_cuda.HEADER.splitlines()[0].count("|")
    assert all(line.count("|") == columns for line in text.splitlines())
    assert "native" in text


@pytest.mark.parametrize("factor", [0.0, 1.001, float("nan")])
@pytest.mark.parametrize("kind", ["plain", "gated backward"])
def test_no_time_of_a_wrong_result(native_best, monkeypatch, kind, factor):
    right = fft_conv_cuda.mk.fft_conv
    monkeypatch.setattr(
        fft_conv_cuda.mk, "fft_conv", lambda *args, **options: factor * right(*args, **options)
    )
    result = fft_conv_cuda.measure(Case(kind, **SMALL), CPU, 1e10, rounds=1)
    row = result["contenders"]["native"]
    assert "wrong result" in row["failed"]
    assert "median_s" not in row
    assert "native" in result["wrong"]
    assert any("wrong result" in line for line in fft_conv_cuda.row_texts(result))


def test_a_run_writes_what_it_could_not_measure(native_best, monkeypatch, capsys):
    monkeypatch.setattr(gpu_timing, "copy_bandwidth", lambda device: 1e10)
    chosen = [Case("plain", **SMALL)] * 2
    record = fft_conv_cuda.run(chosen, CPU, rounds=1, budget=-1.0)
    assert record["not_measured"] == [chosen[0].id] * 2
    record = fft_conv_cuda.run(chosen[:1], CPU, rounds=1, budget=60.0)
    assert [r["id"] for r in record["results"]] == [chosen[0].id]
    assert "| plain float32 | 64 | 2 | native |" in capsys.readouterr().out


def test_the_summary_has_a_line_for_each_length(native_best, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_timing, "copy_bandwidth", lambda device: 1e10)
    chosen = [
        Case("plain", **SMALL),
        Case("gated", **SMALL),
        Case("plain", **SMALL | {"length": 96}),
    ]
    path = tmp_path / "record.json"
    record = fft_conv_cuda.run(chosen, CPU, rounds=1, budget=60.0, output=str(path))
    assert json.loads(path.read_text())["results"] == record["results"]
    record["results"][1]["contenders"]["native"] = {"failed": "wrong result"}
    record["results"][1]["wrong"] = ["native"]
    table = [line for line in fft_conv_cuda.summary(record).splitlines() if line.startswith("|")]
    assert table[0] == "| L | B | plain float32 | gated float32 |"
    assert [line.split("|")[1:3] for line in table[2:]] == [[" 64 ", " 2 "], [" 96 ", " 2 "]]
    assert "x" in table[2].split("|")[3]
    assert [line.split("|")[4] for line in table[2:]] == [" FAILED ", " - "]


def test_goals_and_floors():
    case = Case("plain", 256)
    assert case.floor_bytes == 2 * 4 * 64 * 768 * 256
    assert (case.goal(), Case("gated", 2048).goal()) == (0.50, 0.55)
    assert Case("plain", 512).goal() == 0.45
    assert Case("plain", 512, dtype="bfloat16").goal() is None
    assert Case("plain backward", 512).goal() is None
    assert len({case.id for case in fft_conv_cuda.cases()}) == len(list(fft_conv_cuda.cases()))


def test_copy_bandwidth():
    assert gpu_timing.copy_bandwidth(CPU, size=1 << 20, rounds=2) > 0


def test_a_contender_without_memory_is_reported():
    def fails():
        raise RuntimeError("CUDA out of memory")

    def breaks():
        raise RuntimeError("misaligned address\nin a kernel")

    calls = {"a": [fails], "b": [lambda: None], "c": [breaks]}
    found = gpu_timing.time_in_turns(calls, CPU, rounds=1)
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == {"failed": gpu_timing.NO_MEMORY}
    assert found["b"]["median_s"] >= 0
    assert found["c"] == {"failed": "RuntimeError: misaligned address"}


@pytest.mark.parametrize("kind", ["plain", "gated backward"])
def test_a_failure_of_ours_is_wrong_and_ends_nothing(native_best, monkeypatch, kind):
    def fails(*args, **options):
        raise RuntimeError("fft_conv_kernel: too many resources")

    monkeypatch.setattr(fft_conv_cuda.mk, "fft_conv", fails)
    result = fft_conv_cuda.measure(Case(kind, **SMALL), CPU, 1e10, rounds=1)
    assert "native" in result["wrong"]
    assert result["contenders"]["torch.fft"]["median_s"] > 0
    assert any("too many resources" in line for line in fft_conv_cuda.row_texts(result))


def test_peers_that_are_not_installed_say_so():
    problem = peers.Problem(white(1, 2, 256).half(), white(2, 256), None, None)
    for name in ("flashfftconv", "cudnn.ops", "subquadratic_ops_torch.fft_causal_conv1d"):
        try:
            peers._module(name)
        except peers.NotHere:
            continue
        pytest.skip(f"{name} is installed")
    for prepare in peers.PEERS.values():
        with pytest.raises(peers.NotHere, match="not installed"):
            prepare(problem)


def test_without_a_gpu_there_is_nothing_to_measure(monkeypatch, capsys):
    monkeypatch.setattr(fft_conv_cuda.backends, "cuda_unsupported", lambda: "no GPU (a test)")
    assert fft_conv_cuda.main([]) == 1
    assert "no GPU (a test)" in capsys.readouterr().err


# ---- The throughput benchmark on a GPU, as far as it goes without one ----------------------------


def test_throughput_settings_of_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = parse_arguments(["--device", "cuda", "--budget", "90"])
    assert (found.device, found.dtype, found.budget_seconds) == ("cuda", "bfloat16", 90.0)
    assert parse_arguments([]).dtype == "float32"
    assert parse_arguments(["--device", "cuda", "--dtype", "float32"]).dtype == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        parse_arguments(["--device", "cuda"])
    assert "torch finds no GPU" in capsys.readouterr().err
    with pytest.raises(ValueError, match="device: got 'tpu'"):
        Settings(device="tpu")


def test_flash_attention_alone_is_allowed_on_a_gpu():
    on_gpu = Specification(ATTENTION, [1, 2, 3], dtype="bfloat16", device="cuda")
    with measurement._flash_attention(on_gpu):
        assert torch.backends.cuda.flash_sdp_enabled()
        assert not torch.backends.cuda.math_sdp_enabled()
        assert not torch.backends.cuda.mem_efficient_sdp_enabled()
    for other in (replace(on_gpu, device="cpu"), replace(on_gpu, model=NATIVE)):
        with measurement._flash_attention(other):
            assert torch.backends.cuda.math_sdp_enabled()
