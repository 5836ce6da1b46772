"""Which measurements are complete, and which are given up first when time is short."""

from benchmarks import schedule
from benchmarks.schedule import ATTENTION, ATTENTIONS, MODELS, NATIVES, Cell, Limits, Shape


def plans(seconds_left, rate=1e11, **options):
    cells = [Cell(model, length) for length in (128, 8192, 32768) for model in MODELS]
    made = schedule.plan_run(
        cells, Shape(), dict.fromkeys(MODELS, rate), Limits(**options), seconds_left
    )
    assert [plan.cell for plan in made] == cells
    return {(plan.cell.model, plan.cell.length): plan for plan in made}


def test_plan_measures_everything_if_there_is_time():
    assert all(plan.layers_measured == 12 for plan in plans(1e9).values())
    assert all(plan.layers_measured == 12 for plan in plans(1.0, full=True).values())


def test_plan_gives_up_attention_layers_first_and_native_ones_last():
    everything = sum(plan.seconds for plan in plans(1e9).values())
    some = plans(everything - 1)
    assert [key for key, plan in some.items() if plan.layers_measured == 1] == [(ATTENTION, 32768)]
    tight = plans(450)
    assert sum(plan.seconds for plan in tight.values()) <= 450
    assert tight[ATTENTION, 128].layers_measured == 12
    assert all(plan.layers_measured == 12 for (name, _), plan in tight.items() if name in NATIVES)
    none = plans(0)
    for plan in none.values():
        if plan.cell.length > 128:
            assert (plan.layers_measured, plan.repeats) == (1, 1)


def test_short_documents_are_never_extrapolated():
    for model in MODELS:
        assert plans(0, rate=1e8)[model, 128].layers_measured == 12
        assert plans(0)[model, 128].repeats >= 5


def test_m2_always_gets_the_call_that_makes_its_filters():
    for plan in plans(300).values():
        assert plan.full_warmup or plan.cell.model in ATTENTIONS
