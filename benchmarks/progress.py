"""What a person sees while the benchmark runs: a bar, or plain lines without a terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.schedule import Cell, Plan


class RunDisplay:
    """Stages, measurements and the time they will still take. It never shows a speed: results
    appear only after they were checked.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=None, left="")
        self.count = self.finished = 0
        self.start = time.monotonic()
        self.text, self.runs, self.planned = "", 0, 0

    def __enter__(self) -> RunDisplay:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False)

    def stage(self, text: str) -> None:
        """What happens now, before the measurements."""
        self._show(text, "")

    def total(self, count: int) -> None:
        self.count = count
        self.bar.update(self.task, total=count)

    def measuring(self, cell: Cell, plan: Plan, seconds_left: float) -> None:
        """The next measurement begins; ``seconds_left`` is predicted for it and all others."""
        self.text = f"{cell.model} at {cell.length:,} tokens"
        self.runs, self.planned = 0, plan.repeats
        self._show(self.text, f"about {_duration(seconds_left)} left")

    def event(self, event: dict[str, Any]) -> None:
        """News from the measuring process."""
        if event["event"] == "run":
            self.runs += 1
        step = {"built": "first call", "warm": "warm"}.get(event["event"], "")
        counter = f"run {self.runs}/{self.planned}" if self.runs else step
        self.bar.update(self.task, description=f"{self.text}: {counter}")

    def done(self) -> None:
        self.finished += 1
        self.bar.update(self.task, completed=self.finished)

    def _show(self, text: str, left: str) -> None:
        self.bar.update(self.task, description=text, left=left)
        if not self.console.is_terminal:
            position = f"[{self.finished + 1}/{self.count}] " if self.count else ""
            elapsed = _duration(time.monotonic() - self.start)
            tail = f", {left}" if left else ""
            # Not markup: the position stands in brackets.
            self.console.print(f"{position}{text} ({elapsed}{tail})", markup=False, highlight=False)


def _duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    return f"{seconds // 60}:{seconds % 60:02d}"
