"""fft_conv as nvcc compiles it: whole operators, run from PTX.

The launchers are the real ones, compiled by g++; only, each launch looks for the kernel of the same
name in the PTX and runs that, on the same memory and with the same parameters. So nothing here
repeats what a kernel's parameters are, and it is an error if nvcc and g++ lay them out differently.
"""

import ctypes
import gc
import hashlib
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_int, c_int64, c_void_p
from dataclasses import replace

import numpy as np
import pytest
import torch

from monarch_kernels.testing import Case, check_fft_conv, evaluate, make_inputs
from tests.emulation import nvcc
from tests.emulation.build import BuildError, build, compiler
from tests.emulation.emulator import Emulator
from tests.emulation.fft_conv import EmulatedFftConv
from tests.emulation.launching import SMALL, DeviceLimits
from tests.emulation.ptx_formats import PtxError
from tests.emulation.ptx_module import PtxModule

pytestmark = nvcc.needs_nvcc

ARCHS = (80, 86, 89, 90, 100, 120)
SHIPPED = 80  # machine code for all of them is made from this PTX (CMakeLists.txt)
KERNELS = nvcc.ROOT / "tests" / "emulation" / "kernels"
SOURCE = KERNELS / "fft_conv_ptx.cu"
RUNNER = ctypes.CFUNCTYPE(
    *(None, c_void_p, c_int64, c_int64, c_int64, POINTER(c_void_p), POINTER(c_int64), c_int)
)


class PtxEmulator(Emulator):
    """An emulator whose kernels are those of a PTX module. `launched` has the names of all run.

    `instead`: a module with a few of the kernels, which are then taken from there.
    """

    def __init__(self, library, module: PtxModule, instead: PtxModule | None = None) -> None:
        super().__init__(library)
        self.module, self.instead, self.launched = module, instead, set()
        self.error: Exception | None = None
        self._arrays: list[np.ndarray] = []
        self._symbols = _symbols(library)
        known = ctypes.cast(self.library.run_kernels_by, c_void_p).value
        self._base = known - self._symbols["run_kernels_by"]
        self._names = {address: name for name, address in self._symbols.items()}
        self._runner = RUNNER(self._launch)

    def __enter__(self):
        self._arrays.clear()
        self.error = None
        self.library.run_kernels_by(self._runner)
        return super().__enter__()

    def __exit__(self, *exception) -> None:
        self.library.run_kernels_by(None)
        super().__exit__(*exception)
        if self.error is not None:
            raise self.error

    def buffer(self, array, name, *, readonly=False, uninitialised=False):
        address = super().buffer(array, name, readonly=readonly, uninitialised=uninitialised)
        size = array.numel() * array.element_size()
        memory = np.frombuffer((ctypes.c_uint8 * size).from_address(address.value), np.uint8)
        memory.flags.writeable = not readonly
        self._arrays.append(memory)
        return address

    def _launch(self, kernel, grid, block, shared, parameters, sizes, count) -> None:
        """Run one kernel; what goes wrong is kept, since no exception gets through C++."""
        if self.error is not None:
            return
        try:
            name = self._ptx_name(self._names[kernel - self._base])
            arguments = [ctypes.string_at(parameters[i], sizes[i]) for i in range(count)]
            self.launched.add(name)
            replaced = self.instead is not None and name in self.instead.names
            ptx = (self.instead if replaced else self.module).kernel(name)
            ptx.launch(grid, block, arguments, shared=shared, buffers=self._arrays)
        except Exception as error:
            self.error = error

    def _ptx_name(self, name: str) -> str:
        """The mangled names are the same but for functions that have no linkage."""
        if name in self.module.names:
            return name
        function = re.search(r"[a-z_]+_kernel(?=E)", name)[0]
        found = [each for each in self.module.names if f"{len(function)}{function}E" in each]
        assert len(found) == 1, f"{len(found)} kernels in the PTX are {name}"
        return found[0]


