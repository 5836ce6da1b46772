"""Every operator is a named range of torch.profiler, in a trace that Chrome can show; the scripts
that profile and measure on a GPU, as far as they run without one.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from monarch_kernels import fft_conv, filter_spectrum
from monarch_kernels.testing import white

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "benchmarks"

OPERATORS = ("filter_spectrum", "fft_conv_fwd", "fft_conv_bwd")


def work():
    u, k = white(2, 3, 300).requires_grad_(), white(3, 300, seed=1).requires_grad_()
    fft_conv(u, k, backend="native").sum().backward()
    filter_spectrum(k.detach(), length=300, backend="native")


@pytest.fixture
def profile(native_best):
    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return profile


def test_operators_are_ranges(profile):
    counts = {event.key: event.count for event in profile.key_averages()}
    for name in OPERATORS:
        assert counts[f"monarch_kernels::{name}"] == 1


def test_chrome_trace(profile, tmp_path):
    """What docs/profiling.md says: a file for chrome://tracing or ui.perfetto.dev."""
    path = tmp_path / "trace.json"
    profile.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    shown = {event["name"]: event["dur"] for event in events if event.get("ph") == "X"}
    for name in OPERATORS:
        assert shown[f"monarch_kernels::{name}"] > 0


def run(*command, **environment):
    if not SCRIPTS.exists() or shutil.which("bash") is None:
        pytest.skip("needs the source tree and bash")
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


def test_profile_case_writes_a_trace(native_best, tmp_path):
    path = tmp_path / "trace.json"
    shape = ["--device", "cpu", "--length", "64", "--batch", "2", "--channels", "3"]
    command = ["-m", "benchmarks.profile_case", *shape, "--backward", "--trace", path]
    done = run(sys.executable, *command)
    assert done.returncode == 0, done.stderr
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert {"monarch_kernels::fft_conv_fwd", "monarch_kernels::fft_conv_bwd"} <= names


@pytest.mark.parametrize(
    ("tool", "expected"),
    [
        ("nsys", "nsys profile --trace="),
        ("ncu", "--clock-control none"),
        ("sanitizer", "compute-sanitizer --tool racecheck"),
    ],
)
def test_profile_commands(tool, expected):
    done = run("bash", SCRIPTS / "profile.sh", tool, "--dry-run", "--length", "512")
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert "benchmarks.profile_case" in done.stdout
    assert "--length 512" in done.stdout


def test_scripts_explain_themselves():
    for name in ("profile.sh", "on_gpu.sh"):
        done = run("bash", SCRIPTS / name, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(f"Usage: benchmarks/{name}")
        assert run("bash", SCRIPTS / name, "--nonsense").returncode == 2


# A Python that pretends to build, to test and to measure on a GPU.
PRETENDER = """#!/usr/bin/env bash
case "$*" in
  *get_device_capability*) echo 90 ;;
  *CMakeBuild*) echo "for $MONARCH_KERNELS_CUDA_ARCHS" ;;
  "-m pytest"*) echo "one red test"; exit "$RED" ;;
  "-m benchmarks.fft_conv_cuda"*)
    echo "| a row |"
    echo '{"gpu": null, "copy_bytes_per_second": 1e12, "results": []}' >"${@: -1}" ;;
  "-m benchmarks.mixer_conv_cuda"*)
    echo "| another row |"
    echo '{"results": []}' >"${@: -1}" ;;
  "- "*) exec "$REAL" "$@" ;;
  *) echo pretended ;;
esac
"""


@pytest.mark.parametrize("keep_going", [False, True])
@pytest.mark.parametrize("red", [False, True])
def test_on_gpu_from_build_to_table(tmp_path, red, keep_going):
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(PRETENDER)
    python.chmod(0o755)
    environment = {"PYTHON": str(python), "OUT": str(out), "REAL": sys.executable}
    options = ["--keep-going"] if keep_going else []
    done = run("bash", SCRIPTS / "on_gpu.sh", *options, RED=str(int(red)), **environment)
    assert done.returncode == int(red), done.stderr
    assert "for 90" in (out / "on_gpu.log").read_text()
    if red:
        assert "one red test" in done.stdout
        assert "tests failed with status 1" in done.stderr
    if red and not keep_going:
        assert not (out / "on_gpu.json").exists()
        return
    record = json.loads((out / "on_gpu.json").read_text())
    assert record["fft_conv_cuda"]["results"] == record["mixer_conv_cuda"]["results"] == []
    assert "copy 1000 GB/s" in done.stdout
    table = (out / "on_gpu.md").read_text()
    assert "| a row |" in table
    assert "| another row |" in table
    assert len(list(out.iterdir())) <= 8, "more do not come back from a lent machine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would run it all")
def test_on_gpu_stops_without_a_gpu(tmp_path):
    done = run("bash", SCRIPTS / "on_gpu.sh", OUT=str(tmp_path))
    assert done.returncode == 1
    assert "finds no GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []
