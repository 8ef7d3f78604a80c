"""Rows of a run as an inspect_ai log: written by that library and read back by it; without it, a line to mend it.

inspect_ai pins older versions of libraries that other tests need, so it is not in the `test` extra: where it is
installed (pip install 'tunesmith[inspect]'), these tests run.
"""

from __future__ import annotations

import builtins
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny_run import guess, recipe, reports, write_predictions, write_run

from tunesmith.cli import main
from tunesmith.evaluate import inspect_log
from tunesmith.evaluate.report import write_report
from tunesmith.evaluate.score import Systems
from tunesmith.recipe_file import dump_recipe
from tunesmith.run import Run
from tunesmith.tasks import make_task
from tunesmith.tasks.score import score_predictions

TRAIN, TEST = reports(40, seed=1, name="train"), reports(30, seed=2, name="test")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run without a model."""
    rng = random.Random(0)
    made = write_run(tmp_path / "runs" / "tiny", TRAIN, test=TEST)
    for name, skill in (("tuned", 0.8), ("base", 0.3)):
        write_predictions(made.predictions / f"{name}.jsonl", TEST, [guess(row, rng, skill) for row in TEST])
    given = recipe(evaluate={"task": "extraction"})
    made.recipe_file.write_text(dump_recipe(given))
    write_report(given, made)
    return made


def read(path: Path) -> Any:
    log = pytest.importorskip("inspect_ai.log", reason="pip install 'tunesmith[inspect]'")
    return log.read_eval_log(str(path))


def installed() -> None:
    pytest.importorskip("inspect_ai.log", reason="pip install 'tunesmith[inspect]'")


@pytest.mark.parametrize("kind", ["eval", "json"])
def test_inspect_ai_reads_back_what_was_written(run: Run, tmp_path: Path, kind: str) -> None:
    installed()
    out = tmp_path / f"tuned.{kind}"
    assert main(["evaluate", str(run.path), "--inspect-log", str(out)]) == 0
    log, report = read(out), run.read_json(run.report / "report.json")
    assert log.status == "success" and log.eval.model == "tunesmith/tiny/tuned"
    samples = {sample.id: sample for sample in log.samples}  # the library sorts them by id
    assert len(log.samples) == len(TEST) and set(samples) == {row.id for row in TEST}
    assert {score.name for score in log.results.scores} == set(report["scores"]["tuned"])
    for score in log.results.scores:
        wanted = report["scores"]["tuned"][score.name]
        assert {name: one.value for name, one in score.metrics.items()} == {
            key: wanted[key] for key in ("value", "low", "high") if wanted[key] is not None
        }
    lines = [json.loads(line) for line in (run.predictions / "tuned.jsonl").read_text().splitlines()]
    for row, line in zip(TEST, lines, strict=True):
        sample = samples[row.id]
        assert sample.input[-1].content == row.asked and sample.target == row.answer
        assert sample.output.completion == line["answer"] and sample.metadata["slices"] == row.slices
        assert (sample.output.stop_reason == "stop") == line["stopped"]


def test_scores_of_samples_are_those_of_rows(run: Run, tmp_path: Path) -> None:
    installed()
    main(["evaluate", str(run.path), "--inspect-log", str(tmp_path / "t.json"), "--system", "base"])
    log = read(tmp_path / "t.json")
    exact = [sample.scores["row_exact"].value for sample in log.samples]
    wanted = run.read_json(run.report / "report.json")["scores"]["base"]["row_exact"]["value"]
    assert sum(exact) / len(exact) == pytest.approx(wanted)
    assert any(sample.metadata["faults"] for sample in log.samples)
    perfect = [sample for sample in log.samples if sample.scores["row_exact"].value == 1]
    assert not any(sample.metadata["faults"] for sample in perfect)


def test_several_answers_of_a_row_are_epochs(run: Run, tmp_path: Path) -> None:
    installed()
    lines = [
        {"id": row.id, "answer": row.answer if sample else "{}", "sample": sample}
        for row in TEST
        for sample in (0, 1)
    ]
    path = run.predictions / "tuned.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(["evaluate", str(run.path), "--inspect-log", str(tmp_path / "t.json")])
    log = read(tmp_path / "t.json")
    assert len(log.samples) == 60 and log.eval.config.epochs == 2
    found = {(one.id, one.epoch): one.scores["row_exact"].value for one in log.samples}
    assert (found[TEST[0].id, 1], found[TEST[0].id, 2]) == (0, 1)


@pytest.mark.parametrize("way", ["option", "report"])
def test_a_redacted_log_holds_no_text_of_rows(run: Run, tmp_path: Path, way: str) -> None:
    installed()
    if way == "report":
        write_report(recipe(evaluate={"task": "extraction"}), run, redact=True)
    words = ["--redact"] if way == "option" else []
    assert main(["evaluate", str(run.path), "--inspect-log", str(tmp_path / "t.json"), *words]) == 0
    text = (tmp_path / "t.json").read_text()
    assert "osimertinib" not in text and "Report test" not in text and "liver" not in text
    log = read(tmp_path / "t.json")
    assert len(log.samples) == 30 and log.samples[0].scores and log.eval.metadata["redacted"] is True


def test_a_log_that_does_not_leave_texts_out_is_noticed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed()
    real = inspect_log._sample
    monkeypatch.setattr(
        inspect_log, "_sample", lambda task, row, epoch, name, redact: real(task, row, epoch, name, False)
    )
    with pytest.raises(AssertionError):
        test_a_redacted_log_holds_no_text_of_rows(run, tmp_path, "option")


def test_without_the_library_the_line_that_mends_it_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("inspect_ai"):
            raise ImportError("No module named 'inspect_ai'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["evaluate", str(run.path), "--inspect-log", str(tmp_path / "t.eval")]) == 2
    assert "pip install 'tunesmith[inspect]'" in capsys.readouterr().err
    assert not (tmp_path / "t.eval").exists()


def test_an_unknown_system_and_an_unknown_kind_of_file(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed()
    out = str(tmp_path / "t.eval")
    assert main(["evaluate", str(run.path), "--inspect-log", out, "--system", "gpt"]) == 2
    assert "--system one of: tuned, base" in capsys.readouterr().err
    assert main(["evaluate", str(run.path), "--inspect-log", str(tmp_path / "t.csv")]) == 2
    assert ".eval or .json" in capsys.readouterr().err
    assert list(tmp_path.glob("t.*")) == []


def test_metrics_of_likelihoods_are_no_metrics_of_a_row(tmp_path: Path) -> None:
    """They need counts that no answer gives."""
    task = make_task("extraction", None, [row.answer or "" for row in TRAIN])
    write_predictions(tmp_path / "tuned.jsonl", TEST, [row.answer or "" for row in TEST])
    scored = score_predictions(tmp_path / "tuned.jsonl", TEST, task)
    systems = Systems(task, TEST, {"tuned": scored})
    row = inspect_log.answered(task, systems.examples[0], scored.predictions[0][0])
    made = inspect_log._row_metrics(task, row)
    assert (
        made["row_exact"] == 1
        and not any(":" in name for name in made)
        and all(v == v for v in made.values())
    )
