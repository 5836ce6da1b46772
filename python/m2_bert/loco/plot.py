"""A plot of nDCG@10 by the length of the answering document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m2_bert.loco.report import bin_labels, pool_lengths
from m2_bert.loco.result import EvaluationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


def plot_by_length(results: Sequence[EvaluationResult], path: str | Path) -> Path:
    """Write `length_figure` as PNG, SVG or PDF, and return the path.

    Raises:
        ValueError: the suffix names none of these, or no run has a finished task.
        ImportError: matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
    figure = length_figure(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def length_figure(results: Sequence[EvaluationResult]) -> Figure:
    """One line per run over the bins of document length; bins without queries have no point.

    Raises:
        ValueError: no run has a finished task.
        ImportError: matplotlib is not installed.
    """
    pooled = [pool_lengths(result) for result in results]
    labels = bin_labels(pooled)
    if not labels:
        raise ValueError("nothing to draw: no run has a finished task")
    try:
        # Figure alone, without pyplot: no window, no state shared with the caller's plots.
        from matplotlib.figure import Figure
    except ImportError as error:
        message = f"plots need matplotlib ({error}): pip install monarch-kernels[plot]"
        raise ImportError(message) from None

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for result, bins in zip(results, pooled, strict=True):
        filled = [i for i, label in enumerate(labels) if bins.get(label, {}).get("queries")]
        heights = [100 * bins[labels[i]]["ndcg_at_10"] for i in filled]
        # A dollar would start mathematics.
        axes.plot(filled, heights, marker="o", label=result.name.replace("$", r"\$"))
    counts = [
        max(int(bins.get(label, {}).get("queries", 0)) for bins in pooled) for label in labels
    ]
    heads = [f"{label}\n{count} queries" for label, count in zip(labels, counts, strict=True)]
    axes.set_xticks(range(len(labels)), heads)
    axes.set_xlabel("tokens of the answering document")
    axes.set_ylabel("nDCG@10 x 100")
    axes.set_xlim(-0.25, len(labels) - 0.75)
    axes.set_ylim(-2, 102)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    return figure
