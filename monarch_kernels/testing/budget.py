"""The error budget: how far from the exact result a kernel's may be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
    noise: float = 0.0,
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
        noise: what arithmetic of less than float32 may add to a result of 16 bits, relative to
            the root mean square of a row; to an element, 32 times that.
        name: for the message.

    Raises:
        AssertionError: wrong dtype, shape or numbers; says the errors and what was allowed.
    """
    peers = [torch_float32] if isinstance(torch_float32, Tensor) else list(torch_float32)
    assert exact.dtype == torch.float64, f"exact must be float64, got {exact.dtype}"
    assert dtype in (None, actual.dtype), f"{name} has dtype {actual.dtype}, expected {dtype}"
    peer_noise = torch.stack([(p.double() - exact).abs() for p in peers])
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
    noise = noise if short else 0.0
    largest = peer_noise.flatten(1).topk(exact.numel()).values
    allowed = 2 * largest.norm(dim=1).max() + (1.05 if short else 1.0) * rounding.norm()
    allowed = allowed + noise * scale.norm()
    l2 = _fraction(error.norm(), allowed)
    spread = torch.where(rms > 0, peer_noise.amax(0) / rms, 0.0).max() + 8 * noise
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
