"""Cases of `block_diagonal`, `monarch_matmul` and `glu_mlp`, and the check of a function on one."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, pad

from monarch_kernels import reference
from monarch_kernels.testing.budget import Margin, assert_close_to_float64
from monarch_kernels.testing.inputs import white, with_layout


@dataclass(frozen=True)
class ProductCase:
    """One call of an operator.

    Attributes:
        operator: "block_diagonal", "monarch_matmul" or "glu_mlp".
        name: what the case is there for.
        shape: of x.
        weights: the shapes of the weights.
        vectors: the float32 vectors that are given (bias, norm_weight, norm_bias), and residual.
        options: keyword arguments that are no tensors.
        dtype: of x and the weights, a name in torch.
        layout: of x, the weights and the residual, see `with_layout`.
    """

    operator: str
    name: str
    shape: tuple[int, ...]
    weights: tuple[tuple[int, int, int], ...]
    vectors: tuple[str, ...] = ()
    options: dict = field(default_factory=dict, hash=False)
    dtype: str = "float32"
    layout: str = "contiguous"

    @property
    def id(self) -> str:
        return f"{self.operator}-{self.name}-{self.dtype}"

    @property
    def out_features(self) -> int:
        if self.operator == "glu_mlp":
            return self.shape[-1]
        blocks, rows, _ = self.weights[-1]
        return self.options.get("out_features", blocks * rows)


BIAS, NORM = ("bias",), ("norm_weight", "norm_bias")
FULL = (*BIAS, *NORM, "residual")


def _block(name, shape, w, vectors=(), **rest):
    return ProductCase("block_diagonal", name, shape, (w,), vectors, **rest)


def _monarch(name, shape, w1, w2, vectors=(), **rest):
    return ProductCase("monarch_matmul", name, shape, (w1, w2), vectors, **rest)


def _glu(name, shape, blocks, units, vectors=(), **rest):
    """`units`: I / P; D / P is rounded up."""
    size = -(-shape[-1] // blocks)
    factor = 1 if rest.get("options", {}).get("gated") is False else 2
    weights = ((blocks, factor * units, size), (blocks, size, units))
    return ProductCase("glu_mlp", name, shape, weights, vectors, **rest)


_SHAPES = (
    _block("one", (1, 1), (1, 1, 1)),
    _block("one_row", (1, 96), (4, 50, 24), BIAS),
    _block("vector", (40,), (5, 3, 8)),
    _block("three_rows", (3, 33), (3, 17, 11), BIAS),
    _block("eight_rows", (8, 64), (2, 49, 32)),
    _block("nine_rows", (9, 64), (2, 49, 32), BIAS),
    _block("prime_rows", (131, 66), (3, 25, 22), BIAS),
    _block("whole", (2, 64, 128), (4, 96, 32), BIAS),
    _block("odd", (37, 35), (5, 13, 7), BIAS),
    _block("cropped", (20, 29), (4, 9, 8), BIAS, options={"out_features": 33}),
    _block("cropped_few", (5, 29), (4, 9, 8), BIAS, options={"out_features": 33}),
    _block("missing_block", (20, 5), (4, 9, 2), BIAS),
    _block("long_sum", (19, 1100), (1, 14, 1100)),
    _block("several_parts", (1030, 20), (2, 7, 10), BIAS),
    _block("empty", (0, 12), (3, 5, 4), BIAS),
    _block("transposed", (33, 24), (3, 17, 8), BIAS, layout="transposed"),
    _block("sliced", (33, 24), (3, 17, 8), layout="sliced"),
    _block("strided", (6, 24), (3, 17, 8), layout="strided"),
    _block("expanded", (33, 24), (3, 17, 8), layout="expanded"),
    _monarch("one", (1, 1), (1, 1, 1), (1, 1, 1)),
    _monarch("square", (16, 64), (8, 8, 8), (8, 8, 8), BIAS),
    _monarch("rectangular", (2, 19, 60), (4, 24, 15), (8, 5, 12), BIAS),
    _monarch("odd", (37, 35), (5, 9, 7), (3, 11, 15), BIAS),
    _monarch("one_row", (1, 35), (5, 9, 7), (3, 11, 15)),
    _monarch("cropped", (20, 18), (5, 3, 4), (3, 7, 5), BIAS, options={"out_features": 19}),
    _monarch("prime_rows", (131, 96), (4, 64, 24), (16, 6, 16)),
    _monarch("empty", (0, 12), (3, 5, 4), (5, 2, 3), BIAS),
    _monarch("strided", (6, 24), (3, 17, 8), (17, 2, 3), layout="strided"),
    _glu("one", (1, 1), 1, 1),
    _glu("one_row", (1, 64), 4, 48, FULL),
    _glu("few_rows", (5, 64), 4, 48, (*BIAS, "residual")),
    _glu("whole", (2, 64, 128), 4, 96, FULL),
    _glu("odd_units", (37, 40), 4, 25, FULL),
    _glu("odd_blocks", (130, 48), 3, 33, FULL),
    _glu("padded", (41, 30), 4, 12, FULL),
    _glu("one_block", (70, 31), 1, 17, (*BIAS, "norm_weight")),
    _glu("plain", (33, 24), 2, 20, FULL, options={"gated": False}),
    _glu("bare", (200, 32), 4, 16),
    _glu("several_parts", (1030, 16), 2, 8, FULL),
    _glu("empty", (0, 16), 2, 8, FULL),
    _glu("transposed", (33, 24), 2, 20, FULL, layout="transposed"),
    _glu("strided", (33, 24), 2, 20, FULL, layout="strided"),
)
DTYPES = ("float32", "bfloat16", "float16")
PRODUCT_CASES = tuple(replace(case, dtype=dtype) for case in _SHAPES for dtype in DTYPES)

_WEIGHTS = {
    "block_diagonal": ("w",),
    "monarch_matmul": ("w1", "w2"),
    "glu_mlp": ("w_in", "w_out"),
}


def product_inputs(case: ProductCase) -> dict[str, Tensor]:
    """The tensors of a case by argument name, and "dy", a gradient of the result."""
    dtype = getattr(torch, case.dtype)
    out = (*case.shape[:-1], case.out_features)
    inputs = {"x": with_layout(white(*case.shape).to(dtype), case.layout)}
    for i, (name, shape) in enumerate(zip(_WEIGHTS[case.operator], case.weights, strict=True)):
        w = white(*shape, seed=i + 1) / math.sqrt(shape[-1])
        layout = "contiguous" if case.layout == "expanded" else case.layout
        inputs[name] = with_layout(w.to(dtype), layout)
    for i, name in enumerate(case.vectors):
        if name == "residual":
            t = with_layout(white(*case.shape, seed=9).to(dtype), case.layout)
        else:
            t = white(case.out_features, seed=10 + i) + (name == "norm_weight")
        inputs[name] = t
    inputs["dy"] = white(*out, seed=20).to(dtype)
    return inputs


def run_product(
    function: Callable[..., Tensor],
    case: ProductCase,
    inputs: dict[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    gradients: bool = True,
) -> dict[str, Tensor]:
    """Call `function` as the operator; return {"y": .., "dx": .., ...}."""
    given = {n: t.detach() if dtype is None else t.detach().to(dtype) for n, t in inputs.items()}
    dy = given.pop("dy")
    for t in given.values():
        t.requires_grad_(gradients)
    names = ("x", *_WEIGHTS[case.operator])
    rest = {n: t for n, t in given.items() if n not in names}
    y = function(*(given[n] for n in names), **rest, **case.options)
    results = {"y": y.detach()}
    if gradients:
        grads = torch.autograd.grad(y, list(given.values()), dy)
        results |= {f"d{n}": grad for n, grad in zip(given, grads, strict=True)}
    return results


def of_reference(case: ProductCase) -> Callable[..., Tensor]:
    """The reference of the case's operator, with the public function's arguments."""
    if case.operator == "glu_mlp":
        return reference.glu_mlp
    function = getattr(reference, case.operator)

    def call(*tensors, bias=None, out_features=None):
        return function(*tensors, bias, case.out_features)

    return call


def _bmm(x: Tensor, w: Tensor) -> Tensor:
    blocks, rows, columns = w.shape
    x = pad(x, (0, blocks * columns - x.shape[-1])).reshape(-1, blocks, columns)
    return torch.bmm(x.transpose(0, 1), w.mT).transpose(0, 1).reshape(-1, blocks * rows)


def composed(case: ProductCase) -> Callable[..., Tensor]:
    """The operator as code bases write it, every step in the dtype of the inputs."""

    def block_diagonal(x, w, bias=None, out_features=None):
        y = _bmm(x, w)[:, : case.out_features]
        y = y if bias is None else y + bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], case.out_features)

    def monarch_matmul(x, w1, w2, bias=None, out_features=None):
        blocks, rows, columns = w2.shape
        h = _bmm(x, w1).unflatten(1, (columns, blocks)).mT.flatten(1)
        y = _bmm(h, w2).unflatten(1, (blocks, rows)).mT.flatten(1)[:, : case.out_features]
        y = y if bias is None else y + bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], case.out_features)

    def glu_mlp(
        x, w_in, w_out, bias=None, residual=None, norm_weight=None, norm_bias=None, gated=True
    ):
        h = _bmm(x, w_in)
        if gated:
            a, b = h.chunk(2, dim=-1)
            h = gelu(a) * b
        else:
            h = gelu(h)
        y = _bmm(h, w_out)[:, : x.shape[-1]].reshape(x.shape)
        y = y if bias is None else y + bias.to(y.dtype)
        y = y if residual is None else y + residual
        if norm_weight is not None:
            scale, shift = (t if t is None else t.to(y.dtype) for t in (norm_weight, norm_bias))
            y = layer_norm(y, y.shape[-1:], scale, shift)
        return y

    functions = (block_diagonal, monarch_matmul, glu_mlp)
    return next(f for f in functions if f.__name__ == case.operator)


def _keeps_16_bits(case: ProductCase) -> bool:
    """Whether there are numbers of 16 bits between two products."""
    return case.operator != "block_diagonal" and case.dtype != "float32"


def _backwards(case: ProductCase, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """torch in float32 with the rows in reverse: another order of the sums over rows."""
    if len(case.shape) < 2:
        return run_product(composed(case), case, inputs, dtype=torch.float32)
    by_row = ("x", "dy", "residual")
    turned = {n: t.flip(-2) if n in by_row else t for n, t in inputs.items()}
    results = run_product(composed(case), case, turned, dtype=torch.float32)
    return {n: t.flip(-2) if n in ("y", "dx", "dresidual") else t for n, t in results.items()}


@functools.lru_cache(maxsize=8)
def _expected(case: ProductCase) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Exact results, and those of torch: in float32, and composed in the dtype of the case."""
    inputs = product_inputs(case)
    exact = run_product(of_reference(case), case, inputs, dtype=torch.float64)
    peers = [run_product(of_reference(case), case, inputs, dtype=torch.float32)]
    peers.append(run_product(composed(case), case, inputs, dtype=torch.float32))
    peers.append(_backwards(case, inputs))
    if _keeps_16_bits(case):
        # Between the steps 16 bits are kept, as torch keeps them.
        dtype = getattr(torch, case.dtype)
        peers.append(run_product(composed(case), case, inputs, dtype=dtype))
    return exact, peers


