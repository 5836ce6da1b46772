"""device.cuh as nvcc compiles it: every function, run from the PTX of each architecture.

The source emulation runs the other body of each function; only here are the asm statements run.
That they would be found wrong is tested with bugs planted in the PTX.
"""

import ctypes
import re

import numpy as np
import pytest

from tests.emulation import nvcc
from tests.emulation.ptx_formats import PtxError, bf16_bits, bf16_values
from tests.emulation.ptx_memory import device_array
from tests.emulation.ptx_module import PtxModule

pytestmark = nvcc.needs_nvcc

ARCHS = (80, 86, 89, 90, 100, 120)
SOURCE = nvcc.ROOT / "tests" / "emulation" / "kernels" / "ptx_primitives.cu"
LANES = np.arange(32)


@pytest.fixture(scope="module")
def ptx():
    """The PTX text of each architecture that this nvcc knows."""
    known = [arch for arch in ARCHS if str(arch) in nvcc.known_archs()]
    return {arch: path.read_text() for arch, path in nvcc.compile_all_ptx(SOURCE, known).items()}


def on_device(values, dtype=None):
    values = np.asarray(values, dtype)
    array = device_array(values.shape, values.dtype)
    array[...] = values
    return array


def random(*shape):
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


# ---- One check a kernel; each gets a module and asserts ------------------------------------------


def check_shuffles(module):
    x, y = on_device(random(32)), device_array((6, 32), np.float32)
    votes = device_array(32, np.uint32)
    module.kernel("shuffles").launch(1, 32, [x, y, votes, 6])
    up, down, segment = np.maximum(LANES - 3, 0), np.minimum(LANES + 3, 31), LANES & ~7
    up[:3], down[29:] = LANES[:3], LANES[29:]
    # Past its segment of 8, the lane's own value.
    across = np.where((LANES ^ 12) <= (LANES | 7), LANES ^ 12, LANES)
    sources = [np.full(32, 6), LANES ^ 5, up, down, segment + 6, across]
    for row, source in zip(y, sources, strict=True):
        np.testing.assert_array_equal(row, x[source])
    assert (votes == sum(1 << i for i in range(32) if x[i] > 0)).all()


def check_reductions(module):
    x, y = on_device(random(32).view(np.uint32)), device_array(32, np.uint32)
    module.kernel("reductions").launch(1, 32, [x, y])
    assert (y == x.max()).all()


