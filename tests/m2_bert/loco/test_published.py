"""The published rows: complete, and their averages are the means of their scores."""

import pytest
from m2_bert.loco.published import (
    BY_LENGTH_ROWS,
    LENGTH_BINS,
    LOCO_V0_ROWS,
    LOCO_V1_ROWS,
    THIRD_PARTY_V1_ROWS,
    V0_TASKS,
    V1_TASKS,
    WARNINGS,
)


def differing(rows):
    """Name -> (printed, recomputed) where they differ by more than rounding explains."""
    return {
        row.name: (row.average, row.recomputed)
        for row in rows
        if row.scores and abs(row.average - sum(row.scores) / len(row.scores)) > 0.2
    }


def test_recomputed_averages_of_table_13():
    assert differing(LOCO_V1_ROWS) == {
        "BGE-Large fine-tuned": (64.8, 65.8),
        "BGE-Large fine-tuned, chunks": (61.6, 62.9),
    }


def test_recomputed_averages_of_loco_v0():
    assert differing(LOCO_V0_ROWS) == {"M2-BERT-8k": (85.9, 87.9)}


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        pytest.param(LOCO_V1_ROWS, V1_TASKS, id="LoCoV1"),
        pytest.param(LOCO_V0_ROWS, V0_TASKS, id="LoCoV0"),
        pytest.param(BY_LENGTH_ROWS, LENGTH_BINS, id="by length"),
    ],
)
def test_every_row_has_every_column(rows, columns):
    assert all(len(row.scores) == len(columns) for row in rows if row.scores)
    assert all(0 <= score <= 100 for row in rows if row.scores for score in row.scores)
    assert all(row.scores or row.average for row in rows)


def test_columns_are_in_the_order_of_the_table():
    best = next(row for row in LOCO_V1_ROWS if row.name == "M2-BERT-32k")
    scores = dict(zip(V1_TASKS, best.scores, strict=True))
    assert scores["summ_screen_fd"] == 98.0
    assert (scores["courtlistener_HTML"], scores["courtlistener_Plain_Text"]) == (96.8, 97.0)
    assert (scores["legal_case_reports"], scores["stackoverflow"]) == (67.1, 88.9)
    assert len(LOCO_V1_ROWS) == 17
    assert len(THIRD_PARTY_V1_ROWS) == 9


def test_m2_bert_rows_say_that_they_are_fine_tuned():
    for row in (*LOCO_V1_ROWS, *LOCO_V0_ROWS, *BY_LENGTH_ROWS):
        assert (row.training == "fine-tuned") == ("M2-BERT" in row.name or "fine-tuned" in row.name)


def test_warnings_name_the_known_traps():
    texts = {warning.key: warning.text for warning in WARNINGS}
    assert "zero-shot" in texts["training"]
    assert {"91.1", "94.7"} <= {word.strip(",.;") for word in texts["two averages"].split()}
    hub = next(warning for warning in WARNINGS if warning.key == "Hub data")
    assert set(hub.tasks) == {"qmsum", "stackoverflow"}
