"""What tests and benchmarks share: inputs, the table of cases, and the error budget.

A tolerance is computed here, never chosen: a result may be twice as far from the exact one as
torch.fft is with the same data in float32, plus what rounding to the dtype of the result costs.

Public names:
    white, layer_norm_like, hyena_filter, with_layout: seeded inputs of unit scale.
    Case, CASES, BOUNDARIES, make_inputs: the table of `fft_conv` cases.
    evaluate, check_fft_conv: run a function on a case; compare result and gradients.
    assert_close_to_float64: the error budget.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from monarch_kernels import reference

LAYOUTS = ("contiguous", "transposed", "sliced", "strided", "expanded")
ARGUMENTS = ("u", "k", "k_rev", "skip", "pregate", "postgate")

# ---- Inputs ---------------------------------------------------------------------------------------


def white(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers of variance 1, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_norm_like(
    batch: int, channels: int, length: int, *, outliers: float = 0.0, seed: int = 0
) -> Tensor:
    """Activations `(B, H, L)` as behind a LayerNorm over the channels: each position has variance 1.

    `outliers` is the factor by which every 256th element, on average, is larger before the
    normalisation; 0 for none. One channel cannot be normalised over: it keeps variance near 1.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, length, generator=generator)
    x = x * torch.exp(0.5 * torch.randn(channels, 1, generator=generator))
    if outliers:
        x = torch.where(torch.rand(x.shape, generator=generator) < 1 / 256, outliers * x, x)
    if channels == 1:
        return x
    return (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)


def hyena_filter(channels: int, taps: int, *, seed: int = 0) -> Tensor:
    """Filters `(H, taps)` of unit norm: a sine network of the position times a decay.

    The decay rates are those of Hyena (arXiv 2302.10866): a filter has fallen to 1% after 0.3 of
    the sequence in the fastest channel, after 1.5 in the slowest.
    """
    generator = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 1, max(taps, 1))[:taps, None]
    bands = 2 * math.pi * torch.arange(1, 9) * t
    features = torch.cat([t, bands.cos(), bands.sin()], 1)  # (taps, 17)
    for width in (64, 64):
        weight = torch.randn(features.shape[1], width, generator=generator)
        features = torch.sin(10 * features @ weight / math.sqrt(features.shape[1]))
    k = (features @ torch.randn(64, channels, generator=generator)).t()
    decay = math.log(100) / torch.linspace(0.3, 1.5, max(channels, 1))[:channels, None]
    return torch.nn.functional.normalize(k * torch.exp(-decay * t.t()), dim=-1)


def with_layout(t: Tensor, layout: str) -> Tensor:
    """Return a tensor equal to t whose memory lies as `layout` says; gaps are filled with NaN.

    transposed: the last dimension is not the contiguous one. sliced: rows are contiguous but apart,
    and start at an odd address. strided: every second element. expanded: t's first entry repeated
    along the first dimension with stride 0 - the one layout that changes the values.
    """
    if layout == "contiguous":
        return t
    if layout == "transposed":
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded":
        return t[:1].expand_as(t)
    *rows, n = t.shape
    if layout == "sliced":
        view = t.new_full((*rows, n + 8), math.nan)[..., 3 : 3 + n]
    elif layout == "strided":
        view = t.new_full((*rows, 2 * n + 1), math.nan)[..., 1 : 2 * n : 2]
    else:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    view.copy_(t)
    return view


# ---- Cases ----------------------------------------------------------------------------------------


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
_LARGE = tuple(sorted(odd << a for odd in (1, 3, 5) for a in range(10, 18) if odd << a > 2048))
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
        outlier = {"outliers": 30.0} if case.hyena else None
        shape = (b, h, n)
        x = (
            layer_norm_like(*shape, **outlier, seed=next(seeds))
            if outlier
            else white(*shape, seed=next(seeds))
        )
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


# ---- Running a case -------------------------------------------------------------------------------


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


def _padded_reference(length: int) -> Callable[..., Tensor]:
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


