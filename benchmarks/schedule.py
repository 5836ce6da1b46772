"""What to measure in full and what by one layer, so that a run ends within its time budget.

Durations are predicted from an operation count and a rate (operations per second). The rate of a
model is taken again from each of its measurements, so predictions improve while the run advances.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NATIVE, REFERENCE, ATTENTION = "m2-native", "m2-reference", "attention"
# The same two models in bfloat16 (weights and activations), beside float32 on the CPU.
NATIVE_BF16, ATTENTION_BF16 = "m2-native-bf16", "attention-bf16"
MODELS = (NATIVE, NATIVE_BF16, REFERENCE, ATTENTION, ATTENTION_BF16)
NATIVES, ATTENTIONS = (NATIVE, NATIVE_BF16), (ATTENTION, ATTENTION_BF16)
IN_BF16 = (NATIVE_BF16, ATTENTION_BF16)

# An FFT's operations take this many times longer than those of a matrix product (measured on one
# AVX-512 core: 7 to 20 against 100 GFLOP/s). Nothing but predictions depends on it.
FFT_COST = 8.0
# Repeats stop once one cell has spent this long on them (in a --full run: the second number).
REPEAT_SECONDS, REPEAT_SECONDS_FULL = 8.0, 120.0
# Attention that takes longer than this a call is warmed up by a short document alone: thread
# pools and kernels are then ready, and a page fault more or less does not show.
WARM_UP_SECONDS = 4.0
# Up to this length all layers are always measured: there is little to save, and one layer alone
# errs (seen at 2,048 and 8,192 tokens: 7 to 12% from the time of all layers, either way).
LONGEST_COMPLETE = 2048
# Repeats that take less than this together are not given up.
CHEAP_SECONDS = 1.5
# The first call of M2-BERT also makes the filters (predicted cost, in steady calls).
FIRST_CALL_COST = 1.5


@dataclass(frozen=True)
class Shape:
    """The sizes that decide the cost; the defaults are those of both 12-layer models."""

    layers: int = 12
    hidden: int = 768
    intermediate: int = 3072


@dataclass(frozen=True)
class Cell:
    """One entry of the result: a model at a document length."""

    model: str
    length: int


@dataclass(frozen=True)
class Plan:
    """How a cell is measured.

    Attributes:
        layers_measured: fewer than the model has, if the time of the others is extrapolated.
        repeats: measured calls, after the warm-up.
        full_warmup: whether an uncounted call on the same document comes first.
        call_seconds: predicted duration of one call with that many layers.
        seconds: predicted duration of everything.
    """

    cell: Cell
    layers_measured: int
    repeats: int
    full_warmup: bool
    call_seconds: float
    seconds: float


@dataclass(frozen=True)
class Limits:
    """What a run may spend.

    Attributes:
        repeats: measured calls of a cell, at most; long cells get fewer, at least one.
        full: measure every layer, whatever it takes.
        startup_seconds: predicted cost of a fresh process with a model in it.
    """

    repeats: int = 15
    full: bool = False
    startup_seconds: float = 6.0


def operations(cell: Cell, shape: Shape) -> float:
    """Cost of one layer on one document, in the operations of a matrix product."""
    length, width, inner = cell.length, shape.hidden, shape.intermediate
    if cell.model in ATTENTIONS:
        projections = 2 * length * (4 * width * width + 2 * width * inner)
        return projections + 4 * length * length * width
    # Mixer projections D -> 3D -> D; block-diagonal MLP D -> 2I -> D in four blocks.
    projections = 2 * length * (4 * width * width + 3 * width * inner / 4)
    transform = 2 * length
    # Two convolutions, each a forward and an inverse real transform of 2.5 N log2 N operations.
    return projections + FFT_COST * 2 * width * 2 * 2.5 * transform * math.log2(transform)


def plan_cell(
    cell: Cell, shape: Shape, rate: float, limits: Limits, layers: int, repeats: int | None = None
) -> Plan:
    """The plan of one cell with ``layers`` layers measured, at ``rate`` operations a second."""
    call = layers * operations(cell, shape) / rate
    if repeats is None:
        spend = REPEAT_SECONDS_FULL if limits.full else REPEAT_SECONDS
        repeats = max(1, min(limits.repeats, int(spend / call)))
    full_warmup = cell.model not in ATTENTIONS or call < WARM_UP_SECONDS
    warmup = 0.0
    if full_warmup:
        warmup = call if cell.model in ATTENTIONS else FIRST_CALL_COST * call
    seconds = limits.startup_seconds + warmup + repeats * call
    return Plan(cell, layers, repeats, full_warmup, call, seconds)


def plan_run(
    cells: Sequence[Cell],
    shape: Shape,
    rates: Mapping[str, float],
    limits: Limits,
    seconds_left: float,
) -> list[Plan]:
    """Plans for all ``cells``, in the same order, within ``seconds_left`` if that can be done.

    ``rates`` maps a model to operations a second. While the prediction exceeds the time left,
    whatever saves most is given up: first layers of attention and of the reference, then repeats,
    and last layers of the native model.
    """
    plans = [plan_cell(cell, shape, rates[cell.model], limits, shape.layers) for cell in cells]
    if limits.full:
        return plans

    def one_layer(plan: Plan) -> Plan:
        layers = shape.layers if plan.cell.length <= LONGEST_COMPLETE else 1
        return plan_cell(plan.cell, shape, rates[plan.cell.model], limits, layers)

    def fewer_repeats(plan: Plan) -> Plan:
        repeats = max(1, min(plan.repeats, int(CHEAP_SECONDS / plan.call_seconds)))
        rate, layers = rates[plan.cell.model], plan.layers_measured
        return plan_cell(plan.cell, shape, rate, limits, layers, repeats)

    steps = (
        (one_layer, lambda plan: plan.cell.model not in NATIVES),
        (fewer_repeats, lambda plan: True),
        (lambda plan: fewer_repeats(one_layer(plan)), lambda plan: plan.cell.model in NATIVES),
    )
    for cheaper, may_change in steps:
        while sum(plan.seconds for plan in plans) > seconds_left:
            savings = [may_change(plan) * (plan.seconds - cheaper(plan).seconds) for plan in plans]
            best = max(range(len(plans)), key=savings.__getitem__)
            if savings[best] <= 0:
                break
            plans[best] = cheaper(plans[best])
    return plans
