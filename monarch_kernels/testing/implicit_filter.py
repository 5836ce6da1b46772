"""The cases of `implicit_filter`, and the check that a function computes it."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from monarch_kernels import reference
from monarch_kernels.testing.budget import Margin, assert_close_to_float64
from monarch_kernels.testing.inputs import white, with_layout

ARGUMENTS = ("z", "w_in", "b_in", "w_hidden", "b_hidden", "w_out", "freq", "deltas", "t")


@dataclass(frozen=True)
class FilterCase:
    """One call of `implicit_filter`.

    Attributes:
        name: what the case is there for.
        filters, length, channels, order, features, hidden: F, L, H, O, E and n.
        freq: the mean frequency; the arguments of the sines are about as large.
        fastest: the largest of deltas.
        shared: one z for all filters, and deltas (H,).
        layout: of all tensors, see `with_layout`.
    """

    name: str
    filters: int
    length: int
    channels: int
    order: int = 16
    features: int = 5
    hidden: int = 2
    freq: float = 2.0
    fastest: float = 15.0
    shared: bool = False
    layout: str = "contiguous"


FILTER_CASES = (
    FilterCase("one", 1, 1, 1, 1, 1, 0),
    FilterCase("one_hidden", 2, 1, 3, 1, 2, 1),
    FilterCase("two", 1, 2, 5, 3, 1, 1),
    FilterCase("no_hidden", 2, 50, 7, 9, 3, 0),
    FilterCase("one_layer", 2, 40, 60, 33, 4, 1),
    FilterCase("three_layers", 1, 70, 17, 12, 5, 3),
    FilterCase("many_features", 2, 37, 10, 8, 41),
    FilterCase("order_one", 2, 100, 6, 1),
    FilterCase("order_64", 1, 130, 50, 64),
    FilterCase("model", 4, 300, 96, 128, 5, 2, 10.0, shared=True),
    FilterCase("several_parts", 2, 1030, 13, 20),
    FilterCase("wide", 1, 33, 331),
    FilterCase("slow_decay", 2, 300, 20, fastest=0.1),
    FilterCase("fast_decay", 2, 300, 20, fastest=900.0),
    FilterCase("large_arguments", 1, 200, 20, 12, 1, 0, 3000.0),
    FilterCase("larger_arguments", 1, 200, 20, 12, 1, 0, 1e5),
    FilterCase("shared", 3, 77, 19, shared=True),
    FilterCase("no_filters", 0, 20, 5, 4),
    FilterCase("transposed", 2, 65, 33, 17, layout="transposed"),
    FilterCase("sliced", 2, 65, 33, 17, layout="sliced"),
    FilterCase("strided", 2, 65, 33, 17, layout="strided"),
    FilterCase("expanded", 3, 65, 33, 17, layout="expanded"),
    *(FilterCase(f"length_{n}", 1, n, 5) for n in (7, 8, 9, 15, 16, 17, 31, 32, 63, 64, 127, 128)),
    *(FilterCase(f"length_{n}", 1, n, 5) for n in (129, 257)),
    *(FilterCase(f"channels_{n}", 1, 20, n, 5) for n in (4, 12, 13, 16, 24, 47, 48, 49)),
    *(FilterCase(f"order_{n}", 1, 20, 5, n) for n in (4, 8, 31, 32, 48, 65)),
)


@functools.lru_cache(maxsize=8)
def filter_inputs(case: FilterCase) -> dict[str, Tensor]:
    """The tensors of a case by argument name, and "dk", a gradient of the result. Do not change."""
    f, length, h, o = case.filters, case.length, case.channels, case.order
    e, n = case.features, case.hidden
    seeds = iter(range(100, 200))

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return white(*shape, seed=next(seeds)) * scale

    z = normal(1, length, e).expand(f, -1, -1) if case.shared else normal(f, length, e)
    inputs = {
        "z": z,
        "w_in": normal(f, o, e, scale=e**-0.5),
        "b_in": normal(f, o),
        "w_hidden": normal(f, n, o, o, scale=o**-0.5),
        "b_hidden": normal(f, n, o),
        "w_out": normal(f, h, o, scale=o**-0.5),
        "freq": case.freq * (1 + normal(f, o, scale=0.1)),
        "deltas": normal(h) if case.shared else normal(f, h),
        "t": torch.linspace(0, 1, length),
        "dk": normal(f, h, length),
    }
    largest = inputs["deltas"].abs().max() if f else 1.0
    inputs["deltas"] = inputs["deltas"] * (case.fastest / largest)
    if case.layout == "contiguous":
        return inputs
    # Expanded, t would be one time for all positions, and dk one for all filters.
    kept = ("t", "dk") if case.layout == "expanded" else ()
    return {n: t if n in kept else with_layout(t, case.layout) for n, t in inputs.items()}


def evaluate_filter(
    function: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    gradients: bool = True,
) -> dict[str, Tensor]:
    """Call `function` (of the arguments of `implicit_filter`); return {"k": .., "dz": .., ...}."""
    given = {n: t.detach() if dtype is None else t.detach().to(dtype) for n, t in inputs.items()}
    dk = given.pop("dk")
    leaves = {n: t for n, t in given.items() if n != "t"}
    for t in leaves.values():
        t.requires_grad_(gradients)
    k = function(**given)
    results = {"k": k.detach()}
    if gradients:
        grads = torch.autograd.grad(k, list(leaves.values()), dk, materialize_grads=True)
        results |= {f"d{n}": grad for n, grad in zip(leaves, grads, strict=True)}
    return results


def of_reference(z, w_in, b_in, w_hidden, b_hidden, w_out, freq, deltas, t) -> Tensor:
    """The reference, with deltas as the public function takes them."""
    if deltas.dim() == 1:
        deltas = deltas.expand(z.shape[0], -1)
    return reference.implicit_filter(z, w_in, b_in, w_hidden, b_hidden, w_out, freq, deltas, t)


def composed_filter(z, w_in, b_in, w_hidden, b_hidden, w_out, freq, deltas, t) -> Tensor:
    """All filters at once, as batched products."""
    freq = freq.unsqueeze(1)
    a = torch.sin(freq * torch.baddbmm(b_in.unsqueeze(1), z, w_in.mT))  # (F, L, O)
    for w, b in zip(w_hidden.unbind(1), b_hidden.unbind(1), strict=True):
        a = torch.sin(freq * torch.baddbmm(b.unsqueeze(1), a, w.mT))
    return torch.bmm(w_out, a.mT) * torch.exp(-deltas.abs().unsqueeze(-1) * t)


# Dimensions that are units or positions: turned, every sum has another order.
_UNITS = {"w_in": [1], "b_in": [1], "w_hidden": [2, 3], "b_hidden": [2], "w_out": [2], "freq": [1]}
_POSITIONS = {"z": [1], "t": [0], "dk": [2], "k": [2]}


def _turned(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """torch in float32 with units and positions in reverse."""
    dims = _UNITS | _POSITIONS
    given = {n: t.flip(dims.get(n, [])) for n, t in inputs.items()}
    results = evaluate_filter(composed_filter, given, dtype=torch.float32)
    return {n: t.flip(dims.get(n if n == "k" else n[1:], [])) for n, t in results.items()}


@functools.lru_cache(maxsize=4)
def expected_filter(case: FilterCase) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Exact results, and samples of torch's in float32."""
    inputs = filter_inputs(case)
    exact = evaluate_filter(of_reference, inputs, dtype=torch.float64)
    peers = [
        evaluate_filter(f, inputs, dtype=torch.float32) for f in (of_reference, composed_filter)
    ]
    return exact, [*peers, _turned(inputs)]


