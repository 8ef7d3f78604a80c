"""evaluate --from: one file alone with its whole report, and another system's file beside a run's own."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tiny_run import guess, recipe, reports, write_predictions, write_run

from tunesmith.cli import main
from tunesmith.errors import RowCheckFailed, TunesmithError
from tunesmith.evaluate.report import write_report
from tunesmith.evaluate.systems import System, described, settle
from tunesmith.recipe_file import dump_recipe
from tunesmith.run import Run
from tunesmith.verbs.score import score, score_beside

TRAIN, TEST = reports(60, seed=1, name="train"), reports(40, seed=2, name="test")


def answers(skill: float, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [guess(row, rng, skill) for row in TEST]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run without a model."""
    made = write_run(tmp_path / "runs" / "tiny", TRAIN, test=TEST)
    for name, skill in (("tuned", 0.9), ("base", 0.3)):
        write_predictions(made.predictions / f"{name}.jsonl", TEST, answers(skill))
    given = recipe(evaluate={"task": "extraction"})
    made.recipe_file.write_text(dump_recipe(given))
    settle(made, [System("tuned", "tuned", "tuned", ""), System("base", "base", "base", "")])
    write_report(given, made)
    return made


def whole_file(path: Path, skill: float = 0.7) -> Path:
    write_predictions(path, TEST, answers(skill, seed=5))
    return path


# ---- alone


def test_a_file_alone_gets_json_markdown_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = whole_file(tmp_path / "gpt.jsonl")
    made = score(recipe(evaluate={"task": "extraction"}), file, tmp_path / "runs", tmp_path / "report")
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["scores"]["gpt"]["item_f1"] == made["scores"]["item_f1"]
    assert content["faults"]["gpt"]["faulty_rows"] > 0 and content["systems"]["gpt"]["kind"] == "other"
    assert "base" not in content and "difference" not in content["headline"]
    page, text = ((tmp_path / "report" / f"report.{kind}").read_text() for kind in ("html", "md"))
    first = "Scored from gpt.jsonl alone: what answered, and whether it had seen these rows, is not known."
    assert text.splitlines()[0].endswith(first) and first in page
    for said in ("hallucinated", "gpt.jsonl", "Fields", content["alone"]["sha256"]):
        assert said in page and said in text, said
    assert TEST[0].asked.partition(".")[0] in page  # examples quote rows
    out = capsys.readouterr().out
    assert "rows have faults" in out and "report.html" in out


def test_a_redacted_report_of_a_file_quotes_nothing(tmp_path: Path) -> None:
    score(recipe(), whole_file(tmp_path / "gpt.jsonl"), tmp_path, tmp_path / "report", redact=True)
    for path in (tmp_path / "report").iterdir():
        text = path.read_text()
        assert "osimertinib" not in text and "Report test" not in text, path
    assert json.loads((tmp_path / "report" / "report.json").read_text())["redacted"] is True


def test_without_out_nothing_is_written(tmp_path: Path) -> None:
    file = whole_file(tmp_path / "gpt.jsonl")
    before = set(tmp_path.rglob("*"))
    score(recipe(), file, tmp_path / "runs")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["tuned", "base", "majority", "odd name"])
