"""BM25: its formula, its cut at N tokens, and its order."""

import math
import sys

import pytest
from m2_bert.loco.baselines import bm25_ranking
from m2_bert.loco.task import RetrievalTask
from m2_bert.loco.tokens import encodings, first_tokens

pytest.importorskip("bm25s")
pytest.importorskip("Stemmer")

ANIMALS = {
    "cat": "cats cats purring",
    "dog": "dogs barking cats running jumping",
    "fish": "fish swimming",
}


def task_of(documents: dict, query: str) -> RetrievalTask:
    return RetrievalTask("made", documents, {"q": query}, {"q": {next(iter(documents)): 1}})


def test_scores_follow_the_lucene_formula():
    """One stem, "cat": twice among 3 terms, once among 5; mean length 10/3; df 2 of 3."""
    hits = bm25_ranking(task_of(ANIMALS, "the cat"))["q"]
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))

    def score(frequency, length):
        return idf * frequency / (frequency + 0.9 * (1 - 0.4 + 0.4 * length / (10 / 3)))

    assert [document for document, _ in hits] == ["cat", "dog"]
    assert [value for _, value in hits] == pytest.approx([score(2, 3), score(1, 5)], rel=1e-4)


def test_equal_scores_come_in_the_order_of_ids():
    hits = bm25_ranking(
        task_of({"b": "green apple", "c": "green pear", "a": "green plum"}, "green")
    )
    assert [document for document, _ in hits["q"]] == ["a", "b", "c"]


@pytest.mark.parametrize("query", ["giraffe", "the and of"], ids=["unknown", "stopwords"])
def test_a_query_without_a_known_term_finds_nothing(query):
    assert bm25_ranking(task_of(ANIMALS, query)) == {"q": []}


def test_top_k_limits_the_hits():
    task = task_of(ANIMALS, "cat fish")
    assert len(bm25_ranking(task, top_k=50)["q"]) == 3
    assert len(bm25_ranking(task, top_k=2)["q"]) == 2


def test_only_the_first_tokens_are_searched():
    documents = {"late": "river stone lantern engine harbor", "early": "harbor engine"}
    task = task_of(documents, "harbor")
    assert {document for document, _ in bm25_ranking(task)["q"]} == {"late", "early"}
    assert [document for document, _ in bm25_ranking(task, first_tokens=4)["q"]] == ["early"]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 100])
def test_cut_texts_are_the_beginning_up_to_that_token(count):
    text = "  Unaffable, Zürich's  tokenizers\nend."
    [cut] = first_tokens([text], count)
    [whole] = encodings([text])
    assert text.startswith(cut)
    assert len(cut) == (whole.offsets[count - 1][1] if count < len(whole) else len(text))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"top_k": 0}, "top_k"), ({"first_tokens": 0}, "at least 1, got 0")],
    ids=["top_k", "first_tokens"],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bm25_ranking(task_of(ANIMALS, "cat"), **options)


def test_documents_without_terms_are_refused():
    with pytest.raises(ValueError, match="no terms"):
        bm25_ranking(task_of({"a": "the", "b": "?!"}, "cat"))


def test_missing_bm25s_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"monarch-kernels\[eval\]"):
        bm25_ranking(task_of(ANIMALS, "cat"))
