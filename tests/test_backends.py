"""Which backend runs, why another does not, and life without the native libraries."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import monarch_kernels
from monarch_kernels import _native, backends, fft_conv, filter_spectrum
from monarch_kernels.testing import white

REASON = "the libraries were left at home"


@pytest.fixture
def without_native(monkeypatch):
    monkeypatch.setattr(_native, "available", False)
    monkeypatch.setattr(_native, "reason", REASON)


def test_status_has_every_backend():
    status = backends.status()
    assert tuple(status) == backends.BACKENDS
    assert status["reference"] is None
    assert (status["native"] is None) == _native.available
    assert status["triton"]


def test_no_preference_takes_the_fastest_that_can(native_best):
    assert backends.select(None, white(1, 1, 4)) == "native"
    assert backends.select(None, white(1, 1, 4).double()) == "reference"


def test_no_preference_without_native(without_native):
    u, k = white(1, 3, 4), white(3, 4)
    assert backends.select(None, u) == "reference"
    assert torch.equal(fft_conv(u, k), fft_conv(u, k, backend="reference"))
    assert filter_spectrum(k, length=4).backend == "reference"


def test_a_request_that_cannot_be_met_says_why(without_native):
    u, k = white(1, 3, 4), white(3, 4)
    message = f"backend 'native' is not available: {REASON}"
    with pytest.raises(RuntimeError, match=message):
        fft_conv(u, k, backend="native")
    with pytest.raises(RuntimeError, match=message):
        filter_spectrum(k, length=4, backend="native")
    assert backends.status()["native"] == REASON


def test_a_spectrum_whose_backend_went_away(native_best, monkeypatch):
    spectrum = filter_spectrum(white(3, 4), length=4, backend="native")
    monkeypatch.setattr(_native, "available", False)
    monkeypatch.setattr(_native, "reason", REASON)
    with pytest.raises(RuntimeError, match=REASON):
        fft_conv(white(1, 3, 4), spectrum)


@pytest.mark.parametrize("name", ["fast", "Native", "", 3, torch.float32], ids=str)
def test_unknown_names(name):
    expected = "backend must be one of native, triton, reference or None, got"
    with pytest.raises(ValueError, match=expected):
        fft_conv(white(1, 3, 4), white(3, 4), backend=name)


def test_triton_says_why_not():
    with pytest.raises(RuntimeError, match=r"backend 'triton' is not available: .*Triton"):
        fft_conv(white(1, 3, 4), white(3, 4), backend="triton")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64], ids=str)
def test_native_dtypes(native_best, dtype):
    reason = backends.unsupported("native", torch.zeros(1, 1, 4, dtype=dtype))
    assert str(dtype) in reason


# ---- Without binaries ----------------------------------------------------------------------------

# Runs what is in the current directory: an editable install would find the binaries elsewhere.
BARE = """
import json, sys
sys.meta_path = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
sys.path.insert(0, "")
import torch
import monarch_kernels
from monarch_kernels import backends, fft_conv, filter_spectrum
from monarch_kernels.testing import CASES, check_fft_conv
case = next(c for c in CASES if c.name == "odd_999")
check_fft_conv(fft_conv, case, own_period=True)
try:
    fft_conv(torch.ones(1, 1, 4), torch.ones(1, 4), backend="native")
except RuntimeError as error:
    refused = str(error)
spectrum = filter_spectrum(torch.ones(1, 4), length=4)
print(json.dumps({
    "file": monarch_kernels.__file__, "status": backends.status(), "refused": refused,
    "spectrum": spectrum.backend, "result": fft_conv(torch.ones(1, 1, 4), spectrum).tolist(),
}))
"""


@pytest.mark.parametrize("broken", [False, True], ids=["no_binary", "damaged_binary"])
def test_works_without_binaries(tmp_path, broken):
    source = Path(monarch_kernels.__file__).parent
    ignored = shutil.ignore_patterns("*.so", "_build_info.py", "__pycache__")
    shutil.copytree(source, tmp_path / "monarch_kernels", ignore=ignored)
    if broken:
        (tmp_path / "monarch_kernels" / "_C.so").write_bytes(b"\x7fELF and then nothing")
    command = [sys.executable, "-c", BARE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["file"]).is_relative_to(tmp_path)
    reason = found["status"]["native"]
    assert ("cannot be loaded" if broken else "not built") in reason
    assert found["refused"] == f"backend 'native' is not available: {reason}"
    assert found["spectrum"] == "reference"
    assert torch.allclose(torch.tensor(found["result"]), torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
