"""Section heading -> page, on made pages."""

import pytest
from m2_bert.loco.offline import offline_task
from m2_bert.loco.python_docs import headings, python_docs_task

from tests.m2_bert.makers import text_of

PAGE = """\
*************
The big title
*************

First part
==========

Text of :mod:`this <that>` part.

A deep ``and`` quite new section
--------------------------------

The end.
====
"""


def test_headings_of_a_page():
    found = headings(PAGE)
    assert [(each.text, each.is_title) for each in found] == [
        ("The big title", True),
        ("First part", False),
        ("A deep ``and`` quite new section", False),
    ]
    title, part, _ = (PAGE[slice(*each.span)] for each in found)
    assert title == "*************\nThe big title\n*************\n"
    assert part == "First part\n==========\n"


def heading(text: str) -> str:
    return f"\n{text}\n{'-' * len(text)}\n\nMore.\n"


@pytest.fixture
def manual(tmp_path):
    title = "Title\n=====\n\n"
    shallow = heading("Not deep enough for this")
    deep = "".join(
        heading(f"The deep section number {word}") for word in ("one", "two", "three", "four")
    )
    pages = {
        "long": title
        + shallow
        + text_of(2100)
        + deep
        + heading("Too short")
        + heading("Twice the same thing"),
        "other": title
        + text_of(2500, 1)
        + heading("Twice the same thing")
        + ":func:`~os.walk` :mod:`io <x>`",
        "short": title + text_of(150),
    }
    folder = tmp_path / "html"
    for name, text in pages.items():
        path = folder / "_sources" / "library" / f"{name}.rst.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize("below", ["", "_sources"], ids=["html", "sources"])
def test_deep_headings_are_asked_for_and_cut(manual, below):
    task = offline_task("python-docs", folder=manual / below)
    assert list(task.documents) == ["library/long", "library/other"]
    assert all(gains == {"library/long": 1} for gains in task.qrels.values())
    assert len(task.queries) == 3
    left = task.documents["library/long"]
    assert all(query.startswith("The deep section") for query in task.queries.values())
    assert all(query not in left for query in task.queries.values())
    assert left.count("The deep section number") == 1
    assert "Not deep enough" in left
    assert task.documents["library/other"].endswith("os.walk io")
    assert task.metadata["difference"] == {"documents": 2 - 464, "queries": 3 - 425}


def test_without_the_pages_the_package_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"apt-get install python3\.11-doc"):
        python_docs_task(tmp_path / "nowhere")


def test_pages_without_deep_headings_are_no_task(tmp_path):
    (tmp_path / "page.rst").write_text("Title\n=====\n" + text_of(300))
    with pytest.raises(ValueError, match="no page has a section heading"):
        python_docs_task(tmp_path)
