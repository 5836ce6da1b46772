"""Long-document tasks that need no network, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from m2_bert.loco.docstrings import docstring_task, stdlib_task
from m2_bert.loco.python_docs import python_docs_task
from m2_bert.loco.task import RetrievalTask
from m2_bert.loco.volumes import volume_task


@dataclass(frozen=True)
class OfflineTask:
    """A task made on the spot: what makes it, and what it is, in a line."""

    build: Callable[..., RetrievalTask]
    summary: str


def _volumes(name: str, tokens: int, volumes: int) -> OfflineTask:
    return OfflineTask(
        partial(volume_task, tokens, name=name, volumes=volumes),
        f"docstring -> volume of exactly {tokens:,} tokens of the standard library's functions",
    )


OFFLINE = {
    "stdlib": OfflineTask(stdlib_task, "docstring -> module of Python's standard library"),
    "pydata": OfflineTask(
        docstring_task, "docstring -> module of scipy, sklearn, pandas and matplotlib (installed)"
    ),
    "python-docs": OfflineTask(
        python_docs_task, "section heading -> page of Python's documentation (python3.11-doc)"
    ),
    "volumes-2k": _volumes("volumes-2k", 2048, 150),
    "volumes-8k": _volumes("volumes-8k", 8192, 300),
    "volumes-32k": _volumes("volumes-32k", 32768, 100),
}

# Those that need nothing but Python itself.
SUITE = ("stdlib", "volumes-2k", "volumes-8k", "volumes-32k")


def offline_task(name: str, /, *, subset: int | None = None, **options: object) -> RetrievalTask:
    """The task of that name.

    Args:
        name: a key of `OFFLINE`.
        subset: keep the first so many queries, the documents that answer them, and as many
            documents that do not; for quick runs, whose scores compare with nothing. None: all.
        options: what the task's builder takes: `folder` of python-docs, `packages` and `name` of
            pydata, `position`, `volumes` and `seed` of the volumes.

    Raises:
        ValueError: there is no such task, or `subset` is below 1.
        TypeError: the task has no such option.
        FileNotFoundError: what the task is made of is not on this machine.
    """
    if name not in OFFLINE:
        raise ValueError(f"task: got {name!r}, expected one of {', '.join(OFFLINE)}")
    if subset is not None and subset < 1:
        raise ValueError(f"subset must be at least 1, got {subset}")
    task = OFFLINE[name].build(**options)
    return task if subset is None else _first_queries(task, subset)


def _first_queries(task: RetrievalTask, count: int) -> RetrievalTask:
    queries = dict(list(task.queries.items())[:count])
    answers = {document for query in queries for document in task.qrels[query]}
    others = [document for document in task.documents if document not in answers]
    kept = answers.union(others[: len(answers)])
    return replace(
        task,
        documents={key: text for key, text in task.documents.items() if key in kept},
        queries=queries,
        qrels={query: task.qrels[query] for query in queries},
        metadata={**task.metadata, "subset": count},
    )
