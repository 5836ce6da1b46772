"""The cases of `fft_conv`, and the check that a function computes it."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from monarch_kernels import reference
from monarch_kernels.testing.budget import Margin, assert_close_to_float64
from monarch_kernels.testing.inputs import hyena_filter, layer_norm_like, white, with_layout

ARGUMENTS = ("u", "k", "k_rev", "skip", "pregate", "postgate")


@dataclass(frozen=True)
class Case:
    """One call of `fft_conv`.

    Attributes:
        name: what the case is there for.
        batch, channels, length: the shape of u.
        taps: of k; None for `length`.
        reverse_taps: of k_rev; None for no k_rev.
        skip, pregate, postgate, circular: whether given.
        dtype: of u and the gates, a name in torch.
        same_dtype_filters: the filters have `dtype` too, instead of float32.
        layout: of all tensors, see `with_layout`.
        hyena: the filters are Hyena's and the inputs LayerNorm's with outliers, instead of white.
    """

    name: str
    batch: int
    channels: int
    length: int
    taps: int | None = None
    reverse_taps: int | None = None
    skip: bool = False
    pregate: bool = False
    postgate: bool = False
    circular: bool = False
    dtype: str = "float32"
    same_dtype_filters: bool = False
    layout: str = "contiguous"
    hyena: bool = False

    @property
    def id(self) -> str:
        return f"{self.name}-{self.dtype}"


_FULL = {"skip": True, "pregate": True, "postgate": True}
_SHAPES = (
    Case("one", 1, 1, 1),
    Case("one_full", 2, 3, 1, reverse_taps=1, **_FULL),
    Case("one_circular", 2, 5, 1, circular=True, skip=True),
    Case("two", 2, 3, 2, reverse_taps=2, **_FULL),
    Case("three", 3, 2, 3, reverse_taps=2, skip=True),
    Case("three_circular", 1, 17, 3, circular=True, **_FULL),
    Case("prime_7", 2, 4, 7, reverse_taps=7, pregate=True),
    Case("odd_31", 2, 16, 31, reverse_taps=31, postgate=True),
    Case("smallest_plan", 2, 16, 32, reverse_taps=32, **_FULL),
    Case("channels_33", 2, 33, 64, reverse_taps=64, **_FULL),
    Case("channels_8", 3, 8, 100, skip=True, pregate=True),
    Case("channels_7", 1, 7, 128, reverse_taps=128, postgate=True),
    Case("prime_127_circular", 2, 19, 127, circular=True, pregate=True, postgate=True),
    Case("interleaved_full", 3, 20, 256, reverse_taps=256, **_FULL),
    Case("interleaved_circular", 2, 16, 256, circular=True),
    Case("first_row_plan", 2, 5, 257, reverse_taps=257, **_FULL),
    Case("causal_512", 2, 3, 512),
    Case("bidirectional_512", 2, 3, 512, reverse_taps=512),
    Case("gated_512", 2, 3, 512, pregate=True, postgate=True),
    Case("circular_512", 2, 2, 512, circular=True, **_FULL),
    Case("circular_prime_521", 2, 2, 521, circular=True, skip=True),
    Case("odd_999", 2, 3, 999, reverse_taps=999, **_FULL),
    Case("three_1024", 1, 3, 3072, reverse_taps=3072, **_FULL),
    Case("five_512", 1, 3, 2560, reverse_taps=2560, postgate=True),
    Case("prime_4099", 1, 3, 4099, reverse_taps=4099, **_FULL),
    Case("circular_4099", 1, 2, 4099, circular=True, pregate=True),
    Case("short_filter", 2, 3, 700, taps=3, reverse_taps=2, skip=True),
    Case("one_tap", 2, 3, 300, taps=1, reverse_taps=1),
    Case("short_circular", 2, 18, 90, taps=4, circular=True),
    Case("long_reverse", 2, 3, 640, taps=5, reverse_taps=640),
    Case("empty_batch", 0, 3, 70, reverse_taps=70, **_FULL),
    Case("no_channels", 2, 0, 300, reverse_taps=9, **_FULL),
    Case("long", 1, 1, 65537, reverse_taps=65537, **_FULL),
    Case("transposed", 2, 5, 300, reverse_taps=300, layout="transposed", **_FULL),
    Case("sliced", 2, 9, 75, reverse_taps=75, layout="sliced", **_FULL),
    Case("sliced_exact_plan", 2, 3, 512, reverse_taps=512, layout="sliced", **_FULL),
    Case("strided", 2, 3, 333, reverse_taps=33, layout="strided", **_FULL),
    Case("expanded", 3, 4, 260, reverse_taps=260, layout="expanded", **_FULL),
    Case("same_dtype_filters", 2, 6, 200, reverse_taps=200, same_dtype_filters=True, **_FULL),
    Case("hyena", 2, 12, 1000, reverse_taps=1000, hyena=True, **_FULL),
    Case("hyena_short", 2, 12, 130, reverse_taps=130, hyena=True, **_FULL),
)
DTYPES = ("float32", "bfloat16", "float16")
CASES = tuple(replace(case, dtype=dtype) for case in _SHAPES for dtype in DTYPES)


def plan_length(length: int) -> int:
    """The smallest {1, 3, 5} * 2^a that the kernels transform and that is >= length.

    Up to 256 a multiple of 16, above it of 256. Kept apart from csrc/core/plan.h on purpose: the
    tests compare the two.
    """
    sizes = {odd << a for odd in (1, 3, 5) for a in range(23)}
    return min(s for s in sizes if s >= max(length, 32) and s % (16 if s <= 256 else 256) == 0)


def _boundary(length: int) -> Case:
    return Case(f"plan_{length}", 2, 3, length, reverse_taps=length, skip=True)


# Just below, at and just above each transform size up to 2048, and each larger one that has another
# sequence of radices.
_SIZES = sorted({plan_length(n) for n in range(1, 2049)})
_LARGE = tuple(sorted(odd << a for odd in (1, 3, 5) for a in range(10, 16) if odd << a > 2048))
BOUNDARIES = tuple(_boundary(s + d) for s in _SIZES for d in (-1, 0, 1)) + tuple(
    Case(f"plan_{s}", 1, 1, s, reverse_taps=s, postgate=True) for s in _LARGE
)


@functools.lru_cache(maxsize=4)
def make_inputs(case: Case) -> dict[str, Tensor | None]:
    """The tensors of a case by argument name, and "dy", a gradient of the result. Do not change."""
    dtype = getattr(torch, case.dtype)
    b, h, n = case.batch, case.channels, case.length
    seeds = iter(range(100, 200))

    def activation(wanted: bool) -> Tensor | None:
        if not wanted:
            return None
        seed = next(seeds)
        if case.hyena:
            x = layer_norm_like(b, h, n, outliers=30.0, seed=seed)
        else:
            x = white(b, h, n, seed=seed)
        return with_layout(x.to(dtype), case.layout)

    def filters(taps: int | None) -> Tensor | None:
        if taps is None:
            return None
        seed = next(seeds)
        k = hyena_filter(h, taps, seed=seed) if case.hyena else white(h, taps, seed=seed)
        k = k if case.hyena else k / math.sqrt(taps)
        return with_layout(k.to(dtype if case.same_dtype_filters else torch.float32), case.layout)

    skip_dtype = dtype if case.same_dtype_filters else torch.float32
    return {
        "u": activation(True),
        "k": filters(n if case.taps is None else case.taps),
        "k_rev": filters(case.reverse_taps),
        "skip": white(h, seed=99).to(skip_dtype) if case.skip else None,
        "pregate": activation(case.pregate),
        "postgate": activation(case.postgate),
        "dy": activation(True),
    }


# ---- Running a case ------------------------------------------------------------------------------


def evaluate(
    function: Callable[..., Tensor],
    inputs: dict[str, Tensor | None],
    *,
    circular: bool,
    dtype: torch.dtype | None = None,
    gradients: bool = True,
) -> dict[str, Tensor]:
    """Call `function` (of the arguments of `fft_conv`); return {"y": .., "du": .., "dk": .., ...}.

    With `dtype` all tensors are converted before.
    """
    given = {
        name: t.detach() if dtype is None else t.detach().to(dtype)
        for name, t in inputs.items()
        if t is not None
    }
    dy = given.pop("dy")
    for t in given.values():
        t.requires_grad_(gradients)
    positional = [given[name] for name in ("u", "k")]
    y = function(
        *positional, **{n: given[n] for n in ARGUMENTS[2:] if n in given}, circular=circular
    )
    results = {"y": y.detach()}
    if gradients:
        grads = torch.autograd.grad(y, list(given.values()), dy)
        results |= {f"d{name}": grad for name, grad in zip(given, grads, strict=True)}
    return results


def _reference(u, k, *, k_rev=None, skip=None, pregate=None, postgate=None, circular=False):
    return reference.fft_conv(u, k, k_rev, skip, pregate, postgate, circular)


def padded_reference(length: int) -> Callable[..., Tensor]:
    """`fft_conv` by torch.fft with a transform of 2 * length for sequences that may be shorter."""

    def function(u, k, *, k_rev=None, skip=None, pregate=None, postgate=None, circular=False):
        n = u.shape[-1]
        if circular:  # reaching ahead by j + 1 is reaching back by L - 1 - j a period earlier
            k_rev = k.flip(-1)
        u, pregate, postgate = (
            t if t is None else pad(t, (0, length - n)) for t in (u, pregate, postgate)
        )
        return reference.fft_conv(u, k, k_rev, skip, pregate, postgate)[..., :n]

    return function


def smooth_lengths(at_least: int, count: int) -> list[int]:
    """The next multiples of 16 without a prime factor above 5, for which torch is most accurate."""
    smooth = {2**a * 3**b * 5**c for a in range(4, 24) for b in range(5) for c in range(4)}
    return sorted(n for n in smooth if n >= at_least)[:count]


@functools.lru_cache(maxsize=4)
def expected(case: Case) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Exact results of a case (float64), and those of torch.fft in float32, with full filters.

    The first of these is the reference backend's. "filters" is the gradient of filters of all L
    taps, k's before k_rev's: what `_window` cuts.
    """
    inputs, n = dict(make_inputs(case)), case.length
    inputs["k"] = pad(inputs["k"], (0, n - inputs["k"].shape[-1]))
    if not case.circular:
        k_rev = inputs["k"][:, :0] if inputs["k_rev"] is None else inputs["k_rev"]
        inputs["k_rev"] = pad(k_rev, (0, n - k_rev.shape[-1]))
    # The largest error of few numbers is a small sample, and may be 0 by luck: several transforms
    # are several samples. None but the reference is shorter than the kernels' own, at least 32.
    sizes = smooth_lengths(plan_length(n), 10 if n <= 1024 else 3)
    functions = [_reference, *(padded_reference(m) for m in sizes)]
    dtypes = [torch.float64, *[torch.float32] * len(functions)]
    found = []
    for function, dtype in zip([_reference, *functions], dtypes, strict=True):
        if case.batch * case.channels == 0:  # torch.fft refuses to transform nothing
            given = {name: t for name, t in inputs.items() if t is not None and name != "dy"}
            results = {f"d{name}": torch.zeros_like(t, dtype=dtype) for name, t in given.items()}
            results["y"] = results["du"]
        else:
            results = evaluate(function, inputs, circular=case.circular, dtype=dtype)
        parts = [results[name] for name in ("dk", "dk_rev") if name in results]
        found.append(results | {"filters": torch.cat(parts, -1)})
    return found[0], found[1:]


