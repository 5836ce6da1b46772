"""read_documents: the text of every format; what is skipped, and why; nothing blocks or escapes."""

import codecs
import io
import logging
import os
import sys
import threading

import pytest
from m2_bert.search import Document, Skipped, read_document, read_documents
from m2_bert.search.documents import Unchanged
from m2_bert.search.files import one_line

from tests.m2_bert.search.makers import write


def read(root, **options):
    """Path -> text or reason."""
    return {
        found.path: found.text if isinstance(found, Document) else found.reason
        for found in read_documents(root, **options)
    }


def pdf(text):
    """A one-page PDF of one line."""
    content = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R"
        b"/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
    ]
    out = io.BytesIO(b"")
    out.write(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj" % number + body + b"endobj\n")
    start = out.tell()
    out.write(b"xref\n0 5\n0000000000 65535 f \n")
    out.writelines(b"%010d 00000 n \n" % offset for offset in offsets)
    out.write(b"trailer<</Size 5/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % start)
    return out.getvalue()


# ---- Text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("river é\r\n".encode(), "river é\r\n"),
        (codecs.BOM_UTF8 + "é".encode(), "é"),
        ("river é".encode("utf-16"), "river é"),
        (codecs.BOM_UTF16_BE + "é".encode("utf-16-be"), "é"),
        ("river é".encode("utf-32"), "river é"),
    ],
    ids=["utf-8", "utf-8 mark", "utf-16", "utf-16 big-endian", "utf-32"],
)
@pytest.mark.parametrize("name", ["a.txt", "a.py", "README", "a.unknown"])
def test_text_in_every_encoding_that_is_certain(tmp_path, name, content, text):
    write(tmp_path, {name: content})
    found = read_document(tmp_path, name)
    assert (found.text, found.size) == (text, len(content))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b" \n\t", "empty: nothing but white space"),
        (b"\x89PNG\r\n\0\0", "binary"),
        (b"\xff\xfea\0\0\0", "binary"),
        ("Straße".encode("latin-1"), "broken encoding: not utf-8 (byte 4): convert it to UTF-8"),
        (codecs.BOM_UTF16_LE + b"a", "broken encoding: not utf-16"),
        (b"a" * 101, "too large: 0.0 MB, the limit is 0.0 MB: raise max_bytes (--max-bytes)"),
    ],
    ids=["empty", "blank", "NUL", "NUL in UTF-16", "latin-1", "half UTF-16", "too large"],
)
def test_what_is_not_text_is_listed(tmp_path, content, reason):
    write(tmp_path, {"bad.txt": content, "good.txt": "river"})
    found = read(tmp_path, max_bytes=100)
    assert found["bad.txt"].startswith(reason)
    assert found["good.txt"] == "river"


