"""What the PTX interpreter reports, and single instructions against Python's own numbers.

The kernels are written by hand, so that nothing here needs a compiler.
"""

import numpy as np
import pytest

from tests.emulation import ptx_machine
from tests.emulation.ptx_formats import Fault, Unsupported, fused_multiply_add
from tests.emulation.ptx_memory import device_array
from tests.emulation.ptx_module import PtxModule

# Registers of each kind, the thread's number in %r0, and the address of element %r0 in %rd2.
FRAME = """
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry kernel(.param .u64 data, .param .u32 number)
{directives}
{{
    .reg .pred %p<8>; .reg .b16 %rs<8>; .reg .b32 %r<16>; .reg .b64 %rd<16>;
    .reg .f32 %f<16>; .reg .f64 %fd<8>;
    .shared .align 16 .b8 fixed[64];
    .local .align 16 .b8 own[32];
    mov.u32 %r0, %tid.x;
    ld.param.u64 %rd0, [data];
    cvta.to.global.u64 %rd1, %rd0;
    mul.wide.u32 %rd3, %r0, 4;
    add.s64 %rd2, %rd1, %rd3;
    {body}
    ret;
}}
"""


def run(body, data=None, number=0, block=32, grid=1, shared=0, directives=""):
    """Run a kernel of `body`; return the words of `data` (32 poisoned ones) after it."""
    if data is None:
        data = device_array(32, np.uint32)
    module = PtxModule(FRAME.format(body=body, directives=directives))
    module.kernel("kernel").launch(grid, block, [data, number], shared=shared)
    return data


def evaluate(statements):
    """Return what the statements leave in %r1, of every thread."""
    return run(f"{statements} st.global.u32 [%rd2], %r1;")


