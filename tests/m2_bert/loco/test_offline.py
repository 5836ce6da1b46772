"""Tasks that need no network: the recipes on made packages, and the figures on Python 3.11."""

import sys

import pytest
from m2_bert.loco.baselines import bm25_ranking
from m2_bert.loco.docstrings import cut_out, docstring_task, docstrings, is_query, stdlib_task
from m2_bert.loco.metrics import evaluate_ranking, mean_scores
from m2_bert.loco.offline import OFFLINE, SUITE, offline_task
from m2_bert.loco.tokens import encodings

from tests.m2_bert.makers import text_of

MODULE = '''"""A module docstring that is never a query, however many words it has."""

class Door:
    """Ä door between the two rooms of a house.

    It can be locked.
    """

    def __len__(self):
        "How high the door is, in whole metres."

    def _hidden(self):
        """Nobody asks for what a leading underscore hides."""

async def knock(door):
    """Knock politely until somebody comes to open
    this door."""
    return "a door between the two rooms"

def short(): "Too short for a query."
'''


def test_docstrings_are_found_with_their_places():
    found = docstrings(MODULE)
    assert [each.name for each in found] == ["Door", "__len__", "_hidden", "knock", "short"]
    door, _, _, knock, short = found
    assert door.query == "Ä door between the two rooms of a house."
    assert knock.query == "Knock politely until somebody comes to open this door."
    content = MODULE.encode()
    assert content[slice(*short.span)] == b'"Too short for a query."'
    assert content[slice(*knock.span)].startswith(b'"""Knock politely')
    assert content[slice(*knock.extent)].startswith(b"async def knock")
    assert content[slice(*door.extent)].decode().endswith('hides."""')
    assert [each.is_function for each in found] == [False, True, True, True, True]


def test_cutting_removes_the_literals_alone():
    door, _, _, knock, _ = docstrings(MODULE)
    cut = cut_out(MODULE, [door.span, knock.span])
    assert "Ä door" not in cut
    assert "Knock politely" not in cut
    assert 'return "a door between the two rooms"' in cut
    assert len(cut.encode()) == len(MODULE.encode()) - sum(
        end - start for start, end in (door.span, knock.span)
    )


@pytest.mark.parametrize(
    ("module", "queries"),
    [
        ("pkg/house_keeping.py", ["Door", "__len__", "knock"]),
        ("pkg/door.py", []),
        ("pkg/_Door_.py", []),
        ("door/__init__.py", []),
        ("door/rooms.py", ["__len__", "knock"]),
    ],
)
def test_queries_are_public_long_enough_and_do_not_name_their_module(module, queries):
    assert [each.name for each in docstrings(MODULE) if is_query(each, module)] == queries


@pytest.mark.parametrize("words", [5, 6, 40, 41])
def test_queries_have_6_to_40_words(words):
    [found] = docstrings(f'def f():\n    """{text_of(words)}"""\n')
    assert is_query(found, "module.py") == (6 <= words <= 40)