def _symbols(library) -> dict[str, int]:
    done = subprocess.run(["nm", str(library)], capture_output=True, text=True, check=True)
    rows = (line.split() for line in done.stdout.splitlines())
    return {row[2]: int(row[0], 16) for row in rows if len(row) == 3}


# ---- What is compiled ----------------------------------------------------------------------------


def compile_ptx(arch: int, *flags: str) -> str:
    included = [nvcc.ROOT / "csrc" / "cuda" / f"fft_conv{part}.cu" for part in ("", "_backward")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in included)).hexdigest()[:16]
    # compile_ptx knows a result by its headers and flags, and these are no headers.
    return nvcc.compile_ptx(SOURCE, arch, (*flags, f"-DINCLUDED_{digest}")).read_text()


def make_library():
    return build([SOURCE, KERNELS / "fft_conv_launch.cpp"])


@pytest.fixture(scope="module")
def compiled():
    """The library of launchers, the PTX that ships, and that of one plan by architecture."""
    try:
        compiler()
    except BuildError as reason:
        pytest.skip(str(reason))
    known = [arch for arch in ARCHS if str(arch) in nvcc.known_archs()]
    with ThreadPoolExecutor(2) as pool:
        shipped = pool.submit(compile_ptx, SHIPPED)
        library = pool.submit(build, [SOURCE, KERNELS / "fft_conv_launch.cpp"])
        one_plan = {arch: pool.submit(compile_ptx, arch, "-DONE_PLAN") for arch in known}
        ptx = {arch: text.result() for arch, text in one_plan.items()}
        return library.result(), shipped.result(), ptx


@pytest.fixture(autouse=True)
def short_collections():
    """Instructions are many objects that stay: cycles are looked for in those of one test only."""
    gc.freeze()
    gc.disable()
    yield
    gc.collect()
    gc.unfreeze()
    gc.enable()


@pytest.fixture(scope="module")
def library(compiled):
    return compiled[0]


@pytest.fixture(scope="module")
def shipped(compiled):
    return PtxModule(compiled[1])


# ---- Whole operators -----------------------------------------------------------------------------

# A cache of two long rows: rows come in groups, and sums over rows are continued.
TINY_CACHE = DeviceLimits(0, 1, 99 << 10, 32 << 10)
FULL = {"skip": True, "pregate": True, "postgate": True}
# What the lengths choose, of the plans in fft_conv_ptx.cu; in some cases teams have several rows,
# in some none.
CASES = {
    "16_16_gated": Case("ptx", 9, 16, 250, reverse_taps=100, **FULL),
    "16_16_bfloat16": Case("ptx", 3, 2, 256, reverse_taps=256, dtype="bfloat16"),
    "24_16": Case("ptx", 2, 2, 330, reverse_taps=330),
    "24_16_circular": Case("ptx", 2, 2, 380, circular=True, dtype="bfloat16", **FULL),
    "6_16_16": Case("ptx", 3, 10, 1100, reverse_taps=1100, skip=True, postgate=True),
    "6_16_16_bfloat16": Case("ptx", 5, 1, 1536, taps=7, dtype="bfloat16", **FULL),
    "4_long": Case("ptx", 3, 2, 500, reverse_taps=500, **FULL),
    "4_long_circular": Case("ptx", 2, 2, 512, circular=True, dtype="bfloat16", skip=True),
    "8_8_long": Case("ptx", 2, 1, 7000, reverse_taps=70, pregate=True),
    "8_8_long_bfloat16": Case("ptx", 1, 2, 8192, reverse_taps=8192, dtype="bfloat16", **FULL),
}
IN_BLOCKS = {"twiddle_kernel", "filter_spectrum_kernel", "fft_conv_kernel"}
IN_BLOCKS |= {"fft_conv_backward_kernel", "filter_gradient_kernel", "filter_gradient_taps_kernel"}
LONG = IN_BLOCKS | {"outer_forward_kernel", "outer_inverse_kernel"}


