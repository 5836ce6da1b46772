"""The cases of `mixer_conv`, and the check that a function computes it."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from monarch_kernels import reference
from monarch_kernels.testing.budget import Margin, assert_close_to_float64
from monarch_kernels.testing.fft_conv import DTYPES, padded_reference, plan_length, smooth_lengths
from monarch_kernels.testing.inputs import hyena_filter, layer_norm_like, white, with_layout

MIXER_ARGUMENTS = (
    *("q", "k", "s", "s_bias", "k_rev", "skip"),
    *("u", "k2", "k2_rev", "skip2"),
)
_FILTERS = {"k": ("k", "k_rev", "skip"), "k2": ("k2", "k2_rev", "skip2")}
_TAPS = 12  # of the short filter whose gradient judges that of fewer taps


@dataclass(frozen=True)
class MixerCase:
    """One call of `mixer_conv`.

    Attributes:
        name: what the case is there for.
        batch, channels, length: the shape of z.
        s_taps: of the short filter; None for no short filter.
        s_bias, skip, residual: whether given; the residual filter has the parts of the other.
        taps, reverse_taps: of k and k_rev; None for `length`, and for no k_rev.
        dtype: of q and u, a name in torch.
        same_dtype_filters: the filters have `dtype` too, instead of float32.
        layout: of all tensors but u, see `with_layout`.
        u_layout: of u; also "columns", as a module has it that works on (B, L, H), and
            "sliced columns", of which each sample begins at an odd address.
        hyena: the filters are Hyena's and the inputs LayerNorm's with outliers, instead of white.
    """

    name: str
    batch: int
    channels: int
    length: int
    s_taps: int | None = 3
    s_bias: bool = True
    taps: int | None = None
    reverse_taps: int | None = None
    skip: bool = True
    residual: bool = True
    dtype: str = "float32"
    same_dtype_filters: bool = False
    layout: str = "contiguous"
    u_layout: str = "columns"
    hyena: bool = False

    @property
    def id(self) -> str:
        return f"{self.name}-{self.dtype}"


_PLAIN = {"s_taps": None, "s_bias": False, "skip": False, "residual": False}
_SHAPES = (
    MixerCase("one", 1, 1, 1, reverse_taps=1),
    MixerCase("one_plain", 2, 3, 1, **_PLAIN),
    MixerCase("two", 2, 3, 2, reverse_taps=2),
    MixerCase("two_eight_taps", 2, 3, 2, reverse_taps=1, s_taps=8),
    MixerCase("prime_7", 2, 4, 7, reverse_taps=7, s_taps=8),
    MixerCase("odd_31", 2, 17, 31, reverse_taps=31, u_layout="contiguous"),
    MixerCase("channels_33", 2, 33, 64, reverse_taps=64),
    MixerCase("channels_16", 2, 16, 32, reverse_taps=32, u_layout="sliced columns"),
    MixerCase("no_residual", 2, 20, 100, reverse_taps=100, residual=False),
    MixerCase("no_short_filter", 2, 20, 128, reverse_taps=128, s_taps=None, s_bias=False),
    MixerCase("interleaved", 3, 20, 256, reverse_taps=256),
    MixerCase("interleaved_strided_u", 2, 5, 130, reverse_taps=130, u_layout="strided"),
    MixerCase("first_row_plan", 2, 5, 257, reverse_taps=257),
    MixerCase("plain_512", 2, 3, 512, **_PLAIN),
    MixerCase("causal_512", 2, 19, 512),
    MixerCase("rows_512", 2, 3, 512, reverse_taps=512, u_layout="contiguous"),
    MixerCase("columns_512", 2, 35, 512, reverse_taps=512),
    MixerCase("sliced_columns", 2, 18, 333, reverse_taps=333, u_layout="sliced columns"),
    MixerCase("strided_u", 2, 3, 333, reverse_taps=333, u_layout="strided"),
    MixerCase("expanded_u", 3, 3, 300, reverse_taps=300, u_layout="expanded"),
    MixerCase("odd_999", 2, 3, 999, reverse_taps=999),
    MixerCase("prime_4099", 1, 2, 4099, reverse_taps=4099),
    MixerCase("three_1024", 1, 2, 3072, reverse_taps=3072, s_taps=4),
    MixerCase("five_512", 1, 2, 2560, reverse_taps=2560, s_bias=False, s_taps=2),
    MixerCase("short_filters", 2, 3, 700, taps=3, reverse_taps=2, s_taps=1),
    MixerCase("long_reverse", 2, 3, 640, taps=5, reverse_taps=640, s_taps=5, skip=False),
    MixerCase("empty_batch", 0, 3, 70, reverse_taps=70),
    MixerCase("empty_batch_rows", 0, 3, 300, reverse_taps=70),
    MixerCase("no_channels", 2, 0, 300, reverse_taps=9),
    MixerCase("transposed", 2, 5, 300, reverse_taps=300, layout="transposed"),
    MixerCase("sliced", 2, 9, 75, reverse_taps=75, layout="sliced", u_layout="sliced"),
    MixerCase("sliced_exact_plan", 2, 3, 512, reverse_taps=512, layout="sliced"),
    MixerCase("strided", 2, 3, 333, reverse_taps=33, layout="strided"),
    MixerCase("same_dtype_filters", 2, 6, 200, reverse_taps=200, same_dtype_filters=True),
    MixerCase("hyena", 2, 12, 1000, reverse_taps=1000, hyena=True),
    MixerCase("hyena_short", 2, 12, 130, reverse_taps=130, hyena=True),
)
MIXER_CASES = tuple(replace(case, dtype=dtype) for case in _SHAPES for dtype in DTYPES)

# Just below, at and just above sizes of transforms, of both layouts of the rows.
MIXER_BOUNDARIES = tuple(
    MixerCase(f"plan_{n}", 2, 17 if n < 300 else 2, n, reverse_taps=n)
    for size in (32, 48, 80, 128, 160, 256, 512, 768, 1280, 1024, 2048)
    for n in (size - 1, size, size + 1)
) + tuple(
    MixerCase(f"plan_{n}", 1, 1, n, reverse_taps=n, u_layout="contiguous")
    for n in (4096, 6144, 10240, 16384, 32768)
)


def as_columns(t: Tensor, *, sliced: bool = False) -> Tensor:
    """A tensor equal to t (B, H, L) whose channels lie side by side."""
    columns = t.transpose(1, 2).contiguous()
    if sliced:
        wide = columns.new_full((*columns.shape[:2], columns.shape[2] + 5), math.nan)
        wide[..., 3 : 3 + columns.shape[2]] = columns
        columns = wide[..., 3 : 3 + columns.shape[2]]
    return columns.transpose(1, 2)


@functools.lru_cache(maxsize=4)
def make_mixer_inputs(case: MixerCase) -> dict[str, Tensor | None]:
    """The tensors of a case by argument name, and "dz", a gradient of the result. Do not change."""
    dtype = getattr(torch, case.dtype)
    filter_dtype = dtype if case.same_dtype_filters else torch.float32
    b, h, n = case.batch, case.channels, case.length
    seeds = iter(range(100, 200))

    def activation(channels: int, layout: str) -> Tensor:
        seed = next(seeds)
        if case.hyena:
            x = layer_norm_like(b, channels, n, outliers=30.0, seed=seed)
        else:
            x = white(b, channels, n, seed=seed)
        if layout.endswith("columns"):
            return as_columns(x.to(dtype), sliced=layout != "columns")
        return with_layout(x.to(dtype), layout)

    def filters(channels: int, taps: int | None) -> Tensor | None:
        if taps is None:
            return None
        seed = next(seeds)
        k = white(channels, taps, seed=seed) / math.sqrt(taps)
        if case.hyena and channels == h:
            k = hyena_filter(h, taps, seed=seed)
        return with_layout(k.to(filter_dtype), case.layout)

    def vector(channels: int, wanted: bool) -> Tensor | None:
        return white(channels, seed=next(seeds)).to(filter_dtype) if wanted else None

    taps = n if case.taps is None else case.taps
    inputs = {
        "q": activation(3 * h, case.layout),
        "s": filters(3 * h, case.s_taps),
        "s_bias": vector(3 * h, case.s_bias),
        "u": activation(h, case.u_layout) if case.residual else None,
        "dz": activation(h, case.layout),
    }
    for k, k_rev, skip in _FILTERS.values():
        given = k == "k" or case.residual
        inputs[k] = filters(h, taps if given else None)
        inputs[k_rev] = filters(h, case.reverse_taps if given else None)
        inputs[skip] = vector(h, case.skip and given)
    return inputs


def evaluate_mixer(
    function: Callable[..., Tensor],
    inputs: dict[str, Tensor | None],
    *,
    dtype: torch.dtype | None = None,
    gradients: bool = True,
) -> dict[str, Tensor]:
    """Call `function` (of the arguments of `mixer_conv`); return {"z": .., "dq": .., ...}.

    With `dtype` all tensors are converted before.
    """
    given = {
        name: inputs[name].detach() if dtype is None else inputs[name].detach().to(dtype)
        for name in (*MIXER_ARGUMENTS, "dz")
        if inputs.get(name) is not None
    }
    dz = given.pop("dz")
    for t in given.values():
        t.requires_grad_(gradients)
    z = function(given["q"], given["k"], **{n: t for n, t in given.items() if n not in ("q", "k")})
    results = {"z": z.detach()}
    if gradients:
        grads = torch.autograd.grad(z, list(given.values()), dz)
        results |= {f"d{name}": grad for name, grad in zip(given, grads, strict=True)}
    return results


def _padded_reference(length: int) -> Callable[..., Tensor]:
    """`mixer_conv` by conv1d and torch.fft with transforms of 2 * length."""
    conv = padded_reference(length)

    def function(q, k, *, s, s_bias, k_rev, skip, u=None, k2=None, k2_rev=None, skip2=None):
        x1, x2, v = reference.short_conv(q, s, s_bias).chunk(3, dim=1)
        z = conv(v, k, k_rev=k_rev, skip=skip, pregate=x1, postgate=x2)
        return z if u is None else z + conv(u, k2, k_rev=k2_rev, skip=skip2)

    return function


def _reference(q, k, **options):
    return reference.mixer_conv(q, k, **options)


def _whole(case: MixerCase) -> dict[str, Tensor | None]:
    """The inputs of a case with every part, filters of all L taps, a short one of _TAPS."""
    inputs, n = dict(make_mixer_inputs(case)), case.length
    rows = 3 * case.channels
    if inputs["s"] is None:
        inputs["s"] = torch.ones(rows, 1)
    inputs["s"] = pad(inputs["s"], (_TAPS - inputs["s"].shape[-1], 0))
    if inputs["s_bias"] is None:
        inputs["s_bias"] = torch.zeros(rows)
    for k, k_rev, skip in _FILTERS.values():
        if inputs[k] is None:
            continue
        inputs[k] = pad(inputs[k], (0, n - inputs[k].shape[-1]))
        reverse = inputs[k][:, :0] if inputs[k_rev] is None else inputs[k_rev]
        inputs[k_rev] = pad(reverse, (0, n - reverse.shape[-1]))
        if inputs[skip] is None:
            inputs[skip] = torch.zeros(case.channels)
    return inputs


@functools.lru_cache(maxsize=4)
def expected_mixer(case: MixerCase) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Exact results of a case (float64), and those of torch in float32, with `_whole` inputs.

    The first of these is the reference backend's. "filters" and "filters2" are the gradients of
    k and k_rev, "short" those of s and s_bias: what `_window` cuts.
    """
    inputs, n = _whole(case), case.length
    sizes = smooth_lengths(plan_length(n), 10 if n <= 1024 else 3)
    functions = [_reference, *(_padded_reference(m) for m in sizes)]
    dtypes = [torch.float64, *[torch.float32] * len(functions)]
    found = []
    for function, dtype in zip([_reference, *functions], dtypes, strict=True):
        given = dict(inputs)
        own = len(found) == 1 and case.s_taps is not None
        if own:  # conv1d sums in another order for another number of taps
            given["s"] = given["s"][:, _TAPS - case.s_taps :]
        if case.batch * case.channels == 0:  # torch.fft refuses to transform nothing
            names = [name for name, t in given.items() if t is not None and name != "dz"]
            results = {f"d{name}": torch.zeros_like(given[name], dtype=dtype) for name in names}
            results["z"] = torch.zeros_like(inputs["dz"], dtype=dtype)
        else:
            results = evaluate_mixer(function, given, dtype=dtype)
        if own:
            exact = found[0]["ds"][:, : _TAPS - case.s_taps]
            results["ds"] = torch.cat([exact.to(dtype), results["ds"]], -1)
        results["short"] = torch.cat([results["ds"], results["ds_bias"].unsqueeze(-1)], -1)
        for k, k_rev, _ in _FILTERS.values():
            if f"d{k}" in results:
                results[f"filters{k[1:]}"] = torch.cat([results[f"d{k}"], results[f"d{k_rev}"]], -1)
        found.append(results)
    return found[0], found[1:]