def check_product(
    function: Callable[..., Tensor], case: ProductCase, *, gradients: bool = True
) -> dict[str, Margin]:
    """Assert that `function` computes the operator of a case, and by default all its gradients.

    The peers of `assert_close_to_float64` are torch's einsum and bmm in float32, and for the
    operators of two products with 16 bits the same composition in that dtype. A sum of few terms
    may be exact in torch by luck: always allowed for are two roundings of float32 a product at the
    row's scale, half of one more for each doubling of the rows that a gradient sums over, and one
    of 16 bits where there are 16 bits between two products.
    """
    inputs = product_inputs(case)
    results = run_product(function, case, inputs, gradients=gradients)
    exact, peers = _expected(case)
    margins = {}
    for name, actual in results.items():
        dtype = inputs["x" if name == "y" else name[1:]].dtype
        width = exact[name].shape[-1]
        is_sum = name not in ("y", "dx", "dresidual")
        # Behind a norm, the errors of dz do not become smaller where dz does.
        whole = is_sum and "norm_weight" in case.vectors
        rows = exact[name].reshape(1 if whole else -1, exact[name].numel() if whole else width)
        flat = [p[name].double().reshape(rows.shape) for p in peers]
        if rows.numel():
            scale = rows.square().mean(-1, keepdim=True).sqrt()
            terms = max(math.prod(case.shape[:-1]), 1) if is_sum else 1
            roundings = len(case.weights) + math.log2(terms) / 4
            flat.append(rows + roundings * torch.finfo(torch.float32).eps * scale)
            if _keeps_16_bits(case):
                flat.append(rows + torch.finfo(getattr(torch, case.dtype)).eps / 2 * scale)
        margins[name] = assert_close_to_float64(
            actual.reshape(rows.shape), rows, flat, dtype=dtype, name=f"{case.id}: {name}"
        )
        assert actual.shape == exact[name].shape, name
    return margins
