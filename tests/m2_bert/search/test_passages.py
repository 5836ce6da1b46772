"""split_passages: exact, ordered spans that miss nothing and end where a reader would."""

import random

import pytest
from m2_bert.search import split_passages


def random_text(seed, length=3000):
    return "".join(random.Random(seed).choices("ab.é \n\t。\u200b", k=length))


@pytest.mark.parametrize("limit", [1, 2, 7, 100, 1200, 10_000])
@pytest.mark.parametrize("seed", range(4))
def test_spans_hold_all_but_white_space(seed, limit):
    text = random_text(seed)
    spans = split_passages(text, limit)
    assert all(0 < end - start <= limit for start, end in spans)
    assert all(text[start:end] == text[start:end].strip() for start, end in spans)
    position = 0
    for start, end in [*spans, (len(text), len(text))]:
        assert position <= start
        assert not text[position:start].strip()
        position = end


@pytest.mark.parametrize("text", ["", " \n\t ", "\n" * 5000], ids=["empty", "blank", "long blank"])
def test_nothing_to_hold(text):
    assert split_passages(text) == []


def test_a_short_text_is_one_passage():
    assert split_passages("  one two\n") == [(2, 9)]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("aaa. bb\ncc dd\n\nee. ff\ngg", "aaa. bb\ncc dd"),
        ("aaa. bbb cc dd\nee. ff gg hh", "aaa. bbb cc dd"),
        ("aaa bbb ccc dd. ee ff gg hh", "aaa bbb ccc dd."),
        ("aaa bbb ccc ddddd eeeeeeeeeee", "aaa bbb ccc ddddd"),
        ("a" * 30, "a" * 20),
        ("a\n\n" + "b" * 30, "a\n\n" + "b" * 17),
    ],
    ids=["paragraph", "line", "sentence", "word", "no end", "only early ends"],
)
def test_ends_at_the_best_boundary(text, first):
    start, end = split_passages(text, 20)[0]
    assert text[start:end] == first


def test_refuses_a_limit_below_one():
    with pytest.raises(ValueError, match="max_characters: got 0"):
        split_passages("a", 0)
