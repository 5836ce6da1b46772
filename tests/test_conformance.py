"""The emulator does what a GPU did: tests/fixtures/device_conformance.npz, made by
`python -m tests.emulation.conformance` where there is one.
"""

import ctypes
import re
import subprocess

import numpy as np
import pytest
import torch

from tests.emulation import conformance
from tests.emulation.build import BuildError, build, compiler
from tests.emulation.nvcc import find_nvcc, needs_nvcc

NAMES = re.findall(r'entry<.*>\("(\w+)"\)', conformance.SOURCE.read_text())


@pytest.fixture(scope="module")
def emulated():
    try:
        compiler()
    except BuildError as error:
        pytest.skip(str(error))
    return conformance.Library(ctypes.CDLL(str(build([conformance.SOURCE]))))


@pytest.fixture(scope="module")
def recording():
    if not conformance.RECORDING.exists():
        pytest.skip("no recording: not run on a GPU yet")
    with np.load(conformance.RECORDING) as file:
        return dict(file)


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch finds none")
    if find_nvcc() is None:
        pytest.skip("needs nvcc")
    return conformance.build_for_gpu(tmp_path_factory.mktemp("conformance"))


def given(library, name):
    return conformance.inputs(name, library.words(name)[0])


def test_every_wrapper_has_an_operation(emulated):
    assert list(emulated.operations) == NAMES
    header = (conformance.ROOT / "csrc" / "cuda" / "device.cuh").read_text()
    wrappers = set(re.findall(r"^MONARCH_DEVICE [\w ]+?(\w+)\(", header, re.MULTILINE))
    wrappers |= set(re.findall(r"^MONARCH_MULTIPLY_ACCUMULATE\((\w+)", header, re.MULTILINE))
    assert len(wrappers) > 30, "the pattern no longer finds them"
    source = conformance.SOURCE.read_text()
    # Made of others, a store, or nothing at all.
    elsewhere = {"name", "multiply_accumulate", "store_streaming", "opaque"}
    missing = {name for name in wrappers - elsewhere if not re.search(rf"\b{name}\b", source)}
    assert not missing


def compare_all(library, recorded, has):
    """What differs, over all operations that the GPU has."""
    texts = []
    for name in filter(has, NAMES):
        found = library.run(name, given(library, name))
        texts += conformance.differences(name, found, recorded(name))
    return texts


def test_as_recorded(emulated, recording):
    assert set(NAMES) - set(recording) <= set(conformance.NEEDS)
    assert compare_all(emulated, recording.__getitem__, recording.__contains__) == []


@pytest.mark.gpu
def test_as_the_gpu_here(emulated, on_gpu):
    capability = torch.cuda.get_device_capability()
    texts = compare_all(
        emulated,
        lambda name: on_gpu.run(name, given(emulated, name)),
        lambda name: capability >= conformance.NEEDS.get(name, (8, 0)),
    )
    assert texts == []


# ---- The comparison itself, without a GPU --------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_result_would_be_noticed(emulated, name):
    """The emulator agrees with itself, and not with a result that has one bit changed."""
    found = emulated.run(name, given(emulated, name))
    assert not (found == 0xFFFFFFFF).all(), "nothing was written"
    assert conformance.differences(name, found, found.copy()) == []
    column = 3 if name == "sincospi" else 0  # of the cosine, the word with the exponent
    for row in (3 * len(found) // 8, 5 * len(found) // 8):
        wrong = found.copy()
        wrong[row, column] ^= 0x00408000  # of either half of a pair, of a float, of a word
        assert conformance.differences(name, wrong, found)


def test_numbers_by_hand(emulated):
    """A few results that the formats' definitions fix, so that not all rests on one source."""
    run = emulated.run

    def words(*bits):
        return np.array(bits, np.uint32).reshape(1, -1).repeat(32, 0)

    assert run("to_float_f16", words(0x3C00))[0, 0] == 0x3F800000
    assert run("to_float_bf16", words(0x4040))[0, 0] == 0x40400000
    assert run("pack_f16", words(0x3F800000, 0x40000000))[0, 0] == 0x40003C00
    assert run("pack_bf16", words(0x3F800000, 0x40000000))[0, 0] == 0x40003F80
    assert run("from_float_bf16", words(0x3F808000))[0, 0] == 0x3F80  # a tie, to even
    assert run("from_float_bf16", words(0x3F818000))[0, 0] == 0x3F82
    assert run("to_tf32", words(0x3F801000))[0, 0] & 0xFFFFE000 == 0x3F802000  # a tie, away
    lanes = np.stack([np.arange(32), np.full(32, 1)], 1).astype(np.uint32)
    assert run("shuffle_down", lanes)[:, 3].tolist() == [*range(1, 32), 31]
    assert run("shuffle_up", lanes)[:, 0].tolist() == [
        lane if lane % 4 == 0 else lane - 1 for lane in range(32)
    ]


def test_recording_and_reading(emulated, tmp_path):
    """What a GPU machine does, with the emulator in its place."""
    path = tmp_path / "recording.npz"
    results = conformance.record(emulated, (8, 6))
    assert set(NAMES) - set(results) == set(conformance.NEEDS)
    conformance.write(path, results, "no GPU")
    with np.load(path) as file:
        for name, found in results.items():
            assert np.array_equal(file[name], found)


@needs_nvcc
def test_it_compiles_for_gpus(tmp_path):
    flags = ["-std=c++17", "--expt-relaxed-constexpr", "-c", "-Icsrc"]
    for arch in ("sm_80", "sm_90"):
        command = [find_nvcc(), *flags, f"-arch={arch}", "-o", str(tmp_path / "c.o")]
        done = subprocess.run(
            [*command, str(conformance.SOURCE)],
            capture_output=True,
            text=True,
            cwd=conformance.ROOT,
        )
        assert done.returncode == 0, done.stdout + done.stderr
