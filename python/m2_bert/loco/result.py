"""The JSON of an evaluation: one file per run, complete after every task."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2_bert.loco.cache import write_atomically
from m2_bert.loco.catalog import LOCO_V1

FORMAT = "m2_bert.loco.evaluation/1"
METRICS = ("ndcg_at_10", "recall_at_10", "mrr")


@dataclass(frozen=True)
class EvaluationResult:
    """What a run has found so far.

    Args:
        record: the content of the JSON file. All of it but "timing" is the same for the same
            model, settings, versions and data.
        path: the file.
    """

    record: dict[str, Any]
    path: Path | None = None

    @property
    def name(self) -> str:
        """The model, its length and its policy for long documents: what a table calls the run."""
        settings = self.record["settings"]
        # Of a path, what tells models apart; a Hub id has two parts anyway.
        parts = ["/".join(self.record["model"]["name"].rstrip("/").split("/")[-2:])]
        if settings.get("max_length"):
            parts.append(f"{settings['max_length']} tokens")
        if settings.get("long", "truncate") != "truncate":
            parts.append(settings["long"])
        return ", ".join(parts)

    @property
    def done(self) -> dict[str, dict[str, Any]]:
        """Task -> its entry, of the tasks that finished."""
        return {key: task for key, task in self.record["tasks"].items() if "scores" in task}

    @property
    def failed(self) -> dict[str, str]:
        """Task -> error in one line."""
        return {key: task["error"] for key, task in self.record["tasks"].items() if "error" in task}

    @property
    def average(self) -> dict[str, Any] | None:
        """{"label", "tasks", and the mean of each metric}; None before a task has finished."""
        return self.record["average"]

    def write(self) -> None:
        """Replace the file in one step."""
        write_atomically(self.path, to_json(self.record))


def to_json(record: Mapping[str, Any]) -> bytes:
    """The bytes of a result file."""
    return (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_result(path: str | Path) -> EvaluationResult:
    """Read a result file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not the JSON of an evaluation.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such result file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a result of an evaluation ({error})") from None
    problem = _problem(record)
    if problem:
        raise ValueError(f"{path}: not a result of an evaluation ({problem})")
    return EvaluationResult(record, path)


def mean_over_tasks(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Unweighted mean of the scores; the published average where all of LoCoV1 is there."""
    done = {key: task["scores"] for key, task in tasks.items() if "scores" in task}
    if not done:
        return None
    published = [task.key for task in LOCO_V1]
    complete = all(key in done for key in published)
    keys = published if complete else list(done)
    label = "LoCoV1 average" if complete else f"mean of {len(keys)} task{'s'[: len(keys) > 1]}"
    means = {metric: math.fsum(done[key][metric] for key in keys) / len(keys) for metric in METRICS}
    return {"label": label, "tasks": keys, **means}


def _problem(record: Any) -> str | None:
    """What is wrong with a record that reports would stumble over, or None."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return f'no "format": "{FORMAT}"'
    for part in ("model", "settings", "versions", "tasks", "timing"):
        if not isinstance(record.get(part), dict):
            return f'no "{part}"'
    if "average" not in record or not isinstance(record["model"].get("name"), str):
        return 'no "average" or no name of the model'
    for key, task in record["tasks"].items():
        if not isinstance(task, dict) or not isinstance(task.get("error", ""), str):
            return f"task {key!r} is malformed"
        if "error" not in task and not _is_scored(task):
            return f"task {key!r} has neither scores nor an error"
    return None


def _is_scored(task: Mapping[str, Any]) -> bool:
    scores, per_query, bins = (task.get(part) for part in ("scores", "per_query", "by_length"))
    return (
        isinstance(scores, dict)
        and all(_is_number(scores.get(metric)) for metric in METRICS)
        and isinstance(per_query, dict)
        and all(map(_is_number, per_query.values()))
        and isinstance(task.get("digest"), str)
        and isinstance(task.get("counts"), dict)
        and isinstance(bins, dict)
        and all(isinstance(row, dict) and _is_number(row.get("queries")) for row in bins.values())
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
