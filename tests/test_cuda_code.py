"""The compiled CUDA kernels, checked without a GPU: no spills, registers, work per element.

Read from the package's CUDA library, for each architecture in it. If the package was built
without CUDA, the sources are compiled for one architecture, if there is an nvcc.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import monarch_kernels
from tests.emulation import nvcc, sass
from tests.emulation.ptx_module import demangle
from tests.emulation.sass import KernelCode, Usage

ROOT = nvcc.ROOT
LIBRARY = Path(monarch_kernels.__file__).parent / "_C_cuda.so"
SAMPLES = ROOT / "tests" / "emulation" / "kernels" / "code_samples.cu"
FALLBACK_ARCH = 90
SAMPLE_ARCHS = (80, 90, 120)


@dataclass(frozen=True)
class Budget:
    """What the kernels whose readable name `kernel` (a regular expression) fits may cost."""

    kernel: str
    registers: int = 128  # a thread
    threads: int = 1  # a block
    elements: int = 1  # that a block does in one turn of its longest loop
    instructions: float = math.inf  # in that loop, all threads together, for each element


# The first that fits a kernel holds for it.
BUDGETS: tuple[Budget, ...] = ()
DEFAULT = Budget("")


@dataclass
class Compiled:
    """Everything known of the kernels in one file."""

    usage: dict[tuple[str, str], Usage]  # by (mangled name, architecture)
    codes: list[KernelCode]  # empty if there is no disassembler
    names: dict[str, str]  # readable by mangled


def read(path: Path) -> Compiled:
    usage = sass.read_usage(path)
    names = demangle(sorted({name for name, _ in usage}))
    return Compiled(usage, sass.read_code(path), names)


def compile_sources(sources: list[Path], archs, flags=()) -> Compiled:
    """Compile, then read the machine code, or what ptxas reported if it cannot be read."""
    usage, codes = {}, []
    for source in sources:
        binary = nvcc.compile_binary(source, archs, flags)
        for key, each in binary.resources.items():
            usage[key] = Usage(each.registers, each.stack_bytes, each.spill_bytes)
        if binary.resources and not sass.tools_missing():
            codes += sass.read_code(binary.path)
    return Compiled(usage, codes, demangle(sorted({name for name, _ in usage})))


def budget_of(readable: str, budgets: tuple[Budget, ...]) -> Budget:
    return next((b for b in budgets if re.search(b.kernel, readable)), DEFAULT)


def instructions_per_element(code: KernelCode, budget: Budget) -> float:
    """Return the instructions that a block spends on an element in its longest loop."""
    return code.per_element(budget.threads, budget.elements)


def _short(readable: str) -> str:
    """Return a readable name without its result and parameters, which no message needs."""
    return re.sub(r"\((?!anonymous).*", "", readable).removeprefix("void ")


def violations(compiled: Compiled, budgets: tuple[Budget, ...]) -> list[str]:
    """Return what is wrong with the kernels, one line each."""
    found = []
    for (name, arch), usage in compiled.usage.items():
        readable = compiled.names[name]
        budget = budget_of(readable, budgets)
        if usage.stack_bytes or usage.local_bytes:
            size = usage.stack_bytes + usage.local_bytes
            found.append(f"sm_{arch} {_short(readable)}: {size} bytes of stack or spills")
        if usage.registers > budget.registers:
            limit = f"{usage.registers} registers, at most {budget.registers}"
            found.append(f"sm_{arch} {_short(readable)}: {limit}")
    for code in compiled.codes:
        readable = compiled.names[code.name]
        budget = budget_of(readable, budgets)
        if code.local_accesses:
            accesses = f"{code.local_accesses} accesses of local memory"
            found.append(f"sm_{code.arch} {_short(readable)}: {accesses}")
        cost = instructions_per_element(code, budget)
        if cost > budget.instructions:
            limit = f"{cost:.1f} instructions an element, at most {budget.instructions}"
            found.append(f"sm_{code.arch} {_short(readable)}: {limit}")
    return found


def unused(compiled: Compiled, budgets: tuple[Budget, ...]) -> list[str]:
    """Return the budgets that hold for no kernel: their kernel was renamed, or is gone."""
    used = {budget_of(readable, budgets) for readable in compiled.names.values()}
    return [budget.kernel for budget in budgets if budget not in used]


def summary(lines: list[str]) -> str:
    more = [f"... and {len(lines) - 40} more"] if len(lines) > 40 else []
    return "\n" + "\n".join(lines[:40] + more)


# ---- The package's kernels -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled():
    if LIBRARY.exists():
        if sass.tools_missing():
            pytest.skip(sass.tools_missing())
        return read(LIBRARY)
    if nvcc.nvcc_missing():
        pytest.skip(f"{LIBRARY.name} is not built, and {nvcc.nvcc_missing()}")
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    return compile_sources(sources, (FALLBACK_ARCH,), ['-DMONARCH_CUDA_ARCHS=""'])


def test_kernels_keep_to_their_budgets(compiled):
    if not compiled.usage:
        pytest.skip("there is no CUDA kernel")
    found = violations(compiled, BUDGETS)
    assert not found, summary(found)


def test_every_kernel_was_disassembled(compiled):
    if sass.tools_missing():
        pytest.skip(sass.tools_missing())
    assert {(code.name, code.arch) for code in compiled.codes} == set(compiled.usage)


def test_every_budget_is_of_a_kernel(compiled):
    assert not unused(compiled, BUDGETS)


# ---- The checks themselves, on kernels made for them ---------------------------------------------


@pytest.fixture(scope="module")
def samples():
    if nvcc.nvcc_missing():
        pytest.skip(nvcc.nvcc_missing())
    if sass.tools_missing():
        pytest.skip(sass.tools_missing())
    return compile_sources([SAMPLES], SAMPLE_ARCHS)


def test_only_the_faulty_sample_is_reported(samples):
    assert len(samples.usage) == len(samples.codes) == 4 * len(SAMPLE_ARCHS)
    found = violations(samples, ())
    assert {line.split()[1] for line in found} == {"indexed:"}
    for arch in SAMPLE_ARCHS:
        assert f"sm_{arch} indexed: 128 bytes of stack or spills" in found
        assert any(
            re.fullmatch(rf"sm_{arch} indexed: \d+ accesses of local memory", f) for f in found
        )


def test_usage_in_the_file_is_that_of_ptxas(samples):
    binary = nvcc.compile_binary(SAMPLES, SAMPLE_ARCHS)
    in_file = {key: (u.registers, u.stack_bytes) for key, u in sass.read_usage(binary.path).items()}
    assert in_file == {key: (u.registers, u.stack_bytes) for key, u in samples.usage.items()}


def test_spills_are_reported():
    if nvcc.nvcc_missing():
        pytest.skip(nvcc.nvcc_missing())
    found = violations(compile_sources([SAMPLES], (90,), ["-maxrregcount=32"]), ())
    assert any(re.match(r"sm_90 crowded: \d+ bytes of stack or spills", line) for line in found)
    if not sass.tools_missing():
        assert any(re.match(r"sm_90 crowded: \d+ accesses of local", line) for line in found)
    binary = nvcc.compile_binary(SAMPLES, (90,), ["-maxrregcount=32"])
    assert binary.resources["crowded", "90"].spill_bytes > 0


def test_registers_above_the_ceiling_are_reported(samples):
    found = violations(samples, (Budget("crowded", registers=40), Budget("indexed", registers=8)))
    for arch in SAMPLE_ARCHS:
        registers = samples.usage["crowded", str(arch)].registers
        assert f"sm_{arch} crowded: {registers} registers, at most 40" in found
    assert not [line for line in found if "straight" in line or "counted_loop" in line]


def test_loop_is_counted(samples):
    codes = {code.arch: code for code in samples.codes if code.name == "counted_loop"}
    for arch, code in codes.items():
        assert code.loop_opcodes["FFMA"] == 64, arch
        assert 64 + 4 <= code.loop_instructions <= 64 + 16
        assert code.loop_instructions < code.instructions
    straight = next(code for code in samples.codes if code.name == "straight")
    assert straight.loop_instructions == straight.instructions


def test_too_many_instructions_are_reported(samples):
    # 128 threads, of which each does 1 of 128 elements in a turn.
    loop = Budget("counted_loop", threads=128, elements=128)
    code = next(code for code in samples.codes if code.name == "counted_loop")
    cost = instructions_per_element(code, loop)
    assert cost == code.loop_instructions
    assert instructions_per_element(code, Budget("", threads=128, elements=512)) == cost / 4

    def reported(instructions):
        budget = Budget("counted_loop", threads=128, elements=128, instructions=instructions)
        return [line for line in violations(samples, (budget,)) if "instructions an" in line]

    assert len(reported(60)) == len(SAMPLE_ARCHS)
    assert not reported(90)


def test_a_budget_for_no_kernel_is_reported(samples):
    assert unused(samples, (Budget("straight"), Budget("gone"))) == ["gone"]
    assert unused(samples, (Budget("straight"), Budget("straight", 64))) == ["straight"]


LISTING = """
	.target	sm_90a
	.section	.text._Z6nestedv,"ax",@progbits
