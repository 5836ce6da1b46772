"""The matrix products as nvcc compiles them: operators run from PTX, as in test_fft_conv_ptx.py."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from monarch_kernels.testing.products import FULL, ProductCase, check_product
from tests.emulation import nvcc
from tests.emulation.build import BuildError, build, compiler
from tests.emulation.launching import DeviceLimits
from tests.emulation.products import EmulatedProducts
from tests.emulation.ptx_formats import PtxError
from tests.emulation.ptx_module import PtxModule
from tests.emulation.test_fft_conv_ptx import PtxEmulator

pytestmark = nvcc.needs_nvcc

SHIPPED = 80  # machine code for every GPU is made from this PTX (CMakeLists.txt)
KERNELS = nvcc.ROOT / "tests" / "emulation" / "kernels"
SOURCE = KERNELS / "products_ptx.cu"
# One that a tile of rows fills: glu_mlp is one kernel.
FILLED = DeviceLimits(0, 1, 227 << 10, 1 << 20)
PRODUCTS = {"product_kernel", "slice_sum_kernel"}
STEPS = PRODUCTS | {"gate_kernel", "gate_backward_kernel", "norm_kernel"}
WEIGHTS = ((2, 16, 24),), ((2, 13, 11),), ((4, 8, 8), (8, 4, 4))
CASES = {
    "chunks": ProductCase("block_diagonal", "ptx", (20, 48), WEIGHTS[0], ("bias",)),
    "no_chunks": ProductCase("block_diagonal", "ptx", (9, 22), WEIGHTS[1], ("bias",)),
    "monarch": ProductCase("monarch_matmul", "ptx", (9, 32), WEIGHTS[2]),
    "glu": ProductCase("glu_mlp", "ptx", (10, 64), ((4, 48, 16), (4, 16, 24)), FULL),
    "glu_odd": ProductCase("glu_mlp", "ptx", (5, 21), ((3, 18, 7), (3, 7, 9)), FULL),
}
FLOAT32 = ("no_chunks", "glu_odd")  # the others bfloat16
CASES = {
    name: replace(case, dtype="float32" if name in FLOAT32 else "bfloat16")
    for name, case in CASES.items()
}


@pytest.fixture(scope="module")
def compiled():
    """The library of launchers, and the PTX that ships."""
    try:
        compiler()
    except BuildError as reason:
        pytest.skip(str(reason))
    included = [
        nvcc.ROOT / "csrc" / "cuda" / f"{name}.cu" for name in ("block_diagonal", "glu_mlp")
    ]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in included)).hexdigest()[:16]
    with ThreadPoolExecutor(2) as pool:
        ptx = pool.submit(nvcc.compile_ptx, SOURCE, SHIPPED, (f"-DINCLUDED_{digest}",))
        library = pool.submit(build, [SOURCE, KERNELS / "products_launch.cpp"])
        return library.result(), ptx.result().read_text()


@pytest.fixture(scope="module")
def shipped(compiled):
    return PtxModule(compiled[1])


def check(emulator: PtxEmulator, name: str) -> set[str]:
    """Result and gradients are within the error budget; returns the kernels that ran."""
    case = CASES[name]
    op = EmulatedProducts(emulator, FILLED)
    check_product(getattr(op, case.operator), case)
    return {re.search(r"[a-z_]+_kernel(?=[EI])", kernel)[0] for kernel in emulator.launched}


@pytest.mark.parametrize("name", CASES)
def test_operator(compiled, shipped, name):
    launched = check(PtxEmulator(compiled[0], shipped), name)
    fused = STEPS - {"gate_kernel"} | {"glu_kernel"}
    with_bias = PRODUCTS | {"column_sum_kernel"}
    expected = {"monarch": PRODUCTS, "glu": fused, "glu_odd": STEPS}
    assert launched == expected.get(name, with_bias)


# A case, a kernel, and what of its text to replace once.
PLANTED = {
    "fma: a sum": (
        *("no_chunks", r"14product_kernelIfLb0ELb0"),
        *(r"(fma\.rn\.f32\s+\S+ \S+ \S+) (\S+);", r"\1 0f3F800000;"),
    ),
    "matrix load: not transposed": (
        *("chunks", r"14product_kernel\w*BFloat16ELb1ELb1"),
        *(r"x4\.trans\.shared", "x4.shared"),
    ),
    "gelu: no power": (
        *("glu", r"10glu_kernel\w*BFloat16"),
        *(r"ex2\.approx\.ftz\.f32\s+(\S+) (\S+);", r"mov.f32 \1 \2;"),
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_found(compiled, shipped, bug):
    library, text = compiled
    name, kernel, pattern, replacement = PLANTED[bug]
    found = re.findall(rf"\.entry \w*{kernel}\w*\(.*?^\}}", text, re.DOTALL | re.MULTILINE)
    assert len(found) == 1
    after = re.sub(pattern, replacement, found[0], count=1)
    assert after != found[0], "the pattern fits nothing: the compiler writes it differently now"
    variables = text[: text.index(".entry")].removesuffix(".visible ")
    emulator = PtxEmulator(library, shipped, PtxModule(f"{variables}\n{after}\n"))
    with pytest.raises((PtxError, AssertionError)):
        check(emulator, name)
