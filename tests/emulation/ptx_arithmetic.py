"""Integer and floating-point arithmetic, comparisons and selections."""

import functools

import numpy as np

from tests.emulation.ptx_formats import Format, Unsupported, fused_multiply_add, number_format
from tests.emulation.ptx_instructions import elementwise
from tests.emulation.ptx_parser import Instruction

_FLOAT = "rn ftz sat approx full"


def _finished(form: Instruction, function):
    """Add the effects of .ftz (float32 denormals are zero) and .sat (results within 0 to 1)."""
    if form.has("ftz"):
        inner = function

        def function(*values):
            return _flushed(inner(*(_flushed(value) for value in values)))

    if form.has("sat"):
        unlimited = function

        def function(*values):
            return np.clip(np.nan_to_num(unlimited(*values), posinf=1.0, neginf=0.0), 0.0, 1.0)

    return function


def _flushed(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    tiny = np.abs(values) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(values.dtype.type(0), values), values)


def _same(form: Instruction, sources: int, function):
    if number_format(form.format).kind == "f":
        function = _finished(form, function)
    elif form.has("sat"):
        raise Unsupported("modifier .sat for integers")
    return form.format, [form.format] * sources, function


@elementwise("add", "sub", modifiers=_FLOAT)
def _add(form: Instruction):
    function = np.add if form.opcode == "add" else np.subtract
    if form.format in ("f16", "bf16", "f16x2", "bf16x2"):
        return _same(form, 2, lambda a, b: function(a.astype(np.float64), b))
    return _same(form, len(form.operands) - 1, _folded(function))


@elementwise("min", "max", modifiers="ftz NaN")
def _extreme(form: Instruction):
    names = ("fmin", "minimum") if form.opcode == "min" else ("fmax", "maximum")
    ignores_nan = number_format(form.format).kind == "f" and not form.has("NaN")
    function = getattr(np, names[0] if ignores_nan else names[1])
    return _same(form, len(form.operands) - 1, _folded(function))


def _folded(function):
    """Newer GPUs have forms with three sources."""
    return lambda first, *rest: functools.reduce(function, rest, first)


@elementwise("abs", "neg", modifiers="ftz")
def _sign(form: Instruction):
    return _same(form, 1, np.abs if form.opcode == "abs" else np.negative)


@elementwise("copysign")
def _copysign(form: Instruction):
    return _same(form, 2, lambda sign, magnitude: np.copysign(magnitude, sign))


@elementwise("mul", modifiers=_FLOAT + " wide lo hi")
def _mul(form: Instruction):
    number = number_format(form.format)
    if number.kind == "f":
        return _same(form, 2, np.multiply)
    if form.has("wide"):
        wide = _wider(number)
        return wide.name, [number.name] * 2, lambda a, b: _wide_product(a, b, wide)
    return _same(form, 2, _high_product(number) if form.has("hi") else np.multiply)


@elementwise("mul24", modifiers="lo")
def _mul24(form: Instruction):
    keep = (lambda v: v << 8 >> 8) if form.format == "s32" else (lambda v: v & 0xFFFFFF)
    return _same(form, 2, lambda a, b: keep(a) * keep(b))


@elementwise("mad", "fma", modifiers=_FLOAT + " wide lo hi")
def _fma(form: Instruction):
    number = number_format(form.format)
    if number.kind == "f":
        if form.opcode == "fma" and not form.has("rn"):
            raise Unsupported("fma without .rn")
        return _same(form, 3, fused_multiply_add)
    if form.has("wide"):
        wide = _wider(number)
        sources = [number.name, number.name, wide.name]
        return wide.name, sources, lambda a, b, c: _wide_product(a, b, wide) + c
    product = _high_product(number) if form.has("hi") else np.multiply
    return _same(form, 3, lambda a, b, c: product(a, b) + c)


def _wider(number: Format) -> Format:
    return number_format(f"{number.kind}{2 * number.bits}")


def _wide_product(a: np.ndarray, b: np.ndarray, wide: Format) -> np.ndarray:
    kind = f"{'int' if wide.kind == 's' else 'uint'}{wide.bits}"
    return a.astype(kind) * b.astype(kind)


def _high_product(number: Format):
    if number.bits < 64:
        wide = _wider(number)
        narrow = f"{'int' if number.kind == 's' else 'uint'}{number.bits}"
        return lambda a, b: (_wide_product(a, b, wide) >> number.bits).astype(narrow)

    def exact(a, b):  # of two Python integers: rare, so not worth a 128-bit product in halves
        return (int(a) * int(b)) >> 64

    return lambda a, b: np.frompyfunc(exact, 2, 1)(a, b).astype(a.dtype)


@elementwise("div", modifiers=_FLOAT)
def _div(form: Instruction):
    if number_format(form.format).kind == "f":
        return _same(form, 2, np.divide)
    return _same(form, 2, _integer_quotient)


@elementwise("rem")
def _rem(form: Instruction):
    return _same(form, 2, np.fmod)  # the sign of the dividend; division by 0 is not defined


def _integer_quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Round toward zero; a division by zero gives all ones."""
    a, b = np.broadcast_arrays(a, b)
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = (a - np.fmod(a, safe)) // safe
    return np.where(b == 0, ~a.dtype.type(0), quotient)


_FUNCTIONS = {
    "rcp": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "ex2": np.exp2,
    "lg2": np.log2,
    "tanh": np.tanh,
}


@elementwise(*_FUNCTIONS, modifiers=_FLOAT)
def _function(form: Instruction):
    """Approximate forms are computed exactly: their errors are the hardware's own."""
    function = _FUNCTIONS[form.opcode]
    return _same(form, 1, lambda x: function(x.astype(np.float64)))


@elementwise("and", "or", "xor")
def _logic(form: Instruction):
    predicate = form.format == "pred"
    prefix = "logical_" if predicate else "bitwise_"
    return _same(form, 2, getattr(np, prefix + form.opcode))


@elementwise("not")
def _not(form: Instruction):
    return _same(form, 1, np.invert)


_ORDERED = {
    **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal},
    **{"gt": np.greater, "ge": np.greater_equal},
    **{"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal},
}
_UNORDERED = {name + "u": function for name, function in list(_ORDERED.items())[:6]}
COMPARISONS = (*_ORDERED, *_UNORDERED, "num", "nan")


def comparison(form: Instruction):
    """Return the function of the comparison in a setp or set; with NaN, only *u and nan hold."""
    name = next((word for word in form.modifiers if word in COMPARISONS), None)
    if name is None:
        raise Unsupported("no comparison")
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name in _UNORDERED:
        return lambda a, b: _UNORDERED[name](a, b) | np.isnan(a) | np.isnan(b)
    if name == "ne" and number_format(form.format).kind == "f":
        return lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))
    return _ORDERED[name]


@elementwise("set", modifiers=" ".join(COMPARISONS) + " ftz")
def _set(form: Instruction):
    result, source = form.formats
    compare, true = comparison(form), 1.0 if number_format(result).kind == "f" else -1
    kind = np.float32 if true == 1.0 else np.int64
    return result, [source] * 2, lambda a, b: np.where(compare(a, b), kind(true), kind(0))


@elementwise("selp")
def _selp(form: Instruction):
    raw = f"b{number_format(form.format).bits}"
    return raw, [raw, raw, "pred"], lambda a, b, condition: np.where(condition, a, b)
