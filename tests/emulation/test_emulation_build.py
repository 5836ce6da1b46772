"""Building: what is rebuilt and when, what the compiler says, and what device.cuh compiles to."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.emulation import build as builder
from tests.emulation import cases
from tests.emulation.build import BuildError, build, compiler
from tests.emulation.emulator import Emulator

KERNEL = """
#include "factor.h"
#include "cuda/device.cuh"
static __global__ void scale(float* y) { y[threadIdx.x] *= FACTOR * kFactor; }
extern "C" const char* scale_by(float* y) {
  static const int threads = 32 * int(dim3().x);  // has a guard, which the sanitizer instruments
  return monarch::cuda::device::launch(scale, 1, threads, 0, nullptr, y);
}
"""


@pytest.fixture
def source(tmp_path, kernels):
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "factor.h").write_text("constexpr int kFactor = 2;")
    (tmp_path / "scale.cu").write_text(KERNEL)
    return tmp_path / "scale.cu"


def scaled(library) -> float:
    emulator, y = Emulator(library), np.ones(32, np.float32)
    with emulator:
        emulator.buffer(y, "y")
        assert emulator.call("scale_by", y) == 0
    assert emulator.findings() == []
    assert (y == y[0]).all()
    return y[0]


def test_rebuilds_what_has_changed(source):
    options = {"include": [source.parent / "include"], "defines": {"FACTOR": 3}}
    first = build([source], **options)
    before = first.stat().st_mtime_ns
    assert scaled(first) == 6
    assert build([source], **options) == first
    assert first.stat().st_mtime_ns == before
    (source.parent / "include" / "factor.h").write_text("constexpr int kFactor = 5;")
    second = build([source], **options)
    assert scaled(second) == 15
    third = build([source], include=options["include"], defines={"FACTOR": 4}, flavour="checked")
    assert scaled(third) == 20
    assert Emulator(third).checked
    assert scaled(first) == 6  # each library has an emulator of its own


def test_two_builds_at_once_do_not_disturb_each_other(source):
    options = {"include": [source.parent / "include"], "defines": {"FACTOR": 7}}
    with ThreadPoolExecutor(4) as pool:
        libraries = list(pool.map(lambda _: build([source], **options), range(4)))
    assert len(set(libraries)) == 1
    assert scaled(libraries[0]) == 14


def test_compiler_errors_are_shown(source):
    with pytest.raises(BuildError, match=r"scale\.cu:\d+:\d+: error: .*FACTOR"):
        build([source], include=[source.parent / "include"])


def test_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiler.cache_clear()
    try:
        with pytest.raises(BuildError, match="needs g\\+\\+ 12 or later; there is no 'no-such"):
            compiler()
    finally:
        compiler.cache_clear()


@pytest.mark.parametrize("name", ["primitives", "fragments", "matmul", "exchange"])
def test_wrappers_compile_without_warnings(name, kernels):
    folders = [f"-I{folder}" for folder in builder.INCLUDE]
    command = [compiler(), "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *folders]
    subprocess.run([*command, "-x", "c++", str(cases.KERNELS / f"{name}.cu")], check=True)
