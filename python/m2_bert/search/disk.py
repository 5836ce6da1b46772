"""Files that are either the old ones or the new ones, and one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK, TEMPORARY = ".lock", ".tmp-"


def write_atomically(path: Path, write: bytes | Callable[[Path], object]) -> None:
    """Replace a file in one step, once the new content is on disk.

    Args:
        write: the content, or what writes it to the path it is given.

    Raises:
        OSError: of the kind it was, on one line with the remedy.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        if isinstance(write, bytes):
            temporary.write_bytes(write)
        else:
            write(temporary)
        _synchronise(temporary)
        os.replace(temporary, path)
        _synchronise(path.parent)  # else the new name may be lost with the power
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> OSError:
    """The same kind of error, on one line with the remedy."""
    return type(error)(
        f"cannot write {path} ({error.strerror or error}): make room or choose another folder; "
        "the shards that are finished are kept"
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder if need be, and be its only writer. The lock ends with the process.

    Raises:
        BlockingIOError: another process writes; its id is in the message.
        OSError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+")  # noqa: SIM115 (closed by the with below)
    except OSError as error:
        raise unwritable(folder, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(
                f"{folder} is being written by process {file.read(20).strip() or '?'}: "
                "wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise unwritable(folder / LOCK, error) from None
        yield
