"""What people read: streams, tables, progress without a terminal, the log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import console


def test_results_and_notes_go_apart_and_both_into_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.log_to(tmp_path / "log.txt"):
        console.say("result")
        console.warn("careful")
    console.note("not logged")
    said = capsys.readouterr()
    assert said.out == "result\n" and said.err == "warning: careful\nnot logged\n"
    assert [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        "result",
        "warning: careful",
    ]


def test_a_reader_that_leaves_does_not_end_the_work(tmp_path: Path) -> None:
    """`tunesmith run … | head`: the lines after the pipe has closed go nowhere, the work goes on."""
    script = (
        "import sys, time; from tunesmith import console\n"
        "for i in range(2000): console.say(f'line {i}')\n"
        f"open({str(tmp_path / 'done')!r}, 'w').write('done')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.wait(30)
    assert (tmp_path / "done").read_text() == "done"


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("rows", ("split", "n"), [("train", 1200), ("test", 7)])
    assert capsys.readouterr().out == "rows\nsplit     n\n-----  ----\ntrain  1200\ntest      7\n"


def test_progress_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress("train", total=10, unit="steps") as bar:
        for _ in range(4):
            now += 4.0
            bar.update(1, loss=0.123456, tokens_per_second=1234)
    assert capsys.readouterr().err.splitlines() == [
        "train 3/10 steps, 0:28 left, loss 0.1235, tokens per second 1234",
        "train 4/10 steps, 0:24 left, loss 0.1235, tokens per second 1234",
    ]


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("load", total=2) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_progress_says_a_thing_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress("rows", total=0, unit="rows") as bar:
        now += 11.0
        bar.update(23040)
    assert capsys.readouterr().err.splitlines() == ["rows 23,040"]


def test_lines_end_where_the_terminal_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    console.say_under("error", "word " * 20 + "\nnext")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("error     word") and lines[1].startswith(" " * 10 + "word")
    assert max(map(len, lines)) <= 60 and lines[-1] == " " * 10 + "next"
