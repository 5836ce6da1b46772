"""Volumes: their exact length, and the place of the answer."""

import pytest
from m2_bert.loco.offline import offline_task
from m2_bert.loco.tokens import encodings
from m2_bert.loco.volumes import Passage, stdlib_passages, volume_task

from tests.m2_bert.makers import text_of


def count(text: str) -> int:
    [encoding] = encodings([text])
    return len(encoding)


def made_passages(number: int = 40) -> list[Passage]:
    """Passages of 60 to 99 words; each ends in a word of several pieces, joined to a full stop."""
    return [
        Passage(f"what passage {i} says", f"passage {i}: {text_of(55 + i, i)} unaffableness{i}.")
        for i in range(number)
    ]


@pytest.mark.parametrize("position", [0, 0.25, 0.5, 1, "random"])
@pytest.mark.parametrize("tokens", [512, 1021])
def test_volumes_have_exactly_the_tokens_asked_for(tokens, position):
    task = volume_task(tokens, made_passages(), position=position, volumes=8)
    assert [count(text) + 2 for text in task.documents.values()] == [tokens] * 8


@pytest.mark.parametrize("position", [0, 0.25, 0.5, 1])
def test_the_answer_is_at_its_position(position):
    passages = {passage.query: passage.text for passage in made_passages()}
    task = volume_task(600, made_passages(), position=position, volumes=8)
    for query, gains in task.qrels.items():
        [volume] = gains
        answer, text = passages[task.queries[query]], task.documents[volume]
        assert text.count(answer) == 1
        before = text[: text.index(answer)]
        free = 600 - 2 - count(answer)
        assert count(before) == pytest.approx(position * free, abs=1)
        assert task.metadata["depths"][query] == pytest.approx(count(before) / free, abs=1e-4)
        others = [text for text in task.documents if text != volume]
        assert all(answer not in task.documents[other] for other in others)


def test_the_seed_alone_decides_and_positions_share_the_answers():
    first, again = (volume_task(400, made_passages(), volumes=5, seed=3) for _ in range(2))
    assert first == again
    assert len(set(first.metadata["depths"].values())) == 5
    front = volume_task(400, made_passages(), volumes=5, seed=3, position=0)
    assert front.queries == first.queries
    assert volume_task(400, made_passages(), volumes=5, seed=4).queries != first.queries


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 100}, "at least 160"),
        ({"volumes": 0}, "at least 1"),
        ({"position": 1.5}, "position"),
        ({"position": "end"}, "position"),
        ({"position": float("nan")}, "position"),
        ({"volumes": 40}, "fewer volumes"),
        ({"passages": made_passages(3) * 2}, "same query"),
    ],
    ids=["short", "none", "beyond", "word", "nan", "too many", "repeated"],
)
def test_impossible_volumes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        volume_task(**{"tokens": 512, "passages": made_passages(), **options})


def test_stdlib_passages_keep_all_but_the_opening(monkeypatch):
    source = '''
def outer(x):
    r"""Measure the distance of x to all others.

    Slow for "many" others.
    """
    def inner():
        """Never asked for, because it stands inside."""
    return inner

class Thing:
    """A class is no passage, it would be too long."""

    def method(self):
        'Turn the thing around by one whole degree.'
        return 1
'''
    monkeypatch.setattr("m2_bert.loco.volumes.stdlib_modules", lambda: iter([("made.py", source)]))
    outer, method = stdlib_passages()
    assert outer.query == "Measure the distance of x to all others."
    assert outer.text.startswith('def outer(x):\n    r"""Slow for "many" others.')
    assert outer.text.endswith("return inner")
    assert method.text == "def method(self):\n        ''\n        return 1"


def test_volumes_by_name():
    task = offline_task("volumes-2k", volumes=2, position=1)
    assert task.name == "volumes-2k"
    assert [count(text) for text in task.documents.values()] == [2046, 2046]
