"""table: every logged number reads back as the same number."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_runs import make_run

from tunesmith.cli import main
from tunesmith.run import Run
from tunesmith.verbs.table import table
from tunesmith.view.logged import logged

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 2**60) | st.none()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        run = make_run(tmp_path / "runs", name, phase="train", step=1)
        with run.metrics_file.open("a") as file:
            file.write('{"step": 125, "loss": 0.')  # still being written
    return tmp_path / "runs"


def expected(run: Path) -> list[dict[str, Any]]:
    """The two files joined by hand."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]
    timing = {line["step"]: line for line in map(json.loads, (run / "timing.jsonl").read_text().splitlines())}
    return [{"run": run.name, **line, **timing[line["step"]]} for line in metrics]


def test_csv_reads_back(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "steps.csv"
    assert main(["table", "one", "two", "--runs-dir", str(runs), "--out", str(out)]) == 0
    with out.open(newline="") as file:
        found = list(csv.DictReader(file))
    wanted = expected(runs / "one") + expected(runs / "two")
    assert len(found) == len(wanted) == 48
    for row, line in zip(found, wanted, strict=True):
        assert row["run"] == line["run"] and set(row) == set(line)
        for key in set(line) - {"run"}:
            assert (None if row[key] == "" else float(row[key])) == line[key]


def test_json_on_stdout_reads_back(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "one", "--format", "json", "--runs-dir", str(runs)]) == 0
    assert json.loads(capsys.readouterr().out) == expected(runs / "one")


def test_the_last_line_is_the_object_that_json_asks_for(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", "one", "--runs-dir", str(runs), "--json"]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["rows"] == len(list(csv.reader(io.StringIO("\n".join(rows))))) - 1 == 24


@given(steps=st.dictionaries(st.integers(1, 10**6), st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=30))
def test_any_numbers_round_trip(
    tmp_path_factory: pytest.TempPathFactory, steps: dict[int, tuple[Any, Any]]
) -> None:
    run = Run(tmp_path_factory.mktemp("run"))
    run.recipe_file.write_text("name: x\n")
    ordered = sorted(steps.items())
    run.metrics_file.write_text("".join(json.dumps({"step": s, "loss": a}) + "\n" for s, (a, _) in ordered))
    run.timing_file.write_text("".join(json.dumps({"step": s, "seconds": b}) + "\n" for s, (_, b) in ordered))
    for form in ("csv", "json"):
        out = run.path / f"out.{form}"
        table([str(run.path)], "runs", form, out)
        text = out.read_text()
        rows = json.loads(text) if form == "json" else list(csv.DictReader(io.StringIO(text)))
        read = {
            int(row["step"]): tuple(
                type(value)(row[key]) if value is not None else (row[key] or None)
                for key, value in zip(("loss", "seconds"), steps[int(row["step"])], strict=True)
            )
            for row in rows
        }
        assert read == steps


def test_a_step_that_only_one_file_has_is_a_row_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics_file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    run.timing_file.write_text('{"step": 1, "seconds": 3.0}\n')
    columns, rows = logged({"x": run})
    assert columns == ["run", "step", "loss", "seconds"]
    assert rows == [
        {"run": "x", "step": 1, "loss": 2.0, "seconds": 3.0},
        {"run": "x", "step": 2, "loss": 1.0},
    ]


def test_a_place_that_cannot_be_written_is_told_first(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "one", "--runs-dir", str(runs), "--out", str(runs / "no" / "x.csv")]) == 2
    assert "can't be written" in capsys.readouterr().err


def test_a_file_gets_what_its_name_says(runs: Path, tmp_path: Path) -> None:
    for words, read in (
        (["--out", "steps.json"], json.loads),
        (["--out", "steps.csv"], lambda text: list(csv.DictReader(io.StringIO(text)))),
        (["--out", "steps", "--format", "json"], json.loads),
    ):
        out = tmp_path / words[1]
        given = [*words[:1], str(out), *words[2:]]
        assert main(["table", "one", "--runs-dir", str(runs), *given]) == 0
        assert [int(row["step"]) for row in read(out.read_text())] == list(range(5, 125, 5))


def test_a_run_without_steps_has_no_table(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(runs, "empty", curves=False, phase="prepare")
    assert main(["table", "empty", "--runs-dir", str(runs)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "no step is logged yet in empty" in said.err
    assert main(["table", "one", "empty", "--runs-dir", str(runs)]) == 0
    assert "warning: no step is logged yet in empty" in capsys.readouterr().err


def test_a_broken_line_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = runs / "one" / "timing.jsonl"
    file.write_text('{"step": 5}\n\n{"step"\n')
    for verb in ("table", "plot"):
        assert main([verb, "one", "--runs-dir", str(runs)]) == 2
        assert f"where: {file}:3" in capsys.readouterr().err