def operator(emulator: Emulator, name: str) -> EmulatedFftConv:
    return EmulatedFftConv(emulator, TINY_CACHE if name.startswith("4_long") else SMALL)


def check(emulator: PtxEmulator, name: str, **changed) -> None:
    """Result and all gradients of a case are within the error budget, and nothing but PTX ran."""
    check_fft_conv(operator(emulator, name), replace(CASES[name], **changed))
    launched = {re.search(r"[a-z_]+_kernel(?=[EI])", kernel)[0] for kernel in emulator.launched}
    assert launched == (LONG if "long" in name else IN_BLOCKS)


@pytest.mark.parametrize("name", CASES)
def test_operator(library, shipped, name):
    check(PtxEmulator(library, shipped), name)


@pytest.mark.parametrize("arch", ARCHS)
def test_operator_of_each_architecture(compiled, arch):
    library, _, ptx = compiled
    if arch not in ptx:
        pytest.skip(f"this nvcc does not know sm_{arch}")
    module = PtxModule(ptx[arch])
    for name in ("24_16", "24_16_circular"):
        check(PtxEmulator(library, module), name, dtype="float16")


@pytest.mark.parametrize("name", ["16_16_gated", "24_16_circular", "6_16_16", "4_long"])
def test_as_in_the_source_emulator(library, shipped, name):
    """The same but for sums of two products, of which either may be the one that is not rounded."""
    case, inputs = CASES[name], make_inputs(CASES[name])
    emulators = PtxEmulator(library, shipped), Emulator(library)
    found, expected = (
        evaluate(operator(each, name), inputs, circular=case.circular) for each in emulators
    )
    for result, actual in found.items():
        if result == "dskip":  # too few numbers; as dk, it is from the filter's gradient
            continue
        if actual.dtype == torch.float32:
            error = (actual - expected[result]).norm() / expected[result].norm()
            assert error < 2**-21, result
        else:  # near a tie, the next number
            assert (actual != expected[result]).float().mean() < 0.01, result
            assert (actual - expected[result]).abs().max() < expected[result].abs().max() / 64


@pytest.mark.parametrize("name", ["16_16_gated", "24_16", "6_16_16"])
def test_spectra_as_in_the_source_emulator(library, shipped, name):
    """Bit by bit: every fused operation of a transform is written as one."""
    case, inputs = CASES[name], make_inputs(CASES[name])
    filters = (inputs[each] for each in ("k", "k_rev", "skip"))
    arguments = (*filters, case.length, case.circular)
    emulators = PtxEmulator(library, shipped), Emulator(library)
    found, expected = (operator(each, name).spectrum(*arguments) for each in emulators)
    assert torch.equal(found.isnan(), expected.isnan())  # what no plan of this size uses
    # What rounding left of a twiddle has the last bits of a sine in double precision, and makes up
    # for the twiddle where that was rounded the other way.
    different = (found - expected).abs() > 2**-50
    assert different.sum() <= 8, "more than sines that may be rounded either way"
    torch.testing.assert_close(found, expected, rtol=2**-22, atol=2**-24, equal_nan=True)


# ---- Planted bugs --------------------------------------------------------------------------------


def further(step: int):
    """The offset in an address plus `step`."""
    return lambda match: f"{match[1]}{int(match[2]) + step}]"