def test_a_file_may_be_called_as_a_system(tmp_path: Path, name: str) -> None:
    score(recipe(), whole_file(tmp_path / f"{name}.jsonl"), tmp_path, tmp_path / "report")
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert set(content["scores"]) == {name} and content["faults"][name]["rows"] == 40


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe()))
    whole_file(tmp_path / "gpt.jsonl")
    assert main(["evaluate", "--from", "gpt.jsonl", "--recipe", "r.yaml", "--out", "report", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["exit"] == 0 and told["headline"]["metric"] == "item_f1" and Path(told["report"]).is_file()
    for wrong in (
        ["--from", "gpt.jsonl"], ["tiny", "--from", "gpt.jsonl", "--recipe", "r.yaml"],
        ["tiny", "--from", "gpt.jsonl", "--out", "x"], ["tiny", "--out", "x"], [],
        ["tiny", "--from", "gpt.jsonl", "--inspect-log", "x.json"],
    ):  # fmt: skip
        assert main(["evaluate", *wrong]) == 2, wrong
    assert not (tmp_path / "runs").exists()


# ---- training answers, for tasks that look answers up in them


def records(tmp_path: Path) -> tuple[Path, list[str]]:
    """Two training rows' answers; a file of predictions of which one copies the first."""
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
    texts = [" ".join(f"{letter}{word}" for word in words) for letter in "abcd"]
    train = [{"prompt": f"train {i}", "completion": f"Plan:\n{texts[i]}"} for i in range(2)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    lines = [
        {"id": f"r{i}", "prompt": f"row {i}", "gold": f"Plan:\n{texts[2]}", "answer": f"Plan:\n{text}"}
        for i, text in enumerate((texts[0], texts[3]))
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "p.jsonl", texts


def copied(made: dict[str, object], tmp_path: Path) -> float | None:
    scores = made["scores"]
    assert isinstance(scores, dict)
    return scores["copied"]["value"] if "copied" in scores else None


def test_training_answers_come_from_data_train(tmp_path: Path) -> None:
    file, _ = records(tmp_path)
    given = recipe(data={"train": str(tmp_path / "train.jsonl")}, evaluate={"task": "records"})
    assert copied(score(given, file, tmp_path / "runs"), tmp_path) == 0.5


def test_rows_that_are_scored_are_no_training_rows(tmp_path: Path) -> None:
    file, texts = records(tmp_path)
    with (tmp_path / "train.jsonl").open("a") as rows:  # data.split takes test rows out of data.train
        rows.write(json.dumps({"prompt": "row 1", "completion": f"Plan:\n{texts[3]}"}) + "\n")
    given = recipe(data={"train": str(tmp_path / "train.jsonl")}, evaluate={"task": "records"})
    assert copied(score(given, file, tmp_path / "runs"), tmp_path) == 0.5


def test_training_answers_of_the_run_come_first_and_of_another_recipe_never(tmp_path: Path) -> None:
    file, _ = records(tmp_path)
    run = write_run(tmp_path / "runs" / "tiny", TRAIN, test=TEST)
    given = recipe(data={"train": str(tmp_path / "train.jsonl")}, evaluate={"task": "records"})
    assert copied(score(given, file, tmp_path / "runs"), tmp_path) == 0.0  # none of TRAIN's is copied
    run.write_json(run.lock_file, {"recipe": {"seed": 99}})
    run.stamp("train", {"base": "x"})
    assert copied(score(given, file, tmp_path / "runs"), tmp_path) == 0.5


def test_training_rows_that_cannot_be_read_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = records(tmp_path)
    given = recipe(data={"train": str(tmp_path / "gone.jsonl")}, evaluate={"task": "records"})
    made = score(given, file, tmp_path / "runs")
    assert copied(made, tmp_path) is None
    said = capsys.readouterr()
    assert "can't be read, so nothing is looked up" in said.err + said.out


# ---- beside a run


def test_another_system_stands_beside_base_and_tuned(run: Run, tmp_path: Path) -> None:
    file = whole_file(tmp_path / "gpt-5 mini.jsonl")
    made = score_beside(str(run.path), file, tmp_path / "runs")
    assert made["system"] == "gpt-5-mini"
    content = run.read_json(run.report / "report.json")
    assert set(content["scores"]) == {"tuned", "base", "gpt-5-mini"}
    assert content["systems"]["gpt-5-mini"]["kind"] == "other"
    assert content["headline"]["tuned"] > content["scores"]["gpt-5-mini"]["item_f1"]["value"]
    assert content["over_others"]["gpt-5-mini"]["low"] is not None
    assert "gpt-5-mini scores" in (run.report / "report.md").read_text()
    assert (run.predictions / "gpt-5-mini.jsonl").read_bytes() == file.read_bytes()


def test_it_stays_when_the_run_is_evaluated_again(run: Run, tmp_path: Path) -> None:
    score_beside(str(run.path), whole_file(tmp_path / "gpt.jsonl"), tmp_path / "runs")
    settle(run, [System("tuned", "tuned", "tuned", ""), System("base", "base", "base", "")])
    assert described(run)["gpt"]["kind"] == "other"
    assert "gpt" in write_report(recipe(evaluate={"task": "extraction"}), run)["scores"]


def test_a_file_for_rows_that_have_changed_is_left_out_with_a_note(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_beside(str(run.path), whole_file(tmp_path / "gpt.jsonl"), tmp_path / "runs")
    kept = (run.predictions / "gpt.jsonl").read_text().splitlines(keepends=True)
    (run.predictions / "gpt.jsonl").write_text("".join(kept[:-1]))
    content = write_report(recipe(evaluate={"task": "extraction"}), run)
    assert set(content["scores"]) == {"tuned", "base"}
    said = capsys.readouterr()
    assert "given again (evaluate RUN --from FILE)" in said.err + said.out


def test_other_ids_are_refused_and_change_nothing(run: Run, tmp_path: Path) -> None:
    before = (run.report / "report.json").read_bytes()
    rows = reports(40, seed=3, name="else")
    write_predictions(tmp_path / "gpt.jsonl", rows, [row.answer or "" for row in rows])
    with pytest.raises(RowCheckFailed, match="40 without a prediction"):
        score_beside(str(run.path), tmp_path / "gpt.jsonl", tmp_path / "runs")
    assert (run.report / "report.json").read_bytes() == before and not (
        run.predictions / "gpt.jsonl"
    ).exists()


@pytest.mark.parametrize("name", ["tuned", "base", "majority", "zero-shot", "Q4_K_M"])
def test_names_of_the_runs_own_systems_are_refused(run: Run, tmp_path: Path, name: str) -> None:
    write_predictions(run.predictions / "Q4_K_M.jsonl", TEST, answers(0.8))  # as export leaves it
    before = (run.predictions / "tuned.jsonl").read_bytes()
    with pytest.raises(TunesmithError, match="a system of its own"):
        score_beside(str(run.path), whole_file(tmp_path / f"{name}.jsonl"), tmp_path / "runs")
    assert (run.predictions / "tuned.jsonl").read_bytes() == before


def test_a_run_without_a_report_is_told_what_to_do(tmp_path: Path) -> None:
    made = write_run(tmp_path / "runs" / "bare", TRAIN, test=TEST)
    made.recipe_file.write_text(dump_recipe(recipe()))
    made.write_state(phase="prepare")
    with pytest.raises(TunesmithError, match="no report yet"):
        score_beside(str(made.path), whole_file(tmp_path / "gpt.jsonl"), tmp_path / "runs")