.text._Z6nestedv:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   MOV R2, RZ ;
.L_x_2:
        /*0020*/                   FFMA R2, R2, R2, R2 ;
        /*0030*/               @P0 BRA `(.L_x_2) ;
        /*0040*/             @!UP1 STL.64 [R1], R2 ;
        /*0050*/               @P1 BRA `(.L_x_3) ;
        /*0060*/              @!P2 BRA `(.L_x_1) ;
.L_x_3:
        /*0070*/                   EXIT ;
.L_x_4:
        /*0080*/                   BRA `(.L_x_4);
        /*0090*/                   NOP;
        /*00a0*/                   NOP;
	.section	.text._Z5emptyv,"ax",@progbits
        /*0000*/                   EXIT ;
"""


def test_listing_is_read():
    nested, empty = sass.parse_code(LISTING.splitlines())
    assert (nested.name, nested.arch, empty.name, empty.arch) == (
        "_Z6nestedv",
        "90a",
        "_Z5emptyv",
        "90a",
    )
    assert (nested.instructions, nested.loop_instructions, nested.local_accesses) == (9, 6, 1)
    assert nested.loop_opcodes == {"MOV": 1, "FFMA": 1, "BRA": 3, "STL": 1}
    assert (empty.instructions, empty.loop_instructions) == (1, 1)


def test_ptxas_report_is_read():
    text = """ptxas info    : Compiling entry function '_Z1fv' for 'sm_90a'
ptxas info    : Function properties for _Z1fv
    64 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 64 bytes cumulative stack size, 512 bytes smem
"""
    assert nvcc.parse_ptxas(text) == {("_Z1fv", "90a"): nvcc.Resources(255, 64, 20, 512)}
