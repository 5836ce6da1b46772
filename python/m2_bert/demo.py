"""The demonstration: find the module of Python's standard library that a docstring comes from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2_bert.embedder import Embedder
from m2_bert.loco.baselines import bm25_ranking
from m2_bert.loco.metrics import by_length, evaluate_ranking, mean_scores
from m2_bert.loco.offline import offline_task
from m2_bert.loco.task import Ranking, RetrievalTask
from m2_bert.search import IndexProgress, SearchIndex, build_index

TOP_K = 100


@dataclass(frozen=True)
class DemoResult:
    """Scores of "model" and "bm25": {metric: mean}, and {length bin: {"queries", metric}}."""

    documents: int
    queries: int
    scores: Mapping[str, Mapping[str, float]]
    by_length: Mapping[str, Mapping[str, Mapping[str, float]]]

    def to_dict(self) -> dict[str, Any]:
        """What json.dumps takes."""
        return asdict(self)


def run_demo(
    model: str,
    out: str | os.PathLike,
    *,
    subset: int | None = None,
    rebuild: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    progress: Callable[[float, int], object] | None = None,
) -> DemoResult:
    """Index the modules under `out`, search all docstrings, and score the model beside BM25.

    A second run with the same model continues from the index of the first.

    Args:
        model: what `m2_bert.checkpoint.load_model` takes.
        out: folder; receives "documents" and "index".
        subset: this many queries alone, with the documents that `offline_task` keeps for them.
        rebuild: index anew, for another model or other settings than `out` holds.
        dtype, device: as Embedder's.
        progress: called with the modules indexed and their number.

    Raises:
        ValueError, FileNotFoundError: as `Embedder` and `build_index`.
        ImportError: bm25s or pytrec_eval is not installed (extra [eval]).
    """
    task = offline_task("stdlib") if subset is None else offline_task("stdlib", subset=subset)
    names = _write_documents(task, Path(out) / "documents")
    embedder = Embedder(model, long_documents="window", dtype=dtype, device=device)

    def follow(state: IndexProgress) -> None:
        if progress is not None:
            progress(state.done, state.total_files)

    index = Path(out) / "index"
    options = {"model_name": model, "paths": list(names), "rebuild": rebuild, "progress": follow}
    build_index(Path(out) / "documents", index, embedder, **options)
    rankings = {
        "model": _search(SearchIndex.open(index), task, names, embedder),
        "bm25": bm25_ranking(task, top_k=TOP_K),
    }
    counted = embedder.count_tokens(list(task.documents.values()))
    lengths = dict(zip(task.documents, counted, strict=True))
    per_query = {name: evaluate_ranking(task, ranking) for name, ranking in rankings.items()}
    return DemoResult(
        documents=len(task.documents),
        queries=len(task.queries),
        scores={name: mean_scores(scores) for name, scores in per_query.items()},
        by_length={name: by_length(task, scores, lengths) for name, scores in per_query.items()},
    )


def _write_documents(task: RetrievalTask, folder: Path) -> dict[str, str]:
    """Write each document that is not there yet; return {file name: document id}."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {f"{document.replace('/', '.')}.txt": document for document in task.documents}
    for name, document in names.items():
        path, content = folder / name, task.documents[document].encode()
        # An unchanged file keeps its time, and need not be read again.
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    return names


def _search(
    index: SearchIndex, task: RetrievalTask, names: Mapping[str, str], embedder: Embedder
) -> Ranking:
    vectors = embedder.encode(list(task.queries.values()))
    found = index.search_vectors(vectors, top_k=TOP_K, snippets=False)
    return {
        query: [(names[hit.path], hit.score) for hit in hits]
        for query, hits in zip(task.queries, found, strict=True)
    }