@pytest.mark.parametrize(
    ("statements", "value"),
    [
        ("bfe.u32 %r1, 0xABCD1234, 8, 12;", 0xD12),
        ("bfe.s32 %r1, 0xABCD1234, 8, 12;", 0xFFFFFD12),
        ("bfe.u32 %r1, 0xABCD1234, 24, 12;", 0xAB),
        ("bfe.s32 %r1, 0xABCD1234, 24, 12;", 0xFFFFFFAB),
        ("bfe.s32 %r1, 0x7BCD1234, 31, 9;", 0),
        ("bfe.u32 %r1, 5, 3, 0;", 0),
        ("bfi.b32 %r1, 0xF5, 0x12345678, 4, 8;", 0x12345F58),
        ("bfi.b32 %r1, 0xF5, 0x12345678, 28, 8;", 0x52345678),
        ("shl.b32 %r1, 3, 31;", 0x80000000),
        ("shl.b32 %r1, 3, 32;", 0),
        ("shr.u32 %r1, 0x80000000, 40;", 0),
        ("shr.s32 %r1, 0x80000000, 40;", 0xFFFFFFFF),
        ("shf.l.wrap.b32 %r1, 0x80000001, 0x00000003, 33;", 7),
        ("shf.r.clamp.b32 %r1, 0x80000001, 0x00000003, 40;", 3),
        ("prmt.b32 %r1, 0x33221180, 0x77665544, 0x8760;", 0xFF776680),
        ("lop3.b32 %r1, 0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA, 0xE8;", 0xE8E8E8E8),
        ("div.s32 %r1, -7, 2;", 2**32 - 3),
        ("rem.s32 %r1, -7, 2;", 2**32 - 1),
        ("mul.hi.s32 %r1, -2, 3;", 2**32 - 1),
        ("mad.hi.u32 %r1, 0x80000000, 6, 1;", 4),
        ("bfind.u32 %r1, 0x00800000;", 23),
        ("bfind.s32 %r1, -1;", 2**32 - 1),
        ("bfind.s32 %r1, -5;", 2),
        ("min.s32 %r1, -1, 1;", 2**32 - 1),
        ("min.u32 %r1, -1, 1;", 1),
        ("mov.b16 %rs1, 0x8001; cvt.s32.s16 %r1, %rs1;", 0xFFFF8001),
        ("mov.b16 %rs1, 0x8001; cvt.u32.u16 %r1, %rs1;", 0x8001),
        ("mov.b16 %rs1, 0x3C00; mov.b32 %r1, {%rs1, 7};", 0x00073C00),
        ("mov.b32 {%rs1, %rs2}, 0x12345678; cvt.u32.u16 %r1, %rs2;", 0x1234),
        ("cvt.rni.s32.f32 %r1, 0f40200000;", 2),  # 2.5
        ("cvt.rzi.s32.f32 %r1, 0fC0200000;", 2**32 - 2),  # -2.5
        ("cvt.rpi.s32.f32 %r1, 0f40200000;", 3),
        ("cvt.rzi.u32.f32 %r1, 0fC0200000;", 0),
        ("cvt.rzi.s32.f32 %r1, 0f7F800000;", 0x7FFFFFFF),  # infinity
        ("cvt.rzi.s32.f32 %r1, 0f7FC00000;", 0),  # not a number
        ("cvt.rz.f16.f32 %rs1, 0f3F801FFF; cvt.u32.u16 %r1, %rs1;", 0x3C00),
        ("cvt.rn.f16.f32 %rs1, 0f3F801FFF; cvt.u32.u16 %r1, %rs1;", 0x3C01),
        ("max.f32 %f1, 0f7FC00000, 0f3F800000; mov.b32 %r1, %f1;", 0x3F800000),
        ("max.NaN.f32 %f1, 0f7FC00000, 0f3F800000; mov.b32 %r1, %f1;", 0x7FC00000),
        ("mul.sat.f32 %f1, 0f40000000, 0f40000000; mov.b32 %r1, %f1;", 0x3F800000),
        ("mul.ftz.f32 %f1, 0f00000001, 0f7F000000; mov.b32 %r1, %f1;", 0),
        ("setp.lt.f32 %p1, 0f7FC00000, 0f0; selp.b32 %r1, 1, 2, %p1;", 2),
        ("setp.ltu.f32 %p1, 0f7FC00000, 0f00000000; selp.b32 %r1, 1, 2, %p1;", 1),
        ("setp.ne.f32 %p1, 0f7FC00000, 0f00000000; selp.b32 %r1, 1, 2, %p1;", 2),
        ("setp.eq.and.u32 %p1|%p2, 1, 1, 0; selp.b32 %r1, 1, 2, %p1;", 2),
        ("{ .reg .b16 %r1; mov.b16 %r1, 5; } mov.u32 %r1, 6;", 6),
        ("fma.rn.f16x2 %r1, 0x3C004000, 0x40004200, 0x3C003C00;", 0x42004700),
        ("add.rn.bf16x2 %r1, 0x3F803F80, 0x40003B80;", 0x40403F80),
    ],
)
def test_instruction(statements, value):
    if statements.startswith("setp.lt.f32"):
        statements = statements.replace("0f0;", "0f00000000;")
    assert (evaluate(statements) == value).all(), hex(int(evaluate(statements)[0]))


def test_predicates_and_divergence():
    """Odd threads loop as often as their number says; even ones do not."""
    body = """
        and.b32 %r1, %r0, 1; setp.eq.s32 %p1, %r1, 0; mov.u32 %r2, 100; @%p1 bra $end;
        mov.u32 %r2, 0; mov.u32 %r3, 0;
        $again: add.s32 %r2, %r2, 2; add.s32 %r3, %r3, 1; setp.lt.u32 %p2, %r3, %r0;
        @%p2 bra $again;
        $end: @!%p1 add.s32 %r2, %r2, 1; st.global.u32 [%rd2], %r2;"""
    thread = np.arange(32)
    np.testing.assert_array_equal(run(body), np.where(thread % 2, 2 * thread + 1, 100))


