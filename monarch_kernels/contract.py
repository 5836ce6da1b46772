"""What the arguments of the operators must be: one check and one message for each rule.

Every function raises TypeError for what is not a tensor (or of a wrong dtype), ValueError for
shapes and values, and names the argument, what it got and what it expects.
"""

import torch
from torch import Tensor

MAX_LENGTH = 1 << 22
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CAST_DTYPES = DTYPES[:3]  # what autocast changes


def check_tensor(name: str, t: object, dims: str) -> None:
    """`dims` names the dimensions, as in "B, H, L"."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor ({dims}), got {type(t).__name__}")
    rank = dims.count(",") + 1 if not dims.endswith(",") else 1
    if t.dim() != rank:
        raise ValueError(f"{name} must have shape ({dims}), got {tuple(t.shape)}")
    if t.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float32, bfloat16, float16 or float64, got {str(t.dtype)[6:]}"
        )


def check_input(u: Tensor, name: str = "u", dims: str = "B, H, L") -> None:
    """u has dimensions `dims`, and 1 <= L <= MAX_LENGTH."""
    check_tensor(name, u, dims)
    index = [d.strip() for d in dims.split(",")].index("L")
    length = u.shape[index]
    if length < 1:
        where = "its last dimension" if index == 2 else "dimension L"
        raise ValueError(f"{name} must have at least one element in {where}, got {u.shape}")
    if length > MAX_LENGTH:
        raise ValueError(f"{name} has length {length}, the longest supported is {MAX_LENGTH}")


def check_gate(name: str, gate: Tensor, u: Tensor) -> None:
    """A gate has the shape, dtype and device of u."""
    check_tensor(name, gate, "B, H, L")
    if gate.shape != u.shape:
        raise ValueError(
            f"{name} must have the shape of u {tuple(u.shape)}, got {tuple(gate.shape)}"
        )
    if gate.dtype != u.dtype:
        raise TypeError(f"{name} must have the dtype of u ({u.dtype}), got {gate.dtype}")
    check_device(name, gate, "u", u)


FILTER = ("k", "k_rev", "skip")  # the names of a filter's parts


def check_filter(
    k: Tensor,
    k_rev: Tensor | None,
    skip: Tensor | None,
    *,
    circular: bool,
    names: tuple[str, str, str] = FILTER,
) -> None:
    """k (H, taps), k_rev (H, reverse taps), skip (H,): one H, one device, at least one tap."""
    k_name, rev_name, skip_name = names
    check_tensor(k_name, k, "H, taps")
    if k.shape[-1] < 1:
        raise ValueError(f"{k_name} must have at least one tap, got shape {tuple(k.shape)}")
    if k_rev is not None:
        if circular:
            raise ValueError("k_rev must be None with circular=True: a period has no other side")
        check_tensor(rev_name, k_rev, "H, taps")
        check_channels(rev_name, k_rev, k_name, k.shape[0])
        check_device(rev_name, k_rev, k_name, k)
    if skip is not None:
        check_tensor(skip_name, skip, "H,")
        check_channels(skip_name, skip, k_name, k.shape[0])
        check_device(skip_name, skip, k_name, k)


def check_filter_for(
    u: Tensor,
    channels: int,
    filters: tuple[Tensor, Tensor | None, Tensor | None],
    *,
    name: str = "u",
    circular: bool = False,
    names: tuple[str, str, str] = FILTER,
) -> None:
    """A filter (k, k_rev, skip) that goes with activations u of `channels` channels."""
    k, k_rev, _ = filters
    check_filter(*filters, circular=circular, names=names)
    check_channels(names[0], k, name, channels)
    check_device(names[0], k, name, u)
    check_length(u.shape[-1], k, k_rev, names[:2])
    for part, t in zip(names, filters, strict=True):
        if t is not None:
            check_filter_dtype(part, t, u, name)


def check_precision(k: Tensor, k_rev: Tensor | None, skip: Tensor | None) -> None:
    """float64 filters come together: with a float32 one, either would be another filter."""
    for name, t in (("k_rev", k_rev), ("skip", skip)):
        if t is not None and (t.dtype == torch.float64) != (k.dtype == torch.float64):
            raise TypeError(f"{name} is {t.dtype}, k is {k.dtype}: float64 filters come together")


# The least accuracy that is asked for, by its number in the registered operators.
PRECISIONS = {"exact": 0, "high": 1, "fast": 2}
_DEFAULT_PRECISIONS = {torch.bfloat16: "fast", torch.float16: "high"}


def precision_for(precision: str | None, dtype: torch.dtype) -> str:
    """The precision asked for, or the default of activations of a dtype."""
    if precision is None:
        return _DEFAULT_PRECISIONS.get(dtype, "exact")
    if not isinstance(precision, str) or precision not in PRECISIONS:
        names = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"precision must be one of {names} or None, got {precision!r}")
    return precision


def check_length(
    length: int, k: Tensor, k_rev: Tensor | None, names: tuple[str, str] = FILTER[:2]
) -> None:
    """The sequence is long enough for the filters and not too long for the kernels."""
    if not isinstance(length, int | torch.SymInt) or isinstance(length, bool):
        raise TypeError(f"length must be an int, got {type(length).__name__}")
    if length < 1 or length > MAX_LENGTH:
        raise ValueError(f"length must be from 1 to {MAX_LENGTH}, got {length}")
    for name, taps in zip(names, (k, k_rev), strict=True):
        if taps is not None and taps.shape[-1] > length:
            raise ValueError(
                f"{name} has {taps.shape[-1]} taps, more than the sequence has elements ({length})"
            )


def check_filter_dtype(name: str, t: Tensor, u: Tensor, other: str = "u") -> None:
    """A filter is float32 or of the dtype of u, whose name is `other`."""
    if t.dtype not in (torch.float32, u.dtype):
        raise TypeError(
            f"{name} must be float32 or of the dtype of {other} ({u.dtype}), got {t.dtype}"
        )


def check_channels(name: str, t: Tensor, other: str, channels: int) -> None:
    """The first dimension of t is `channels`, as `other` has it."""
    if t.shape[0] != channels:
        raise ValueError(
            f"{name} has {t.shape[0]} channels (shape {tuple(t.shape)}), {other} has {channels}"
        )


def check_device(name: str, t: Tensor, other: str, expected: Tensor) -> None:
    """t lies where `other` lies."""
    if t.device != expected.device:
        raise ValueError(f"{name} is on {t.device}, {other} on {expected.device}")


def check_short_filter(
    s: Tensor,
    s_bias: Tensor | None,
    u: Tensor,
    channels: int,
    *,
    name: str = "u",
    dims: str = "H",
    most: int | None = None,
) -> None:
    """s (channels, taps) with at most `most` taps, and s_bias (channels,), for activations u."""
    check_tensor("s", s, f"{dims}, taps")
    check_channels("s", s, name, channels)
    taps = s.shape[-1]
    if taps < 1 or (most is not None and taps > most):
        expected = "at least 1 tap" if most is None else f"1 to {most} taps"
        raise ValueError(f"s must have {expected}, got {taps} (shape {tuple(s.shape)})")
    if s_bias is not None:
        check_tensor("s_bias", s_bias, f"{dims},")
        check_channels("s_bias", s_bias, name, channels)
    for part, t in (("s", s), ("s_bias", s_bias)):
        if t is not None:
            check_device(part, t, name, u)
            check_filter_dtype(part, t, u, name)


def autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The activations in the dtype of autocast, where that is on for the first one's device."""
    first = tensors[0]
    device = first.device.type if isinstance(first, Tensor) else ""
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    cast = [isinstance(t, Tensor) and t.dtype in CAST_DTYPES for t in tensors]
    return [t.to(dtype) if c else t for t, c in zip(tensors, cast, strict=True)]


