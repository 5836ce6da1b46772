"""The table and the plot of a throughput record (the dict that ``throughput.py`` writes)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from benchmarks.schedule import (
    ATTENTION,
    ATTENTION_BF16,
    MODELS,
    NATIVE,
    NATIVE_BF16,
    NATIVES,
    REFERENCE,
)

LABELS = {
    NATIVE: "M2-BERT-80M, native kernels",
    NATIVE_BF16: "M2-BERT-80M, native kernels, bfloat16",
    REFERENCE: "M2-BERT-80M, torch.fft reference",
    ATTENTION: "BERT-base, torch sdpa attention",
    ATTENTION_BF16: "BERT-base, torch sdpa attention, bfloat16",
}
# Okabe and Ito's palette: distinct for colour-blind readers and in print; so are the markers.
STYLES = {
    NATIVE: ("#0072B2", "o"),
    NATIVE_BF16: ("#56B4E9", "D"),
    REFERENCE: ("#E69F00", "s"),
    ATTENTION: ("#D55E00", "^"),
    ATTENTION_BF16: ("#CC79A7", "v"),
}
SHORT_LABELS = {
    NATIVE: "M2-BERT native",
    NATIVE_BF16: "M2-BERT native bf16",
    REFERENCE: "M2-BERT reference",
    ATTENTION: "BERT-base sdpa",
    ATTENTION_BF16: "BERT-base sdpa bf16",
}
SCALED_MARK = "~"
# Less is the noise of an idle machine.
DISTURBING_CORES = 0.15
WIDEST_TABLE = 200
COLUMNS = (
    "tokens",
    "model",
    "tokens/s",
    "ms per\ndocument",
    "spread",
    "first\ncall ms",
    "peak\nmemory",
    "vs\nattention",
    "vs bf16\nattention",
    "vs\nreference",
    "measured",
    "runs",
)


# The ratios of a row, and the models whose speed they are to.
RATIOS = {
    "vs_attention": ATTENTION,
    "vs_attention_bf16": ATTENTION_BF16,
    "vs_reference": REFERENCE,
}


def is_scaled(row: dict[str, Any]) -> bool:
    """Whether the time was extrapolated from fewer layers than the model has."""
    return row["layers_measured"] < row["layers"]


def scaling_note(row: dict[str, Any]) -> str:
    """ "1 layer x 12", or nothing for a complete measurement."""
    if not is_scaled(row):
        return ""
    measured = row["layers_measured"]
    return f"{measured} layer{'s' if measured > 1 else ''} x {row['layers'] // measured}"


def add_ratios(results: list[dict[str, Any]]) -> None:
    """Set each row's ``RATIOS``: its tokens/s over theirs, or None."""
    speed = {(row["model"], row["length"]): row["tokens_per_second"] for row in results}
    for row in results:
        for name, other in RATIOS.items():
            base = speed.get((other, row["length"]))
            row[name] = row["tokens_per_second"] / base if base else None


def build_table(record: dict[str, Any]) -> Table:
    """The results as a table; extrapolated rows carry a mark, a note and another colour."""
    settings = record["settings"]
    state = "" if record["complete"] else " - INCOMPLETE"
    table = Table(
        title=f"One document at a time, {settings['dtype']}, {settings['threads']} threads{state}",
        box=box.SIMPLE_HEAD,
    )
    for name in COLUMNS:
        left = name in ("model", "measured")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    scaled = {(row["model"], row["length"]) for row in record["results"] if is_scaled(row)}
    for length in sorted(set(settings["lengths"])):
        for row in record["results"]:
            if row["length"] == length:
                table.add_row(*_cells(row, scaled), style="yellow" if is_scaled(row) else None)
        for row in record["failed"]:
            if row["length"] == length:
                blanks = ["-"] * (len(COLUMNS) - 4)
                name = SHORT_LABELS[row["model"]]
                table.add_row(f"{length:,}", name, *blanks, "FAILED", "0", style="red")
        table.add_section()
    return table


def print_table(record: dict[str, Any], console: Console) -> None:
    """The table and its notes; in a narrow terminal lines wrap, as rich would cut numbers off."""
    table, width = build_table(record), console.width
    roomy = console.options.update(max_width=WIDEST_TABLE)
    console.width = max(Measurement.get(console, roomy, table).maximum, width)
    try:
        console.print(table, crop=False)
    finally:
        console.width = width
    for line in _notes(record):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cells(row: dict[str, Any], scaled: set[tuple[str, int]]) -> list[str]:
    mark = SCALED_MARK if is_scaled(row) else ""
    first, timing = row["first_call_ms"], row["timing"]
    spread = (timing["upper_quartile_s"] - timing["lower_quartile_s"]) / timing["median_s"]
    runs = len(row["seconds"])
    cells = [
        f"{row['length']:,}",
        SHORT_LABELS[row["model"]],
        mark + _significant(row["tokens_per_second"]),
        mark + _significant(row["ms_per_document"]),
        f"{100 * spread:.0f}%" if runs > 1 else "-",
        "-" if first is None else mark + _significant(first),
        _memory(row),
    ]
    for name, other in RATIOS.items():
        ratio = row[name]
        uncertain = mark or (SCALED_MARK if (other, row["length"]) in scaled else "")
        cells.append("-" if ratio is None else f"{uncertain}{ratio:.2f}x")
    return [*cells, scaling_note(row) or f"{row['layers']} layers", str(runs)]


