"""The main benchmark: how fast M2-BERT embeds long documents, against attention.

    python -m benchmarks.throughput [--full] [--lengths 128,2048] [--dtype bfloat16] ...

Real text is tokenised and embedded, one document at a time, by M2-BERT-80M with the native kernels,
by the same model with the torch.fft reference, and by BERT-base with torch's fused attention; in
float32, and the native model and BERT-base in bfloat16 too.
Weights are random: speed does not depend on them. Nothing is printed unless the native results
agree with the reference. Every measurement runs in a process of its own (``isolation.py``), one at
a time; what would take too long is extrapolated from one layer and marked (``schedule.py``).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.console import Console

from benchmarks import report
from benchmarks.corpus import read_document
from benchmarks.gpu_timing import describe_gpu
from benchmarks.harness import (
    Timing,
    describe_machine,
    threads,
    time_interleaved,
    write_json,
)
from benchmarks.isolation import MeasurementFailed, run_in_subprocess
from benchmarks.measurement import (
    DEEP_BF16_BOUND,
    ERROR_BOUND,
    Specification,
    compare_samples,
)
from benchmarks.progress import RunDisplay
from benchmarks.schedule import (
    IN_BF16,
    MODELS,
    NATIVE,
    NATIVE_BF16,
    NATIVES,
    REFERENCE,
    Cell,
    Limits,
    Plan,
    operations,
    plan_run,
)
from benchmarks.settings import Settings, parse_arguments

# Long enough for a wrong filter or transform to show, short enough for float64.
CHECK_LENGTH = 1024
BF16_BOUND = ERROR_BOUND["bfloat16"]
# Operations per second of a GPU until it has shown its own: a scale for predictions alone.
GPU_RATE = 5e13
Runner = Callable[[str, Specification, Callable[[dict[str, Any]], None]], dict[str, Any]]


class CheckFailed(RuntimeError):  # noqa: N818 - it reads as what happened
    """Native and reference results differ: a speed of the native kernels would mean nothing."""


class Run:
    """One run of the benchmark: holds the record and writes it after every measurement."""

    def __init__(self, settings: Settings, runner: Runner, display: RunDisplay) -> None:
        self.settings, self.runner, self.display = settings, runner, display
        self.start = time.monotonic()
        self.samples: dict[Cell, dict[str, Any]] = {}
        document = read_document(max(settings.lengths))
        self.ids: list[int] = document.input_ids[0].tolist()
        self.record: dict[str, Any] = {
            "benchmark": "throughput",
            "schema": 1,
            "complete": False,
            "interrupted": False,
            "failure": None,
            "machine": describe_machine(),
            "gpu": describe_gpu(torch.device(settings.device)),
            "versions": _versions(),
            "settings": _plain(settings),
            "document": document.source,
            "error_bound": ERROR_BOUND[settings.dtype],
            "check": None,
            "notes": [],
            "results": [],
            "failed": [],
        }

    def specification(self, model: str, length: int) -> Specification:
        """The document of ``length`` tokens is the beginning of the longest one, and [SEP]."""
        settings = self.settings
        return Specification(
            model=model,
            ids=[*self.ids[: length - 1], self.ids[-1]],
            threads=settings.threads,
            dtype=settings.dtype,
            seed=settings.seed,
            overrides=settings.overrides,
            device=settings.device,
        )

    def execute(self) -> None:
        """Check, then measure everything; an interruption or a failed check ends it early."""
        models = self._usable_models()
        try:
            if NATIVE in models:
                self._check_native()
            self._measure_all(models)
            self.record["complete"] = True
        except KeyboardInterrupt:
            self.record["interrupted"] = True
            self.record["notes"].append("Interrupted: the remaining measurements are missing.")
        except CheckFailed as error:
            self.record["failure"] = str(error)
            rows = self.record["results"]
            self.record["results"] = [row for row in rows if row["model"] not in NATIVES]
            raise
        finally:
            self.save()

    def save(self) -> None:
        self.record["elapsed_s"] = round(time.monotonic() - self.start, 1)
        write_json(self.settings.output, self.record)

    def _usable_models(self) -> list[str]:
        models = [model for model in MODELS if model in self.settings.models]
        if self.settings.device != "cpu" or self.settings.dtype != "float32":
            models = [model for model in models if model not in IN_BF16]
        unavailable = native_unavailable if self.settings.device == "cpu" else cuda_unavailable
        reason = unavailable() if {*NATIVES} & {*models} else None
        if reason:
            models = [model for model in models if model not in NATIVES]
            self.record["notes"].append(f"Native kernels not measured: {reason}.")
            self.display.say(f"native kernels are not available: {reason}")
        return models

    def _check_native(self) -> None:
        length = min(CHECK_LENGTH, max(self.settings.lengths))
        self.display.stage(f"checking native against reference at {length:,} tokens")
        try:
            check = self.runner("check", self.specification(NATIVE, length), lambda event: None)
        except MeasurementFailed as error:
            raise CheckFailed(f"the check of the native kernels did not finish: {error}") from error
        self.record["check"] = _finite(check)
        if not check["ok"]:
            raise CheckFailed(
                f"native results are wrong at {length:,} tokens: relative errors against float64 "
                f"{check['errors']}; allowed: {check['rule']}"
            )

    def _measure_all(self, models: Sequence[str]) -> None:
        settings = self.settings
        lengths = sorted(set(settings.lengths))
        cells = [Cell(model, length) for length in lengths for model in models]
        on_gpu = settings.device == "cuda"
        rate = GPU_RATE if on_gpu else matrix_product_rate(settings.threads)
        rates = dict.fromkeys(models, rate)
        limits = Limits(repeats=settings.repeats, full=settings.full or on_gpu)
        self.display.total(len(cells))
        for index in range(len(cells)):
            left = settings.budget_seconds - (time.monotonic() - self.start)
            plans = plan_run(cells[index:], settings.shape, rates, limits, left)
            if on_gpu and not settings.full and plans[0].seconds > left:
                names = ", ".join(f"{cell.model} at {cell.length:,}" for cell in cells[index:])
                self.record["notes"].append(f"Not measured for want of time: {names}.")
                break
            row = self._measure_cell(plans[0], sum(plan.seconds for plan in plans))
            if row is not None:
                cost = settings.shape.layers * operations(cells[index], settings.shape)
                rates[cells[index].model] = cost * 1000 / row["ms_per_document"]
                startup = row["wall_s"] - row["calls_s"]
                limits = replace(limits, startup_seconds=startup)
            self.save()

    def _measure_cell(self, plan: Plan, seconds_left: float) -> dict[str, Any] | None:
        cell, start = plan.cell, time.monotonic()
        specification = replace(
            self.specification(cell.model, cell.length),
            layers_measured=plan.layers_measured,
            repeats=plan.repeats,
            full_warmup=plan.full_warmup,
        )
        self.display.measuring(cell, plan, seconds_left)
        try:
            raw = self.runner("measure", specification, self.display.event)
        except MeasurementFailed as error:
            failed = {"model": cell.model, "length": cell.length, "message": str(error)}
            self.record["failed"].append(failed)
            return None
        finally:
            self.display.done()
        self.samples[cell] = raw
        row = _result_row(raw)
        row["wall_s"], row["predicted_s"] = time.monotonic() - start, plan.seconds
        self.record["results"].append(row)
        report.add_ratios(self.record["results"])
        self._compare(cell.length)
        return row

    def _compare(self, length: int) -> None:
        """Once the reference was measured at ``length``, native results must agree with it."""
        reference = self.samples.get(Cell(REFERENCE, length))
        if reference is None:
            return
        for model in NATIVES:
            native = self.samples.pop(Cell(model, length), None)
            if native is None:
                continue
            errors = compare_samples(native, reference)
            bounds = dict.fromkeys(errors, ERROR_BOUND[self.settings.dtype])
            if model == NATIVE_BF16:
                bounds = {**dict.fromkeys(errors, DEEP_BF16_BOUND), "first_layer": BF16_BOUND}
            for row in self.record["results"]:
                if (row["model"], row["length"]) == (model, length):
                    row["error_against_reference"], row["error_bounds"] = _finite(errors), bounds
            if not all(errors[name] <= bounds[name] for name in errors):
                raise CheckFailed(
                    f"{model} and reference results differ at {length:,} tokens: relative errors "
                    f"{errors}, bounds {bounds}"
                )


def cuda_unavailable() -> str | None:
    """Why the native kernels cannot be used on the current GPU; None if they can."""
    return importlib.import_module("monarch_kernels.backends").cuda_unsupported()


def native_unavailable() -> str | None:
    """Why the native kernels cannot be used; None if they can."""
    try:
        status = importlib.import_module("monarch_kernels.backends").status()
    except ImportError as error:
        return str(error)
    return status.get("native", "this build of monarch_kernels does not know them")


def matrix_product_rate(count: int) -> float:
    """Operations per second of a float32 matrix product: the scale of the first predictions."""
    size = 1024
    with threads(count), torch.inference_mode():
        a = torch.ones(size, size)
        timing = time_interleaved({"product": lambda: a @ a}, rounds=3)["product"]
    return 2 * size**3 / timing.median


def _result_row(raw: dict[str, Any]) -> dict[str, Any]:
    timing = Timing(tuple(raw["seconds"]))
    row = {key: value for key, value in raw.items() if key != "samples"}
    first = raw["first_call_s"]
    return {
        **row,
        "scaled": report.is_scaled(raw),
        "tokens_per_second": raw["length"] / timing.median,
        "ms_per_document": 1000 * timing.median,
        "first_call_ms": None if first is None else 1000 * first,
        "timing": timing.as_dict(),
        "error_against_reference": None,
    }


def _finite(value: Any) -> Any:
    """``value`` with None in place of infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(settings: Settings) -> dict[str, Any]:
    # The name alone: the file travels, the folder does not.
    return {**asdict(settings), "output": settings.output.name}


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in ("torch", "transformers", "tokenizers", "numpy", "monarch-kernels"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def run(
    settings: Settings, runner: Runner = run_in_subprocess, console: Console | None = None
) -> dict[str, Any]:
    """Run the benchmark: check, measure, write JSON and plot, print the table.

    Args:
        runner: carries out one task; tests give one that stays in this process.
        console: where progress and the table go; default: standard output.

    Returns:
        The record, as written to ``settings.output``. Its ``complete`` is False, and the table says
        so, after an interruption (Ctrl-C).

    Raises:
        CheckFailed: native and reference results differ. No table is printed.
    """
    console = console or Console()
    with RunDisplay(console) as display:
        session = Run(settings, runner, display)
        session.execute()
    record = session.record
    if record["results"] or record["failed"]:
        report.print_table(record, console)
    plot = settings.output.with_suffix(".png")
    saved = bool(record["results"]) and report.save_plot(record, plot)
    paths = f"results: {settings.output}" + (f"\nplot:    {plot}" if saved else "")
    console.print(paths, soft_wrap=True, highlight=False)
    if record["results"] and not saved:
        console.print("no plot: matplotlib is not installed")
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 success, 1 a check or a measurement failed, 130 interrupted."""
    settings = parse_arguments(arguments)
    try:
        record = run(settings)
    except CheckFailed as error:
        print(f"ABORTED, no speed is reported: {error}", file=sys.stderr)
        return 1
    if record["interrupted"]:
        return 130
    return 1 if record["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
