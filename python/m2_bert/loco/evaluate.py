"""Evaluate a model on retrieval tasks: exact search, nDCG@10, one JSON per run."""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from m2_bert.loco.cache import digest, token_lengths
from m2_bert.loco.encoders import TextEncoder, one_line
from m2_bert.loco.result import FORMAT, EvaluationResult, mean_over_tasks, read_result
from m2_bert.loco.systems import System, open_system
from m2_bert.loco.task import RetrievalTask

TOP_K = 100
PACKAGES = {
    "m2_bert": "monarch-kernels",
    "torch": "torch",
    "transformers": "transformers",
    "sentence-transformers": "sentence-transformers",
    "numpy": "numpy",
    "pytrec-eval": "pytrec-eval-terrier",
    "bm25s": "bm25s",
}

# Called with (task, tokens done, tokens in all).
TaskProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LazyTask:
    """A task that is loaded when its turn comes: a name, and a function that returns it."""

    name: str
    load: Callable[[], RetrievalTask]

    def __call__(self) -> RetrievalTask:
        return self.load()


def evaluate(
    model: str | TextEncoder,
    tasks: Iterable[RetrievalTask | Callable[[], RetrievalTask]],
    *,
    out: str | Path,
    cache: str | Path | None = None,
    top_k: int = TOP_K,
    progress: TaskProgress | None = None,
    **options: Any,
) -> EvaluationResult:
    """Score a model on tasks, and write what is known after each of them to a JSON file.

    A task that fails is recorded with its error, and the next one goes on. Started again with the
    same arguments, a run that was killed continues: finished tasks are taken from `out`,
    embeddings from `cache`. The file is then the same as without the interruption, except for its
    "timing".

    Args:
        model: what `open_encoder` takes, an encoder, "bm25", or "bm25:N" (the first N tokens of
            each document).
        tasks: tasks, or functions that load one (a `LazyTask`, or anything with a name).
        out: the JSON file.
        cache: folder for embeddings; None: they are not kept.
        top_k: documents ranked per query; the MRR looks no further.
        progress: called with the task, tokens done and tokens in all.
        options: those of `open_encoder`.

    Raises:
        ValueError: an argument is wrong, a task comes twice, or `out` is another run's.
        FileNotFoundError: there is no such model.
        ImportError: an optional package is missing.
    """
    if top_k < 10:
        raise ValueError(f"top_k: got {top_k}, expected at least 10 for nDCG@10")
    cache = None if cache is None else Path(cache)
    with open_system(model, cache, options) as system:
        run = _Run(system, cache, top_k, progress)
        result = _start(Path(out), system, top_k, options.get("device"))
        record, seen = result.record, set()
        for source in tasks:
            name = _name(source)
            if name in seen:
                raise ValueError(f"task {name!r} comes twice")
            seen.add(name)
            entry, timing = run.task(source, record["tasks"].get(name, {}))
            record["tasks"][name] = entry
            if timing is not None:
                record["timing"]["tasks"][name] = timing
            elif "error" in entry:
                record["timing"]["tasks"].pop(name, None)
            record["average"] = mean_over_tasks(record["tasks"])
            result.write()
    return result


@dataclass(frozen=True)
class _Run:
    system: System
    cache: Path | None
    top_k: int
    progress: TaskProgress | None

    def task(
        self, source: RetrievalTask | Callable[[], RetrievalTask], known: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], dict[str, float] | None]:
        """Entry of the task, and its times; the known entry if the task is still the same."""
        started = time.perf_counter()
        try:
            task = source if isinstance(source, RetrievalTask) else source()
            key = _task_digest(task)
            if "scores" in known and known["digest"] == key:
                return known, None
            entry, seconds = self._score(task)
        # Bad data and failing models, but not a missing package: that would fail every task.
        except (ValueError, TypeError, LookupError, OSError, RuntimeError, MemoryError) as error:
            return {"error": one_line(error)}, None
        wall = time.perf_counter() - started
        timing = {"encode_seconds": round(seconds, 3), "seconds": round(wall, 3)}
        return {**entry, "digest": key}, timing

    def _score(self, task: RetrievalTask) -> tuple[dict[str, Any], float]:
        from m2_bert.loco.metrics import by_length, evaluate_ranking, mean_scores

        lengths = token_lengths(task.documents, self.cache)
        report = None
        if self.progress is not None:

            def report(done: int, total: int) -> None:
                self.progress(task.name, done, total)

        answer = self.system.answer(task, lengths, self.top_k, report)
        per_query = evaluate_ranking(task, answer.ranking)
        tokens = list(lengths.values())
        entry = {
            "scores": mean_scores(per_query),
            "counts": {
                "queries": len(task.queries),
                "documents": len(task.documents),
                "document_tokens": sum(tokens),
                "median_tokens": statistics.median(tokens),
                "longest_tokens": max(tokens),
                **answer.counts,
            },
            "by_length": by_length(task, per_query, lengths),
            "per_query": {key: per_query[key]["ndcg_at_10"] for key in sorted(per_query)},
            # Through JSON: metadata may hold anything, and the file must read back the same.
            "metadata": json.loads(json.dumps(dict(task.metadata), default=str)),
        }
        return entry, answer.seconds


def versions() -> dict[str, str | None]:
    """Versions of what decides the numbers; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = None
    return found


def _start(path: Path, system: System, top_k: int, device: Any) -> EvaluationResult:
    """The result to go on with: that of an earlier start of the same run, or a new one."""
    header = {
        "format": FORMAT,
        "model": dict(system.model),
        "settings": {**system.settings, "top_k": top_k},
        "versions": versions(),
    }
    if path.exists():
        earlier = read_result(path)
        for part, now in header.items():
            was = earlier.record[part]
            if was != now:
                differing = [key for key in {**was, **now} if was.get(key) != now.get(key)]
                raise ValueError(
                    f"{path} holds another run: {part} differ in {', '.join(differing)}; "
                    "choose another file, or remove this one to start anew"
                )
        return earlier
    timing = {"platform": platform.platform(), "device": _device_name(device), "tasks": {}}
    return EvaluationResult({**header, "tasks": {}, "average": None, "timing": timing}, path)


def _device_name(device: Any) -> str:
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    names = [device] if isinstance(device, str) else list(device)
    return ", ".join(
        f"{name} ({torch.cuda.get_device_name(name)})"
        if str(name).startswith("cuda")
        else str(name)
        for name in names
    )


def _task_digest(task: RetrievalTask) -> str:
    """Of everything that decides the scores: texts and answers."""
    answers = {
        query: json.dumps(dict(gains), sort_keys=True) for query, gains in task.qrels.items()
    }
    parts = "".join(digest(part) for part in (task.documents, task.queries, answers))
    return hashlib.sha256(parts.encode()).hexdigest()


def _name(source: RetrievalTask | Callable[[], RetrievalTask]) -> str:
    name = getattr(source, "name", None) or getattr(source, "__name__", None)
    if not isinstance(name, str) or not (isinstance(source, RetrievalTask) or callable(source)):
        raise TypeError(f"tasks: got {source!r}, expected a RetrievalTask or a named loader")
    return name
