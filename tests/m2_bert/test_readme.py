"""The README's Python examples run as they stand, in order, each in a process of its own."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from m2_bert.loco.data import save_task
from m2_bert.loco.task import RetrievalTask

from tests.m2_bert.makers import text_of

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
OPTIONAL = ("langchain_huggingface", "llama_index", "mteb")


def _example(block: str):
    """Examples of packages that `make test` does not install run in test-integrations."""
    lines = [line for line in block.splitlines() if line.startswith(("import ", "from "))]
    needs = [name for name in OPTIONAL if any(line.split()[1].startswith(name) for line in lines)]
    missing = [name for name in needs if find_spec(name) is None]
    skip = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
    return pytest.param(block, id=lines[-1].split()[1], marks=skip)


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize("block", [_example(block) for block in BLOCKS])
def test_example_runs(block: str, tmp_path: Path) -> None:
    documents = {f"d{i}": text_of(20, seed=i) for i in range(4)}
    task = RetrievalTask("2wikimqa", documents, {"q0": documents["d0"]}, {"q0": {"d0": 1}})
    save_task(task, tmp_path / "loco-data")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:m2_bert", "-c", block],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
