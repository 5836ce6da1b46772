"""Tables of evaluations: a run beside the published rows, and runs beside one another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from m2_bert.loco.catalog import TASKS
from m2_bert.loco.published import (
    BY_LENGTH_ROWS,
    LENGTH_BINS,
    LOCO_V0_ROWS,
    LOCO_V1_ROWS,
    THIRD_PARTY_V1_ROWS,
    V0_TASKS,
    V1_TASKS,
    WARNINGS,
    PublishedRow,
)
from m2_bert.loco.result import EvaluationResult

if TYPE_CHECKING:
    from rich.table import Table

RESAMPLES = 10_000
MISSING = "-"


@dataclass(frozen=True)
class Grid:
    """A table before it has a form: a title, column heads, and rows of as many cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def scores_grid(result: EvaluationResult) -> Grid:
    """One row per task: scores x 100, counts, length of the documents, cut tokens, time."""
    timing = result.record["timing"].get("tasks", {})
    rows = []
    for task, entry in result.done.items():
        scores, counts = entry["scores"], entry["counts"]
        rows.append(
            (
                task,
                *(_percent(scores[metric]) for metric in ("ndcg_at_10", "recall_at_10", "mrr")),
                _count(counts.get("queries")),
                _count(counts.get("documents")),
                _count(counts.get("median_tokens")),
                _cut(counts),
                _seconds(timing.get(task, {})),
            )
        )
    if result.average:
        means = (_percent(result.average[m]) for m in ("ndcg_at_10", "recall_at_10", "mrr"))
        rows.append((result.average["label"], *means, *[""] * 5))
    columns = ("task", "nDCG@10", "recall@10", "MRR", "queries", "docs", "median tokens", "cut")
    return Grid(result.name, (*columns, "seconds"), tuple(rows))


def published_grid(result: EvaluationResult) -> Grid | None:
    """The run's nDCG@10 above the published rows; None if it has no task of LoCo."""
    for title, tasks, rows in (
        ("LoCoV0, nDCG@10", V0_TASKS, LOCO_V0_ROWS),
        ("LoCoV1, nDCG@10", V1_TASKS, (*LOCO_V1_ROWS, *THIRD_PARTY_V1_ROWS)),
    ):
        # The two share four tasks; only the qmsum of V0 says that it is V0.
        if tasks is V0_TASKS and "qmsum_v0" not in result.done:
            continue
        shown = [task for task in tasks if task in result.done]
        if shown:
            scores = [_percent(result.done[t]["scores"]["ndcg_at_10"]) for t in shown]
            own = (f"{result.name} (this run)", "", *scores, _own_mean(result, tasks))
            published = [_published_cells(row, tasks, shown) for row in rows]
            heads = [TASKS[task].title for task in shown]
            return Grid(title, ("model", "training", *heads, "average"), (own, *published))
    return None


def lengths_grid(results: Sequence[EvaluationResult], *, published: bool = True) -> Grid:
    """nDCG@10 by the length of the answering document, over all queries of a run's tasks.

    Args:
        results: runs, one row each.
        published: with the rows of Table 22, if a run has a task of LoCoV1.
    """
    pooled = [pool_lengths(result) for result in results]
    labels = bin_labels(pooled)
    rows = [
        (result.name, *(_bin(bins.get(label)) for label in labels))
        for result, bins in zip(results, pooled, strict=True)
    ]
    is_loco = any(task in V1_TASKS for result in results for task in result.done)
    if published and is_loco and len(labels) == len(LENGTH_BINS):
        rows += [
            (f"{row.name} ({row.training}, {row.source})", *map(_one_digit, row.scores))
            for row in BY_LENGTH_ROWS
        ]
    title = "nDCG@10 by tokens of the answering document (queries)"
    return Grid(title, ("model", *labels), tuple(rows))


