"""The catalog agrees with the totals that are published apart from Table 10."""

import re

import pytest
from m2_bert.loco.catalog import LOCO_V0, LOCO_V1, REVISIONS, TASKS, Counts, find_task


def test_order_of_the_paper():
    assert [task.key for task in LOCO_V1] == [
        "summ_screen_fd",
        "gov_report",
        "qmsum",
        "qasper_title",
        "qasper_abstract",
        "multifieldqa",
        "2wikimqa",
        "passage_retrieval",
        "courtlistener_HTML",
        "courtlistener_Plain_Text",
        "legal_case_reports",
        "stackoverflow",
    ]


def test_totals():
    assert sum(task.test.queries for task in LOCO_V1) == 7734
    assert sum(task.test.documents for task in LOCO_V1) == 15075
    assert sum(task.hub_test.queries for task in LOCO_V1) == 7734
    assert sum(task.hub_test.documents for task in LOCO_V1) == 14838
    assert sum(task.train.queries for task in LOCO_V1) == 49456


def test_v0_differs_in_qmsum_only():
    assert [task.key for task in LOCO_V0] == [
        "summ_screen_fd",
        "gov_report",
        "qmsum_v0",
        "qasper_title",
        "qasper_abstract",
    ]
    assert [task for task in LOCO_V0 if task in LOCO_V1] == [LOCO_V1[i] for i in (0, 1, 3, 4)]
    assert LOCO_V0[2].test == Counts(272, 272)
    assert LOCO_V0[2].hub_test is None


def test_revisions_are_commits():
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in REVISIONS.values())


def test_unknown_constructions_are_the_three_unpublished_sources():
    unknown = {task.source for task in TASKS.values() if task.construction == "unknown"}
    assert unknown == {"CourtListener", "Australian Legal Case Reports", "StackOverflow"}


@pytest.mark.parametrize(
    ("split", "counts", "expected"),
    [
        pytest.param("test", Counts(272, 35), ["35 documents, but 272 by the paper"], id="hub"),
        pytest.param("test", Counts(272, 272), ["272 documents, but 35 by the Hub"], id="paper"),
        pytest.param("train", Counts(1257, 1257), [], id="train"),
        pytest.param(
            "train", Counts(1, 1257), ["1 queries, but 1257 by the paper"], id="train-queries"
        ),
    ],
)
def test_differences(split, counts, expected):
    assert find_task("qmsum").differences(split, counts) == expected


def test_unknown_task():
    with pytest.raises(ValueError, match=r"unknown task 'qmsun'; expected one of summ_screen_fd, "):
        find_task("qmsun")