FORWARD = r"15fft_conv_kernel\w*Li16ELi16EEEELi16\w*InputIf"
THREE = r"15fft_conv_kernel\w*Li6ELi16ELi16\w*InputIf"
FMA = r"(fma\.rn\.f32\s+\S+ \S+) (\S+), (\S+);"
FIRST_TWO = r"(st\.global\.v4\.f32\s+\S+) \{(\S+), (\S+),"
# What it is: a case, a kernel, what of its text to replace once.
PLANTED = {
    "fma: factor and addend swapped": (
        *("16_16_gated", FORWARD),
        *(FMA, r"\1 \3, \2;"),
    ),
    "fma: a sign": ("6_16_16", THREE, r"neg\.f32", "mov.f32"),
    "a constant, by 2^-11": ("16_16_gated", FORWARD, "0f3F3504F3", "0f3F3514F3"),
    "st.shared: offset": (
        *("16_16_gated", FORWARD, r"(st\.shared\.v2\.f32\s+\[%r\d+\+)(\d+)\]", further(8)),
    ),
    "ld.shared: offset": (
        *("6_16_16", THREE, r"(ld\.shared\.v2\.f32\s+\{\S+ \S+ \[%r\d+\+)(\d+)\]", further(-8)),
    ),
    "ld.shared: real and imaginary swapped": (
        *("6_16_16", THREE, r"(ld\.shared\.v2\.f32\s+)\{(\S+), (\S+)\}", r"\1{\3, \2}"),
    ),
    "bound of a row": ("6_16_16", THREE, r"(setp\.lt\.s32\s+\S+ \S+) 1025;", r"\1 1026;"),
    "strides swapped": ("6_16_16", THREE, r"_param_0\+8\]", "_param_0+16]"),
    "size of a parameter": ("6_16_16", THREE, r"(_param_0)\[(\d+)(?=\])", further(8)),
    "bfloat16 taken for float16": (
        *("24_16_circular", r"15fft_conv_kernel\w*Li24\w*BFloat16"),
        *(r"cvt\.rn\.bf16\.f32", "cvt.rn.f16.f32"),
    ),
    "twiddles: cosine and tangent swapped": (
        *("24_16", "14twiddle_kernel"),
        *(r"(?s).+", lambda match: re.sub(FIRST_TWO, r"\1 {\3, \2,", match[0])),  # in every branch
    ),
    "spectrum: a sign": (*("24_16", r"filter_spectrum\w*Li24", r"(?s)(.*)neg\.f32", r"\1mov.f32"),),
    "backward: offset of what is held": (
        *("24_16", r"backward\w*Li24\w*InputIf", r"(ld(?:\.shared)?\.v4\.f32.*\[%\w+\+)(\d+)\]"),
        further(16),
    ),
    "backward: sum over rows": (
        *(
            "16_16_gated",
            r"backward\w*Li16ELi16EEEELi16\w*InputIf",
            r"(ld\.global\.v4\.f32.*\[%rd\d+\+)(\d+)\]",
        ),
        further(16),
    ),
    "filter gradient: sum": ("24_16", r"filter_gradient_kernel\w*Li24", r"add\.f32", "sub.f32"),
    "taps: sign": ("24_16_circular", "filter_gradient_taps", r"sub\.f32", "add.f32"),
    "outer: fma": ("4_long", r"outer_forward\w*Li4E\w*InputIf", FMA, r"\1 \3, \2;"),
    "outer inverse: sign": (
        "8_8_long",
        r"outer_inverse\w*8ELi8\w*OutputIfLi1",
        r"neg\.f32",
        "mov.f32",
    ),
}


@pytest.mark.parametrize("bug", sorted(PLANTED, key=lambda bug: PLANTED[bug][0]))
def test_planted_bug_is_found(compiled, shipped, bug):
    library, text, _ = compiled
    name, kernel, pattern, replacement = PLANTED[bug]
    found = re.findall(rf"\.entry \w*{kernel}\w*\(.*?^\}}", text, re.DOTALL | re.MULTILINE)
    assert len(found) == 1
    after = re.sub(pattern, replacement, found[0], count=1)
    assert after != found[0], "the pattern fits nothing: the compiler writes it differently now"
    variables = text[: text.index(".entry")].removesuffix(".visible ")
    emulator = PtxEmulator(library, shipped, PtxModule(f"{variables}\n{after}\n"))
    with pytest.raises((PtxError, AssertionError, TypeError)):
        check(emulator, name)
    assert len(emulator.launched & set(emulator.instead.names)) == 1
