"""The two notebooks for looking at rows and results: executed, cell by cell, on a run of the starter made here.

(The Colab notebook has a test of its own: test_notebook.py.)
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tunesmith.cli import main
from tunesmith.starter import reports

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
NAMES = ("data_exploration", "results_analysis")
STEPS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the starter on a few of its own rows, with a report."""
    folder = tmp_path_factory.mktemp("notebooks")
    for split, count in (("train", 24), ("test", 6)):
        lines = [json.dumps(row) + "\n" for row in reports.rows(split, count)]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    recipe = {
        "name": "small",
        "model": {"base": "starter", "dtype": "float32"},
        "data": {name: str(folder / f"{name}.jsonl") for name in ("train", "test")} | {"max_length": 512},
        "tune": {"rank": 4, "alpha": 8},
        "train": {"max_steps": STEPS, "batch": 8, "warmup": 1, "learning_rate": 2e-3, "trackers": []},
        "evaluate": {"decoding": {"max_tokens": 60}, "batch": 6},
    }
    (folder / "small.yaml").write_text(json.dumps(recipe))
    code = main(
        ["run", str(folder / "small.yaml"), "--until", "evaluate", "--runs-dir", str(folder / "runs")]
    )
    assert code in (
        0,
        3,
    )  # 3: after so few steps answers need not stop, and the report is written all the same
    assert (folder / "runs" / "small" / "report" / "report.json").is_file()
    return folder


def notebook(name: str, run: str = "small") -> Any:
    """The notebook with its parameter set."""
    made = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (given,) = [cell for cell in made.cells if "parameters" in cell.metadata.get("tags", [])]
    assert given.source == 'RUN = "latest"'
    given.source = f"RUN = {run!r}"
    return made


def execute(made: Any, folder: Path) -> str:
    """What the cells print. CellExecutionError where one raises."""
    NotebookClient(
        made, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [out for cell in made.cells if cell.cell_type == "code" for out in cell.outputs]
    assert not [out for out in outputs if out.output_type == "stream" and out.name == "stderr"], outputs
    return "".join(out.get("text", "") for out in outputs) + "".join(
        "[picture]" for out in outputs if out.output_type == "display_data"
    )


@pytest.mark.parametrize("name", NAMES)
def test_they_are_notebooks_with_cleared_outputs(name: str) -> None:
    made = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(made)
    assert all(
        not cell.outputs and cell.execution_count is None for cell in made.cells if cell.cell_type == "code"
    )
    explained = [
        a.cell_type == "markdown"
        for a, b in zip(made.cells, made.cells[1:], strict=False)
        if b.cell_type == "code"
    ]
    assert all(explained) and len(made.cells) <= 20


def test_data_exploration_runs(run: Path) -> None:
    said = execute(notebook("data_exploration"), run)
    assert "task extraction" in said and "train" in said
    learned = re.search("⟦(.*?)⟧", said, re.DOTALL)
    gold = json.dumps(reports.rows("train", 1)[0]["output"], ensure_ascii=False)
    assert (
        learned is not None and gold in learned[1]
    )  # the answer and its terminator, and nothing of the report
    assert "cancer_type" in said and "test in train" in said and "checks found something" in said
    assert said.count("[picture]") == 1


def test_results_analysis_runs(run: Path) -> None:
    said = execute(notebook("results_analysis"), run)
    assert "item_f1" in said and "rows have faults" in said and "6 rows of 6 documents" in said
    assert "gold:" in said and "tuned:" in said and "base:" in said
    assert said.count("[picture]") == 5  # scores; calibration and risk of fields, and of rows
    assert "Calibration of field values: n = 42." in said


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_that_raises_is_noticed(run: Path, name: str) -> None:
    made = notebook(name, run="no-such-run")
    with pytest.raises(CellExecutionError, match="there is no run"):
        execute(made, run)
