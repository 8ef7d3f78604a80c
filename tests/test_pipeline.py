"""One run through the command line: done once, changed recipes refused, forked, answered by what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_project import make_project

from tunesmith import pipeline
from tunesmith.cli import main
from tunesmith.pipeline import NAMES
from tunesmith.run import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, runs folder) of a run that has been trained."""
    folder = tmp_path_factory.mktemp("project")
    recipe = make_project(folder, rows=16, train={"max_steps": 2, "evaluate_every": 2})
    assert main(["train", str(recipe), "--runs-dir", str(folder / "runs")]) == 0
    return recipe, folder / "runs"


def test_again_does_nothing(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, runs = trained
    before = (runs / "tiny" / "metrics.jsonl").stat().st_mtime_ns
    assert main(["train", str(recipe), "--runs-dir", str(runs)]) == 0
    said = capsys.readouterr()
    assert "prepare: done already" in said.err and "train: done already" in said.err
    assert (runs / "tiny" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_changed_recipe_is_refused_with_the_difference(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, runs = trained
    assert main(["train", str(recipe), "--runs-dir", str(runs), "--set", "train.learning_rate=0.5"]) == 2
    said = capsys.readouterr().err
    assert "train.learning_rate: was 0.01, is 0.5" in said and "--fork" in said


def test_changed_rows_are_refused(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, runs = trained
    rows = recipe.parent / "train.jsonl"
    kept = rows.read_bytes()
    rows.write_bytes(kept + kept.splitlines(keepends=True)[0])
    try:
        assert main(["train", str(recipe), "--runs-dir", str(runs)]) == 2
    finally:
        rows.write_bytes(kept)
    assert "train rows: the file has changed" in capsys.readouterr().err


def test_what_answers_is_what_was_trained(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained in one half type, answered in another: the seed project's bug. The mutant is an edited recipe."""
    recipe, runs = trained
    stored = runs / "tiny" / "recipe.yaml"
    kept = stored.read_text()
    assert "dtype: bfloat16" in kept
    stored.write_text(kept.replace("dtype: bfloat16", "dtype: float16"))
    rows = recipe.parent / "new.jsonl"
    rows.write_text('{"prompt": "tumour"}\n')
    try:
        assert main(["evaluate", "tiny", "--runs-dir", str(runs)]) == 2
        assert (
            main(["predict", "tiny", str(rows), "--out", str(recipe.parent / "o"), "--runs-dir", str(runs)])
            == 2
        )
    finally:
        stored.write_text(kept)
    assert capsys.readouterr().err.count("model.dtype: was bfloat16, is float16") == 2


def test_a_stage_again_never_trains(trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows edited or gone since, another working folder: what is done again is done on what lies in the run."""
    recipe, runs = trained
    adapter = runs / "tiny" / "adapter" / "adapter_model.safetensors"
    before = adapter.read_bytes()
    rows = recipe.parent / "train.jsonl"
    kept = rows.read_bytes()
    rows.write_bytes(kept * 2)
    elsewhere = recipe.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    try:  # a random model never stops: the proof of that fails after the report is written
        assert main(["evaluate", str(runs / "tiny")]) in (0, 3)
    finally:
        rows.write_bytes(kept)
    assert (runs / "tiny" / "report" / "report.json").is_file()
    assert adapter.read_bytes() == before
    assert not list((runs / "tiny" / "checkpoints").glob("broken*"))


def test_a_stage_again_wants_the_ones_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_project(tmp_path, rows=16)
    assert main(["prepare", str(recipe), "--runs-dir", str(tmp_path / "runs")]) == 0
    assert main(["evaluate", "tiny", "--runs-dir", str(tmp_path / "runs")]) == 2
    assert "train has not finished in this run" in capsys.readouterr().err


def test_fork_starts_beside(trained: tuple[Path, Path]) -> None:
    recipe, runs = trained
    words = ["prepare", str(recipe), "--runs-dir", str(runs), "--fork", "--set", "train.learning_rate=0.5"]
    assert main(words) == 0
    assert Run(runs / "tiny-2").inputs_of("prepare") and not Run(runs / "tiny-2").inputs_of("train")


def test_predict_writes_an_answer_per_row(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, runs = trained
    rows, out = recipe.parent / "unlabelled.jsonl", recipe.parent / "answers.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"tumour node {i}", "id": str(i)}) + "\n" for i in range(5))
    )
    words = [
        "predict",
        "tiny",
        str(rows),
        "--out",
        str(out),
        "--max-tokens",
        "4",
        "--runs-dir",
        str(runs),
        "--json",
    ]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["exit"] == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [str(i) for i in range(5)]
    assert all({"answer", "parsed", "problems", "stopped"} <= set(line) for line in lines)


def test_nothing_to_score_is_told_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_project(tmp_path, rows=16)
    assert main(["run", str(recipe), "--runs-dir", str(tmp_path), "--set", "data.validation=null"]) == 2
    assert "no test and no validation rows" in capsys.readouterr().err
    assert not (tmp_path / "tiny" / "state.json").exists()


def test_stages_stand_in_order() -> None:
    assert NAMES == ("prepare", "train", "evaluate", "export")


def test_what_changes_while_a_stage_runs_counts_as_not_read(tmp_path: Path) -> None:
    rows = {"train rows": "before"}

    def changes(recipe: object, run: Run) -> None:
        rows["train rows"] = "after"

    stage = pipeline.Stage("prepare", changes, lambda recipe, run: dict(rows))
    run = Run(tmp_path / "one")
    run.path.mkdir()
    pipeline._do(stage, None, run, stage.inputs(None, run))  # type: ignore[arg-type]
    assert run.is_current("prepare", {"train rows": "before"}) and not run.is_current("prepare", rows)
