"""nDCG@10, recall@10 and MRR by pytrec_eval, and their means over queries and document lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from m2_bert.loco.task import Ranking, RetrievalTask

# Our name -> trec_eval's.
_MEASURES = {"ndcg_at_10": "ndcg_cut_10", "recall_at_10": "recall_10", "mrr": "recip_rank"}

PerQuery = Mapping[str, Mapping[str, float]]


def evaluate_ranking(task: RetrievalTask, ranking: Ranking) -> dict[str, dict[str, float]]:
    """Scores of each query of the task, in [0, 1].

    nDCG has linear gains and the discount log2(rank + 1); MRR looks at all that was returned.
    Documents of equal score are ordered by their id, ascending, so that a result does not depend
    on the order in which a system met them. A query without an entry in ``ranking`` scores 0. A
    document whose id equals the query's is scored like any other: queries and documents have
    their own ids (BEIR's evaluation skips such hits, for tasks whose queries are documents).

    Returns:
        query id -> {"ndcg_at_10", "recall_at_10", "mrr"}, in the order of ``task.queries``.

    Raises:
        ImportError: pytrec_eval is missing.
        ValueError: a score is not finite, a document is listed twice for a query, or the ranking
            names queries or documents that the task does not have.
    """
    try:
        import pytrec_eval
    except ImportError:
        raise ImportError(
            "the metrics need pytrec_eval: pip install monarch-kernels[eval]"
        ) from None
    unknown = [query for query in ranking if query not in task.queries]
    if unknown:
        raise ValueError(f"task {task.name}: the ranking names unknown queries: {unknown[:5]}")
    run = {query: _strict_order(task, query, hits) for query, hits in ranking.items() if hits}
    qrels = {query: dict(gains) for query, gains in task.qrels.items()}
    measures = {"ndcg_cut.10", "recall.10", "recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    return {
        query: {ours: found.get(query, {}).get(theirs, 0.0) for ours, theirs in _MEASURES.items()}
        for query in task.queries
    }


def _strict_order(
    task: RetrievalTask, query: str, hits: Sequence[tuple[str, float]]
) -> dict[str, float]:
    """Document id -> a score of its own: trec_eval would order equal scores its own way."""
    for document, score in hits:
        if not math.isfinite(score):
            raise ValueError(
                f"task {task.name}: query {query!r} gives document {document!r} the score {score}; "
                "scores must be finite"
            )
        if document not in task.documents:
            raise ValueError(
                f"task {task.name}: query {query!r} returns the unknown document {document!r}"
            )
    ordered = sorted(hits, key=lambda hit: (-hit[1], hit[0]))
    surrogate = {document: float(len(hits) - rank) for rank, (document, _) in enumerate(ordered)}
    if len(surrogate) != len(hits):
        raise ValueError(f"task {task.name}: query {query!r} returns a document more than once")
    return surrogate


def mean_scores(per_query: PerQuery) -> dict[str, float]:
    """Mean of each measure over the queries.

    Raises:
        ValueError: there are no queries.
    """
    if not per_query:
        raise ValueError("there are no queries to average over")
    return {
        measure: sum(scores[measure] for scores in per_query.values()) / len(per_query)
        for measure in _MEASURES
    }


def by_length(
    task: RetrievalTask,
    per_query: PerQuery,
    lengths: Mapping[str, int],
    edges: Sequence[int] = (2048, 8192, 32768),
) -> dict[str, dict[str, float]]:
    """nDCG@10 by the length of the answer document, in tokens.

    A query with several relevant documents counts once, by the longest of them: the length that a
    system must be able to read to find them all. A length that equals an edge belongs to the bin
    below it, since a model of that length reads the document whole.

    Args:
        task: gives the relevant documents.
        per_query: what ``evaluate_ranking`` returned.
        lengths: document id -> tokens; at least the relevant documents.
        edges: upper ends of the bins but the last, ascending.

    Returns:
        label ("<2K", "2-8K", "8-32K", ">32K") -> {"queries", "ndcg_at_10"}; bins without a query
        are left out.

    Raises:
        ValueError: the edges are not ascending, or the length of a relevant document is missing.
    """
    if not edges or list(edges) != sorted(set(edges)):
        raise ValueError(f"edges must be ascending token counts, got {tuple(edges)}")
    bins: dict[str, list[float]] = {label: [] for label in _labels(edges)}
    labels = list(bins)
    for query, scores in per_query.items():
        missing = [document for document in task.qrels[query] if document not in lengths]
        if missing:
            raise ValueError(f"task {task.name}: no length of relevant documents: {missing[:5]}")
        longest = max(lengths[document] for document in task.qrels[query])
        bins[labels[sum(longest > edge for edge in edges)]].append(scores["ndcg_at_10"])
    return {
        label: {"queries": len(scores), "ndcg_at_10": sum(scores) / len(scores)}
        for label, scores in bins.items()
        if scores
    }


def _labels(edges: Sequence[int]) -> list[str]:
    def short(tokens: int) -> tuple[str, str]:
        return (str(tokens // 1024), "K") if tokens % 1024 == 0 else (str(tokens), "")

    names = [short(edge) for edge in edges]
    inner = [
        f"{low if unit == low_unit else low + low_unit}-{high}{unit}"
        for (low, low_unit), (high, unit) in pairwise(names)
    ]
    return ["<" + "".join(names[0]), *inner, ">" + "".join(names[-1])]
