"""What the commands share: consoles, progress bars, JSON."""

from __future__ import annotations

import json
import unicodedata
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

# Paths and texts are shown as they are: no :codes: become pictures.
stdout = Console(emoji=False)
stderr = Console(stderr=True, emoji=False)

Report = Callable[[float, int], None]  # done, total


def one_line(message: object) -> str:
    """The message as plain text in one line; an error without text tells its type."""
    return plain(" ".join(str(message).split())) or type(message).__name__


def plain(text: str) -> str:
    """The text without what a terminal would obey: control and direction characters."""
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def say(text: str, style: str | None = None) -> None:
    """Print a line to standard error; nothing in it is markup."""
    stderr.print(plain(text), style=style, markup=False, highlight=False, soft_wrap=True)


def tell(text: str) -> None:
    """Print a line to standard output; nothing in it is markup."""
    stdout.print(plain(text), markup=False, highlight=False, soft_wrap=True)


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
        say(
            f"{model} has RANDOM WEIGHTS: it shows how things work; its scores and rankings mean "
            "nothing",
            style="bold red",
        )
