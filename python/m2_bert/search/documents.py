"""Text of the documents in a folder: plain text and source, Markdown, HTML, PDF.

HTML and PDF are recognised by extension (PDF by its first bytes too); every other file counts as
text if it decodes, so no list of programming languages is needed. Encodings: UTF-8 with or without
a byte order mark, UTF-16 and UTF-32 with one, and what an HTML page declares of itself. Other
encodings cannot be told apart, so such files are skipped rather than guessed at.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from m2_bert.search.files import Skipped, UnreadableError, list_files, one_line, read_file

MAX_BYTES = 16 << 20
NO_PYPDF = "PDF: pypdf is not installed: pip install monarch-kernels[pdf]"

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Document:
    """A document's text.

    Args:
        path: relative to the folder, "/" between the parts.
        text: what was extracted.
        size: bytes of the file. digest: their SHA-256, in hexadecimal.
        verbatim: the text is all of the file's, not extracted from it: its lines are the file's.
    """

    path: str
    text: str
    size: int
    digest: str
    verbatim: bool


@dataclass(frozen=True)
class Unchanged:
    """A document whose file has the digest the caller knows; its text was not extracted."""

    path: str
    digest: str


def read_documents(
    root: str | os.PathLike,
    paths: Sequence[str] | None = None,
    *,
    known: Mapping[str, str] | None = None,
    hidden: bool = False,
    excluded: Collection[Path] = (),
    max_bytes: int = MAX_BYTES,
) -> Iterator[Document | Unchanged | Skipped]:
    """The documents of a folder, in a stable order, one at a time.

    Args:
        root: the folder. paths: these files of it instead of all, relative to it.
        known: path -> digest of documents not to extract again.
        hidden: hidden files and folders too. excluded: folders to leave out.
        max_bytes: largest file to read.

    Yields:
        Document, Unchanged, or Skipped for what gives no text.

    Raises:
        FileNotFoundError, NotADirectoryError: `root` is not a folder.
    """
    root = Path(root)
    check_root(root)
    excluded = {path.resolve() for path in excluded}
    found = list_files(root, hidden=hidden, excluded=excluded) if paths is None else paths
    for entry in found:
        if isinstance(entry, Skipped):
            yield entry
        else:
            yield _read_one(root, entry, (known or {}).get(entry), max_bytes)


def check_root(root: Path) -> None:
    """Raise FileNotFoundError or NotADirectoryError if `root` is not a folder."""
    if not root.is_dir():
        kind = NotADirectoryError if root.exists() else FileNotFoundError
        raise kind(f"root: got {str(root)!r}, expected a folder of documents")


def read_document(
    root: str | os.PathLike, path: str, *, max_bytes: int = MAX_BYTES
) -> Document | Skipped:
    """One document of a folder."""
    found = _read_one(Path(root), path, None, max_bytes)
    assert not isinstance(found, Unchanged)  # no digest was given
    return found


def _read_one(
    root: Path, path: str, known: str | None, max_bytes: int
) -> Document | Unchanged | Skipped:
    try:
        content = read_file(root, path, max_bytes)
        digest = hashlib.sha256(content).hexdigest()
        if digest == known:
            return Unchanged(path, digest)
        text = extract_text(path, content)
    except UnreadableError as reason:
        return Skipped(path, str(reason), reason.transient)
    return Document(path, text, len(content), digest, _kind(path, content) == "text")


def _kind(path: str, content: bytes) -> str:
    extension = os.path.splitext(path)[1].lower()
    if content.startswith(b"%PDF-") or extension == ".pdf":
        return "pdf"
    return "html" if extension in {".html", ".htm", ".xhtml"} else "text"


def extract_text(path: str, content: bytes) -> str:
    """Text of a file's bytes; `path` gives the extension.

    Raises:
        UnreadableError: empty, binary, in another encoding, or a broken HTML or PDF file.
    """
    if not content:
        raise UnreadableError("empty")
    kind = _kind(path, content)
    if kind == "pdf":
        text = _pdf_text(content)
    elif kind == "html":
        text = _html_text(_decode(content, _declared_encoding(content)))
    else:
        text = _decode(content)
    if not text.strip():
        raise UnreadableError("empty: nothing but white space")
    return text


def _decode(content: bytes, default: str = "utf-8") -> str:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), default)
    if encoding == default and b"\0" in content[:8192]:
        raise UnreadableError("binary")
    try:
        text = content.decode(encoding)
    except UnicodeError as error:
        at = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise UnreadableError(f"broken encoding: not {encoding}{at}: convert it to UTF-8") from None
    if "\0" in text:
        raise UnreadableError("binary")
    return text


# ---- HTML ----------------------------------------------------------------------------------------

# Elements that begin a line.
_BLOCKS = re.compile(
    "address|article|aside|blockquote|body|br|caption|d[dlt]|details|div|fieldset|fig(caption|ure)|"
    "footer|form|h[1-6r]|head(er)?|html|legend|li|main|nav|ol|option|p|pre|section|summary|"
    "t(able|[dhr]|itle)|ul"
)
_CODE = frozenset({"script", "style"})
_DROPPED = frozenset({"template", "noscript", "svg"})


def _declared_encoding(content: bytes) -> str:
    """What <meta charset> or an XML declaration names, as HTML has it in the first 1024 bytes."""
    declared = re.search(rb"(?:charset|encoding)\s*=\s*[\"']?([\w.:-]+)", content[:1024], re.I)
    try:
        name = codecs.lookup(declared[1].decode("ascii")).name if declared else "utf-8"
    except (LookupError, UnicodeError):
        return "utf-8"
    # HTML's own rule: latin-1 means Windows' variant. Python's list has codecs that are no
    # character sets, and UTF-16 cannot be: the declaration was readable as ASCII.
    if name in {"iso8859-1", "ascii"}:
        return "cp1252"
    return name if re.match(r"iso8859|cp\d|koi8|gb|big5|euc|shift_jis|mac|tis", name) else "utf-8"


class _TextOfHtml(HTMLParser):
    """Collects visible text: a line break at block elements, nothing of `_CODE` and `_DROPPED`.

    One of `_DROPPED` that is never closed is shown: what follows is most likely the page.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.dropped, self.depth = "", 0  # the element whose content is removed at its end
        self.before = 0  # parts before it
        self.code = False
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.code = tag in _CODE
        if tag in _DROPPED and not self.dropped:
            self.dropped, self.before = tag, len(self.parts)
        self.depth += tag == self.dropped
        self.preformatted += tag == "pre"
        self._break(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        self.code = False
        if tag == self.dropped:
            self.depth -= 1
            if not self.depth:
                self.dropped = ""
                self.parts[self.before :] = [x for x in self.parts[self.before :] if x == "\n"]
        self.preformatted = max(0, self.preformatted - (tag == "pre"))
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self.code:
            return
        if not self.preformatted:
            data = re.sub(r"\s+", " ", data)
            if self.parts and self.parts[-1].endswith(("\n", " ")):
                data = data.lstrip(" ")
        self.parts.append(data)

    def _break(self, tag: str) -> None:
        if _BLOCKS.fullmatch(tag):
            self.parts.append("\n")


def _html_text(page: str) -> str:
    parser = _TextOfHtml()
    step = 1 << 20
    try:
        # In steps, and no close() on much that is left over: html.parser takes quadratic time on
        # markup that never ends.
        for start in range(0, len(page), step):
            parser.feed(page[start : start + step])
            if len(parser.rawdata) > 16 * step:
                raise UnreadableError("broken HTML: markup without an end")
        if len(parser.rawdata) < 4096:
            parser.close()
    except (AssertionError, ValueError, RecursionError) as error:
        raise UnreadableError(f"broken HTML: {one_line(error)}") from None
    lines = "".join(parser.parts).replace("\0", "\ufffd").split("\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip()


# ---- PDF -----------------------------------------------------------------------------------------


def _pdf_text(content: bytes) -> str:
    try:
        import pypdf
    except ImportError:
        raise UnreadableError(NO_PYPDF) from None
    logger = logging.getLogger("pypdf")  # it reports each repair it makes
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("PDF: encrypted")
        text = "\n\n".join(page.extract_text() for page in reader.pages)
    except UnreadableError:
        raise
    except Exception as error:  # a parser of damaged files fails in every way there is
        raise UnreadableError(f"broken PDF: {one_line(error)}") from None
    finally:
        logger.setLevel(level)
    if not text.strip():
        raise UnreadableError("PDF without text: scanned pages need OCR first")
    # Broken fonts map to halves of surrogate pairs, which no tokenizer or terminal takes.
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
