"""What is built: the binaries, the header they stand on, and the choices setup.py makes."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import monarch_kernels
from monarch_kernels import _native

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(monarch_kernels.__file__).parent
HEADER = ROOT / "csrc" / "torch" / "stable_abi.h"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")

# The system libraries that manylinux takes for granted.
SYSTEM_LIBRARIES = {
    *("libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0"),
    *("libgcc_s.so.1", "libstdc++.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
}
EXPECTED_LIBRARIES = {
    "libmonarch_core.so": set(),
    "_C.so": {"libmonarch_core.so", "libtorch_cpu.so"},
    "_C_cuda.so": {"libtorch_cpu.so", "libtorch_cuda.so"},
    "_host": {"libmonarch_core.so"},
}


def run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def binary(name: str) -> Path:
    """Return the built library of this name; skip the test if there is none."""
    found = sorted(PACKAGE.glob("_host*.so" if name == "_host" else name))
    if not found:
        pytest.skip(f"{name} is not built: {_native.reason or _native.cuda_reason}")
    return found[0]


def needs(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} (binutils) is not installed")
    return path


def undefined_symbols(path: Path) -> set[str]:
    lines = run(needs("nm"), "-D", "--undefined-only", path).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines}


def declared_functions(library: str = "CPU|CUDA") -> set[str]:
    text = HEADER.read_text()
    declaration = rf"^MONARCH_TORCH_(?:{library}) \w+ (\w+)\("
    return set(re.findall(declaration, text, flags=re.MULTILINE))


# ---- The binaries --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPECTED_LIBRARIES)
def test_needs_only_expected_libraries(name):
    text = run(needs("readelf"), "--dynamic", "--wide", binary(name))
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", text))
    assert needed - SYSTEM_LIBRARIES == EXPECTED_LIBRARIES[name]


@pytest.mark.parametrize("name", EXPECTED_LIBRARIES)
def test_finds_its_neighbours_by_relative_path(name):
    text = run(needs("readelf"), "--dynamic", "--wide", binary(name))
    assert re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", text) == ["$ORIGIN"]


@pytest.mark.parametrize("name", ["_C.so", "_C_cuda.so"])
def test_uses_only_declared_torch_functions(name):
    symbols = undefined_symbols(binary(name))
    from_torch = {symbol for symbol in symbols if re.match(r"(aoti_)?torch_", symbol)}
    needed = from_torch - declared_functions("OPTIONAL")
    assert needed  # an operator library that calls nothing registers nothing
    assert needed <= declared_functions("CPU|CUDA" if "cuda" in name else "CPU")


def test_an_old_torch_may_lack_what_is_optional():
    """Weak and undefined: null where torch does not have it, instead of a failed import."""
    lines = run(needs("nm"), "-D", "--undefined-only", binary("_C.so")).splitlines()
    weak = {line.split()[-1].split("@")[0] for line in lines if " w " in line}
    assert declared_functions("OPTIONAL") == {"torch_from_blob"} <= weak


def test_needs_one_function_of_cuda_torch():
    """Each more is one that an older torch may lack."""
    needed = undefined_symbols(binary("_C_cuda.so")) & declared_functions("CUDA")
    assert needed == {"aoti_torch_get_current_cuda_stream"}


@pytest.mark.parametrize("name", ["libmonarch_core.so", "_C.so", "_C_cuda.so"])
def test_has_no_python_or_torch_cxx_symbols(name):
    symbols = undefined_symbols(binary(name))
    pattern = re.compile(r"_?Py[A-Z_]|_ZN?K?\w*?(2at|3c10|5torch)\d")
    assert not [symbol for symbol in symbols if pattern.match(symbol)]


def test_core_library_does_not_know_torch():
    assert not [s for s in undefined_symbols(binary("libmonarch_core.so")) if "torch" in s]


# Not _C_cuda.so: -lineinfo records the path, with which a profiler finds the source.
@pytest.mark.parametrize("name", ["libmonarch_core.so", "_C.so", "_host"])
def test_binary_does_not_contain_the_source_path(name):
    assert str(ROOT).encode() + b"/csrc" not in binary(name).read_bytes()


def test_instruction_set_switch():
    binary("_host")
    host = _native.host
    names = host.available_isas()
    assert names[0] == "generic"
    before = host.isa()
    try:
        for name in names:
            host.set_isa(name)
            assert host.isa() == name
        with pytest.raises(ValueError, match="unknown instruction set 'sse9'"):
            host.set_isa("sse9")
        for name in {"avx2", "avx512"} - set(names):
            with pytest.raises(RuntimeError, match=name):
                host.set_isa(name)
    finally:
        host.set_isa(before)


def test_transform_size():
    binary("_host")
    assert _native.host.transform_size(1000) >= 1000
    for length in (0, -1, 1 << 60):
        with pytest.raises(ValueError, match=f"length must be from 1 to .*, got {length}"):
            _native.host.transform_size(length)


@pytest.fixture
def libtorch_cuda(tmp_path):
    """A file that stands in for libtorch_cuda.so where this torch has none; else None."""
    if torch.version.cuda is not None:
        return None
    if COMPILER is None:
        pytest.skip("this torch has no CUDA, and there is no compiler to make a stand-in")
    source, library = tmp_path / "stub.c", tmp_path / "libtorch_cuda.so"
    source.write_text(
        "".join(f"int {name}() {{ return 1; }}\n" for name in declared_functions("CUDA"))
    )
    soname = "-Wl,-soname,libtorch_cuda.so"
    run(COMPILER, "-shared", "-fPIC", "-x", "c", source, soname, "-o", library)
    return library


_REGISTERED = {
    "fft_conv": ("filter_spectrum", "fft_conv_fwd", "fft_conv_bwd"),
    "block_diagonal": ("block_diagonal_fwd", "block_diagonal_bwd"),
    "glu_mlp": ("glu_mlp_fwd", "glu_mlp_bwd"),
    "monarch_matmul": ("monarch_matmul_fwd",),
}


def test_cuda_library_answers_without_a_gpu(libtorch_cuda):
    """In a process of its own: this one keeps to what `_native` decided to load."""
    code = f"""