def check_conversions(module):
    x = random(64)
    # Ties, both ways; too large; too small; not numbers.
    x[:8] = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 1e6, 3e-7, np.inf, np.nan]
    x[8:12] = [3.4e38, -1e-40, 1 + 2**-11 + 2**-20, -(1 + 2**-8 + 2**-15)]
    x = on_device(x)
    pairs, halves = device_array((2, 32), np.uint32), device_array((2, 32), np.uint16)
    back, tf32 = device_array((2, 32), np.float32), device_array(32, np.uint32)
    module.kernel("conversions").launch(1, 32, [x, pairs, halves, back, tf32])
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).view(np.uint16), _bfloat16(x)
    for row in range(2):
        _same_numbers(pairs[row].view(np.uint16), expected[row], row)
        _same_numbers(halves[row], expected[row][:32], row)
    np.testing.assert_array_equal(back[0], halves[0].view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(back[1], bf16_values(halves[1]))
    finite = np.isfinite(x[:32]) & (np.abs(x[:32]) < 1e30) & (np.abs(x[:32]) > 1e-30)
    kept, near = tf32.view(np.float32)[finite].astype(np.float64), x[:32][finite].astype(np.float64)
    assert not (tf32[finite] & 0x1FFF).any()
    assert (np.abs(kept - near) <= np.exp2(np.floor(np.log2(np.abs(near))) - 11)).all()
    # Ties away from zero: 1 + 2^-11 is half-way between two tf32 numbers.
    assert tf32.view(np.float32)[0] == 1 + 2**-10


def _bfloat16(x):
    """Round to bfloat16 by comparing both neighbours; independent of the interpreter's own."""
    low = x.view(np.uint32) >> 16
    low_value, high_value = (bf16_values((low + k).astype(np.uint16)) for k in (0, 1))
    with np.errstate(invalid="ignore"):
        below, above = (np.abs(v.astype(np.float64) - x) for v in (low_value, high_value))
    above = np.where(np.isinf(high_value), np.abs(2.0**128 - np.abs(x.astype(np.float64))), above)
    up = (above < below) | ((above == below) & (low % 2 == 1))
    return (low + (up & np.isfinite(x))).astype(np.uint16)


def _same_numbers(bits, expected, is_bfloat16):
    def values(raw):
        return bf16_values(raw) if is_bfloat16 else raw.view(np.float16)

    np.testing.assert_array_equal(values(bits), values(expected))


def check_copies(module):
    for size in (16, 12, 4, 0):
        x, y = on_device(random(224)), device_array(224, np.float32)
        module.kernel("copies").launch(1, 32, [x, y, size])
        expected = x.copy()
        expected[:128].reshape(32, 4)[:, size // 4 :] = 0
        np.testing.assert_array_equal(y, expected)


def check_matrices(module):
    rows = on_device(np.arange(256).reshape(4, 8, 8), np.uint16)
    y = device_array((14, 32), np.uint32)
    module.kernel("matrices").launch(1, 32, [rows.view(np.uint32), y])
    plain = rows.copy().view(np.uint32).reshape(4, 32)
    turned = rows.swapaxes(1, 2).copy().view(np.uint32).reshape(4, 32)
    expected = [m[:k] for m in (plain, turned) for k in (1, 2, 4)]
    np.testing.assert_array_equal(y, np.concatenate(expected))


def check_stored_matrices(module):
    fragments = on_device(np.arange(256).reshape(4, 8, 8), np.uint16)
    rows = device_array((2, 4, 8, 8), np.uint16)
    module.kernel("stored_matrices").launch(1, 32, [fragments.view(np.uint32), rows])
    np.testing.assert_array_equal(rows[0], fragments)
    np.testing.assert_array_equal(rows[1], fragments.swapaxes(1, 2))


def _fragments(a, b, c):
    """Distribute A (16, K), B (K, 8) and C (16, 8) as the comment in device.cuh says."""
    row, column = LANES // 4, LANES % 4
    wide = 2 if a.shape[1] == 16 else 1  # elements in a register
    a_parts, b_parts = [], []
    for half in range(2):
        along = 4 * wide * half + wide * column[:, None] + np.arange(wide)
        a_parts += [a[row[:, None], along], a[row[:, None] + 8, along]]
        b_parts.append(b[along, row[:, None]])
    c_parts = [c[row + 8 * (k // 2), 2 * column + k % 2] for k in range(4)]
    return np.stack(a_parts, 1), np.stack(b_parts, 1), np.stack(c_parts, 1)


def _check_product(module, kernel, depth, encode, decode):
    a, b, c = random(16, depth), random(depth, 8) + 1, random(16, 8)
    a, b = encode(a), encode(b)
    left, right, total = (on_device(part) for part in _fragments(a, b, c))
    module.kernel(kernel).launch(1, 32, [left.view(np.uint32), right.view(np.uint32), total])
    expected = decode(a).astype(np.float64) @ decode(b) + c
    np.testing.assert_allclose(total, _fragments(a, b, expected)[2], rtol=1e-6, atol=1e-5)


def check_product_f16(module):
    _check_product(module, "product_f16", 16, lambda x: x.astype(np.float16), np.float32)


def check_product_bf16(module):
    _check_product(module, "product_bf16", 16, bf16_bits, bf16_values)


def check_product_tf32(module):
    def decode(bits):
        return (bits & np.uint32(0xFFFFE000)).view(np.float32)

    _check_product(module, "product_tf32", 8, lambda x: x.view(np.uint32), decode)


class Row(ctypes.Structure):
    _fields_ = (
        *(("input", ctypes.c_void_p), ("output", ctypes.c_void_p), ("length", ctypes.c_longlong)),
        *(("scale", ctypes.c_float), ("offset", ctypes.c_float)),
    )


def check_rows(module):
    count = 300
    x, y = on_device(random(count, 4)), device_array((count, 4), np.float32)
    angles, waves = on_device(np.linspace(-9, 9, count)), device_array((count, 2), np.float64)
    row = Row(x.ctypes.data, y.ctypes.data, 4 * count, 1.25, -0.5)
    module.kernel("rows").launch(7, 48, [row, angles, waves], buffers=[x, y])
    table = np.array([1.0, -2.0, 0.5, 8.0], np.float32)[np.arange(count) % 4]
    fused = (x[:, 0].astype(np.float64) * 1.25 - 0.5).astype(np.float32)
    expected = np.stack([fused, x[:, 1] * table, x[:, 2] - x[:, 0], x[:, 3]], 1)
    np.testing.assert_array_equal(y, expected)
    exact = np.stack([np.sin(np.pi * angles), np.cos(np.pi * angles)], 1)
    np.testing.assert_allclose(waves, exact, rtol=0, atol=1e-14)


def check_barriers(module):
    y = device_array(5, np.int32, fill=0)
    module.kernel("barriers").launch(3, 128, [y], shared=512)
    slots = np.arange(128)
    for half in range(2):
        mine = slots[64 * half : 64 * half + 64]
        for _ in range(3 + half):
            mine[:] = mine[(np.arange(64) + 33 + 0) % 64] + 1
    counts = [slots[::-1][k::4].sum() for k in range(4)]
    np.testing.assert_array_equal(y, [*counts, slots.max()])


def check_integers(module):
    generator = np.random.default_rng(8)
    a = generator.integers(-(2**31), 2**31, 32)
    b = generator.integers(-(2**31), 2**31, 32)
    a[:3], b[:3] = [5, -7, -(2**31)], [-3, 1000, 2**31 - 1]
    z = device_array((32, 12), np.int64)
    module.kernel("integers").launch(1, 32, [on_device(a, np.int32), on_device(b, np.int32), z])
    expected = [_integers(i, int(x), int(y)) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    np.testing.assert_array_equal(z, expected)


def _integers(i, a, b):
    """What the kernel `integers` computes, in Python's own integers."""
    word = 0xFFFFFFFF
    u, v = a & word, b & word
    divisor = b | 1
    quotient = abs(a) // abs(divisor) * (1 if (a < 0) == (divisor < 0) else -1)
    full = (1 << 64) - 1
    high = (0x123456789ABCDEF * u & full) * (0xFEDCBA987654321 * v & full) >> 64
    both = u.to_bytes(4, "little") + v.to_bytes(4, "little")
    lowest = (v & -v).bit_length()
    leading = 32 - u.bit_length()
    results = [
        quotient,
        u % (v | 1),
        a * b >> 32,
        high,
        a * b + i,
        ((v << 32 | u) << i >> 32) & word,
    ]
    results += [int.from_bytes(bytes(both[k] for k in (4, 1, 2, 7)), "little")]
    results += [(u & v) | (~u & i), u.bit_count() + 100 * leading + 10000 * lowest]
    results += [int(f"{u:032b}"[::-1], 2) >> (i & 15), min(a, b) - max(u, v)]
    results += [((a << (i & 31)) + (1 << 63) & full) - (1 << 63) >> 7]
    return [(each + (1 << 63) & full) - (1 << 63) for each in results]


def check_local_array(module):
    x, y = on_device(random(32, 8)), device_array((32, 8), np.float32)
    module.kernel("local_array").launch(1, 32, [x, y, 3])
    column = (np.arange(8) + 3 + LANES[:, None]) & 7
    np.testing.assert_array_equal(y, np.take_along_axis(x, column, 1))


CHECKS = {name[6:]: check for name, check in list(globals().items()) if name.startswith("check_")}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("arch", ARCHS)
def test_primitive(ptx, arch, name):
    if arch not in ptx:
        pytest.skip(f"this nvcc does not know sm_{arch}")
    if arch < 90 and name == "stored_matrices":
        pytest.skip("stmatrix needs sm_90")
    CHECKS[name](PtxModule(ptx[arch]))


# ---- Planted bugs --------------------------------------------------------------------------------

MMA = r"(mma\.sync[^;]*f16\.f16\.f32) "
PLANTED = {
    "mma: A's registers in another order": (
        "product_f16",
        MMA + r"(\{.*?\}, \{\S+ )(\S+ )(\S+ )",
        r"\1 \2\4\3",
    ),
    "mma: B's registers swapped": (
        "product_f16",
        MMA + r"(\{.*?\}, \{.*?\}, \{)(\S+), (\S+)(\})",
        r"\1 \2\4, \3\5",
    ),
    "mma: bf16 for f16": ("product_f16", r"f32\.f16\.f16\.f32", "f32.bf16.bf16.f32"),
    "mma: f16 for bf16": ("product_bf16", r"f32\.bf16\.bf16\.f32", "f32.f16.f16.f32"),
    "mma: accumulators swapped": (
        "product_f16",
        MMA + r"(\{.*?\}, \{.*?\}, \{.*?\}, \{)(\S+), (\S+),",
        r"\1 \2\4, \3,",
    ),
    "mma: shape": ("product_tf32", r"m16n8k8\.", "m16n8k16."),
    "ldmatrix: .trans missing": ("matrices", r"x4\.trans", "x4"),
    "ldmatrix: .trans too many": ("matrices", r"x2\.shared", "x2.trans.shared"),
    "ldmatrix: x2 for x4": ("matrices", r"x4\.shared", "x2.shared"),
    "ldmatrix: results rotated": (
        "matrices",
        r"(x4\.shared\.b16 \{)(\S+), (\S+), (\S+), (\S+)\}",
        r"\1\3, \4, \5, \2}",
    ),
    "stmatrix: .trans missing": ("stored_matrices", r"x4\.trans", "x4"),
    "cp.async: 8 bytes for 16": ("copies", r"cp\.async\.cg(.*), 16, ", r"cp.async.ca\1, 8, "),
    "cp.async: 4 bytes for 8": ("copies", r"(cp\.async\.ca.*), 8, ", r"\1, 4, "),
    "cp.async: addresses swapped": (
        "copies",
        r"(cp\.async\.cg\S+) \[(\S+)\], \[(\S+)\]",
        r"\1 [\3], [\2]",
    ),
    "cp.async: one group too few waited for": ("copies", r"wait_group 1", "wait_group 2"),
    "cp.async: groups not committed": ("copies", r"cp\.async\.commit_group;", ""),
    "shfl: down for up": ("shuffles", r"shfl\.sync\.up", "shfl.sync.down"),
    "shfl: bfly for idx": ("shuffles", r"shfl\.sync\.idx", "shfl.sync.bfly"),
    "shfl: segment": ("shuffles", r"(mov\.\w32\s+%\w+), 6175;", r"\1, 31;"),
    "redux: as signed numbers": ("reductions", r"redux\.sync\.max\.u32", "redux.sync.max.s32"),
    "vote: any for ballot": ("shuffles", r"vote\.sync\.ballot\.b32", "vote.sync.all.pred"),
    "cvt: halves swapped": (
        "conversions",
        r"(cvt\.rn\.f16x2\.f32 \S+), (\S+), (\S+);",
        r"\1, \3, \2;",
    ),
    "cvt: bf16x2 for f16x2": ("conversions", r"rn\.f16x2", "rn.bf16x2"),
    "cvt: toward zero": ("conversions", r"cvt\.rn\.bf16x2", "cvt.rz.bf16x2"),
    "cvt: a rounding that is not known": ("conversions", r"cvt\.rn\.f16\.", "cvt.rs.f16."),
    "cvt: tf32 ties to even": ("conversions", r"cvt\.rna\.tf32", "cvt.rn.tf32"),
    "bar: number of threads": ("barriers", r"(mov\.\w32\s+%\w+), 64;", r"\1, 128;"),
    "bound of a block": ("rows", r"setp\.(ge|le)\.s64", r"setp.gt.s64"),
    "element size": ("rows", r"ld\.global\.cs\.v4\.f32", "ld.global.cs.v2.f32"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_found(ptx, bug):
    name, pattern, replacement = PLANTED[bug]
    arch = 90 if name == "stored_matrices" else 80
    CHECKS[name](PtxModule(ptx[arch]))
    entry = re.compile(rf"\.entry {name}\(.*?^\}}", re.DOTALL | re.MULTILINE)
    before = entry.search(ptx[arch])[0]
    after = re.sub(pattern, replacement, before)
    assert after != before, "the pattern fits nothing: the compiler writes it differently now"
    with pytest.raises((PtxError, AssertionError)):
        CHECKS[name](PtxModule(ptx[arch].replace(before, after)))