@functools.lru_cache(maxsize=4)
def expected(case: Case) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Exact results of a case (float64), and those of torch.fft in float32, with full filters.

    "filters" is the gradient of filters of all L taps, k's before k_rev's: what `_window` cuts.
    """
    inputs, n = dict(make_inputs(case)), case.length
    inputs["k"] = pad(inputs["k"], (0, n - inputs["k"].shape[-1]))
    if not case.circular:
        k_rev = inputs["k"][:, :0] if inputs["k_rev"] is None else inputs["k_rev"]
        inputs["k_rev"] = pad(k_rev, (0, n - k_rev.shape[-1]))
    # The largest error of few numbers is a small sample, and may be 0 by luck: several transforms
    # are several samples. None but the first is shorter than the kernels' own, at least 32.
    size = plan_length(n)
    sizes = [size + 16 * i for i in range(10)] if n <= 1024 else [size, size + 256, 2 * size]
    functions = [_reference, *(_padded_reference(m) for m in sizes)]
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
    function: Callable[..., Tensor], case: Case, *, gradients: bool = True
) -> dict[str, "Margin"]:
    """Assert that `function` computes `fft_conv` for a case, and by default all its gradients.

    Returns:
        What of the budget each result used.
    """
    inputs = make_inputs(case)
    results = evaluate(function, inputs, circular=case.circular, gradients=gradients)
    exact, peers = expected(case)
    margins = {}
    for name, actual in results.items():
        dtype = inputs["u" if name == "y" else name[1:]].dtype
        assert actual.dtype == dtype, f"{name} has dtype {actual.dtype}, expected {dtype}"
        is_filter = name in ("dk", "dk_rev", "dskip")
        whole = "filters" if is_filter else name
        part = functools.partial(_window, name, case=case) if is_filter else None
        margins[name] = assert_close_to_float64(
            actual, exact[whole], [p[whole] for p in peers], part=part, name=f"{case.id}: {name}"
        )
    return margins


# ---- The error budget -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Margin:
    """Errors divided by what was allowed: relative L2, and the worst element."""

    l2: float
    element: float


def assert_close_to_float64(
    actual: Tensor,
    exact: Tensor,
    torch_float32: Tensor | Sequence[Tensor],
    *,
    dtype: torch.dtype | None = None,
    part: Callable[[Tensor], Tensor] | None = None,
    name: str = "result",
) -> Margin:
    """Assert that `actual` is as near to `exact` as torch.fft's float32 arithmetic lets expect.

    With e torch's error in float32 before any rounding to 16 bits, and r the error of rounding
    `exact` to 16 bits (float32: the most that it can be, half an epsilon of the value):

    * in the L2 norm of the whole tensor, error <= 2 e + r (2 e + 1.05 r for 16 bits);
    * in each element, error <= 2 e + r (4 e + r for 16 bits: near a tie, noise e decides to which
      of two numbers to round, and either is at most 2 e farther than the nearer one), where e is
      the largest error in a row of torch's, relative to the row's root mean square.

    The first notices a small bias, the second one wrong element or row.

    Args:
        actual: the result to judge, of the shape of `exact`.
        exact: float64.
        torch_float32: the same by torch in float32, from the same inputs; one, or several samples
            of which the worst counts.
        dtype: what `actual` must have; None for any.
        part: cuts what `actual` is from `exact` and torch's: the errors of a few numbers are best
            judged by those of all the numbers they were computed with. The last dimension of the
            whole is the row, the first of the part counts rows.
        name: for the message.

    Raises:
        AssertionError: wrong dtype, shape or numbers; says the errors and what was allowed.
    """
    peers = [torch_float32] if isinstance(torch_float32, Tensor) else list(torch_float32)
    assert exact.dtype == torch.float64, f"exact must be float64, got {exact.dtype}"
    assert dtype in (None, actual.dtype), f"{name} has dtype {actual.dtype}, expected {dtype}"
    noise = torch.stack([(p.double() - exact).abs() for p in peers])
    scale = rms = exact.square().mean(-1, keepdim=True).sqrt().expand_as(exact)
    if part is not None:
        scale, exact = part(scale), part(exact)
    _check_form(actual, exact, name)
    if exact.numel() == 0:
        return Margin(0.0, 0.0)
    short = actual.dtype.itemsize == 2
    error = (actual.double() - exact).abs()
    if short:
        rounding = (exact.to(actual.dtype).double() - exact).abs()
    else:
        rounding = torch.finfo(actual.dtype).eps / 2 * exact.abs()

    # As many of the whole's errors as the part has numbers; of a whole, all.
    largest = noise.flatten(1).topk(exact.numel()).values
    allowed = 2 * largest.norm(dim=1).max() + (1.05 if short else 1.0) * rounding.norm()
    l2 = _fraction(error.norm(), allowed)
    spread = torch.where(rms > 0, noise.amax(0) / rms, 0.0).max()
    bound = rounding + (4 if short else 2) * spread * scale
    fractions = torch.where(error == 0, 0.0, error / bound)
    worst = int(fractions.argmax())
    margin = Margin(l2, float(fractions.flatten()[worst]))
    norm = exact.norm()
    assert l2 <= 1, (
        f"{name}: relative L2 error {_fraction(error.norm(), norm):.3g}, allowed is "
        f"{_fraction(allowed, norm):.3g} (twice torch's in float32, and rounding to {actual.dtype})"
    )
    assert margin.element <= 1, (
        f"{name}: element {_position(worst, exact.shape)} is {actual.flatten()[worst]:.9g}, "
        f"expected {exact.flatten()[worst]:.9g}: error {error.flatten()[worst]:.3g}, allowed is "
        f"{bound.flatten()[worst]:.3g}; {int((fractions > 1).sum())} of {exact.numel()} exceed it"
    )
    return margin


def _check_form(actual: Tensor, exact: Tensor, name: str) -> None:
    assert actual.shape == exact.shape, (
        f"{name} has shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    )
    infinite = int((~torch.isfinite(actual)).sum())
    assert infinite == 0, f"{name} has {infinite} elements that are not finite"


def _fraction(error: Tensor, allowed: Tensor) -> float:
    return 0.0 if error == 0 else float(error / allowed)


def _position(flat: int, shape: torch.Size) -> tuple[int, ...]:
    index = []
    for n in reversed(shape):
        index.append(flat % n)
        flat //= n
    return tuple(reversed(index))
