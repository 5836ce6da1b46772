"""Runs a measurement (``measurement.py``) in a fresh process and relays what it tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import REPOSITORY
from benchmarks.measurement import Specification, write_request

Event = dict[str, Any]


class MeasurementFailed(RuntimeError):  # noqa: N818 - it reads as what happened
    """A measuring process ended without a result; the message says why."""


def run_in_subprocess(
    task: str, specification: Specification, on_event: Callable[[Event], None]
) -> dict[str, Any]:
    """Carry out ``task`` ("measure" or "check") in a process of its own.

    Args:
        on_event: told each event as it comes.

    Raises:
        MeasurementFailed: it raised, or was killed (by the kernel, when memory ran out).
    """
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        request, errors = Path(folder, "request.json"), Path(folder, "stderr")
        write_request(request, task, specification)
        with errors.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.measurement", str(request)],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=_environment(specification.threads),
                # Ctrl-C is for the parent alone, which ends this process in its own time.
                start_new_session=True,
            )
        last: Event = {}
        try:
            for event in _events(process):
                last = event
                on_event(event)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if last.get("event") == "result":
            return last["result"]
        raise MeasurementFailed(_explain(last, code, errors.read_text(errors="replace")))


def _environment(threads: int) -> dict[str, str]:
    """The parent's search path, so that an uninstalled checkout works; threads; and malloc.

    glibc's malloc keeps what is freed. By default it returns large blocks to the system and has
    them cleared again, which takes a fifth of every model's time here, and up to a third by chance.
    """
    paths = [str(REPOSITORY), *(path for path in sys.path if path)]
    count = str(threads)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    }


def _events(process: subprocess.Popen[str]) -> Iterator[Event]:
    for line in process.stdout:
        # A library may print too; events are the lines with a JSON object that names one.
        if line.startswith('{"event"'):
            yield json.loads(line)


def _explain(last: Event, code: int, errors: str) -> str:
    if last.get("event") == "error":
        return last["message"]
    if code < 0:
        how = "killed, probably for want of memory" if code == -9 else f"ended by signal {-code}"
        return f"the process was {how}"
    tail = errors.strip().splitlines()[-1:] or ["no message"]
    return f"the process ended with code {code}: {tail[0]}"
