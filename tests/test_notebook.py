"""The Colab notebook: its shape, and its cells run in order, but for those that need Colab or the network."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.starter import reports

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebooks" / "colab_quickstart.ipynb"
ELSEWHERE = {"install", "colab"}  # tags of cells that can't run here
HEAD = """\
import subprocess

def shell(line):
    print("$", line, flush=True)
    subprocess.run(line, shell=True, check=True)

"""


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    return found


def tags(cell: dict[str, Any]) -> set[str]:
    return set(cell["metadata"].get("tags", ()))


def python_of(cell: dict[str, Any]) -> str:
    """The cell with its lines for the shell turned into calls."""
    return re.sub(
        r"^!(.*)$", lambda match: f"shell({match[1]!r})", "".join(cell["source"]), flags=re.MULTILINE
    )


def script(**parameters: object) -> str:
    """All cells that can run here, the parameters given after the cell that sets them, as papermill does."""
    parts = [HEAD]
    for cell in cells():
        if cell["cell_type"] != "code" or tags(cell) & ELSEWHERE:
            continue
        parts.append(python_of(cell))
        if "parameters" in tags(cell):
            parts += [f"{name} = {value!r}" for name, value in parameters.items()]
    return "\n".join(parts)


def run(folder: Path, **parameters: object) -> str:
    (folder / "cells.py").write_text(script(**parameters), "utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [sys.executable, "cells.py"], cwd=folder, env=os.environ | quiet, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_is_a_notebook() -> None:
    """nbformat 4.5: what its schema asks of the top, of cells, and of their ids."""
    content = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert set(content) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", one) for one in ids)
    for cell in content["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            keys |= {"execution_count", "outputs"}
            assert cell["outputs"] == [] and cell["execution_count"] is None
        assert set(cell) == keys and all(isinstance(line, str) for line in cell["source"])


def test_every_cell_is_python_and_nearly_every_one_is_explained() -> None:
    before = None
    for cell in cells():
        if cell["cell_type"] == "code":
            ast.parse(python_of(cell))
            assert before == "markdown" or tags(cell) & ELSEWHERE or cell["source"][0].startswith("#"), cell[
                "id"
            ]
        before = cell["cell_type"]
    assert sum(cell["cell_type"] == "code" for cell in cells()) <= 14


def test_the_cells_run_on_own_rows(tmp_path: Path) -> None:
    lines = [
        json.dumps({k: row[k] for k in ("instruction", "input", "output")})
        for row in reports.rows("train", 24)
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(lines) + "\n")
    said = run(tmp_path, ROWS="own.jsonl", STEPS=3, SCORED=2)
    assert "card" in said and "$ tunesmith check" in said and "⟦{" in said
    assert "## Scores" in said  # the report
    answer = json.loads((tmp_path / "answers.jsonl").read_text("utf-8"))
    assert answer["answer"] and (tmp_path / "runs" / "colab" / "adapter").is_dir()


@pytest.mark.slow
def test_the_cells_run_as_they_stand(tmp_path: Path) -> None:
    run(tmp_path)
    report = json.loads((tmp_path / "runs" / "colab" / "report" / "report.json").read_text("utf-8"))
    assert report["headline"]["difference"]["low"] > 0.5
