"""`python -m monarch_kernels.info` and the reasons that it shows."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import monarch_kernels
from monarch_kernels import _native, backends, info

BACKENDS = ("native", "triton", "reference", "cuda")


# Runs the module found in the current directory. An editable install would complete a package
# there with the submodules it lacks: its finder is taken out.
RUN_HERE = """
import runpy, sys
sys.meta_path = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
runpy.run_module("monarch_kernels.info", run_name="__main__", alter_sys=True)
"""


def run_info(*arguments: str, cwd: Path | None = None) -> str:
    start = ["-m", "monarch_kernels.info"] if cwd is None else ["-c", RUN_HERE]
    command = [sys.executable, *start, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def bare_package(tmp_path):
    """A directory to run in, whose monarch_kernels has no binary and no build record."""
    source = Path(monarch_kernels.__file__).parent
    ignore = shutil.ignore_patterns("*.so", "_build_info.py", "__pycache__")
    shutil.copytree(source, tmp_path / "monarch_kernels", ignore=ignore)
    return tmp_path


def test_json_is_valid():
    facts = json.loads(run_info("--json"))
    assert set(facts) == {"versions", "platform", "cpu", "build", "cuda", "backends"}
    assert set(BACKENDS) <= set(facts["backends"])
    for state in facts["backends"].values():
        assert state["available"] == (state["reason"] is None)


def test_text_mentions_each_backend_and_reason():
    facts = info.collect()
    lines = info.render(facts).split("backends\n")[1].splitlines()
    for name, state in facts["backends"].items():
        line = next(line for line in lines if line.split()[0] == name)
        assert (state["reason"] or "yes") in line


def test_instruction_set_is_shown():
    if _native.host is None:
        pytest.skip(f"_host is not built: {_native.reason}")
    cpu = info.collect()["cpu"]
    assert cpu["instruction_set"] in cpu["available"]
    assert cpu["instruction_set"] in info.render(info.collect())


def test_missing_binaries_are_explained(bare_package):
    facts = json.loads(run_info("--json", cwd=bare_package))
    assert "not built" in facts["backends"]["native"]["reason"]
    assert facts["backends"]["reference"]["available"]
    assert facts["build"] == {}
    assert "not built" in run_info(cwd=bare_package)


def test_recorded_reason_is_shown(bare_package):
    record = 'native = False\nnative_reason = "installed without native code (a test)"\n'
    (bare_package / "monarch_kernels" / "_build_info.py").write_text(record)
    assert "installed without native code (a test)" in run_info(cwd=bare_package)


def test_broken_binary_is_explained(bare_package):
    (bare_package / "monarch_kernels" / "_C.so").write_bytes(b"not a library")
    reason = json.loads(run_info("--json", cwd=bare_package))["backends"]["native"]["reason"]
    assert reason.startswith("_C.so cannot be loaded:")
    assert "\n" not in reason


def test_old_torch_is_explained(bare_package, monkeypatch):
    (bare_package / "monarch_kernels" / "_C.so").write_bytes(b"never opened")
    monkeypatch.setattr(_native, "_directory", bare_package / "monarch_kernels")
    monkeypatch.setattr(_native.torch, "__version__", "2.9.1+cpu")
    assert _native._load_operators() == "the native libraries need torch >= 2.10, found 2.9.1+cpu"


def test_cuda_reasons(monkeypatch):
    monkeypatch.setattr(_native, "cuda_available", True)
    monkeypatch.setattr(_native, "build", {"cuda_operators": ""})
    assert "no operator of this release" in info._cuda_reason()
    monkeypatch.setattr(_native, "build", {"cuda_operators": "fft_conv"})
    monkeypatch.setattr(info.torch.cuda, "is_available", lambda: False)
    assert info._cuda_reason() == "torch finds no GPU"


def test_gpus_are_listed():
    facts = info.collect()
    facts["cuda"] = {
        **{"runtime": 13000, "driver": 13000, "devices": 2, "architectures": "90-real"},
        "operators": ["fft_conv"],
        "gpus": [
            {"name": "First GPU", "capability": "9.0", "reason": None},
            {"name": "Second GPU", "capability": "7.0", "reason": "older than 8.0"},
        ],
    }
    text = info.render(facts)
    assert "First GPU, 9.0: supported" in text
    assert "Second GPU, 7.0: older than 8.0" in text


def test_cuda_reason_names_what_the_gpus_lack(monkeypatch):
    monkeypatch.setattr(_native, "cuda_available", True)
    monkeypatch.setattr(_native, "build", {"cuda_operators": "fft_conv"})
    monkeypatch.setattr(info.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(info.torch.cuda, "device_count", lambda: 2)
    reasons = {0: "too old", 1: "too old"}
    monkeypatch.setattr(backends, "cuda_unsupported", reasons.get)
    assert info._cuda_reason() == "too old"
    reasons[1] = None
    assert info._cuda_reason() is None