import ctypes, torch
{f"ctypes.CDLL({str(libtorch_cuda)!r})" if libtorch_cuda else ""}
torch.ops.load_library({str(binary("_C_cuda.so"))!r})
library = torch.library.Library("monarch_kernels", "FRAGMENT")
library.define({_native.CUDA_RUNTIME_SCHEMA!r})
runtime, driver, devices, archs = torch.ops.monarch_kernels.cuda_runtime()
assert runtime >= 12040 and driver >= 0 and devices >= 0, (runtime, driver, devices)
for op in {_native.build.get("cuda_operators", "").split()}:
    for name in {_REGISTERED!r}.get(op, ()):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"monarch_kernels::{{name}}", "CUDA")
print(archs)
"""
    code = "import sys; sys.path = [p for p in sys.path if p]\n" + code
    assert run(sys.executable, "-c", code).strip() == _native.build["cuda_archs"]


# ---- csrc/torch/stable_abi.h ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def abi(tmp_path_factory):
    """The operators of abi_headers.cpp, compiled beside the installed torch's headers."""
    if not HEADER.exists():
        pytest.skip("no source tree")
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    torch_directory = Path(torch.__file__).parent
    if not (torch_directory / "include/torch/csrc/stable/c/shim.h").exists():
        pytest.skip("this torch has no headers")
    output = tmp_path_factory.mktemp("abi") / "abi_headers.so"
    run(
        *(COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"),
        f"-isystem{torch_directory / 'include'}",
        ROOT / "tests" / "abi_headers.cpp",
        *(f"-L{torch_directory / 'lib'}", "-ltorch_cpu", "-o", output),
    )
    # Implementations first, schemas after: the order in which the package does it.
    torch.ops.load_library(str(output))
    library = torch.library.Library("monarch_abi_test", "FRAGMENT")
    library.define("scalars(int i, float x, bool flag, int? maybe) -> (int, float, bool, int?)")
    library.define("describe(Tensor x) -> (int, int, int, bool, str)")
    library.define("negate(Tensor x, Tensor? y) -> (Tensor, Tensor?)")
    library.define("empty_as_double(Tensor x) -> Tensor")
    library.define("raise_in_parallel(int items) -> ()")
    library.define("threads() -> int")
    yield torch.ops.monarch_abi_test
    library._destroy()


def test_abi_scalars(abi):
    assert abi.scalars(41, 1.25, True, None) == (42, 2.5, False, None)
    assert abi.scalars(-2, -0.5, False, 7) == (-1, -1.0, True, 7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_abi_tensor_properties(abi, dtype):
    x = torch.zeros(3, 4, 5, dtype=getattr(torch, dtype))
    assert abi.describe(x) == (3, 5, 20, True, dtype)
    assert abi.describe(x.transpose(0, 2)) == (3, 3, 1, False, dtype)


def test_abi_other_dtype(abi):
    assert abi.describe(torch.zeros(1, dtype=torch.int64))[4] == "unsupported dtype"


def test_abi_optional_tensors(abi):
    x, y = torch.randn(40, 30), torch.randn(7, 5)
    first, second = abi.negate(x.t(), None)
    torch.testing.assert_close(first, -x.t(), rtol=0, atol=0)
    assert second is None
    assert first.is_contiguous()
    first, second = abi.negate(x, y[:, ::2])
    torch.testing.assert_close(first, -x, rtol=0, atol=0)
    torch.testing.assert_close(second, -y[:, ::2], rtol=0, atol=0)


def test_abi_empty(abi):
    result = abi.empty_as_double(torch.zeros(1))
    assert result.shape == (2, 0, 3)
    assert result.dtype == torch.float64
    assert abi.negate(torch.zeros(()), torch.zeros(0, 3))[1].shape == (0, 3)


def test_abi_errors_reach_python(abi):
    with pytest.raises(RuntimeError, match="negate: x is float64, expected float32"):
        abi.negate(torch.zeros(3, dtype=torch.float64), None)
    with pytest.raises(RuntimeError, match="raised in a body"):
        abi.raise_in_parallel(64)
    with pytest.raises(RuntimeError, match="dimension -1 of a 0-d tensor"):
        abi.describe(torch.zeros(()))


def test_abi_threads(abi):
    assert abi.threads() == torch.get_num_threads()


# ---- setup.py ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setup_script():
    pytest.importorskip("setuptools")
    path = ROOT / "setup.py"
    if not path.exists():
        pytest.skip("no source tree")
    spec = importlib.util.spec_from_file_location("monarch_setup", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("spec", "archs"),
    [
        ("90", ["90-real"]),
        ("80;90a;120-virtual", ["80-real", "90a-real", "120-virtual"]),
        ("8.0 9.0a+PTX", ["80-real", "90a-real", "90a-virtual"]),
        ("8.6, 12.0+PTX", ["86-real", "120-real", "120-virtual"]),
        ("90;9.0", ["90-real"]),
    ],
)
def test_parse_archs(setup_script, spec, archs):
    assert setup_script.parse_archs(spec) == archs


@pytest.mark.parametrize("spec", ["", "Hopper", "sm_90", "90-ptx"])
def test_parse_archs_rejects(setup_script, spec):
    with pytest.raises(ValueError, match="not a CUDA architecture"):
        setup_script.parse_archs(spec)


def test_archs_of_the_environment(setup_script, monkeypatch):
    monkeypatch.setenv("MONARCH_KERNELS_CUDA_ARCHS", "")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    assert setup_script.cuda_archs("nvcc") == ["80-real", "90-real", "90-virtual"]
    monkeypatch.setenv("MONARCH_KERNELS_CUDA_ARCHS", "100")
    assert setup_script.cuda_archs("nvcc") == ["100-real"]
    monkeypatch.setenv("MONARCH_KERNELS_CUDA_ARCHS", "fast")
    with pytest.raises(SystemExit, match="fast"):
        setup_script.cuda_archs("nvcc")


def test_default_archs_are_those_the_compiler_knows(setup_script, monkeypatch):
    monkeypatch.setenv("MONARCH_KERNELS_CUDA_ARCHS", "all")
    monkeypatch.setattr(setup_script, "output_words", lambda *command: ["sm_80", "sm_90"])
    assert setup_script.cuda_archs("nvcc") == ["80-real", "90-real", "80-virtual"]
    monkeypatch.setattr(setup_script, "output_words", lambda *command: [])
    assert "120-real" in setup_script.cuda_archs("nvcc")


@pytest.mark.parametrize(
    ("text", "value"), [("", "auto"), ("AUTO", "auto"), ("off", "0"), ("1", "1"), ("yes", "1")]
)
def test_switch(setup_script, monkeypatch, text, value):
    monkeypatch.setenv("MONARCH_KERNELS_CUDA", text)
    assert setup_script.switch("MONARCH_KERNELS_CUDA") == value


def test_switch_rejects(setup_script, monkeypatch):
    monkeypatch.setenv("MONARCH_KERNELS_CUDA", "maybe")
    with pytest.raises(SystemExit, match="expected 0, 1 or auto"):
        setup_script.switch("MONARCH_KERNELS_CUDA")


def test_cuda_that_is_asked_for_must_be_there(setup_script, monkeypatch):
    monkeypatch.setattr(setup_script, "find_nvcc", lambda: None)
    monkeypatch.setenv("MONARCH_KERNELS_CUDA", "1")
    with pytest.raises(SystemExit, match="no nvcc was found"):
        setup_script.CMakeBuild.choose_cuda()
    monkeypatch.setenv("MONARCH_KERNELS_CUDA", "auto")
    nvcc, reason = setup_script.CMakeBuild.choose_cuda()
    assert nvcc is None
    assert "no nvcc" in reason


def test_version_is_that_of_the_package():
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("no source tree")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == monarch_kernels.__version__
