"""Haystacks: one needle each, at the position asked for, and all else equal."""

import pytest
from m2_bert.loco.needle import SEPARATOR, needle_task
from m2_bert.loco.task import RetrievalTask

QUERIES, DOCUMENTS = 5, 60


def passages_of(task, name):
    return task.documents[name].split(SEPARATOR)


@pytest.fixture(scope="module")
def corpus() -> RetrievalTask:
    """Query i is answered by document i, query 4 by 3 and 4; 55 documents answer nothing."""
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(QUERIES)}
    return RetrievalTask(
        "corpus",
        {f"d{i}": f"passage {i}." for i in range(DOCUMENTS)},
        {f"q{i}": f"question {i}" for i in range(QUERIES)},
        {**qrels, "q4": {"d3": 1, "d4": 2}},
    )


@pytest.fixture(scope="module")
def pairs() -> RetrievalTask:
    """As in most tasks of LoCo: every document answers a query."""
    return RetrievalTask(
        "pairs",
        {f"d{i}": f"passage {i}." for i in range(80)},
        {f"q{i}": f"question {i}" for i in range(80)},
        {f"q{i}": {f"d{i}": 1} for i in range(80)},
    )


@pytest.mark.parametrize("position", [0, 1, 20, 39])
def test_the_needle_is_at_its_position(corpus, position):
    task = needle_task(corpus, position=position)
    assert task.name == f"corpus-needle-{position}"
    assert task.queries == corpus.queries
    assert task.qrels == corpus.qrels
    assert list(task.documents) == [f"d{i}" for i in range(QUERIES)]
    answers = {corpus.documents[name] for name in task.documents}
    for name in task.documents:
        passages = passages_of(task, name)
        assert len(passages) == len(set(passages)) == 40
        assert passages[position] == corpus.documents[name]
        assert answers.isdisjoint(passages[:position] + passages[position + 1 :])


def test_only_the_position_changes(corpus):
    first, last = needle_task(corpus, position=0), needle_task(corpus, position=39)
    for name in first.documents:
        assert passages_of(first, name)[1:] == passages_of(last, name)[:-1]
    again = needle_task(corpus, position=0)
    assert again.documents == first.documents


def test_haystacks_and_seeds_differ(corpus):
    task = needle_task(corpus, position=0)
    assert passages_of(task, "d0")[1:] != passages_of(task, "d1")[1:]
    assert needle_task(corpus, position=0, seed=1).documents != task.documents


def test_half_the_queries_where_every_document_answers_one(pairs):
    task = needle_task(pairs, position=3)
    assert len(task.queries) == len(task.documents) == 40
    assert list(task.queries) != [f"q{i}" for i in range(40)]
    asked = {pairs.documents[name] for name in task.documents}
    for name in task.documents:
        assert len(asked.intersection(passages_of(task, name))) == 1


def test_max_queries(pairs):
    task = needle_task(pairs, position=0, max_queries=7)
    assert len(task.queries) == 7
    assert list(task.documents) == [name.replace("q", "d") for name in task.queries]
    assert len(needle_task(pairs, position=0, max_queries=999, pool=["x"] * 39).queries) == 80


def test_a_pool_of_passages(pairs):
    pool = [f"wikipedia {i}." for i in range(39)]
    task = needle_task(pairs, position=39, pool=pool)
    assert task.queries == pairs.queries
    for name, text in pairs.documents.items():
        passages = passages_of(task, name)
        assert passages[39] == text
        assert sorted(passages[:39]) == sorted(pool)


def test_passages_are_cut():
    corpus = RetrievalTask(
        "long", {"d": "n" * 50, "e": "a" * 50, "f": "b"}, {"q": "?"}, {"q": {"d": 1}}
    )
    task = needle_task(corpus, position=1, distractors=2, passage_characters=3)
    assert sorted(passages_of(task, "d")) == ["aaa", "b", "nnn"]
    assert passages_of(task, "d")[1] == "nnn"


def test_no_distractors(corpus):
    task = needle_task(corpus, position=0, distractors=0)
    assert task.documents == {f"d{i}": corpus.documents[f"d{i}"] for i in range(QUERIES)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"position": 40}, r"position 40: expected 0 to 39", id="behind"),
        pytest.param({"position": -1}, r"position -1: expected 0 to 39", id="negative"),
        pytest.param({"position": 0, "max_queries": 0}, "max_queries 0: expected", id="none"),
        pytest.param(
            {"position": 0, "passage_characters": 0}, "passage_characters 0: expected", id="cut"
        ),
        pytest.param(
            {"position": 0, "distractors": 99},
            r"leave 5\d passages .*99 distractors are wanted; ask fewer \(max_queries\) or pass",
            id="small-corpus",
        ),
        pytest.param({"position": 0, "pool": ["x"]}, "leave 1 passages", id="small-pool"),
    ],
)
def test_bad_options(corpus, options, message):
    with pytest.raises(ValueError, match=message):
        needle_task(corpus, **options)
