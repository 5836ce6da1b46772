"""The command line: what it prints, its JSON, its exit codes and its errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from m2_bert.cli import app
from m2_bert.folder import save_folder
from typer.testing import CliRunner, Result

from tests.m2_bert.makers import small_model, text_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_folder(small_model(padding="invariant"), tmp_path / "model")


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    root = tmp_path / "documents"
    root.mkdir()
    for i in range(3):
        (root / f"d{i}.txt").write_text(text_of(30 + 40 * i, seed=i))
    (root / "broken.bin").write_bytes(b"\0\1\2\xff")
    return root


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    shown = f"{result.output}\n{result.exception!r}"
    assert result.exit_code == code, shown
    return result


def fails(*arguments: object) -> str:
    """The one line on standard error of a command that ends with exit code 1."""
    stderr = run(*arguments, code=1).stderr
    lines = [line for line in stderr.splitlines() if line.startswith("m2-bert: ")]
    assert len(lines) == 1, stderr
    return lines[0]


def test_help_lists_every_command() -> None:
    text = run("--help").stdout
    for command in ("info", "convert", "verify", "index", "search", "demo", "loco"):
        assert command in text
    assert "--data" in run("loco", "run", "--help").stdout


def test_the_console_script_is_declared() -> None:
    code = "from m2_bert.cli import main; import sys; sys.argv = ['m2-bert', 'nothing']; main()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "nothing" in ran.stderr
    assert "Traceback" not in ran.stderr


# ---- Models


def test_info_of_a_model(folder: Path) -> None:
    facts = json.loads(run("info", folder, "--json").stdout)
    assert facts["longest_input"] == 64
    assert facts["padding"].startswith("invariant")
    assert facts["parameters"] == small_model().num_parameters()
    assert "invariant" in run("info", folder).stdout


def test_info_of_the_machine() -> None:
    assert "backends" in json.loads(run("info", "--json").stdout)


def test_convert_extends_and_keeps_what_is_there(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "converted"
    assert str(out) in run("convert", folder, out, "--length", 128).stdout
    assert json.loads(run("info", out, "--json").stdout)["longest_input"] == 128
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert "precious" in fails("convert", folder, precious)
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_verify_tells_good_from_damaged(folder: Path) -> None:
    good = json.loads(run("verify", folder, "--json").stdout)
    assert good["checks"]
    assert all(check["passed"] is not False for check in good["checks"])
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "FAILED" in run("verify", folder, code=1).stdout


@pytest.mark.parametrize(
    ("model", "expected"),
    [("random:huge", "random:"), ("/nowhere/model", "/nowhere/model"), (__file__, "test_cli.py")],
    ids=["name", "path", "not weights"],
)
def test_a_model_that_is_none_is_one_line(model: str, expected: str, tmp_path: Path) -> None:
    assert expected in fails("info", model)
    assert expected in fails("convert", model, tmp_path / "out")


def test_debug_shows_the_traceback() -> None:
    result = run("--debug", "info", "random:huge", code=1)
    assert isinstance(result.exception, ValueError)


# ---- Search


def test_index_and_search(folder: Path, documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    first = run("index", documents, "--out", out, "--model", folder)
    assert "3 documents" in first.stdout
    assert "skipped broken.bin" in first.stderr
    again = json.loads(run("index", documents, "--out", out, "--model", folder, "--json").stdout)
    assert (again["embedded"], again["unchanged"]) == (0, 3)
    assert [item["path"] for item in again["skipped"]] == ["broken.bin"]

    query = (documents / "d1.txt").read_text()
    hits = json.loads(run("search", out, query, "-k", 2, "--json").stdout)
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert hits[0]["path"] == "d1.txt"
    assert hits[0]["score"] > hits[1]["score"]
    shown = run("search", out, query).stdout
    assert "d1.txt:1" in shown
    assert query.split()[0] in shown


def test_search_prints_no_escape_sequences(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "documents"
    root.mkdir()
    (root / "bad.txt").write_text("river \x1b[31mstone\x1b]0;title\x07 [bold]lantern[/nothing]")
    run("index", root, "--out", tmp_path / "index", "--model", folder)
    shown = run("search", tmp_path / "index", "stone").stdout
    assert "\x1b]" not in shown
    assert "\x07" not in shown
    assert "[bold]lantern[/nothing]" in shown


def test_errors_of_search_are_one_line(folder: Path, documents: Path, tmp_path: Path) -> None:
    assert "nowhere" in fails("search", tmp_path / "nowhere", "query")
    assert "nowhere" in fails("index", tmp_path / "nowhere", "--out", tmp_path, "--model", folder)
    run("index", documents, "--out", tmp_path / "index", "--model", folder)
    assert "query" in fails("search", tmp_path / "index", "  ")
    other = save_folder(small_model(seed=1), tmp_path / "other")
    told = fails("index", documents, "--out", tmp_path / "index", "--model", other)
    assert "--rebuild" in told


def test_a_relative_model_is_found_from_anywhere(
    folder: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    monkeypatch.chdir(tmp_path)
    run("index", documents, "--out", out, "--model", folder.name)
    monkeypatch.chdir("/")
    assert json.loads(run("search", out, "river", "--json").stdout)
    moved = folder.rename(tmp_path / "moved")
    assert "model" in fails("search", out, "river")
    assert json.loads(run("search", out, "river", "--model", moved, "--json").stdout)


def test_what_was_cut_is_told(folder: Path, documents: Path, tmp_path: Path) -> None:
    options = ("--out", tmp_path / "index", "--model", folder, "--long-documents", "truncate")
    told = " ".join(run("index", documents, *options).stderr.split())
    # 30, 70 and 110 words and [CLS], [SEP]; the model reads 64 tokens.
    assert "2 documents were cut, 56 tokens not read" in told


def test_an_interrupted_index_is_told_and_searched(
    folder: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m2_bert.search import index as module

    def interrupt(self: object, found: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr(module._Run, "take", interrupt)
        told = run("index", documents, "--out", out, "--model", folder, code=130).stderr
    assert "interrupted" in told
    assert "interrupted" in run("search", out, "river").stderr
    run("index", documents, "--out", out, "--model", folder)
    assert "interrupted" not in run("search", out, "river").stderr


@pytest.mark.parametrize(
    "options",
    [("--long-documents", "foo"), ("--batch-tokens", 0), ("--max-length", 2), ("--nonsense",)],
    ids=str,
)
def test_wrong_usage_is_exit_code_two(options: tuple, documents: Path, tmp_path: Path) -> None:
    run("index", documents, "--out", tmp_path, "--model", "random:small", *options, code=2)


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """No markup, no :emoji: codes, nothing that a terminal obeys."""
    out = tmp_path / "b" / "[v2]x[/y]:x:\x1b[31m"
    told = run("convert", save_folder(small_model(), tmp_path / "model"), out).stdout
    assert "[v2]x[/y]:x:[31m" in told


def test_a_device_that_is_not_there_is_one_line(folder: Path, documents: Path, tmp_path: Path):
    options = ("--out", tmp_path / "index", "--model", folder, "--device", "cuda:97")
    assert "cuda" in fails("index", documents, *options)


# ---- The demonstration


def test_demo_indexes_searches_and_compares(folder: Path, tmp_path: Path) -> None:
    options = ("demo", "--model", folder, "--out", tmp_path / "demo", "--subset", 6)
    record = json.loads(run(*options, "--json").stdout)
    assert record["queries"] == 6
    assert record["scores"]["bm25"]["ndcg_at_10"] > 0.8  # few documents, and their own words
    assert record["scores"]["model"]["ndcg_at_10"] != record["scores"]["bm25"]["ndcg_at_10"]
    counted = sum(row["queries"] for row in record["by_length"]["model"].values())
    assert counted == 6
    other = ("demo", "--model", save_folder(small_model(seed=1), tmp_path / "other"), *options[3:])
    assert "--rebuild" in fails(*other)
    run(*other, "--rebuild")
    shown = run(*options, "--rebuild").stdout
    assert "BM25" in shown
    assert "m2-bert search" in shown
    hits = run("search", tmp_path / "demo" / "index", "parse the arguments", "--json").stdout
    assert len(json.loads(hits)) >= 6


def test_random_weights_are_announced_loudly(documents: Path, tmp_path: Path) -> None:
    told = run("index", documents, "--out", tmp_path / "index", "--model", "random:small").stderr
    assert "RANDOM WEIGHTS" in told
    assert "RANDOM WEIGHTS" in run("search", tmp_path / "index", "river").stderr
