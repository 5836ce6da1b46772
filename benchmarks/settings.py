"""What a run of the throughput benchmark does, and its command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import REPOSITORY, available_cores
from benchmarks.measurement import ERROR_BOUND
from benchmarks.schedule import MODELS, Shape

LENGTHS = (128, 512, 2048, 8192, 16384, 32768)
# The rest of seven minutes is for the error of the predictions.
BUDGET_SECONDS = 345.0


@dataclass(frozen=True)
class Settings:
    """What a run does; the defaults are those of ``make bench``.

    Attributes:
        repeats: measured calls of each cell, at most (long ones get fewer).
        full: measure all layers everywhere and let it take its time.
        output: the JSON file; the plot gets the same name with ``.png``.
        overrides: configuration fields for all models, to make them small in tests.
        device: "cpu" or "cuda", torch's current GPU, where every layer is always measured.
    """

    lengths: tuple[int, ...] = LENGTHS
    models: tuple[str, ...] = MODELS
    repeats: int = 15
    threads: int = field(default_factory=available_cores)
    dtype: str = "float32"
    seed: int = 0
    full: bool = False
    budget_seconds: float = BUDGET_SECONDS
    output: Path = REPOSITORY / "benchmarks" / "results" / "throughput.json"
    overrides: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 3:
            raise ValueError(f"lengths: got {self.lengths}, expected numbers of tokens >= 3")
        unknown = set(self.models) - set(MODELS)
        if unknown or not self.models:
            raise ValueError(f"models: got {self.models}, expected some of {MODELS}")
        if self.dtype not in ERROR_BOUND:
            raise ValueError(f"dtype: got {self.dtype!r}, expected one of {tuple(ERROR_BOUND)}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device: got {self.device!r}, expected 'cpu' or 'cuda'")
        if self.repeats < 1 or self.threads < 1:
            raise ValueError("repeats and threads: expected at least 1 of each")

    @property
    def shape(self) -> Shape:
        names = {"layers": "num_hidden_layers", "hidden": "hidden_size"}
        names["intermediate"] = "intermediate_size"
        known = {key: name for key, name in names.items() if name in self.overrides}
        return Shape(**{key: self.overrides[name] for key, name in known.items()})


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description="How fast M2-BERT embeds long documents, against attention.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--lengths", type=_comma_list(int), default=default.lengths, help="tokens, with commas")
    add(
        "--models",
        type=_comma_list(str),
        default=default.models,
        help=f"some of {','.join(MODELS)}",
    )
    add("--repeats", type=int, default=default.repeats, help="measured calls at most")
    add("--threads", type=int, default=default.threads, help="the same for all models")
    add("--device", choices=("cpu", "cuda"), default=default.device, help="cuda: the current GPU")
    add(
        "--dtype",
        choices=tuple(ERROR_BOUND),
        default=None,
        help="bfloat16: autocast, and what None means on a GPU (flash attention has no float32)",
    )
    add("--seed", type=int, default=default.seed, help="of the random weights")
    add("--output", type=Path, default=default.output, help="JSON file; the plot goes beside it")
    add("--full", action="store_true", help="all layers everywhere; may take an hour")
    seconds = default.budget_seconds
    add("--budget", type=float, default=seconds, dest="budget_seconds", help="seconds, about")
    values = vars(parser.parse_args(arguments))
    if values["dtype"] is None:
        values["dtype"] = "bfloat16" if values["device"] == "cuda" else default.dtype
    if values["device"] == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    try:
        return Settings(**values)
    except ValueError as error:
        parser.error(str(error))


def _comma_list(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(entry) for entry in text.split(",") if entry)

    parse.__name__ = "comma-separated list"  # argparse puts it into its error message
    return parse
