"""What the commands share: consoles, progress bars, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

stdout = Console()
stderr = Console(stderr=True)

Report = Callable[[float, int], None]  # done, total


def one_line(message: object) -> str:
    """The message without line breaks; an error without text tells its type."""
    text = " ".join(str(message).split())
    return text or type(message).__name__


def print_json(value: Any) -> None:
    stdout.print_json(json.dumps(value), indent=2, highlight=False)


@contextmanager
def progress(description: str, unit: str) -> Iterator[Report]:
    """A bar on standard error with the remaining time; gone when done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def warn_if_random(model: str) -> None:
    """Say loudly that results of an untrained model mean nothing."""
    if model.startswith("random:"):
        stderr.print(
            f"{model} has RANDOM WEIGHTS: it shows how things work; its scores and rankings mean "
            "nothing",
            style="bold red",
            soft_wrap=True,
        )
