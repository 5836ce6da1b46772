"""The number formats of PTX, and how their values lie in numpy arrays.

A register is an array of raw bits (uint16, uint32 or uint64; bool for predicates), one element a
thread. `decode` gives the values on which an instruction computes, `encode` rounds results back.
Formats narrower than float32 are computed in wider arithmetic and rounded once at the end; a pair
such as f16x2 has a last axis of 2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class PtxError(Exception):
    """A reason to stop. The machine adds the instruction and the thread."""

    def __init__(self, problem: str, slot: int | None = None) -> None:
        super().__init__(problem)
        self.slot = slot


class Unsupported(PtxError):  # noqa: N818
    """An instruction, or a form of one, that the interpreter does not know."""


class Fault(PtxError):  # noqa: N818
    """Something a program must not do: a bad address, a divergent collective, a deadlock."""


@dataclass(frozen=True)
class Format:
    name: str
    bytes: int
    kind: str  # "u", "s" integers; "f" floating point; "pred"
    decode: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[np.ndarray], np.ndarray]

    @property
    def bits(self) -> int:
        return 8 * self.bytes

    @property
    def is_integer(self) -> bool:
        return self.kind in "us"

    @property
    def is_packed(self) -> bool:
        return self.name.endswith("x2")


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """Round to the nearest bfloat16, ties to even. From float64 this rounds twice."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def bf16_values(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f16_bits(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).astype(np.float16).view(np.uint16)


def _pairs(raw: np.ndarray, part: type) -> np.ndarray:
    return np.ascontiguousarray(raw).view(part).reshape(*raw.shape, 2)


def _unpairs(values: np.ndarray, whole: type) -> np.ndarray:
    return np.ascontiguousarray(values).view(whole)[..., 0]


def _plain(name: str, dtype: type, kind: str) -> Format:
    size = np.dtype(dtype).itemsize
    return Format(
        name,
        size,
        kind,
        lambda raw: raw.view(dtype),
        lambda values: np.asarray(values).astype(dtype, copy=False).view(RAW[size]),
    )


def _formats() -> dict[str, Format]:
    formats = []
    for size in (1, 2, 4, 8):
        unsigned, signed = RAW[size], np.dtype(f"int{8 * size}").type
        formats += [_plain(f"{letter}{8 * size}", unsigned, "u") for letter in "bu"]
        formats.append(_plain(f"s{8 * size}", signed, "s"))
    formats += [_plain("f32", np.float32, "f"), _plain("f64", np.float64, "f")]
    formats.append(
        Format("f16", 2, "f", lambda raw: raw.view(np.float16).astype(np.float32), f16_bits)
    )
    formats.append(Format("bf16", 2, "f", bf16_values, bf16_bits))
    formats.append(
        Format(
            "f16x2",
            4,
            "f",
            lambda raw: _pairs(raw, np.float16).astype(np.float32),
            lambda values: _unpairs(f16_bits(values), np.uint32),
        )
    )
    formats.append(
        Format(
            "bf16x2",
            4,
            "f",
            lambda raw: bf16_values(_pairs(raw, np.uint16)),
            lambda values: _unpairs(bf16_bits(values), np.uint32),
        )
    )
    formats.append(
        Format(
            "f32x2",
            8,
            "f",
            lambda raw: _pairs(raw, np.float32),
            lambda values: _unpairs(np.asarray(values).astype(np.float32), np.uint64),
        )
    )
    formats.append(Format("pred", 1, "pred", lambda raw: raw, lambda values: values))
    return {number.name: number for number in formats}


FORMATS = _formats()


def number_format(name: str) -> Format:
    try:
        return FORMATS[name]
    except KeyError:
        raise Unsupported(f"number format .{name}") from None


def fused_multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c in float64 arithmetic, for operands of any width.

    Up to float32 the product is exact and the sum is rounded to float64 and once more when it is
    stored: at most 1/2 + 2^-29 units in the last place. For float64 the rounding errors of product
    and sum are computed and added, which is exact but for a rare last bit.
    """
    a, b, c = (np.asarray(value) for value in (a, b, c))
    wide = a.dtype == np.float64
    x, y, z = (value.astype(np.float64, copy=False) for value in (a, b, c))
    product = x * y
    total = product + z
    if not wide:
        return total
    low_product = _product_error(x, y, product)
    shadow = total - product
    low_sum = (product - (total - shadow)) + (z - shadow)
    corrected = total + (low_product + low_sum)
    return np.where(np.isfinite(corrected), corrected, total)


def _product_error(x: np.ndarray, y: np.ndarray, product: np.ndarray) -> np.ndarray:
    """x * y - product, exactly, if nothing over- or underflows (Dekker's product)."""

    def split(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = value * 134217729.0  # 2^27 + 1 halves the 53 bits
        high = scaled - (scaled - value)
        return high, value - high

    x_high, x_low = split(x)
    y_high, y_low = split(y)
    return ((x_high * y_high - product) + x_high * y_low + x_low * y_high) + x_low * y_low
