"""FilterSpectrum: a filter transformed once and used in many calls of `fft_conv`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from monarch_kernels import backends, contract, reference


@dataclass(frozen=True, eq=False)
class FilterSpectrum:
    """The transform of a filter `(H, taps)` for sequences of one length, by `filter_spectrum`.

    Attributes:
        data: the numbers, in an order private to the backend; 8 bytes per channel and sample.
        channels: H.
        length: L, the length of the sequences that it can be convolved with.
        circular: the convolution is one of period L.
        backend: the backend whose kernels can read `data`.
        precision: "fast", "high" or "exact": whose kernels on a GPU can read `data`.
    """

    data: Tensor
    channels: int
    length: int
    circular: bool
    backend: str
    precision: str = "exact"

    @property
    def device(self) -> torch.device:
        """The device of the inputs that it can be used with."""
        return self.data.device

    def __repr__(self) -> str:
        kind = ", circular" if self.circular else ""
        kind += "" if self.precision == "exact" else f", precision={self.precision!r}"
        return (
            f"FilterSpectrum(channels={self.channels}, length={self.length}{kind}, "
            f"backend={self.backend!r}, device='{self.device}')"
        )


def filter_spectrum(
    k: Tensor,
    k_rev: Tensor | None = None,
    *,
    skip: Tensor | None = None,
    length: int,
    circular: bool = False,
    backend: str | None = None,
    precision: str | None = None,
) -> FilterSpectrum:
    """Transform a filter once, for use as the `k` of many `fft_conv` calls.

    `fft_conv(u, filter_spectrum(k, k_rev, skip=skip, length=L))` equals
    `fft_conv(u, k, k_rev=k_rev, skip=skip)` for every u `(B, H, L)`, without the cost of the
    transform. It is a constant: gradients reach u and the gates, not k.

    Args:
        k: `(H, taps)`, taps <= length; float32, bfloat16 or float16 (float64 for the reference).
        k_rev: `(H, reverse taps)`, filter of the elements ahead; tap 0 is the next element.
        skip: `(H,)`, added to tap 0 of k.
        length: L of the sequences.
        circular: the convolution has period L; k_rev must be None.
        backend: "native", "reference", or None for the fastest that can.
        precision: "fast", "high" or "exact", for what `fft_conv` of the same precision runs on a
            GPU; None: "exact" for a float32 filter, "high" for float16, "fast" for bfloat16. So a
            float32 filter for 16-bit activations needs "fast" or "high" to be convolved by tensor
            cores. On a CPU and for the reference all of them are the same.

    Returns:
        The spectrum; 8 bytes per channel and sample, on the device of k.

    Raises:
        ValueError, TypeError: as `fft_conv` for the same arguments.
        RuntimeError: the backend is not available; or k, k_rev or skip requires a gradient while
            gradients are recorded, which a spectrum would lose.
    """
    contract.check_filter(k, k_rev, skip, circular=circular)
    contract.check_precision(k, k_rev, skip)
    contract.check_length(length, k, k_rev)
    precision = contract.precision_for(precision, k.dtype)
    asked = [n for n, t in (("k", k), ("k_rev", k_rev), ("skip", skip)) if _wants_gradient(t)]
    if asked:
        raise RuntimeError(
            f"{asked[0]} requires a gradient, which a FilterSpectrum does not carry: pass the "
            "filter itself to fft_conv, or make the spectrum under torch.no_grad()"
        )
    chosen = backends.select(backend, k)
    k, k_rev, skip = (t if t is None else t.detach() for t in (k, k_rev, skip))
    if chosen == "native":
        k, k_rev, skip = contract.float32_filters(k, k_rev, skip)
        number = contract.PRECISIONS[precision]
        data = torch.ops.monarch_kernels.filter_spectrum(k, k_rev, skip, length, circular, number)
    else:
        data = reference.filter_spectrum(k, k_rev, skip, length, circular)
    return FilterSpectrum(data, k.shape[0], length, circular, chosen, precision)


def _wants_gradient(t: Tensor | None) -> bool:
    return t is not None and t.requires_grad and torch.is_grad_enabled()


def check_spectrum(
    spectrum: FilterSpectrum,
    u: Tensor,
    channels: int,
    parts: dict[str, object],
    backend: str | None,
    *,
    name: str = "k",
    other: str = "u",
    operator: str = "fft_conv",
    precision: str | None = None,
) -> None:
    """A spectrum, argument `name`, goes with activations u, argument `other`, and the backend.

    Args:
        channels: of u, as the filter has them.
        parts: what a spectrum has in itself, by the name of the argument: each must be None.
        backend: the one asked for, or None.
        operator: whose kernels read it.
        precision: the one asked for, or None for that of the spectrum.

    Raises:
        ValueError, TypeError: naming the argument.
        RuntimeError: the backend of the spectrum cannot run `operator` on u.
    """
    for part, given in parts.items():
        if given is not None:
            raise ValueError(f"{part} is part of a FilterSpectrum: give it to filter_spectrum")
    expected, found = (spectrum.channels, spectrum.length), (channels, u.shape[-1])
    if found != expected:
        raise ValueError(
            f"{name} is a FilterSpectrum for (H, L) = {expected}, {other} has {tuple(found)}"
        )
    contract.check_device(name, spectrum.data, other, u)
    if backend is not None and backend != spectrum.backend:
        raise ValueError(
            f"{name} is a FilterSpectrum of backend {spectrum.backend!r}, asked for is {backend!r}"
        )
    if spectrum.backend == "native" and spectrum.device.type == "cuda":
        check_spectrum_precision(spectrum, u, precision, name=name, other=other)
    if backends.select(spectrum.backend, u, operator) == "reference":
        real = torch.float64 if u.dtype == torch.float64 else torch.float32
        if spectrum.data.real.dtype != real:
            raise TypeError(
                f"{name} is a FilterSpectrum of {spectrum.data.dtype}, {other} is {u.dtype}"
            )


def check_spectrum_precision(
    spectrum: FilterSpectrum, u: Tensor, precision: str | None, *, name: str, other: str
) -> None:
    """On a GPU each precision has kernels and a form of spectrum of its own.

    Raises:
        ValueError: another precision is asked for.
        TypeError: the kernels of this precision do not take the dtype of u.
    """
    if precision is not None and precision != spectrum.precision:
        raise ValueError(
            f"{name} is a FilterSpectrum of precision {spectrum.precision!r}, asked for is "
            f"{precision!r}: make it by filter_spectrum(..., precision={precision!r})"
        )
    if spectrum.precision != "exact" and u.dtype == torch.float32:
        raise TypeError(
            f"{name} is a FilterSpectrum of precision {spectrum.precision!r}, {other} is float32, "
            "whose kernels are exact: make it by filter_spectrum(..., precision='exact')"
        )