def float32_filters(*filters: Tensor | None) -> list[Tensor | None]:
    """Filters as the native kernels read them; a differentiable cast and, if need be, copy."""
    return [t if t is None else t.to(torch.float32).contiguous() for t in filters]


# ---- Block-diagonal weights ----------------------------------------------------------------------


def check_rows(name: str, x: Tensor) -> None:
    """x is (..., n) with at least one feature."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor (..., n), got {type(x).__name__}")
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"{name} must have shape (..., n) with n >= 1, got {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float32, bfloat16, float16 or float64, got {str(x.dtype)[6:]}"
        )


def check_weight(name: str, w: Tensor, dims: str, x: Tensor) -> None:
    """A block-diagonal weight: three dimensions, none of them empty, dtype and device of x."""
    if not isinstance(w, Tensor):
        raise TypeError(f"{name} must be a tensor ({dims}), got {type(w).__name__}")
    if w.dim() == 2:
        raise ValueError(
            f"{name} must have shape ({dims}), got the dense {tuple(w.shape)}: "
            "torch.nn.functional.linear is for dense weights"
        )
    check_tensor(name, w, dims)
    if 0 in w.shape:
        raise ValueError(f"{name} must have shape ({dims}) without a zero, got {tuple(w.shape)}")
    if w.dtype != x.dtype:
        raise TypeError(f"{name} must have the dtype of x ({x.dtype}), got {w.dtype}")
    check_device(name, w, "x", x)


def check_width(name: str, width: int, other: str, blocks: int, size: int) -> None:
    """`width` features are `blocks` blocks of `size`, the last ones padded: size = ceil(width / P).

    The rule of M2-BERT's BlockdiagLinear: missing features read as zero, or are cropped.
    """
    if not blocks * (size - 1) < width <= blocks * size:
        raise ValueError(
            f"{name} is {width} wide, {other} has {blocks} blocks of {size}: "
            f"expected {blocks * (size - 1) + 1} to {blocks * size}"
        )


def check_vector(name: str, t: Tensor, size: int, x: Tensor) -> None:
    """A bias or a scale: (size,), float32 or of the dtype of x."""
    check_tensor(name, t, "out,")
    if t.shape[0] != size:
        raise ValueError(f"{name} must have shape ({size},), got {tuple(t.shape)}")
    if t.dtype not in (torch.float32, x.dtype):
        raise TypeError(f"{name} must be float32 or of the dtype of x ({x.dtype}), got {t.dtype}")
    check_device(name, t, "x", x)


def check_out_features(out_features: int | None, name: str, blocks: int, size: int) -> int:
    """The width of the result: all of P * size, or what is left after cropping."""
    if out_features is None:
        return blocks * size
    if not isinstance(out_features, int | torch.SymInt) or isinstance(out_features, bool):
        raise TypeError(f"out_features must be an int, got {type(out_features).__name__}")
    check_width("out_features", out_features, name, blocks, size)
    return out_features


# ---- What the registered operators share


def check_one_device(operator: str, *tensors: Tensor | None) -> None:
    """A meta tensor among others brings a call to a fake, whose result nobody would compute."""
    devices = {t.device for t in tensors if t is not None}
    if len(devices) > 1:
        raise RuntimeError(f"{operator}: tensors on several devices: {sorted(map(str, devices))}")


def fake_filter_gradient(on: Tensor, like: Tensor | None, wanted: bool) -> Tensor:
    """Of the shape of `like`, float32; empty where it is not wanted."""
    shape = like.shape if wanted and like is not None else (0,)
    return on.new_empty(shape, dtype=torch.float32)


def alias(t: Tensor | None) -> Tensor | None:
    """A node of its own for t: the derivative by it leaves out what else depends on t."""
    if t is None:
        return None
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
