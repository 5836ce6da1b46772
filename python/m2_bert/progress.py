"""Progress of a long call: a bar on standard error, or the caller's own function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = bool | Callable[[int, int], Any] | None


@contextmanager
def reporting(progress: Progress, total: int) -> Iterator[Callable[[int], Any]]:
    """Give a function of the tokens done, which shows them as `progress` says.

    Args:
        progress: None or False: nowhere. True: a bar with tokens per second and the time that
            remains. A function: called with (done, total).

    Raises:
        TypeError: `progress` is none of these.
    """
    if progress is None or progress is False:
        yield lambda done: None
    elif progress is True:
        with _bar(total) as update:
            yield update
    elif callable(progress):
        yield lambda done: progress(done, total)
    else:
        raise TypeError(
            f"progress: got {type(progress).__name__}, expected None, a bool or a function of "
            "(done, total)"
        )


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], Any]]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("encoding"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[rate]} tokens/s"),
        progress.TimeRemainingColumn(),
    )
    started = time.perf_counter()
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("encoding", total=total, rate="-")

        def update(done: int) -> None:
            seconds = time.perf_counter() - started
            bar.update(task, completed=done, rate=f"{done / seconds:,.0f}" if done else "-")

        yield update
