"""nDCG@10, recall@10 and MRR against values computed by hand."""

import math

import pytest
from m2_bert.loco.metrics import by_length, evaluate_ranking, mean_scores
from m2_bert.loco.task import RetrievalTask

pytest.importorskip("pytrec_eval")


def task_of(qrels: dict, documents: int = 14) -> RetrievalTask:
    ids = [f"d{i:02d}" for i in range(documents)]
    return RetrievalTask("made", dict.fromkeys(ids, "text"), dict.fromkeys(qrels, "query"), qrels)


def ranked(*documents: str) -> list[tuple[str, float]]:
    return [(document, 1.0 - 0.01 * place) for place, document in enumerate(documents)]


def discount(rank: int) -> float:
    return 1 / math.log2(rank + 1)


@pytest.mark.parametrize("rank", [1, 2, 7, 10])
def test_one_relevant_document_scores_by_its_rank(rank):
    others = [f"d{i:02d}" for i in range(1, 13)]
    hits = ranked(*others[: rank - 1], "d00", *others[rank - 1 :])
    scores = evaluate_ranking(task_of({"q": {"d00": 1}}), {"q": hits})["q"]
    assert scores == pytest.approx(
        {"ndcg_at_10": discount(rank), "recall_at_10": 1.0, "mrr": 1 / rank}
    )


def test_below_rank_ten_only_mrr_counts():
    hits = ranked(*(f"d{i:02d}" for i in range(1, 11)), "d00")
    scores = evaluate_ranking(task_of({"q": {"d00": 1}}), {"q": hits})["q"]
    assert scores == pytest.approx({"ndcg_at_10": 0.0, "recall_at_10": 0.0, "mrr": 1 / 11})


def test_several_relevant_documents_with_gains():
    """Gains 2, 1, 1; found: gain 1 at rank 1, gain 2 at rank 3, the third not at all."""
    task = task_of({"q": {"d00": 2, "d01": 1, "d02": 1}})
    scores = evaluate_ranking(task, {"q": ranked("d01", "d05", "d00", "d06")})["q"]
    gained = 1 * discount(1) + 2 * discount(3)
    ideal = 2 * discount(1) + 1 * discount(2) + 1 * discount(3)
    assert scores == pytest.approx(
        {"ndcg_at_10": gained / ideal, "recall_at_10": 2 / 3, "mrr": 1.0}
    )


@pytest.mark.parametrize(("relevant", "rank"), [("d03", 1), ("d04", 2), ("d05", 3)])
@pytest.mark.parametrize("order", [(3, 4, 5), (5, 4, 3), (4, 5, 3)], ids=str)
def test_ties_are_broken_by_document_id(relevant, rank, order):
    hits = [(f"d{i:02d}", 0.5) for i in order]
    scores = evaluate_ranking(task_of({"q": {relevant: 1}}), {"q": hits})["q"]
    assert scores["ndcg_at_10"] == pytest.approx(discount(rank))


def test_scores_too_close_for_float32_keep_their_order():
    hits = [("d00", 1.0), ("d01", 1.0 + 1e-12)]
    scores = evaluate_ranking(task_of({"q": {"d01": 1}}), {"q": hits})["q"]
    assert scores["mrr"] == 1.0


@pytest.mark.parametrize("ranking", [{}, {"b": []}], ids=["absent", "empty"])
def test_queries_without_hits_score_zero_and_count(ranking):
    task = task_of({"a": {"d00": 1}, "b": {"d01": 1}})
    per_query = evaluate_ranking(task, {"a": ranked("d00"), **ranking})
    assert list(per_query) == ["a", "b"]
    assert per_query["b"] == {"ndcg_at_10": 0.0, "recall_at_10": 0.0, "mrr": 0.0}
    assert mean_scores(per_query)["ndcg_at_10"] == pytest.approx(0.5)


def test_an_id_shared_by_query_and_document_is_nothing_special():
    scores = evaluate_ranking(task_of({"d00": {"d00": 1}}), {"d00": ranked("d00", "d01")})
    assert scores["d00"]["ndcg_at_10"] == 1.0


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ({"q": [("d00", float("nan"))]}, "finite"),
        ({"q": [("d00", float("inf"))]}, "finite"),
        ({"q": [("d00", 2.0), ("d00", 1.0)]}, "more than once"),
        ({"q": [("elsewhere", 1.0)]}, "unknown document 'elsewhere'"),
        ({"other": [("d00", 1.0)]}, "unknown queries: .*other"),
    ],
    ids=["nan", "infinite", "repeated", "unknown document", "unknown query"],
)
def test_impossible_rankings_are_refused(ranking, message):
    with pytest.raises(ValueError, match=message):
        evaluate_ranking(task_of({"q": {"d00": 1}}), ranking)


def test_no_mean_of_nothing():
    with pytest.raises(ValueError, match="no queries"):
        mean_scores({})


def test_by_length_bins_by_the_longest_answer():
    lengths = {"d00": 2048, "d01": 2049, "d02": 8192, "d03": 32768, "d04": 32769}
    task = task_of({f"q{i}": {f"d{i:02d}": 1} for i in range(5)} | {"both": {"d00": 1, "d04": 1}})
    values = {"q0": 0.1, "q1": 0.2, "q2": 0.4, "q3": 0.7, "q4": 0.5, "both": 1.0}
    per_query = {query: {"ndcg_at_10": value} for query, value in values.items()}
    bins = by_length(task, per_query, lengths)
    assert list(bins) == ["<2K", "2-8K", "8-32K", ">32K"]
    assert {label: found["queries"] for label, found in bins.items()} == {
        "<2K": 1,
        "2-8K": 2,
        "8-32K": 1,
        ">32K": 2,
    }
    means = {label: found["ndcg_at_10"] for label, found in bins.items()}
    assert means == pytest.approx({"<2K": 0.1, "2-8K": 0.3, "8-32K": 0.7, ">32K": 0.75})


def test_by_length_leaves_out_empty_bins_and_names_odd_edges():
    task = task_of({"q": {"d00": 1}})
    per_query = {"q": {"ndcg_at_10": 1.0}}
    assert list(by_length(task, per_query, {"d00": 700}, edges=(500, 1024))) == ["500-1K"]
    with pytest.raises(ValueError, match="ascending"):
        by_length(task, per_query, {"d00": 700}, edges=(1024, 500))
    with pytest.raises(ValueError, match=r"no length .*d00"):
        by_length(task, per_query, {})
