"""Weight files and folders as {name: tensor}: safetensors, torch pickles, shards.

What a file is, its first bytes decide. Pickled code is never executed: torch's restricted
unpickler builds tensors and plain containers, and anything else is refused by name.
"""

import itertools
import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# The first of these that a folder has; else its only file with one of the suffixes.
PREFERRED = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.bin",
)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# What trainers leave beside the weights.
NOT_WEIGHTS = {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt"}

# Where a pickle keeps its state dict, innermost mapping last.
STATE_DICTS = {
    "Composer pickle": ("state", "model"),
    "pickle with state_dict": ("state_dict",),
    "pickle with model_state_dict": ("model_state_dict",),
    "pickle with model": ("model",),
    "flat pickle": (),
}
# Composer stores its clock (datetime.timedelta), random states and metrics beside the weights.
# Their classes are replaced by Inert, whatever they are: nothing of them is imported or called.
TRAINING_STATE = (
    "_codecs.",
    "collections.",
    "composer.",
    "datetime.",
    "numpy.",
    "torch.",
    "torchmetrics.",
)
# Bytes of the pickle beside the tensors: 0.3 MB for M2-BERT, some MB with an optimizer's state.
LARGEST_PICKLE = 16 << 20


class CheckpointError(ValueError):
    """A file or folder that is not an M2-BERT checkpoint, or is damaged or ambiguous.

    Names in files may hold anything: the message is one line that is safe on a terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Inert:
    """Stands for a pickled object that is no part of a model: it accepts and forgets everything."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class Weights:
    """Tensors under the names of their files, which they may map: copy before overwriting one."""

    tensors: dict[str, Tensor]
    container: str
    files: tuple[Path, ...]


def printable(text: str) -> str:
    """Return the text with control and format characters, which may forge output, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Iterable[str], limit: int = 3) -> str:
    """Join the first names, saying how many there are, on one printable line."""
    names = [printable(name)[:200] for name in names]
    if not names:
        return "none"
    return ", ".join(names[:limit]) + (f", ... {len(names)} in all" if len(names) > limit else "")


def read_weights(path: Path) -> Weights:
    """Read the tensors of a weight file, of a shard index or of a folder with either.

    Raises:
        CheckpointError: naming the path, what was found there and the remedy.
    """
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        return read_weights(path / choose_weights(names, str(path)))
    if path.suffix == ".json":
        return _read_shards(path)
    with path.open("rb") as file:
        start = file.read(32)
    if start.startswith(b"PK") or start.startswith(b"\x80"):
        tensors, container = _read_pickle(path, is_zip=start.startswith(b"PK"))
    elif start[8:9] == b"{":
        tensors, container = _read_safetensors(path), "safetensors"
    else:
        found = _not_weights(start)
        raise CheckpointError(f"{path}: {found}, expected safetensors or a torch pickle")
    return Weights(tensors, container, (path,))


def choose_weights(names: Iterable[str], where: str) -> str:
    """Return the weight file to read among the file names of a folder or repository.

    Raises:
        CheckpointError: if there is none, or several without a customary name.
    """
    names = sorted(name for name in names if "/" not in name)
    for name in PREFERRED:
        if name in names:
            return name
    candidates = [x for x in names if x.endswith(SUFFIXES) and x not in NOT_WEIGHTS]
    if not candidates:
        found = listed(names, 8) if names else "no files"
        raise CheckpointError(f"{where}: no weights ({', '.join(SUFFIXES)}), found {found}")
    if len(candidates) > 1:
        raise CheckpointError(
            f"{where}: several weight files ({listed(candidates)}) and none of the customary "
            "names: pass the path of the file you mean"
        )
    return candidates[0]


def read_json(path: Path, kind: type[dict] | type[list] = dict) -> Any:
    """Parse a JSON file that holds an object, or a list if `kind` says so.

    Raises:
        CheckpointError: if it does not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, kind):
        expected = "an object" if kind is dict else "a list"
        raise CheckpointError(f"{path}: got a JSON {type(content).__name__}, expected {expected}")
    return content