def _window(name: str, t: Tensor, case: Case) -> Tensor:
    """The gradient `name`, if t is that of all filters; skip is a filter of one tap."""
    if name == "dskip":
        return t[:, 0]
    start = case.length if name == "dk_rev" else 0
    return t[:, start : start + ((case.reverse_taps if start else case.taps) or case.length)]


def check_fft_conv(
    function: Callable[..., Tensor],
    case: Case,
    *,
    gradients: bool = True,
    own_period: bool = False,
    noise: float = 0.0,
) -> dict[str, Margin]:
    """Assert that `function` computes `fft_conv` for a case, and by default all its gradients.

    `own_period` also allows the error of torch.fft with a period of exactly 2 L (L if circular),
    which is the reference backend's, and up to three times larger where L has a large prime factor.
    `noise` as in assert_close_to_float64.

    Returns:
        What of the budget each result used.
    """
    inputs = make_inputs(case)
    results = evaluate(function, inputs, circular=case.circular, gradients=gradients)
    exact, peers = expected(case)
    peers = peers if own_period else peers[1:]
    margins = {}
    for name, actual in results.items():
        dtype = inputs["u" if name == "y" else name[1:]].dtype
        assert actual.dtype == dtype, f"{name} has dtype {actual.dtype}, expected {dtype}"
        is_filter = name in ("dk", "dk_rev", "dskip")
        whole = "filters" if is_filter else name
        part = functools.partial(_window, name, case=case) if is_filter else None
        margins[name] = assert_close_to_float64(
            *(actual, exact[whole], [p[whole] for p in peers]),
            **{"part": part, "noise": noise, "name": f"{case.id}: {name}"},
        )
    return margins