@pytest.mark.parametrize("source", ["def broken(:", "x = '\0'", "(" * 5000], ids=str.__len__)
def test_what_does_not_parse_has_no_docstrings(source):
    assert docstrings(source) == []


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Importable as "made_up"; five docstrings in `many`, one that two modules share."""
    root = tmp_path / "made_up"
    shared = "These very same words stand in two modules."
    sources = {
        "__init__.py": f'def a():\n    """{shared}"""\n',
        "building.py": MODULE,
        "many.py": "".join(f'def f{i}():\n    """{text_of(8, i)}"""\n' for i in range(5)),
        "twin.py": f'def b():\n    """{shared}"""\ndef c():\n    """{text_of(9, 77)}"""\n',
        "latin.py": f'# coding: latin-1\ndef d():\n    """{text_of(7, 9)} Zürich"""\n',
        "odd.py": f'def e():\n    """{text_of(7, 8)} \\ud800"""\n',
        "broken.py": "def broken(:",
        "undecodable.py": 'def g():\n    """\xff"""\n',
        "nothing.py": "x = 1\n",
        "tests/test_it.py": MODULE,
    }
    for name, source in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            source.encode("latin-1" if name in ("latin.py", "undecodable.py") else "utf-8")
        )
    monkeypatch.syspath_prepend(tmp_path)
    return root


def test_a_task_of_a_package(package):
    task = docstring_task(["made_up"], name="mine")
    assert task.name == "mine"
    assert list(task.documents) == [
        f"made_up/{name}.py" for name in ("building", "latin", "many", "twin")
    ]
    asked = {}
    for query, gains in task.qrels.items():
        [(document, gain)] = gains.items()
        assert gain == 1
        asked.setdefault(document, []).append(task.queries[query])
        assert task.queries[query] not in task.documents[document]
    assert [len(texts) for texts in asked.values()] == [3, 1, 3, 1]
    assert asked["made_up/twin.py"] == [text_of(9, 77)]
    assert "very same words" in task.documents["made_up/twin.py"]
    kept = [text_of(8, i) in task.documents["made_up/many.py"] for i in range(5)]
    assert sum(kept) == 2
    assert "Zürich" in asked["made_up/latin.py"][0]
    assert task.metadata["counts"] == {"documents": 4, "queries": 8}


def test_what_is_drawn_does_not_depend_on_other_modules(package):
    before = docstring_task(["made_up"])
    (package / "aaa.py").write_text(f'def z():\n    """{text_of(20, 5)}"""\n')
    after = docstring_task(["made_up"])
    assert before.queries.items() < after.queries.items()
    assert len(after.documents) == 5


def test_a_missing_package_names_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install matplotlib pandas scipy scikit-learn"):
        offline_task("pydata")


@pytest.mark.parametrize("packages", ["numpy", [], ["os.path"], [3]], ids=repr)
def test_wrong_package_lists_are_refused(packages):
    with pytest.raises(ValueError, match="packages"):
        docstring_task(packages)


@pytest.fixture(scope="module")
def stdlib():
    return stdlib_task()


def test_every_stdlib_query_is_cut_out_of_its_answer(stdlib):
    per_document = dict.fromkeys(stdlib.documents, 0)
    for gains in stdlib.qrels.values():
        for document in gains:
            per_document[document] += 1
    assert set(per_document.values()) <= {1, 2, 3}
    assert len(set(stdlib.queries.values())) == len(stdlib.queries)
    assert list(stdlib.documents) == sorted(stdlib.documents)
    folders = {part for document in stdlib.documents for part in document.split("/")[:-1]}
    assert folders.isdisjoint({"test", "tests", "idlelib", "site-packages"})
    found, wanted = stdlib.metadata["counts"], stdlib.metadata.get("expected")
    assert found == {"documents": len(stdlib.documents), "queries": len(stdlib.queries)}
    if wanted is not None:
        assert stdlib.metadata["difference"] == {key: found[key] - wanted[key] for key in found}


ON_311 = pytest.mark.skipif(
    sys.version_info[:3] != (3, 11, 7),
    reason="the published figures are those of the standard library of Python 3.11.7",
)


@ON_311
def test_stdlib_has_the_published_counts(stdlib):
    assert (len(stdlib.documents), len(stdlib.queries)) == (335, 838)
    lengths = [len(encoding) for encoding in encodings(list(stdlib.documents.values()))]
    longer = [sum(length > edge for length in lengths) for edge in (2048, 8192, 32768)]
    assert longer == pytest.approx([225, 83, 4], abs=2)
    assert sorted(lengths)[167] == pytest.approx(3313, rel=0.01)


@ON_311
@pytest.mark.parametrize(("first_tokens", "published"), [(None, 66.1), (512, 48.5)])
def test_stdlib_has_the_published_bm25_figures(stdlib, first_tokens, published):
    pytest.importorskip("bm25s")
    pytest.importorskip("pytrec_eval")
    ranking = bm25_ranking(stdlib, first_tokens=first_tokens)
    scores = mean_scores(evaluate_ranking(stdlib, ranking))
    assert 100 * scores["ndcg_at_10"] == pytest.approx(published, abs=1)


def test_the_registry_describes_its_tasks():
    volumes = {"volumes-2k", "volumes-8k", "volumes-32k"}
    assert set(OFFLINE) == {"stdlib", "pydata", "python-docs"} | volumes
    assert set(SUITE) <= set(OFFLINE)
    assert all(task.summary for task in OFFLINE.values())


def test_a_subset_keeps_its_answers_and_as_many_distractors(package):
    whole = docstring_task(["made_up"])
    part = offline_task("pydata", packages=["made_up"], subset=2)
    assert list(part.queries.items()) == list(whole.queries.items())[:2]
    assert list(part.documents) == ["made_up/building.py", "made_up/latin.py"]
    assert part.metadata["subset"] == 2
    everything = offline_task("pydata", packages=["made_up"], subset=100)
    assert everything.documents == whole.documents


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("stdlip", {}, ValueError, "'stdlip', expected one of stdlib, "),
        ("stdlib", {"subset": 0}, ValueError, "subset must be at least 1, got 0"),
        ("stdlib", {"position": 0}, TypeError, "position"),
    ],
    ids=["name", "subset", "option"],
)
def test_wrong_requests_are_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        offline_task(name, **options)