def pool_lengths(result: EvaluationResult) -> dict[str, dict[str, float]]:
    """Label of a bin -> {"queries", "ndcg_at_10"}, over the queries of all tasks of a run."""
    pooled: dict[str, dict[str, float]] = {}
    for entry in result.done.values():
        for label, row in entry["by_length"].items():
            total = pooled.setdefault(label, {"queries": 0, "ndcg_at_10": 0.0})
            if row["queries"]:
                total["queries"] += row["queries"]
                total["ndcg_at_10"] += row["queries"] * row["ndcg_at_10"]
    for total in pooled.values():
        total["ndcg_at_10"] /= max(1, total["queries"])
    return pooled


def bin_labels(pooled: Sequence[Mapping[str, object]]) -> list[str]:
    """The labels of all bins ("<2K", "2-8K", ">32K"), shortest documents first."""

    def start(label: str) -> float:
        number = int(re.match(r"\D?(\d+)", label)[1])
        return 0 if label.startswith("<") else number

    return sorted({label for bins in pooled for label in bins}, key=start)


def compare_grid(results: Sequence[EvaluationResult]) -> Grid:
    """nDCG@10 of runs per task, each later run with its difference from the first.

    The difference comes with a 95 % interval (paired bootstrap over the queries) and the numbers of
    queries that got better and worse. Runs on different data of one task are not compared.

    Raises:
        ValueError: fewer than two runs.
    """
    if len(results) < 2:
        raise ValueError(f"compare: got {len(results)} run, expected at least 2")
    first, *others = results
    columns = ["task", first.name]
    for other in others:
        columns += [other.name, "difference", "95 % interval", "better / worse"]
    rows = []
    for task in dict.fromkeys(task for result in results for task in result.done):
        cells = [task, _ndcg(first, task)]
        for other in others:
            cells += [_ndcg(other, task), *_difference_cells(first, other, task)]
        rows.append(tuple(cells))
    return Grid("nDCG@10", tuple(columns), tuple(rows))


