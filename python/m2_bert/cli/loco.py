"""Commands of the benchmark: loco MODEL, loco report, loco tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from m2_bert.cli.models import Json, Revision
from m2_bert.cli.search import BatchTokens, Device, Dtype, MaxLength
from m2_bert.cli.terminal import print_json, say, stderr, stdout, tell, warn_if_random

if TYPE_CHECKING:
    from m2_bert.loco.evaluate import LazyTask
    from m2_bert.loco.result import EvaluationResult
    from m2_bert.loco.task import RetrievalTask


class Suite(StrEnum):
    """Which tasks."""

    LOCO_V1 = "loco-v1"
    LOCO_V0 = "loco-v0"
    OFFLINE = "offline"


class LongPolicy(StrEnum):
    """What becomes of a document over the model's length."""

    TRUNCATE = "truncate"
    CHUNK_MEAN = "chunk-mean"
    CHUNK_MAX = "chunk-max"


class Backend(StrEnum):
    """Backends of sentence-transformers."""

    TORCH = "torch"
    ONNX = "onnx"
    OPENVINO = "openvino"


class _Group(TyperGroup):
    """`loco MODEL ...` is `loco run MODEL ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.commands, *ctx.help_option_names}
        if args and args[0] not in known:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    help="""Evaluate a model on long-document retrieval: [bold]m2-bert loco MODEL[/bold].

    MODEL: an M2-BERT checkpoint, a sentence-transformers model, [bold]bm25[/bold], or
    [bold]bm25:512[/bold] (the first 512 tokens of each document).
    """,
    rich_markup_mode="rich",
)


@app.command()
def run(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    suite: Annotated[
        Suite, typer.Option(help="offline: made from Python itself, without a download.")
    ] = Suite.LOCO_V1,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, separated by commas, instead of a suite.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder in the Hub's schema, instead of the Hub.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON of the run; default: results/SUITE-MODEL.json.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder for embeddings.")] = Path("loco-cache"),
    long: Annotated[
        LongPolicy, typer.Option(help="Documents over the model's length.")
    ] = LongPolicy.TRUNCATE,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = None,
    dtype: Dtype = None,
    device: Device = None,
    backend: Annotated[
        Backend | None, typer.Option(help="Of a sentence-transformers model.")
    ] = None,
    revision: Revision = None,
    subset: Annotated[
        int | None, typer.Option(min=1, help="Offline tasks: this many queries, for a quick look.")
    ] = None,
    needle: Annotated[
        str | None,
        typer.Option(help="Bury each answer among 39 others at these positions: 0,10,20,30,39."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the report here, too.")] = None,
    as_json: Json = False,
) -> None:
    """Evaluate MODEL: nDCG@10, recall@10 and MRR per task and by document length.

    Run the same command again after an interruption: finished tasks and embeddings are kept.
    """
    from m2_bert.loco.evaluate import evaluate

    chosen = _choose(suite, tasks, data, subset)
    if needle is not None:
        chosen = list(_needles(chosen, needle))
    if out is None:
        policy = None if long is LongPolicy.TRUNCATE else long
        traits = (policy, max_length, needle and f"needle {needle}")
        name = "-".join(map(str, filter(None, (tasks or suite, model, *traits))))
        out = Path("results") / (re.sub(r"[^\w.]+", "-", name) + ".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    options = {
        "long": None if long is LongPolicy.TRUNCATE else str(long),
        "max_length": max_length,
        "batch_tokens": batch_tokens,
        "dtype": dtype,
        "device": device.split(",") if device and "," in device else device,
        "backend": None if backend is None else str(backend),
        "revision": None if model.startswith("bm25") else revision,
    }
    warn_if_random(model)
    with _bars() as bars:
        given = {name: value for name, value in options.items() if value is not None}
        follow = _Follow(bars)
        result = evaluate(model, chosen, out=out, cache=cache, progress=follow, **given)
    if markdown is not None:
        _write_markdown([result], markdown)
    _show([result], as_json)
    say(f"wrote {out}")
    warn_if_random(model)
    if result.failed:
        raise typer.Exit(1)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(metavar="A.json B.json ...")],
    plot: Annotated[
        Path | None, typer.Option(help="nDCG@10 by document length: .png, .svg or .pdf.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the report here, too.")] = None,
) -> None:
    """Show a run, or compare several."""
    from m2_bert.loco.result import read_result

    runs = [read_result(path) for path in results]
    if plot is not None:
        from m2_bert.loco.plot import plot_by_length

        say(f"wrote {plot_by_length(runs, plot)}")
    if markdown is not None:
        _write_markdown(runs, markdown)
    _show(runs, as_json=False)


@app.command("tasks")
def list_tasks() -> None:
    """List the tasks: their sources, and what is published about them."""
    from m2_bert.loco.catalog import TASKS
    from m2_bert.loco.offline import OFFLINE

    table = Table(box=None, pad_edge=False)
    for column in ("task", "queries", "documents", "source", "licence"):
        table.add_column(column, justify="right" if column in ("queries", "documents") else "left")
    for task in TASKS.values():
        counts = task.hub_test or task.test
        source = f"{task.source} ({task.domain})"
        table.add_row(
            task.key, f"{counts.queries:,}", f"{counts.documents:,}", source, task.licence
        )
    for name, task in OFFLINE.items():
        table.add_row(name, "-", "-", f"offline: {task.summary}", "-")
    stdout.print(table)


def _choose(suite: str, tasks: str | None, data: Path | None, subset: int | None) -> list[LazyTask]:
    from m2_bert.loco.catalog import LOCO_V0, LOCO_V1
    from m2_bert.loco.data import load_task
    from m2_bert.loco.evaluate import LazyTask
    from m2_bert.loco.offline import OFFLINE, SUITE, offline_task

    suites = {
        Suite.LOCO_V1: [task.key for task in LOCO_V1],
        Suite.LOCO_V0: [task.key for task in LOCO_V0],
        Suite.OFFLINE: list(SUITE),
    }
    names = [name.strip() for name in tasks.split(",")] if tasks else suites[suite]

    def lazy(name: str) -> LazyTask:
        if name in OFFLINE:
            options = {} if subset is None else {"subset": subset}
            return LazyTask(name, lambda: offline_task(name, **options))
        return LazyTask(name, lambda: load_task(name, data=data))

    if data is None:  # misspelt names at once, not after hours; a folder may have any name
        from m2_bert.loco.catalog import find_task

        for name in names:
            if name not in OFFLINE:
                find_task(name)
    return [lazy(name) for name in names]


def _needles(chosen: Sequence[LazyTask], positions: str) -> Iterator[LazyTask]:
    from m2_bert.loco.evaluate import LazyTask
    from m2_bert.loco.needle import needle_task

    for task in chosen:
        for number in positions.split(","):
            if not number.strip().isdecimal():
                raise ValueError(f"needle: got {positions!r}, expected positions such as 0,10,39")
            position = int(number)

            def load(task: LazyTask = task, position: int = position) -> RetrievalTask:
                return needle_task(task.load(), position=position)

            yield LazyTask(f"{task.name}-needle-{position}", load)


def _bars() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=stderr)


class _Follow:
    """One bar for each task, made when the task starts."""

    def __init__(self, bars: Progress) -> None:
        self._bars, self._tasks = bars, {}

    def __call__(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)


def _show(runs: Sequence[EvaluationResult], as_json: bool) -> None:
    from m2_bert.loco.report import grids, notes, to_rich

    if as_json:
        print_json(runs[0].record)
        return
    for grid in grids(runs):
        stdout.print(to_rich(grid))
    for note in notes(runs):
        tell(f"* {note}")


def _write_markdown(runs: Sequence[EvaluationResult], path: Path) -> None:
    from m2_bert.loco.report import to_markdown

    path.write_text(to_markdown(runs), encoding="utf-8")
    say(f"wrote {path}")
