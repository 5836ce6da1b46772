"""The compiled CUDA kernels, checked without a GPU: no spills, registers, work per element.

Read from the package's CUDA library, for each architecture in it. If the package was built
without CUDA, the sources are compiled for one architecture, if there is an nvcc.
"""

import itertools
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
    elements: int = 1  # that a thread does in one turn of its longest loop
    instructions: float = math.inf  # for each element, on the shortest way through that loop
    gated: float = math.inf  # and on the shortest way that reads two gates too
    opcode: str = ""  # an instruction that the longest loop must have
    vector: int = 1  # elements that one load brings


# The first that fits a kernel holds for it. Registers are what the launch bounds leave: blocks of
# 512 threads have 128, other large ones 168; a radix of 32 in a kernel that is bound by memory, and
# a backward of small blocks, may have all. So may a radix of 24 or 32 in numbers of two parts
# (wide.cuh), in blocks of at most 256 threads. Instructions: 1.15 times those of a textbook
# transform of 16 * 16 * 16 points in float32 (93.4, with gates 97.7; bfloat16 101.9 with gates). A
# filter's spectrum is made once a channel.
_PLAN_4096 = r"fft_conv_kernel<.*Plan<16, 16, 16>, 256, 0>.*RealInput<"
_ALL_REGISTERS = 255
# Chains of tensor-core products: 1.15 times the instructions of prototypes. Two blocks of 256
# threads fit a multiprocessor with 128 registers, of 128 threads with all.
_CHAIN = r"chain_\w+_kernel<.*ChainPlan<"
BUDGETS: tuple[Budget, ...] = (
    Budget(
        _CHAIN + "1, 32, 128>.*, 1>",
        _ALL_REGISTERS,
        32,
        1.15 * 30.2,
        1.15 * 34.8,
        opcode="HMMA",
        vector=4,
    ),
    Budget(
        _CHAIN + "16, 16, 256>.*, 1>", 128, 16, 1.15 * 32.8, 1.15 * 36.8, opcode="HMMA", vector=4
    ),
    Budget(_CHAIN + ".*Float16, [12]>", _ALL_REGISTERS, opcode="HMMA"),
    Budget(_PLAN_4096 + "float>", 128, 16, 1.15 * 93.4, 1.15 * 97.7),
    Budget(_PLAN_4096, 128, 16, 1.15 * 97.7, 1.15 * 101.9),
    Budget(r"filter_spectrum_kernel<.*Plan<16, 16, 16>", 168, 16, 270),
    Budget(r"filter_\w+_kernel<.*Plan<[^>]*\b(24|32)\b", _ALL_REGISTERS),
    Budget(r"outer_\w+_kernel<.*ColumnShape<.*, true>", _ALL_REGISTERS),
    Budget(r"outer_\w+_kernel<.*Plan<32", _ALL_REGISTERS),
    Budget(r"outer_\w+_kernel<.*Plan<\d+>", 168),
    Budget(r"outer_\w+_kernel<", 128),
    Budget(r"fft_conv_kernel<.*Plan<.*>, 512, 0>", 128),
    Budget(r"fft_conv_backward_kernel<.*Plan<.*>, 512, 0>", 128),
    Budget(r"fft_conv_backward_kernel<.*Plan<\d+, (8|16|32)>, ", _ALL_REGISTERS),
    Budget(r"fft_conv_backward_kernel<", 204),
    Budget(r"mixer_conv_kernel<.*Plan<24, (16|32)>, ", _ALL_REGISTERS),
    Budget(r"Plan<(24|32), (16|32)>, (16|32), 0>", 168),
    Budget(r"fft_conv_kernel<|filter_\w+_kernel<", 168),
    Budget(r"mixer_conv_kernel<.*Plan<\d+, \d+>, ", 168),
    # Three blocks of 128 threads on a multiprocessor, two if an operand is transposed; one of 256.
    Budget(r"product_kernel<\S*Float16, false, false", 168, opcode="HMMA"),
    Budget(r"product_kernel<\S*Float16", _ALL_REGISTERS, opcode="HMMA"),
    Budget(r"product_kernel<float", _ALL_REGISTERS, opcode="FFMA"),
    Budget(r"glu_kernel<", _ALL_REGISTERS, opcode="HMMA"),
    # Blocks of 256 threads, or two of 128: a matrix in registers.
    Budget(r"toeplitz_kernel<", _ALL_REGISTERS),
)


@dataclass(frozen=True)
class Turn:
    """What a sample may cost in kernels on tensor cores whose name fits `kernel`.

    Each warp of a row does so many `products` in a turn for `elements` a thread.
    """

    kernel: str
    products: tuple[int, ...]
    elements: int
    instructions: float


def _toeplitz(gate: int) -> str:
    return (
        rf"toeplitz_kernel<.*ToeplitzPlan<8>, .*BFloat16, \(.*Gate\){gate}, "
        rf"\(.*Gate\){gate}, (false|\(bool\)0), "
    )


# 128 samples: 1.15 times what was counted for a kernel that forms the gated input in 16 bits.
TURNS = (
    Turn(_toeplitz(0), (36 * 4,), 64, 1.15 * 4.7),
    Turn(_toeplitz(0), (64 * 4,), 64, 1.15 * 8.2),
    Turn(_toeplitz(1), (10 * 6, 26 * 6), 32, 1.15 * 10.8),
    Turn(_toeplitz(1), (32 * 6, 32 * 6), 32, 1.15 * 13.8),
)
DEFAULT = Budget("")
# Where instructions of tensor-core kernels are held to their budgets. For 100 and 120 ptxas
# arranges the loops otherwise (sm_120: 1.2 to 1.9 times as many in those of `TURNS`).
COUNTED = (80, 86, 89, 90)


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


