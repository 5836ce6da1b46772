"""Reports: numbers of a run, published rows beside it, comparisons, and the plot."""

import numpy as np
import pytest
from m2_bert.loco.plot import length_figure, plot_by_length
from m2_bert.loco.published import BY_LENGTH_ROWS, V1_TASKS
from m2_bert.loco.report import (
    bin_labels,
    compare_grid,
    lengths_grid,
    notes,
    paired_bootstrap,
    published_grid,
    scores_grid,
    to_markdown,
    to_rich,
)
from m2_bert.loco.result import FORMAT, EvaluationResult, mean_over_tasks

BINS = ("<2K", "2-8K", "8-32K", ">32K")


def entry(per_query, *, bins=None, digest="same", **counts):
    mean = float(np.mean(list(per_query.values())))
    filled = {label: {"queries": 0, "ndcg_at_10": 0.0} for label in BINS}
    filled |= bins or {"<2K": {"queries": len(per_query), "ndcg_at_10": mean}}
    return {
        "scores": {"ndcg_at_10": mean, "recall_at_10": 1.0, "mrr": 0.25},
        "counts": {"queries": len(per_query), "documents": 1234, "median_tokens": 900, **counts},
        "by_length": filled,
        "per_query": per_query,
        "metadata": {},
        "digest": digest,
    }


def run(name="model", tasks=None, **settings):
    tasks = tasks if tasks is not None else {"made": entry({"a": 1.0, "b": 0.5})}
    record = {
        "format": FORMAT,
        "model": {"name": name, "revision": "a" * 40, "fingerprint": "0123"},
        "settings": {"long": "truncate", **settings},
        "versions": {"python": "3.11.7", "bm25s": None},
        "tasks": tasks,
        "average": mean_over_tasks(tasks),
        "timing": {"tasks": {"made": {"encode_seconds": 12.34, "seconds": 13.0}}},
    }
    return EvaluationResult(record)


def loco_run():
    return run("mine", {key: entry({"a": 0.5}) for key in V1_TASKS}, max_length=512)


def cells(grid, row):
    return dict(zip(grid.columns, next(r for r in grid.rows if r[0] == row), strict=True))


def test_scores_are_in_percent_with_counts_cuts_and_seconds():
    tasks = {
        "made": entry(
            {"a": 1.0, "b": 0.5}, document_tokens=9, cut_documents=2, cut_document_tokens=7
        )
    }
    row = cells(scores_grid(run(tasks=tasks)), "made")
    assert row["nDCG@10"] == "75.0"
    assert (row["recall@10"], row["MRR"]) == ("100.0", "25.0")
    assert (row["queries"], row["docs"], row["median tokens"]) == ("2", "1,234", "900")
    assert row["cut"] == "78%"
    assert row["seconds"] == "12.3"


@pytest.mark.parametrize(
    ("name", "settings", "shown"),
    [
        ("owner/model", {"max_length": 512}, "owner/model, 512 tokens"),
        ("/home/me/models/m2/", {"long": "chunk-max"}, "models/m2, chunk-max"),
        ("bm25:512", {}, "bm25:512"),
    ],
)
def test_runs_are_called_by_model_length_and_policy(name, settings, shown):
    assert run(name, **settings).name == shown


def test_the_last_row_is_the_mean_of_the_tasks():
    tasks = {"one": entry({"a": 1.0}), "two": entry({"a": 0.2}), "bad": {"error": "no data"}}
    grid = scores_grid(run(tasks=tasks))
    assert [row[0] for row in grid.rows] == ["one", "two", "mean of 2 tasks"]
    assert grid.rows[-1][1] == "60.0"


def test_a_loco_run_stands_above_the_published_rows():
    grid = published_grid(loco_run())
    assert len(grid.columns) == 15
    assert grid.rows[0][0] == "mine, 512 tokens (this run)"
    assert grid.rows[0][2:] == ("50.0",) * 13
    best = cells(grid, "M2-BERT-32k, 32768 tokens (Table 13)")
    assert (best["SummScreenFD"], best["StackOverflow"], best["average"]) == (
        "98.0",
        "88.9",
        "91.1",
    )
    assert best["training"] == "fine-tuned"
    assert cells(grid, "BM25 (Elasticsearch) (Table 3)")["QMSum"] == "-"
    tuned = cells(grid, "BGE-Large fine-tuned, 512 tokens (Table 13)")
    assert tuned["average"] == "64.8 (mean of the row: 65.8)"


def test_a_run_of_some_tasks_is_compared_on_these_columns():
    grid = published_grid(run(tasks={"qmsum": entry({"a": 0.5}), "made": entry({"a": 1.0})}))
    assert grid.columns == ("model", "training", "QMSum", "average")
    assert grid.rows[0][2:] == ("50.0", "50.0 (of 1 tasks)")
    assert cells(grid, "E5-Mistral, 4096 tokens (Table 13)")["QMSum"] == "46.8"
    assert published_grid(run()) is None


def test_qmsum_of_v0_selects_the_table_of_loco_v0():
    tasks = {key: entry({"a": 0.5}) for key in ("gov_report", "qmsum_v0")}
    grid = published_grid(run(tasks=tasks))
    assert grid.title.startswith("LoCoV0")
    row = cells(grid, "M2-BERT-8k (Table 21)")
    assert (row["GovReport"], row["QMSum (V0)"]) == ("96.5", "64.1")
    assert row["average"] == "85.9 (mean of the row: 87.9)"