def _memory(row: dict[str, Any]) -> str:
    if row["peak_bytes"] is None:
        return "-"
    mark = ">= " if row["peak_is_lower_bound"] else ""
    return f"{mark}{row['peak_bytes'] / 2**30:.2f} GiB"


def _significant(value: float) -> str:
    """Three significant digits, whole numbers from 100 on."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _notes(record: dict[str, Any]) -> list[str]:
    lines = [
        "Medians of steady calls (spread: between the quartiles); the first call, which makes the "
        "filters, stands apart. Peak memory includes the weights.",
    ]
    if any(is_scaled(row) for row in record["results"]):
        lines.append(
            f"{SCALED_MARK} extrapolated: one layer was timed within a call and counted once for "
            "each layer; >= without the other layers' filters."
        )
    if record["check"]:
        check = record["check"]
        lines.append(
            f"Native checked at {check['length']:,} tokens before measuring: relative error of the "
            f"embedding {check['errors']['native']['embedding']:.1e} "
            f"(reference {check['errors']['reference']['embedding']:.1e})."
        )
    for model in NATIVES:
        rows = [row for row in record["results"] if row["model"] == model]
        rows = [row for row in rows if row.get("error_against_reference")]
        if rows:
            worst = max(rows, key=lambda row: max(row["error_against_reference"].values()))
            found, bounds = worst["error_against_reference"], worst["error_bounds"]
            said = ", ".join(f"{name} {found[name]:.1e} ({bounds[name]:g})" for name in found)
            lines.append(
                f"{SHORT_LABELS[model]} against reference at {len(rows)} measured lengths, largest "
                f"relative errors (bounds): {said}."
            )
    lines.append("All models: malloc keeps freed memory (MALLOC_MMAP_MAX_=0, no trimming).")
    lines += _disturbance(record)
    lines += record["notes"]
    lines += [f"{row['model']} at {row['length']:,}: {row['message']}" for row in record["failed"]]
    return lines


def _disturbance(record: dict[str, Any]) -> list[str]:
    """A line if other processes took part of the machine while something was timed."""
    loads = [row["other_load_cores"] or 0.0 for row in record["results"]]
    disturbed = sum(load > DISTURBING_CORES for load in loads)
    if not disturbed:
        return []
    return [
        f"DISTURBED: in {disturbed} of {len(loads)} measurements other processes kept up to "
        f"{max(loads):.1f} cores busy; do not trust these times and their ratios."
    ]


def save_plot(record: dict[str, Any], path: Path) -> bool:
    """Tokens a second against document length, as PNG; False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for model in MODELS:
        _draw_model(axes, model, [row for row in record["results"] if row["model"] == model])
    if any(is_scaled(row) for row in record["results"]):
        axes.plot(
            [],
            [],
            "o",
            color="0.3",
            markerfacecolor="white",
            ls="none",
            label="hollow: extrapolated from one layer",
        )
    _label_axes(axes, record)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return True


def _label_axes(axes: Any, record: dict[str, Any]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    settings, machine = record["settings"], record["machine"]
    lengths = settings["lengths"]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [_short(length) for length in lengths])
    axes.minorticks_on()
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("document length (tokens)")
    axes.set_ylabel("tokens per second")
    state = "" if record["complete"] else " (incomplete run)"
    axes.set_title(f"Embedding one document: throughput by length{state}", loc="left")
    disturbed = "; DISTURBED by other processes" if _disturbance(record) else ""
    axes.text(
        1.0,
        -0.16,
        f"{machine['cpu']}, {settings['threads']} threads, {settings['dtype']}, "
        f"torch {machine['torch']}, {machine['date'][:10]}{disturbed}",
        transform=axes.transAxes,
        ha="right",
        fontsize=8,
        color="0.4",
    )
    axes.grid(True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")


def _draw_model(axes: Any, model: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    color, marker = STYLES[model]
    rows = sorted(rows, key=lambda row: row["length"])
    lengths = [row["length"] for row in rows]
    speeds = [row["tokens_per_second"] for row in rows]
    axes.plot(lengths, speeds, color=color, marker=marker, label=LABELS[model], lw=1.8)
    hollow = [index for index, row in enumerate(rows) if is_scaled(row)]
    axes.plot(
        [lengths[index] for index in hollow],
        [speeds[index] for index in hollow],
        color=color,
        marker=marker,
        markerfacecolor="white",
        ls="none",
        zorder=3,
    )


def _short(length: int) -> str:
    return f"{length // 1024}K" if length >= 1024 and length % 1024 == 0 else str(length)