def instructions_per_element(code: KernelCode, budget: Budget) -> dict[str, float]:
    """Return what a thread spends on an element in its longest loop: without and with gates."""
    turn = code.shortest_turn()
    costs = {"instructions": turn / budget.elements}
    if budget.gated < math.inf:
        # Of a row without gates, the loads are those of the data, the tables and the spectrum.
        plain = next(n for n in itertools.count(1) if code.shortest_turn(n + 1) > turn)
        loads = plain + 2 * budget.elements // budget.vector
        costs["gated"] = code.shortest_turn(loads) / budget.elements
    return costs


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
        if budget.opcode and not code.loop_opcodes.get(budget.opcode):
            found.append(f"sm_{code.arch} {_short(readable)}: no {budget.opcode} in its loop")
        if budget.instructions == math.inf or (budget.opcode and int(code.arch) not in COUNTED):
            continue
        for name, cost in instructions_per_element(code, budget).items():
            allowed = getattr(budget, name)
            if cost > allowed:
                limit = f"{cost:.1f} {name} an element, at most {allowed:.1f}"
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


def turn_costs(compiled: Compiled, turn: Turn) -> dict[str, float]:
    """Return the instructions a sample of the kernels that a turn is about, by architecture."""
    found = {}
    for code in compiled.codes:
        if re.search(turn.kernel, compiled.names[code.name]):
            turns = [code.shortest_turn(products=products) for products in turn.products]
            found[code.arch] = sum(turns) / len(turns) / turn.elements
    return found


@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: "-".join(map(str, turn.products)))
def test_turns_on_tensor_cores(compiled, turn):
    if sass.tools_missing():
        pytest.skip(sass.tools_missing())
    costs = turn_costs(compiled, turn)
    assert set(costs) == {arch for _, arch in compiled.usage}, "the kernel was renamed, or is gone"
    for arch, cost in costs.items():
        if int(arch) not in COUNTED:
            continue
        assert cost <= turn.instructions, f"sm_{arch}: {cost:.2f} instructions a sample"


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
    code = next(code for code in samples.codes if code.name == "counted_loop")
    cost = instructions_per_element(code, Budget("", elements=2))
    assert cost == {"instructions": code.loop_instructions / 2}

    def reported(instructions):
        budget = Budget("counted_loop", elements=1, instructions=instructions)
        return [line for line in violations(samples, (budget,)) if "instructions an" in line]

    assert len(reported(60)) == len(SAMPLE_ARCHS)
    assert not reported(90)


def test_a_missing_instruction_is_reported(samples):
    found = violations(samples, (Budget("counted_loop", opcode="HMMA"),))
    missing = {line for line in found if "in its loop" in line}
    assert missing == {f"sm_{arch} counted_loop: no HMMA in its loop" for arch in SAMPLE_ARCHS}
    found = violations(samples, (Budget("counted_loop", opcode="FFMA"),))
    assert not [line for line in found if "in its loop" in line]


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


BRANCHES = """
	.target	sm_90
	.section	.text._Z8branchesv,"ax",@progbits
.L_x_1:
        /*0000*/                   LDG.E R2, [R4] ;
        /*0010*/               @P0 BRA `(.L_x_2) ;
        /*0020*/                   LDG.E R3, [R6] ;
        /*0030*/                   FMUL R2, R2, R3 ;
.L_x_2:
        /*0040*/               @P1 BRA `(.L_x_3) ;
        /*0050*/                   STG.E [R4], R2 ;
        /*0060*/                   BRA `(.L_x_4) ;
.L_x_3:
        /*0070*/                   FADD R2, R2, R2 ;
        /*0080*/                   LDG.E R5, [R6] ;
        /*0090*/                   STG.E [R4], R2 ;
.L_x_4:
        /*00a0*/               @P2 BRA `(.L_x_1) ;
        /*00b0*/                   EXIT ;
"""


def test_shortest_way_through_a_loop():
    (code,) = sass.parse_code(BRANCHES.splitlines())
    assert code.loop_instructions == 11
    assert [code.shortest_turn(loads) for loads in (0, 1, 2, 3)] == [6, 6, 7, 9]
    with pytest.raises(ValueError, match="no way through the loop has 4 global loads"):
        code.shortest_turn(4)


def test_a_way_with_products():
    """The longer way has one: it is taken only when it is asked for."""
    (code,) = sass.parse_code(BRANCHES.replace("FADD R2, R2, R2", "HMMA R2, R2, R2").splitlines())
    assert [code.shortest_turn(products=products) for products in (0, 1)] == [6, 7]
    with pytest.raises(ValueError, match="0 global loads and 2 products"):
        code.shortest_turn(products=2)


def test_ptxas_report_is_read():
    text = """ptxas info    : Compiling entry function '_Z1fv' for 'sm_90a'
ptxas info    : Function properties for _Z1fv
    64 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 64 bytes cumulative stack size, 512 bytes smem
"""
    assert nvcc.parse_ptxas(text) == {("_Z1fv", "90a"): nvcc.Resources(255, 64, 20, 512)}