# ---- HTML ----------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html><html><head><title>River &amp; stone</title><style>p {color: red}</style>
<script>if (a < b) document.write("<p>no</p>");</script></head><body><!-- no -->
<h1>Over   the
bridge</h1><p>one<br>two <b>three </b> four<template>no <template>no</template> no</template>
<pre>  def f():
      pass</pre><svg><text>no</text></svg><td>five</td></body></html>"""


def test_visible_text_of_html(tmp_path):
    write(tmp_path, {"a.html": PAGE})
    text = read_document(tmp_path, "a.html").text
    lines = [line for line in text.splitlines() if line]
    assert lines == [
        *("River & stone", "Over the bridge", "one", "two three four"),
        *("  def f():", "      pass", "five"),
    ]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'<meta charset="iso-8859-1"><p>Stra\xdfe \x80', "Straße €"),
        (b'<?xml version="1.0" encoding="koi8-r"?><p>\xc1', "а"),  # noqa: RUF001
        (b'<meta charset="utf-16"><p>\xc3\xa9', "é"),
        (b'<meta charset="rot13"><p>river', "river"),
        (b'<meta charset="no such"><p>river', "river"),
        (codecs.BOM_UTF8 + b'<meta charset="koi8-r"><p>\xc3\xa9', "é"),
    ],
    ids=["latin-1 is cp1252", "koi8", "not utf-16", "no charset", "unknown", "mark wins"],
)
def test_declared_encoding_of_html(tmp_path, content, text):
    write(tmp_path, {"a.htm": content})
    assert read_document(tmp_path, "a.htm").text == text


@pytest.mark.parametrize("tag", ["svg", "template", "noscript"])
def test_html_after_an_element_never_closed_is_kept(tmp_path, tag):
    page = f"<p>one <{tag}>x</{tag}>two<{tag}><p>three<style>no</style><p><{tag}>four</{tag}>"
    write(tmp_path, {"a.html": page + "<p>five"})
    text = read_document(tmp_path, "a.html").text
    assert text.split() == ["one", "two", "three", "four", "five"]


def test_html_after_a_script_never_closed_is_not_shown(tmp_path):
    write(tmp_path, {"a.html": "<p>river<script>var x = 1; <p>stone"})
    assert read_document(tmp_path, "a.html").text == "river"


@pytest.mark.parametrize("markup", ["<a ", "<!-- ", "<!--x>", "<a b='", "<template>", "&", "<![x"])
def test_html_without_end_takes_linear_time(tmp_path, markup):
    write(tmp_path, {"a.html": "river " + markup * 100_000})
    finished = threading.Event()
    found = []

    def work():
        found.append(read_document(tmp_path, "a.html"))
        finished.set()

    threading.Thread(target=work, daemon=True).start()
    assert finished.wait(30)
    assert isinstance(found[0], Skipped) or found[0].text.startswith("river")


# ---- PDF -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.pdf", "a.PDF", "no extension"])
def test_text_of_pdf(tmp_path, name):
    pytest.importorskip("pypdf")
    write(tmp_path, {name: pdf("river and stone")})
    assert read_document(tmp_path, name).text.strip() == "river and stone"


@pytest.mark.parametrize("damage", ["cut", "garbage", "no text"])
def test_bad_pdf_is_listed_in_silence(tmp_path, capfd, caplog, damage):
    pytest.importorskip("pypdf")
    good = pdf("river")
    content = {"cut": good[:60], "garbage": b"%PDF-1.4\nriver", "no text": pdf("")}[damage]
    write(tmp_path, {"a.pdf": content})
    reason = read_document(tmp_path, "a.pdf").reason
    assert reason.startswith("PDF without text" if damage == "no text" else "broken PDF: ")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert logging.getLogger("pypdf").level == logging.NOTSET


def test_pdf_without_pypdf_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    write(tmp_path, {"a.pdf": pdf("river")})
    assert "pip install monarch-kernels[pdf]" in read_document(tmp_path, "a.pdf").reason


# ---- Folders -------------------------------------------------------------------------------------


def test_order_and_what_is_left_out_in_silence(tmp_path):
    names = ["b.txt", "a/z.txt", "a/b/c.txt", "a.txt", "c/1.txt"]
    left_out = [".git/x", ".hidden", "__pycache__/x", "d/node_modules/x", ".venv/x", "env/x.py"]
    write(tmp_path, dict.fromkeys([*names, *left_out, "out/x"], "river"))
    tag = b"Signature: 8a477f597d28d172789f06886806bc55\n"
    write(tmp_path, {"env/pyvenv.cfg": "x", "cache/CACHEDIR.TAG": tag, "cache/x": "river"})
    found = list(read(tmp_path, excluded=[tmp_path / "out"]))
    assert found == ["a/b/c.txt", "a/z.txt", "a.txt", "b.txt", "c/1.txt"]
    assert set(read(tmp_path, hidden=True)) == {*found, ".hidden", ".venv/x", "out/x"}


def test_some_files_only(tmp_path):
    write(tmp_path, {"a.txt": "river", "b.txt": "stone"})
    found = read(tmp_path, paths=["b.txt", "missing", "../x", "\0"])
    assert list(found) == ["b.txt", "missing", "../x", "\0"]
    assert found["b.txt"] == "stone"
    assert found["missing"].startswith("it does not exist")


def test_known_digests_are_not_extracted_again(tmp_path):
    write(tmp_path, {"a.txt": "river", "b.txt": "stone"})
    first = list(read_documents(tmp_path))
    write(tmp_path, {"b.txt": "STONE"})
    again = list(read_documents(tmp_path, known={d.path: d.digest for d in first}))
    assert [type(d) for d in again] == [Unchanged, Document]
    assert again[1].text == "STONE"


def test_links_are_followed_only_to_files_inside(tmp_path):
    root = write(tmp_path / "root", {"a/b.txt": "river"})
    write(tmp_path, {"secret.txt": "secret", "root2/secret.txt": "secret"})
    links = {
        "inside": "a/b.txt",
        "outside": "../secret.txt",
        "absolute": tmp_path / "root2/secret.txt",
        "loop": "loop",
        "dangling": "nothing",
        "folder": "a",
        "up": "..",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    found = read(root)
    assert found.pop("inside") == found.pop("a/b.txt") == "river"
    assert found == {
        "outside": "it lies outside the folder",
        "absolute": "it lies outside the folder",
        "loop": "its links form a circle",
        "dangling": "it does not exist (a dangling link, or removed meanwhile)",
        "folder": "a link to a folder, not followed",
        "up": "a link to a folder, not followed",
    }
    inside = read_document(root, "../secret.txt")
    assert inside == Skipped("../secret.txt", "it lies outside the folder")


def test_pipes_and_sockets_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    write(tmp_path, {"z.txt": "river"})
    found = read(tmp_path)
    assert found["pipe"] == "not a regular file"
    assert found["device"] == "it lies outside the folder"
    assert found["z.txt"] == "river"


def test_unreadable_files_and_folders_are_listed(tmp_path, monkeypatch):
    write(tmp_path, {"a.txt": "secret", "b/c.txt": "secret", "d.txt": "river"})
    if os.geteuid() == 0:  # root reads everything
        real_open, real_list = os.open, os.listdir

        def refuse(real, name):
            def call(path, *rest):
                if os.fspath(path).endswith(name):
                    raise PermissionError(13, "Permission denied")
                return real(path, *rest)

            return call

        monkeypatch.setattr(os, "open", refuse(real_open, "a.txt"))
        monkeypatch.setattr(os, "listdir", refuse(real_list, "b"))
    else:
        (tmp_path / "a.txt").chmod(0)
        (tmp_path / "b").chmod(0)
    found = read(tmp_path)
    assert found == {
        "a.txt": "no permission",
        "b": "the folder cannot be read: no permission",
        "d.txt": "river",
    }


def test_names_that_could_break_an_output_are_escaped(tmp_path):
    kept = ["é\u00a0.txt", "\u0645\u06cc\u200c.txt", "\U0001f468\u200d\U0001f469.txt"]
    write(tmp_path, dict.fromkeys(kept, "stone"))
    write(tmp_path, {"a\nb.txt": "river", "a\u202etxt.exe": "river", "\x1b[2J": "river"})
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("river")
    found = read(tmp_path)
    assert {name: found.pop(name) for name in kept} == dict.fromkeys(kept, "stone")
    assert set(found) == {"a\\nb.txt", "a\\u202etxt.exe", "\\x1b[2J", "\\xff.txt"}
    assert all("rename it" in reason for reason in found.values())


def test_errors_cannot_forge_a_terminals_output():
    assert one_line(ValueError("a\x1b[2J\u202eb\nc")) == "ValueError: a\\x1b[2J\\u202eb c"


@pytest.mark.parametrize(
    ("name", "kind"), [("none", FileNotFoundError), ("a.txt", NotADirectoryError)]
)
def test_the_root_must_be_a_folder(tmp_path, name, kind):
    write(tmp_path, {"a.txt": "river"})
    with pytest.raises(kind, match="expected a folder of documents"):
        list(read_documents(tmp_path / name))