def shard_names(index: Path) -> list[str]:
    """Return the file names of a shard index, each of them checked to lie in its folder.

    Raises:
        CheckpointError: if the index is malformed, or names a file elsewhere.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map, expected {{tensor name: file name}}")
    names = set(weight_map.values())
    for name in names:
        plain = isinstance(name, str) and PurePosixPath(name).name == name
        if not plain or not name.endswith(SUFFIXES):
            raise CheckpointError(f"{index}: got shard {name!r}, expected a weight file beside it")
    return sorted(names)


def _read_shards(index: Path) -> Weights:
    paths = tuple(index.with_name(name) for name in shard_names(index))
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise CheckpointError(
            f"{index}: {len(absent)} of {len(paths)} shards are missing ({absent[0]})"
        )
    shards = [read_weights(path) for path in paths]
    tensors = {name: x for shard in shards for name, x in shard.tensors.items()}
    return Weights(tensors, f"sharded {shards[0].container}", (index, *paths))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: damaged safetensors of {path.stat().st_size} bytes ({error}): copy it again"
        ) from error


def _read_pickle(path: Path, is_zip: bool) -> tuple[dict[str, Tensor], str]:
    try:
        inert = _training_state(path) if is_zip else []
        with torch.serialization.safe_globals(inert), warnings.catch_warnings(action="ignore"):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # what an unpickler raises on a broken file is unbounded
        # torch wraps the unpickler's own message in paragraphs of advice against safety.
        wrapped = error.__context__ if isinstance(error, UnpicklingError) else None
        inner = str(wrapped or error)
        refused = re.search(r"GLOBAL (\S+)", inner)
        if refused:
            raise _code_error(path, [refused[1]]) from error
        reason = re.split(r"\. |\n", inner)[0][:200] or type(error).__name__
        if "weights_only" in reason or "Unsupported" in reason:
            reason = "not as torch.save writes a state dict"
        raise CheckpointError(
            f"{path}: not a readable torch checkpoint ({reason}): copy it again, or save it with "
            "torch.save(model.state_dict(), path)"
        ) from error
    return _state_dict(loaded, path)


def _training_state(path: Path) -> list[tuple[type[Inert], str]]:
    """Stand-ins for the classes of training state in a zip pickle; raises for any other class."""
    _check_zip(path)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    foreign = sorted(name for name in names if not name.startswith(TRAINING_STATE))
    if foreign:
        raise _code_error(path, foreign)
    return [(Inert, name) for name in names]


def _check_zip(path: Path) -> None:
    """Refuse archives that unpack to much more than they are, and whole modules."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name, size = PurePosixPath(member.filename.lower()).name, member.file_size
            if member.compress_type != zipfile.ZIP_STORED or size != member.compress_size:
                raise CheckpointError(
                    f"{path}: {listed([member.filename])} is compressed, which torch.save never "
                    "does: save it again with torch.save"
                )
            if name == "data.pkl" and size > LARGEST_PICKLE:
                raise CheckpointError(
                    f"{path}: {size} bytes of pickled objects beside the tensors, expected at most "
                    f"{LARGEST_PICKLE}: save the state dict alone"
                )
            if name == "data.pkl" and (whole := _pickled_class(archive, member)):
                raise CheckpointError(
                    f"{path}: holds a whole pickled module of class {listed([whole])} rather than "
                    "tensors, and its code is never executed: save its state dict, "
                    "torch.save(module.state_dict(), path)"
                )


def _pickled_class(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str | None:
    """Class of an object that is all the pickle; state dicts are dicts, or made by a call."""
    notes = {"PROTO", "PUT", "BINPUT", "LONG_BINPUT"}
    with archive.open(member) as file:
        codes = ((op.name, arg) for op, arg, _ in pickletools.genops(file) if op.name not in notes)
        start = list(itertools.islice(codes, 3))
    if [name for name, _ in start] == ["GLOBAL", "EMPTY_TUPLE", "NEWOBJ"]:
        return start[0][1].replace(" ", ".")
    return None


def _code_error(path: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{path}: holds pickled objects or code ({listed(names)}), which is never executed; "
        "expected a state dict: torch.save(model.state_dict(), path)"
    )


def _state_dict(loaded: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    for container, keys in STATE_DICTS.items():
        inner = loaded
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            tensors = {
                name: x
                for name, x in inner.items()
                if isinstance(name, str) and isinstance(x, Tensor)
            }
            if tensors:
                return tensors, container
    found = "object" if isinstance(loaded, Inert) else type(loaded).__name__
    if isinstance(loaded, dict):
        found += f" with {', '.join(map(repr, list(loaded)[:4])) or 'no keys'}"
    raise CheckpointError(f"{path}: got a pickled {found}, expected a state dict of tensors")


def _not_weights(start: bytes) -> str:
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the weights (run `git lfs pull`)"
    return f"unknown content ({start[:12]!r}...)"
