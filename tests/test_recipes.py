"""Every recipe that ships: through `check`, and on the starter through `run` to report and merged model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mission_rows import SHAPES, write_rows

from tunesmith.cli import main
from tunesmith.recipe_file import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
ROWS = 60
# a model and a pace for two cores; everything else is the recipe's own
SMALL = [
    "model.base=starter",
    "train.max_steps=4",
    "train.batch=4",
    "train.warmup=1",
    "train.log_every=1",
    "train.evaluate_every=2",
    "train.save_every=2",
    "evaluate.rows=3",
    "evaluate.decoding.max_tokens=24",
]


def settings(mission: str, folder: Path) -> list[str]:
    """`--set` words that put generated rows and the starter in."""
    rows = write_rows(mission, folder, ROWS if mission != "chemical-disease" else ROWS // 3)
    chosen = [*SMALL, f"data.train={rows}"]
    if mission == "cancer-extraction":
        chosen.append(f"data.validation={write_rows(mission, folder, 8, seed=1)}")
    return [word for one in chosen for word in ("--set", one)]


def test_each_mission_has_recipe_rows_and_guide() -> None:
    names = {path.stem for path in RECIPES.glob("*.yaml")} - {"quickstart"}
    guides = {path.stem for path in (RECIPES.parent / "docs" / "missions").glob("*.md")}
    assert names == set(SHAPES) == guides


@pytest.mark.parametrize("mission", SHAPES)
def test_check(mission: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*settings(mission, tmp_path), "--runs-dir", str(tmp_path)]
    assert main(["check", str(RECIPES / f"{mission}.yaml"), *words]) == 0
    assert f"{mission}: sound" in capsys.readouterr().out


def test_rows_that_a_processor_leaves_out_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = settings("medical-qa", tmp_path)
    with (tmp_path / SHAPES["medical-qa"][0]).open("a") as file:
        file.write(
            json.dumps({"instruction": "Answer.", "input": "Who are you?", "output": "Thanks for asking."})
            + "\n"
        )
    assert main(["check", str(RECIPES / "medical-qa.yaml"), *words, "--runs-dir", str(tmp_path)]) == 0
    assert f"diagnosis_treatment left out 1 of {ROWS + 1} rows" in capsys.readouterr().err


@pytest.mark.parametrize("mission", SHAPES)
def test_run_to_the_report(mission: str, tmp_path: Path) -> None:
    run = ran(mission, tmp_path, "--until", "evaluate")
    report = json.loads((run / "report" / "report.json").read_text("utf-8"))
    scored = 1 if mission == "kannada" else 3  # its recipe sets 1 % aside: plenty of 390,000, one of 60
    assert report["rows"] == scored and {"base", "tuned"} <= set(report["scores"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert lines[-1]["step"] == 4 and any("validation_loss" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("mission", SHAPES)
def test_run_to_the_merged_model(mission: str, tmp_path: Path) -> None:
    assert (ran(mission, tmp_path) / "merged" / "config.json").exists()


def ran(mission: str, folder: Path, *words: str) -> Path:
    """The run folder; every proof has passed."""
    recipe = str(RECIPES / f"{mission}.yaml")
    assert main(["run", recipe, *settings(mission, folder), *words, "--runs-dir", str(folder / "runs")]) == 0
    proofs = json.loads((folder / "runs" / mission / "proofs.json").read_text("utf-8"))["proofs"]
    assert len(proofs) > 10 and all(proof["passed"] for proof in proofs)
    return folder / "runs" / mission


def test_the_recipes_say_what_their_mission_needs() -> None:
    found = {name: load_recipe(RECIPES / f"{name}.yaml") for name in SHAPES}
    checks = {name: recipe.data.checks for name, recipe in found.items()}
    assert checks["medical-qa"].phi == checks["safe-answers"].phi == "error"
    assert checks["kannada"].script == "error" and found["kannada"].train.patience
    assert found["chemical-disease"].data.split.group and found["chemical-disease"].train.keep == 3
    assert found["discharge-records"].data.instruction_role == "system"
    assert found["discharge-records"].evaluate.decoding.top_p == 0.9
    assert all(recipe.model.quantize == "nf4" for recipe in found.values())
