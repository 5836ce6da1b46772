"""benchmarks.products_cuda from inputs to table, on the CPU with a clock."""

import json

import pytest
import torch

from benchmarks import products_cuda
from benchmarks.products_cuda import Case

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", products_cuda.KINDS)
def test_a_case(best_products, kind):
    case = Case(kind, 8, "float32")
    result = products_cuda.measure(case, CPU, rounds=1)
    json.dumps(result, allow_nan=False)
    row = result["contenders"]["native"]
    assert result["wrong"] == []
    assert row["error"] < products_cuda.BOUND[torch.float32]
    assert row["tflops"] == pytest.approx(case.flops / row["median_s"] / 1e12)
    lines = list(products_cuda.row_texts(case, result))
    columns = products_cuda.HEADER.splitlines()[0].count("|")
    assert all(line.count("|") == columns for line in lines)
    assert any("| native |" in line for line in lines)


@pytest.mark.parametrize("factor", [0.0, 1.001, float("nan")])
def test_no_time_of_a_wrong_result(best_products, monkeypatch, factor):
    right = products_cuda.mk.glu_mlp
    wrong = lambda *args, **options: factor * right(*args, **options)  # noqa: E731
    monkeypatch.setattr(products_cuda.mk, "glu_mlp", wrong)
    case = Case("glu_mlp", 8, "float32")
    result = products_cuda.measure(case, CPU, rounds=1)
    assert result["wrong"] == ["native"]
    assert "median_s" not in result["contenders"]["native"]
    assert any("wrong result" in line for line in products_cuda.row_texts(case, result))


def test_goals():
    glu = {"tflops": 0.61 * 790, "times_bmm": 1.8}
    assert products_cuda.goal_text(Case("glu_mlp", 8192), glu).endswith("met")
    assert products_cuda.goal_text(Case("glu_mlp", 8192), glu | {"times_bmm": 1.6}).endswith(
        "missed"
    )
    slow = glu | {"tflops": 0.59 * 790}
    assert products_cuda.goal_text(Case("glu_mlp", 8192), slow).endswith("missed")
    assert products_cuda.goal_text(Case("glu_mlp", 512), glu) == ""
    assert products_cuda.goal_text(Case("glu_mlp", 8192, "float32"), glu) == ""
    product = Case("block_diagonal", 512)
    assert products_cuda.goal_text(product, {"tflops": 1, "times_dense": 1.1}).endswith("met")
    assert products_cuda.goal_text(product, {"tflops": 1, "times_dense": 0.9}).endswith("missed")
    assert product.flops == 2 * 512 * 768 * 192 * 4


def test_a_run_says_what_it_could_not_measure(best_products, tmp_path, capsys):
    chosen, path = [Case("block_diagonal", 4, "float32")], tmp_path / "record.json"
    assert products_cuda.run(chosen, CPU, 1, budget=-1.0)["not_measured"] == [chosen[0].id]
    record = products_cuda.run(chosen, CPU, 1, output=str(path))
    assert json.loads(path.read_text())["results"] == record["results"]
    assert "| block_diagonal float32 | 4 | native |" in capsys.readouterr().out


def test_without_a_gpu_there_is_nothing_to_measure(monkeypatch, capsys):
    monkeypatch.setattr(products_cuda.backends, "cuda_unsupported", lambda: "no GPU (a test)")
    assert products_cuda.main([]) == 1
    assert "no GPU (a test)" in capsys.readouterr().err