def test_threads_that_return_leave_the_others_running():
    body = "setp.lt.u32 %p1, %r0, 9; @%p1 ret; st.global.u32 [%rd2], %r0;"
    expected = np.where(np.arange(32) < 9, 2**32 - 1, np.arange(32))
    np.testing.assert_array_equal(run(body), expected)


def test_blocks_have_their_own_shared_memory():
    body = """
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, dynamic; shl.b32 %r3, %r0, 2; add.s32 %r2, %r2, %r3;
        st.shared.u32 [%r2], %r1; bar.sync 0; ld.shared.u32 %r4, [%r2];
        mul.wide.u32 %rd4, %r1, 128; add.s64 %rd5, %rd2, %rd4; st.global.u32 [%rd5], %r4;"""
    data = run(body, device_array((200, 32), np.uint32), grid=200, shared=128)
    np.testing.assert_array_equal(data, np.arange(200)[:, None].repeat(32, 1))


def test_what_was_never_written_is_poison():
    assert (evaluate("") == 0xFFFFFFFF).all()
    assert (evaluate("ld.shared.u32 %r1, [fixed];") == 0xFFFFFFFF).all()
    assert (evaluate("ld.local.u32 %r1, [own+4];") == 0xFFFFFFFF).all()


def test_generic_addresses():
    body = """
        mov.u64 %rd4, fixed; cvta.shared.u64 %rd5, %rd4; st.u32 [%rd5+8], 77;
        ld.shared.u32 %r1, [fixed+8]; st.u32 [%rd2], %r1; ld.u32 %r2, [%rd2];
        setp.lt.u32 %p1, %r0, 4; mov.u64 %rd6, own; selp.b64 %rd7, %rd5, %rd6, %p1;
        st.local.u32 [own+8], 5; ld.u32 %r3, [%rd7+8]; st.global.u32 [%rd2], %r3;"""
    np.testing.assert_array_equal(run(body), np.where(np.arange(32) < 4, 77, 5))


def test_atomics_meet_each_other():
    body = """
        and.b32 %r1, %r0, 1; mul.wide.u32 %rd4, %r1, 4; add.s64 %rd5, %rd1, %rd4;
        atom.global.add.u32 %r2, [%rd5], 3; red.global.max.u32 [%rd1+8], %r0;
        setp.gt.u32 %p1, %r0, 2; @%p1 st.global.u32 [%rd2], %r2;"""
    data = run(body, device_array(32, np.uint32, fill=0))
    np.testing.assert_array_equal(data[:3], [48, 48, 31])
    assert sorted(data[3:]) == sorted([3 * k for k in range(16) for _ in (0, 1)][3:])


