"""Which backend runs, why another does not, and life without the native libraries."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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


# ---- CUDA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "archs", "expected"),
    [
        ((9, 0), "90-real", None),
        ((8, 6), "80-real", None),  # of its own generation, and not newer
        ((8, 0), "86-real 90-real", "none of the GPUs it was built for (86-real 90-real)"),
        ((12, 0), "80-real 90-virtual", None),
        ((8, 0), "90-real 90-virtual", "none of the GPUs it was built for"),
        ((9, 0), "90a-real", None),
        ((7, 5), "75-real 75-virtual", "older than 8.0"),
        ((9, 0), "", "none of the GPUs it was built for"),
    ],
)
def test_which_gpus_the_kernels_run_on(capability, archs, expected):
    reason = backends._gpu_unsupported("Test GPU", capability, archs)
    if expected is None:
        assert reason is None
    else:
        assert expected in reason
        assert reason.startswith(f"Test GPU (compute capability {capability[0]}.{capability[1]})")
        assert "\n" not in reason


@pytest.fixture
def fake_cuda():
    with FakeTensorMode():
        yield torch.empty(2, 3, 8, device="cuda")


def test_without_cuda_kernels_a_gpu_has_the_reference(fake_cuda, monkeypatch):
    monkeypatch.setattr(_native, "available", True)
    monkeypatch.setattr(_native, "cuda_available", False)
    monkeypatch.setattr(_native, "cuda_reason", REASON)
    assert backends.select(None, fake_cuda) == "reference"
    with pytest.raises(RuntimeError, match=f"no CUDA kernels here .{REASON}.: use backend="):
        backends.select("native", fake_cuda)


def test_a_build_without_the_operator_says_so(fake_cuda, monkeypatch):
    monkeypatch.setattr(_native, "available", True)
    monkeypatch.setattr(_native, "cuda_available", True)
    monkeypatch.setattr(_native, "build", {"cuda_operators": "another"})
    assert "built without CUDA kernels of fft_conv" in backends.unsupported("native", fake_cuda)


def test_a_gpu_that_can(fake_cuda, monkeypatch):
    """What is found is kept: asking the driver costs as much as a small convolution."""
    asked = []
    monkeypatch.setattr(_native, "available", True)
    monkeypatch.setattr(_native, "cuda_available", True)
    record = {"cuda_operators": "fft_conv", "cuda_archs": "90-real"}
    monkeypatch.setattr(_native, "build", record)
    monkeypatch.setattr(backends, "_gpu_reasons", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: asked.append(index) or "GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    for _ in range(3):
        assert backends.select(None, fake_cuda) == "native"
    assert asked == [0]
    assert backends.select(None, fake_cuda.double()) == "reference"
    monkeypatch.setattr(backends, "_gpu_reasons", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backends.unsupported("native", fake_cuda) == "torch finds no GPU"


def test_the_compiler_takes_the_answer_as_a_constant(monkeypatch):
    """Asking for a GPU's properties would break its graph."""
    assert torch.compiler.assume_constant_result(lambda: None).__dict__.keys() <= (
        backends.cuda_unsupported.__dict__.keys()
    )
    monkeypatch.setattr(_native, "cuda_available", True)

    def function(x):
        return x + 1 if backends.cuda_unsupported(0) else x

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(3)), torch.ones(3))


def test_import_leaves_the_compiler_alone():
    code = "import sys, monarch_kernels; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


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