def _window(name: str, case: MixerCase) -> tuple[str, Callable[[Tensor], Tensor] | None]:
    """Which of the expected results has the gradient `name`, and what cuts it from that."""
    if name == "ds":
        return "short", lambda t: t[:, _TAPS - case.s_taps : _TAPS]
    if name == "ds_bias":
        return "short", lambda t: t[:, _TAPS]
    for k, k_rev, skip in _FILTERS.values():
        whole = f"filters{k[1:]}"
        if name == f"d{k}":
            return whole, lambda t: t[:, : case.taps or case.length]
        if name == f"d{k_rev}":
            return whole, lambda t: t[:, case.length : case.length + case.reverse_taps]
        if name == f"d{skip}":
            return whole, lambda t: t[:, 0]
    return name, None


def check_mixer_conv(
    function: Callable[..., Tensor],
    case: MixerCase,
    *,
    gradients: bool = True,
    own_period: bool = False,
) -> dict[str, Margin]:
    """Assert that `function` computes `mixer_conv` for a case, and by default all its gradients.

    `own_period` also allows the error of torch.fft with a period of exactly 2 L, which is the
    reference backend's.

    Returns:
        What of the budget each result used.
    """
    inputs = make_mixer_inputs(case)
    results = evaluate_mixer(function, inputs, gradients=gradients)
    exact, peers = expected_mixer(case)
    peers = peers if own_period else peers[1:]
    margins = {}
    for name, actual in results.items():
        dtype = inputs["q" if name == "z" else name[1:]].dtype
        assert actual.dtype == dtype, f"{name} has dtype {actual.dtype}, expected {dtype}"
        whole, part = _window(name, case)
        margins[name] = assert_close_to_float64(
            actual, exact[whole], [p[whole] for p in peers], part=part, name=f"{case.id}: {name}"
        )
    return margins