FAULTS = {
    "past the end": ("st.global.u32 [%rd2+4], 0;", r"argument 0, 128 bytes\).*thread \(31,0,0\)"),
    "before the start": ("ld.global.u32 %r1, [%rd2+-4];", r"byte -4 of argument 0.*thread \(0,"),
    "misaligned": ("ld.global.v2.u32 {%r1, %r2}, [%rd2];", "not a multiple of 8"),
    "null": ("mov.u64 %rd2, 0; ld.global.u32 %r1, [%rd2];", "outside of all buffers"),
    "shared": ("mov.u32 %r1, fixed; ld.shared.u32 %r2, [%r1+64];", "byte 64 of shared memory"),
    "local": ("ld.local.u32 %r1, [own+32];", "byte 32 of local memory"),
    "parameter": ("st.global.u32 [kernel_address], 0;", "symbol kernel_address"),
    "divergent barrier": ("setp.lt.u32 %p1, %r0, 7; @%p1 bra $x; bar.sync 0; $x:", "only lanes"),
    "deadlock": ("bar.sync 1, 64;", "deadlock: 32 of 64 threads at barrier 1"),
    "barrier count": ("bar.sync 1, 33;", "not whole warps"),
    "shuffle mask": (
        "setp.lt.u32 %p1, %r0, 7; @%p1 shfl.sync.idx.b32 %r1, %r0, 0, 31, -1;",
        "0xffffffff, but the lanes here are 0x0000007f",
    ),
    "lane not in its mask": ("vote.sync.any.pred %p1, %p2, 1;", "mask 0x00000001"),
    "trap": ("trap;", "gives up"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name):
    statements, message = FAULTS[name]
    with pytest.raises((Fault, Unsupported), match=message) as raised:
        run(statements)
    # The instruction itself is in the message.
    assert statements.split(";")[-2].split()[-1] in str(raised.value) or name == "divergent barrier"


def test_read_only_arrays_are():
    data = device_array(32, np.uint32)
    data.flags.writeable = False
    with pytest.raises(Fault, match="argument 0, which is read-only"):
        run("st.global.u32 [%rd2], 0;", data)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("wgmma.fence.sync.aligned;", "opcode wgmma"),
        ("add.cc.u32 %r1, %r2, %r3;", "modifier .cc"),
        ("add.rz.f32 %f1, %f2, %f3;", "modifier .rz"),
        ("mov.u32 %r1, %smid;", "%smid"),
        ("mov.u64 %rd1, elsewhere;", "symbol elsewhere"),
        ("ld.global.e5m2 %r1, [%rd2];", "modifier .e5m2|no number format"),
        ("fma.rn.f32 %f1, %f2;", "operands"),
        ("ld.global.u64 %r1, [%rd1];", "64 written to a .b32"),
        ("bra $nowhere;", "branch to"),
        ("mma.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f0}, {%r0}, {%r0}, {%f0};", "mma"),
    ],
)
def test_unsupported_names_the_instruction(statement, named):
    with pytest.raises(Unsupported, match=named) as raised:
        run(statement)
    assert statement.split(";")[0] in str(raised.value)


def test_unsupported_is_raised_only_where_it_is_reached():
    body = "bra $over; wgmma.fence.sync.aligned; $over:"
    run(body)
    kernel = PtxModule(FRAME.format(body=body, directives="")).kernel("kernel")
    assert kernel.unsupported == ["wgmma.fence.sync.aligned: opcode wgmma"]


def test_launch_is_checked():
    with pytest.raises(Fault, match="128 threads at a barrier for 64"):
        run("bar.sync 1, 64;", block=128)
    with pytest.raises(Fault, match="compiled for"):
        run("", block=64, directives=".maxntid 32, 1, 1")
    with pytest.raises(TypeError, match="parameters"):
        PtxModule(FRAME.format(body="", directives="")).kernel("kernel").launch(1, 32, [1])
    with pytest.raises(LookupError, match="0 kernels fit 'colonel'"):
        PtxModule(FRAME.format(body="", directives="")).kernel("colonel")


def test_endless_loop_ends(monkeypatch):
    monkeypatch.setattr(ptx_machine, "MAX_STEPS", 1000)
    with pytest.raises(Fault, match="endless loop"):
        run("$again: bra $again;")


def test_array_at_any_address():
    """A view that begins at an odd element: 4-byte accesses to it are aligned all the same."""
    data = device_array(33, np.uint32)
    assert (run("st.global.u32 [%rd2], %r0;", data[1:]) == np.arange(32)).all()
    assert data[0] == 0xFFFFFFFF


def test_fused_multiply_add_in_double_precision():
    x = np.array([1 + 2.0**-30, 3.0, np.inf, 1e308])
    y = np.array([1 - 2.0**-30, 1 / 3, 2.0, 10.0])
    z = np.array([-1.0, -1.0, 1.0, 1.0])
    exact = [-(2.0**-60), -(2.0**-54), np.inf, np.inf]
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(fused_multiply_add(x, y, z), exact)