def test_bins_are_pooled_over_the_queries_of_all_tasks():
    short = {"<2K": {"queries": 3, "ndcg_at_10": 1.0}}
    both = {"<2K": {"queries": 1, "ndcg_at_10": 0.2}, ">32K": {"queries": 2, "ndcg_at_10": 0.4}}
    result = run(tasks={"x": entry({"a": 1.0}, bins=short), "y": entry({"a": 0.3}, bins=both)})
    row = cells(lengths_grid([result]), "model")
    assert row == {
        "model": "model",
        "<2K": "80.0 (4)",
        "2-8K": "-",
        "8-32K": "-",
        ">32K": "40.0 (2)",
    }


def test_published_bins_stand_beside_loco_runs_only():
    assert len(lengths_grid([run()]).rows) == 1
    grid = lengths_grid([loco_run()])
    assert len(grid.rows) == 1 + len(BY_LENGTH_ROWS)
    assert cells(grid, "M2-BERT-32k (fine-tuned, Table 22)")[">32K"] == "86.1"
    assert len(lengths_grid([loco_run()], published=False).rows) == 1


def test_comparison_has_differences_with_intervals_and_signs():
    a = run("a", {"made": entry({"p": 0.5, "q": 0.5, "r": 1.0}), "mine": entry({"p": 1.0})})
    b = run("b", {"made": entry({"p": 1.0, "q": 0.5, "r": 0.9})})
    grid = compare_grid([a, b])
    assert grid.columns == ("task", "a", "b", "difference", "95 % interval", "better / worse")
    made = cells(grid, "made")
    assert (made["a"], made["b"], made["difference"]) == ("66.7", "80.0", "+13.3")
    assert made["better / worse"] == "1 / 1"
    assert made["95 % interval"] == "-10.0 to +50.0"  # every resample of one query three times
    assert cells(grid, "mine")["difference"] == "-"
    with pytest.raises(ValueError, match="got 1 run"):
        compare_grid([a])


def test_runs_on_different_data_are_not_compared():
    a = run("a", {"made": entry({"p": 0.5}, digest="old")})
    b = run("b", {"made": entry({"p": 1.0}, digest="new")})
    assert cells(compare_grid([a, b]), "made")["difference"] == "other data"


def test_bootstrap_interval_is_that_of_the_normal_law_and_repeats():
    differences = np.random.default_rng(1).normal(0.1, 1.0, size=400)
    mean, low, high = paired_bootstrap(differences)
    assert mean == pytest.approx(differences.mean())
    error = differences.std() / 20
    assert low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)
    assert paired_bootstrap(differences) == (mean, low, high)


def test_notes_tell_failures_counts_and_the_warnings_that_apply():
    qmsum = entry({"a": 0.5})
    qmsum["metadata"] = {"differences": ["35 documents, but 272 by the paper"]}
    found = notes([run(tasks={"qmsum": qmsum, "bad": {"error": "no such file"}})])
    assert "model: bad failed: no such file" in found
    assert "qmsum: 35 documents, but 272 by the paper" in found
    text = " ".join(found)
    assert "zero-shot" in text
    assert "94.7" in text
    assert "35 meetings" in text
    assert notes([run()]) == []
    assert "35 meetings" not in " ".join(notes([run(tasks={"gov_report": entry({"a": 1.0})})]))


def test_markdown_has_well_formed_tables_and_the_settings():
    text = to_markdown([run("or|g/<model>", max_length=512)])
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in tables if "made" in line}
    assert widths == {10}
    assert "or\\|g/\\<model>" in text
    assert "python 3.11.7" in text
    assert "None" not in text
    assert "max\\_length=512" in text
    assert "a" * 40 in text


def test_markdown_of_two_runs_compares_them():
    text = to_markdown([run("a"), run("b", {"made": entry({"a": 1.0, "b": 1.0})})])
    assert "+25.0" in text
    assert text.count("### ") == 4


def test_rich_tables_hold_the_same_cells_and_print_nothing(capsys):
    rich = pytest.importorskip("rich.console")
    table = to_rich(scores_grid(run("[bold]x[/bold]")))
    assert capsys.readouterr().out == ""
    console = rich.Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    text = console.export_text()
    assert "[bold]x[/bold]" in text
    assert "75.0" in text


def test_the_plot_has_one_line_per_run_through_the_filled_bins():
    pytest.importorskip("matplotlib")
    both = {"<2K": {"queries": 1, "ndcg_at_10": 0.2}, ">32K": {"queries": 2, "ndcg_at_10": 0.4}}
    figure = length_figure([run("a", {"x": entry({"q": 0.3}, bins=both)}), run("b")])
    (axes,) = figure.axes
    drawn = [(line.get_xdata(), line.get_ydata()) for line in axes.lines]
    assert [(list(x), list(y)) for x, y in drawn] == [
        ([0, 3], [pytest.approx(20.0), pytest.approx(40.0)]),
        ([0], [pytest.approx(75.0)]),
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_plots_are_written(suffix, magic, tmp_path):
    pytest.importorskip("matplotlib")
    path = plot_by_length([run("cost $5 _x^2 $")], tmp_path / "new" / f"plot{suffix}")
    assert path.read_bytes().startswith(magic)


def test_plots_without_content_or_format_are_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"ends in \.png"):
        plot_by_length([run()], tmp_path / "plot.txt")
    with pytest.raises(ValueError, match="no run has a finished task"):
        plot_by_length([run(tasks={})], tmp_path / "plot.png")


def test_bins_go_from_short_to_long_whatever_came_first():
    bins = [{"8-32K": {}, "<2K": {}}, {">32K": {}, "2-8K": {}}]
    assert bin_labels(bins) == ["<2K", "2-8K", "8-32K", ">32K"]