def _rows(name: str, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Numbers whose errors are alike: k before its decay; a filter's numbers of one gradient."""
    if name != "k":
        return t.double().flatten(1 if t.dim() > 1 else 0)
    decay = torch.exp(-inputs["deltas"].double().abs().unsqueeze(-1) * inputs["t"].double())
    return t.double() / decay.clamp(min=1e-6)


def check_implicit_filter(
    function: Callable[..., Tensor], case: FilterCase, *, gradients: bool = True
) -> dict[str, Margin]:
    """Assert that `function` computes `implicit_filter` for a case, and by default all gradients.

    A sum of few terms may be exact in torch by luck: always allowed for is, of each layer, the
    rounding of the sines' arguments (which are as large as the frequency), and for a gradient that
    of a sum over the positions.

    Returns:
        What of the budget each result used.
    """
    inputs = filter_inputs(case)
    results = evaluate_filter(function, inputs, gradients=gradients)
    exact, peers = expected_filter(case)
    margins = {}
    for name, actual in results.items():
        assert actual.shape == exact[name].shape, name
        assert actual.dtype == torch.float32, name
        rows = _rows(name, exact[name], inputs)
        flat = [_rows(name, p[name], inputs) for p in peers]
        if rows.numel():
            scale = rows.square().mean(-1, keepdim=True).sqrt()
            roundings = case.hidden + 2
            if name != "k":
                roundings = 3 * roundings + math.log2(case.length) / 2
            roundings *= min(case.freq, 10.0)
            flat.append(rows + roundings * torch.finfo(torch.float32).eps * scale)
        margins[name] = assert_close_to_float64(
            _rows(name, actual, inputs), rows, flat, name=f"{case.name}: {name}"
        )
    return margins
