"""LoCoV1 as MTEB retrieval tasks and an MTEB benchmark (needs the extra [mteb]).

import mteb
from m2_bert.loco.mteb import mteb_benchmark
mteb.evaluate(model, mteb_benchmark().tasks)
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from m2_bert.loco.catalog import (
    DATASET_LICENCE,
    DOCUMENTS_DATASET,
    LOCO_V1,
    PAPER_BIBTEX,
    PAPER_URL,
    REVISIONS,
    LocoTask,
    find_task,
)
from m2_bert.loco.data import load_task

if TYPE_CHECKING:
    from mteb import Benchmark
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

# The paper's domains in MTEB's words.
_DOMAINS = {
    "screenwriting": ["Entertainment", "Spoken"],
    "government": ["Government", "Written"],
    "corporate meetings": ["Spoken"],
    "science": ["Academic", "Written"],
    "general": ["Non-fiction", "Written"],
    "law": ["Legal", "Written"],
    "programming": ["Programming", "Written"],
}


def mteb_task(key: str, *, data: str | PathLike[str] | None = None) -> AbsTaskRetrieval:
    """One task of LoCoV1 for `mteb.evaluate`, its main score nDCG@10; texts are read on first use.

    Args:
        key: key of the catalog.
        data: folder as in m2_bert.loco.data; None downloads from the Hub at the pinned revision.

    Raises:
        ValueError: the key is unknown.
        ImportError: mteb is not installed.
    """
    entry = find_task(key)
    try:
        from datasets import Dataset
        from mteb.abstasks.retrieval import AbsTaskRetrieval
    except ImportError as error:
        raise ImportError("MTEB tasks need mteb: pip install monarch-kernels[mteb]") from error

    def load_data(self: AbsTaskRetrieval, num_proc: int | None = None, **kwargs: Any) -> None:
        if self.data_loaded:
            return
        task = load_task(key, data=data)
        corpus = [{"id": pid, "title": "", "text": text} for pid, text in task.documents.items()]
        queries = [{"id": qid, "text": text} for qid, text in task.queries.items()]
        split = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list(queries),
            "relevant_docs": {qid: dict(gains) for qid, gains in task.qrels.items()},
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True

    revision = REVISIONS[DOCUMENTS_DATASET] if data is None else "local files"
    members = {"metadata": _metadata(entry, revision), "load_data": load_data}
    return type(f"LoCo-{key}", (AbsTaskRetrieval,), members)()


def _metadata(entry: LocoTask, revision: str) -> TaskMetadata:
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=f"LoCo-{entry.key}",
        description=f"{entry.title}, a task of LoCo: {entry.construction}.",
        dataset={"path": DOCUMENTS_DATASET, "revision": revision},
        reference=PAPER_URL,
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        domains=_DOMAINS[entry.domain],
        license=DATASET_LICENCE.lower(),
        bibtex_citation=PAPER_BIBTEX,
    )


def mteb_benchmark(*, data: str | PathLike[str] | None = None) -> Benchmark:
    """The 12 tasks of LoCoV1 as an MTEB benchmark; its score is the mean of the tasks' nDCG@10.

    Args:
        data: as in mteb_task.

    Raises:
        ImportError: mteb is not installed.
    """
    tasks = [mteb_task(entry.key, data=data) for entry in LOCO_V1]
    from mteb import Benchmark

    return Benchmark(
        name="LoCoV1",
        tasks=tasks,
        description="Retrieval of documents that are long, from several domains.",
        reference=PAPER_URL,
        citation=PAPER_BIBTEX,
    )
