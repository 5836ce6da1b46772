"""One measurement in a process of its own: ``python -m benchmarks.measurement FILE``.

The parent is ``isolation.py``. The specification is a JSON file; progress and the result are JSON
objects on standard output, one a line. A fresh process makes peak memory honest and lets no model
profit from, or suffer for, the memory and caches of another.

The time of an unmeasured layer is that of the measured first one, taken with hooks around it in
the same call: document = (call - layer) + layers * layer. All layers have the same shapes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness import other_load, peak_memory, resident_bytes, threads
from benchmarks.schedule import ATTENTIONS, IN_BF16, NATIVE, NATIVE_BF16, REFERENCE

# Relative Euclidean distance allowed between native and reference results on the same weights and
# text. Rounding gives about a tenth of it at most; a wrong filter, gate or length 0.01 and more.
ERROR_BOUND = {"float32": 1e-4, "bfloat16": 5e-2}
# Of a model in bfloat16 after all its layers: random weights amplify the rounding of each layer.
# Seen: 0.005 after one layer, 0.15 after twelve.
DEEP_BF16_BOUND = 0.3
# The check against float64 allows native this multiple of the reference's own error.
ERROR_FACTOR = 2.0
BACKENDS = {NATIVE: "native", NATIVE_BF16: "native", REFERENCE: "reference"}
SHORT_WARMUP = 128
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Specification:
    """What to measure; plain values, as it travels as JSON.

    Attributes:
        ids: the document's token ids, L of them.
        layers_measured: None for all.
        overrides: configuration fields that differ from the published model, for tests.
    """

    model: str
    ids: list[int]
    layers_measured: int | None = None
    repeats: int = 1
    full_warmup: bool = True
    threads: int = 1
    dtype: str = "float32"
    seed: int = 0
    overrides: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"


def build_model(specification: Specification) -> torch.nn.Module:
    """The model in evaluation mode; equal seeds give M2-BERT equal weights at equal lengths."""
    torch.manual_seed(specification.seed)
    length = len(specification.ids)
    dtype = torch.bfloat16 if specification.model in IN_BF16 else torch.float32
    if specification.model in ATTENTIONS:
        from benchmarks.attention import build_attention_model

        model = build_attention_model(length, **specification.overrides)
        return model.to(specification.device, dtype)
    from m2_bert.config import named_config
    from m2_bert.model import M2BertModel

    sizes = {"max_position_embeddings": length, **specification.overrides}
    model = M2BertModel(named_config("m2-bert-80m-32k", **sizes)).eval()
    model.set_backend(BACKENDS[specification.model])
    return model.to(specification.device, dtype)


class _Clock:
    """Marks of time where the work is done: on a GPU, events in its stream."""

    def __init__(self, device: str) -> None:
        self.gpu = device == "cuda"

    def mark(self) -> Any:
        if not self.gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        if not self.gpu:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1e3


class _LayerProbe:
    """Times the first layer of each call, and keeps a sample of its output."""

    def __init__(self, layer: torch.nn.Module, clock: _Clock) -> None:
        self.clock, self.start, self.end = clock, None, None
        self.output: torch.Tensor | None = None
        layer.register_forward_pre_hook(self._enter)
        layer.register_forward_hook(self._leave)

    def _enter(self, module: torch.nn.Module, inputs: Any) -> None:
        self.start = self.clock.mark()

    def _leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self.end = self.clock.mark()
        self.output = _sample(output[0] if isinstance(output, tuple) else output)

    @property
    def seconds(self) -> float:
        return self.clock.seconds(self.start, self.end)


def _sample(hidden: torch.Tensor) -> torch.Tensor:
    """At most 64 x 32 entries of (1, L, D), evenly spaced: enough to tell two results apart."""
    rows, columns = hidden.shape[1:]
    return hidden[0, :: math.ceil(rows / 64), :: math.ceil(columns / 32)].float().clone()


def measure(specification: Specification, report: Report = lambda event: None) -> dict[str, Any]:
    """Carry out one measurement; the result is ready for JSON.

    Args:
        specification: what to measure.
        report: is told ``{"event": "built" | "warm" | "run", ...}`` as things advance.
    """
    with threads(specification.threads):
        baseline = resident_bytes()
        model = build_model(specification)
        layers = len(model.encoder.layer)
        measured = specification.layers_measured or layers
        # Kept, though not run: the weights of all layers belong to the peak memory.
        unused = model.encoder.layer[measured:]
        model.encoder.layer = model.encoder.layer[:measured]
        report({"event": "built"})
        on_gpu = specification.device == "cuda"
        with peak_memory(baseline) as memory, other_load() as others:
            result = _time_calls(model, specification, layers, report)
        peak = torch.cuda.max_memory_allocated() if on_gpu else memory.growth_bytes
    parameters = sum(p.numel() for part in (model, unused) for p in part.parameters())
    return {
        **result,
        "model": specification.model,
        "length": len(specification.ids),
        "layers": layers,
        "layers_measured": measured,
        "parameters": parameters,
        "peak_bytes": peak,
        "other_load_cores": others.cores,
        # The filters that the other layers of M2-BERT would keep are not there.
        "peak_is_lower_bound": measured < layers and specification.model not in ATTENTIONS,
    }


def _time_calls(
    model: torch.nn.Module, specification: Specification, layers: int, report: Report
) -> dict[str, Any]:
    ids = torch.tensor([specification.ids], dtype=torch.int64, device=specification.device)
    kernel, first, runs = None, None, []
    with _precision(specification), _flash_attention(specification):
        if specification.model in ATTENTIONS:
            from benchmarks.attention import verify_fused_attention

            kernel = verify_fused_attention(model, ids[:, :SHORT_WARMUP])
        probe = _LayerProbe(model.encoder.layer[0], _Clock(specification.device))
        with torch.inference_mode():
            if specification.full_warmup:
                first, _ = _time_call(model, ids, probe)
                report({"event": "warm"})
            for _ in range(specification.repeats):
                run, output = _time_call(model, ids, probe)
                runs.append(run)
                report({"event": "run"})
    if output.last_hidden_state.shape[:2] != ids.shape:
        raise RuntimeError(f"{specification.model} returned no hidden state for some tokens")
    unmeasured = layers - len(model.encoder.layer)
    return {
        "first_call_s": None if first is None else first.call + unmeasured * first.layer,
        "seconds": [run.call + unmeasured * run.layer for run in runs],
        "first_layer_seconds": [run.layer for run in runs],
        "calls_s": sum(run.call for run in (runs if first is None else [first, *runs])),
        "attention_kernel": kernel,
        "samples": {
            "first_layer": probe.output.flatten().tolist(),
            "hidden": _sample(output.last_hidden_state).flatten().tolist(),
            "embedding": output.pooler_output[0].float().tolist(),
        },
    }


class _Run(NamedTuple):
    """Seconds of a call, and of the first layer within it."""

    call: float
    layer: float


def _time_call(model: torch.nn.Module, ids: torch.Tensor, probe: _LayerProbe) -> tuple[_Run, Any]:
    start = probe.clock.mark()
    output = model(input_ids=ids)
    end = probe.clock.mark()
    return _Run(probe.clock.seconds(start, end), probe.seconds), output


def _precision(specification: Specification) -> contextlib.AbstractContextManager[Any]:
    """float32, or mixed precision as both models are used in practice: weights stay float32."""
    if specification.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(specification.device, dtype=getattr(torch, specification.dtype))


def _flash_attention(specification: Specification) -> contextlib.AbstractContextManager[Any]:
    """On a GPU torch has several fused attentions: flash, which the comparison is with."""
    if specification.device == "cpu" or specification.model not in ATTENTIONS:
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.FLASH_ATTENTION)


def check_native(specification: Specification) -> dict[str, Any]:
    """Native and reference results of one M2-BERT on one document, against float64.

    Returns:
        ``ok``, the bound in words, and the relative errors of the hidden states and the embedding.
    """
    results = {}
    model = build_model(specification)
    ids = torch.tensor([specification.ids], dtype=torch.int64, device=specification.device)
    with threads(specification.threads), torch.inference_mode():
        for backend in ("native", "reference"):
            model.set_backend(backend)
            with _precision(specification):
                results[backend] = _outputs(model(input_ids=ids))
        exact = _outputs(model.double()(input_ids=ids))
    errors = {
        backend: {name: relative_error(value, exact[name]) for name, value in outputs.items()}
        for backend, outputs in results.items()
    }
    bound = ERROR_BOUND[specification.dtype]
    floor = 8 * torch.finfo(getattr(torch, specification.dtype)).eps
    ok = all(
        error <= min(bound, ERROR_FACTOR * errors["reference"][name] + floor)
        for name, error in errors["native"].items()
    )
    rule = (
        f"error against float64 <= {ERROR_FACTOR:g} x that of the reference + {floor:.1e}, "
        f"and <= {bound:g}"
    )
    return {"ok": ok, "rule": rule, "length": len(specification.ids), "errors": errors}


def _outputs(output: Any) -> dict[str, torch.Tensor]:
    return {"hidden": output.last_hidden_state, "embedding": output.pooler_output}


def relative_error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """Euclidean distance over the length of ``exact``; infinite if anything is not finite."""
    result, exact = result.double(), exact.double()
    error = (torch.linalg.vector_norm(result - exact) / torch.linalg.vector_norm(exact)).item()
    return error if math.isfinite(error) else math.inf


def compare_samples(native: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """Relative errors of two results of :func:`measure`, wherever both ran the same layers."""
    names = ["first_layer"]
    if native["layers_measured"] == reference["layers_measured"]:
        names += ["hidden", "embedding"]
    samples = [
        (torch.tensor(native["samples"][name]), torch.tensor(reference["samples"][name]))
        for name in names
    ]
    return {name: relative_error(*pair) for name, pair in zip(names, samples, strict=True)}


def main(argument: str) -> None:
    """Read the specification from the named file; write events, the last of them the result."""

    def emit(event: dict[str, Any]) -> None:
        sys.__stdout__.write(json.dumps(event) + "\n")
        sys.__stdout__.flush()

    # Should memory run out, this process is the one to go, not a neighbour.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    request = json.loads(Path(argument).read_text())
    task = {"measure": measure, "check": check_native}[request["task"]]
    specification = Specification(**request["specification"])
    extra = (emit,) if task is measure else ()
    try:
        emit({"event": "result", "result": task(specification, *extra)})
    except Exception as error:
        traceback.print_exc()
        emit({"event": "error", "message": f"{type(error).__name__}: {error}"})
        os._exit(1)


def write_request(path: Path, task: str, specification: Specification) -> None:
    """What :func:`main` reads: a file, as a long document does not fit on a command line."""
    request = {"task": task, "specification": asdict(specification)}
    path.write_text(json.dumps(request))


if __name__ == "__main__":
    main(sys.argv[1])