def paired_bootstrap(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of per-query differences and its 95 % percentile interval; the same every time."""
    values = np.asarray(differences, dtype=np.float64)
    generator = np.random.default_rng(0)
    # In blocks: all index arrays at once would be RESAMPLES times the queries.
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 500):
        picks = generator.integers(len(values), size=(500, len(values)))
        means[start : start + 500] = values[picks].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def notes(results: Sequence[EvaluationResult]) -> list[str]:
    """What has to be known to read the tables: failures, other counts than published, warnings."""
    found: dict[str, None] = {}
    for result in results:
        for task, error in result.failed.items():
            found[f"{result.name}: {task} failed: {error}"] = None
        for task, entry in result.done.items():
            for difference in entry.get("metadata", {}).get("differences", ()):
                found[f"{task}: {difference}"] = None
    tasks = {task for result in results for task in result.done}
    found |= dict.fromkeys(warning.text for warning in WARNINGS if tasks & set(warning.tasks))
    return list(found)


def grids(results: Sequence[EvaluationResult]) -> Iterator[Grid]:
    """All tables of one run, or of a comparison."""
    for result in results:
        yield scores_grid(result)
    if len(results) > 1:
        yield compare_grid(results)
    else:
        table = published_grid(results[0])
        if table is not None:
            yield table
    yield lengths_grid(results)


def to_markdown(results: Sequence[EvaluationResult]) -> str:
    """The whole report as Markdown."""
    parts = ["\n".join(_markdown(grid)) for grid in grids(results)]
    remarks = notes(results)
    if remarks:
        parts.append("\n".join(f"* {_escape(remark)}" for remark in remarks))
    for result in results:
        versions = ", ".join(f"{k} {v}" for k, v in result.record["versions"].items() if v)
        settings = ", ".join(f"{k}={v}" for k, v in result.record["settings"].items())
        model = result.record["model"]
        revision = f" revision {model['revision']}," if model.get("revision") else ""
        text = f"{model['name']}:{revision} fingerprint {model.get('fingerprint')}; {settings}; "
        parts.append(_escape(text + versions + "."))
    return "\n\n".join(parts) + "\n"


def to_rich(grid: Grid) -> Table:
    """The table for a terminal, as a `rich.table.Table`; nothing is printed.

    Raises:
        ImportError: rich is not installed.
    """
    try:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise ImportError(
            f"tables need rich ({error}): pip install monarch-kernels[model]"
        ) from None
    table = Table(
        title=Text(grid.title),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    for index, column in enumerate(grid.columns):
        # A head may break between words, and nothing may be left out.
        justify = "left" if index == 0 else "right"
        table.add_column(Text(column), justify=justify, overflow="fold")
    for row in grid.rows:
        table.add_row(*map(Text, row))  # Text: a name in [brackets] is not markup
    return table


def _markdown(grid: Grid) -> Iterator[str]:
    yield f"### {_escape(grid.title)}\n"
    yield "| " + " | ".join(map(_escape, grid.columns)) + " |"
    yield "|---|" + "---:|" * (len(grid.columns) - 1)
    for row in grid.rows:
        yield "| " + " | ".join(map(_escape, row)) + " |"


def _escape(text: str) -> str:
    for character in "\\|<*_`":
        text = text.replace(character, "\\" + character)
    return text


def _published_cells(
    row: PublishedRow, tasks: Sequence[str], shown: Sequence[str]
) -> tuple[str, ...]:
    scores = dict(zip(tasks, row.scores, strict=True)) if row.scores else {}
    length = f", {row.length} tokens" if row.length else ""
    cells = [_one_digit(scores.get(task)) for task in shown]
    average = _one_digit(row.average)
    if row.scores and abs(row.average - sum(row.scores) / len(row.scores)) > 0.2:
        average += f" (mean of the row: {row.recomputed})"
    return (f"{row.name}{length} ({row.source})", row.training, *cells, average)


def _own_mean(result: EvaluationResult, tasks: Sequence[str]) -> str:
    scores = [result.done[t]["scores"]["ndcg_at_10"] for t in tasks if t in result.done]
    mean = _percent(sum(scores) / len(scores))
    return mean if len(scores) == len(tasks) else f"{mean} (of {len(scores)} tasks)"


def _difference_cells(first: EvaluationResult, other: EvaluationResult, task: str) -> list[str]:
    a, b = first.done.get(task), other.done.get(task)
    if a is None or b is None:
        return [MISSING] * 3
    if a["digest"] != b["digest"] or a["per_query"].keys() != b["per_query"].keys():
        return ["other data", MISSING, MISSING]
    differences = [b["per_query"][query] - score for query, score in a["per_query"].items()]
    mean, low, high = (100 * value for value in paired_bootstrap(differences))
    better, worse = (sum(sign * d > 0 for d in differences) for sign in (1, -1))
    return [f"{mean:+.1f}", f"{low:+.1f} to {high:+.1f}", f"{better} / {worse}"]


def _ndcg(result: EvaluationResult, task: str) -> str:
    entry = result.done.get(task)
    return MISSING if entry is None else _percent(entry["scores"]["ndcg_at_10"])


def _bin(row: Mapping[str, float] | None) -> str:
    if not row or not row["queries"]:
        return MISSING
    return f"{_percent(row['ndcg_at_10'])} ({row['queries']})"


def _cut(counts: Mapping[str, Any]) -> str:
    """Share of the documents' tokens that the system never saw."""
    cut, tokens = counts.get("cut_document_tokens", 0), counts.get("document_tokens", 0)
    return f"{cut / tokens:.0%}" if cut and tokens else "0"


def _seconds(timing: Mapping[str, float]) -> str:
    value = timing.get("encode_seconds") or timing.get("seconds")
    return MISSING if value is None else f"{value:.1f}"


def _count(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _one_digit(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"
