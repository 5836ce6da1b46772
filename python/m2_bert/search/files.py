"""Finding and reading the files of a folder, so that none of them can block, escape or surprise.

Paths are relative to the folder, with "/" between the parts. What cannot be read is named with a
reason (`Skipped`), never fatal.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

# Beside names that start with a dot, virtual environments and caches.
SKIPPED_FOLDERS = frozenset({".git", "__pycache__", "node_modules"})
# https://bford.info/cachedir: tools mark what they can make again, search indexes included.
CACHE_TAG = "CACHEDIR.TAG"
CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
BAD_NAME = "a name with control characters or not UTF-8: rename it"
JOINERS = "\u200c\u200d"  # of Persian words and of emoji: format characters that forge nothing


@dataclass(frozen=True)
class Skipped:
    """A file or folder left out, and why, in a few words with the remedy where there is one.

    Args:
        transient: it may be readable another time (no permission, a failing disk or network).
    """

    path: str
    reason: str
    transient: bool = False


class UnreadableError(Exception):
    """A file that gives no text; the message is the reason shown for it."""

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


def list_files(
    root: Path, *, hidden: bool = False, excluded: Collection[Path] = ()
) -> Iterator[str | Skipped]:
    """The files below a folder in the order of their names, folder by folder.

    Left out in silence: hidden files and folders (unless `hidden`), `SKIPPED_FOLDERS`, virtual
    environments, folders tagged as caches, and `excluded` (resolved) folders. Links to folders
    are listed as skipped.
    """
    pending = [""]
    while pending:  # not recursive: folders may nest deeper than Python's stack
        path = pending.pop()
        entry = root / path
        if not path or _is_folder(entry):
            try:
                found = os.listdir(entry)
            except OSError as error:
                found, why = [], f"the folder cannot be read: {_why(error)}"
                yield Skipped(printable(path or "."), why, _is_transient(error))
            names = [name for name in found if _wanted(entry, name, hidden, excluded)]
            prefix = f"{path}/" if path else ""
            pending += [prefix + name for name in sorted(names, reverse=True)]
        elif path != printable(path):
            yield Skipped(printable(path), BAD_NAME)
        elif os.path.islink(entry) and os.path.isdir(entry):
            yield Skipped(path, "a link to a folder, not followed")
        else:
            yield path


def _is_folder(entry: Path) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(entry).st_mode)
    except OSError:
        return False


def _wanted(folder: Path, name: str, hidden: bool, excluded: Collection[Path]) -> bool:
    if name.startswith(".") and not hidden:
        return False
    path = folder / name
    if not _is_folder(path):
        return True
    if name in SKIPPED_FOLDERS or os.path.exists(path / "pyvenv.cfg"):
        return False
    return not (excluded and path.resolve() in excluded) and not _is_cache(path)


def _is_cache(folder: Path) -> bool:
    try:
        return _read(folder / CACHE_TAG, 1 << 16).startswith(CACHE_SIGNATURE)
    except (OSError, UnreadableError):
        return False


def read_file(root: Path, path: str, max_bytes: int) -> bytes:
    """The bytes of one file below `root`.

    Raises:
        UnreadableError: the file leaves `root` (by "..", by a link), is missing, too large, not a
            regular file, or may not be read.
    """
    top = os.path.realpath(root)
    try:
        # strict: a circle of links is an error here, not a path.
        real = os.path.realpath(os.path.join(top, path), strict=True)
        if os.path.commonpath([top, real]) != top:
            raise UnreadableError("it lies outside the folder")
        return _read(Path(real), max_bytes)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UnreadableError(_why(error), _is_transient(error)) from None


def _read(path: Path, max_bytes: int) -> bytes:
    # O_NONBLOCK: opening a pipe would wait for its writer. O_NOFOLLOW: links are resolved by now.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("not a regular file")
        # One byte beyond the limit: the file may grow while it is read.
        content = b"" if status.st_size > max_bytes else file.read(max_bytes + 1)
    if max(status.st_size, len(content)) > max_bytes:
        size = max(status.st_size, len(content)) / 1e6
        limit = f"the limit is {max_bytes / 1e6:.1f} MB: raise max_bytes (--max-bytes)"
        raise UnreadableError(f"too large: {size:.1f} MB, {limit}")
    return content


def printable(path: str) -> str:
    """The path with bytes that are not UTF-8, and characters that could forge a terminal's output
    (control, direction of writing), written as escapes; the same path if there are none.
    """
    return _escaped(os.fsencode(path).decode("utf-8", "backslashreplace"))


def check_utf8(name: str, path: Path) -> None:
    """Raise ValueError if an argument's path is not UTF-8: safetensors cannot open such files."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = printable(str(path))
        raise ValueError(f"{name}: got '{shown}', a path that is not UTF-8: rename it") from None


def _escaped(text: str) -> str:
    forging = {"Cc", "Cf", "Zl", "Zp"}
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in forging and c not in JOINERS
        else c
        for c in text
    )


def _why(error: OSError | ValueError) -> str:
    kinds = {
        errno.ELOOP: "its links form a circle",
        errno.ENOENT: "it does not exist (a dangling link, or removed meanwhile)",
        errno.EACCES: "no permission",
        errno.ENXIO: "not a regular file",
    }
    number = getattr(error, "errno", None)
    return kinds.get(number) or getattr(error, "strerror", None) or str(error)


def _is_transient(error: OSError | ValueError) -> bool:
    gone = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG}
    return isinstance(error, OSError) and error.errno not in gone


def one_line(error: BaseException) -> str:
    """Kind and message of an error on one line of at most 120 characters, escaped as a path is."""
    return _escaped(" ".join(f"{type(error).__name__}: {error}".split()))[:120]
