"""clean: what may go, what never goes, who is asked, and that an interruption leaves nothing half."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_project import make_project, metrics, start_training, train_to_end

from tunesmith.cli import main
from tunesmith.run import Run, held
from tunesmith.train.checkpoint import Checkpoints

WEIGHTS = {"weights": {"a": torch.arange(64.0)}}


def make_run(
    runs: Path, *, best: int | None, finished: bool, steps: tuple[int, ...] = (10, 20, 30, 40)
) -> Run:
    """A run with whole checkpoints, an adapter, a merged model and a report."""
    run = Run(runs / "run")
    checkpoints = Checkpoints(run.checkpoints, run="id", keep=9)
    for step in steps:
        checkpoints.save({"step": step, "best_step": best}, WEIGHTS, best_step=best)
    checkpoints.wait()
    run.recipe_file.write_text("name: run\n")
    for folder in ("adapter", "merged", "report", "predictions"):
        (run.path / folder).mkdir()
        (run.path / folder / "file").write_text(folder)
    (run.checkpoints / ".step-00000015.abc.tmp").mkdir()
    (run.checkpoints / "broken-step-00000005-1234").mkdir()
    if finished:
        run.stamp("train", {"recipe": "x"})
    return run


def clean(runs: Path, *words: str) -> int:
    return main(["clean", *words, "--runs-dir", str(runs)])


def left(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


KEPT = {
    "finished": (30, True, ["LATEST", "step-00000030"]),
    "finished without validation": (None, True, ["LATEST", "step-00000040"]),
    "unfinished": (20, False, ["LATEST", "step-00000020", "step-00000040"]),
    "unfinished, newest is best": (40, False, ["LATEST", "step-00000040"]),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_stays(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    best, finished, kept = KEPT[name]
    run = make_run(tmp_path, best=best, finished=finished)
    outside = {path: path.read_bytes() for path in run.path.glob("*/file")}
    assert len(outside) == 4
    assert clean(tmp_path, "run", "--yes") == 0
    assert left(run) == kept
    assert {path: path.read_bytes() for path in run.path.glob("*/file")} == outside
    assert (run.checkpoints / "LATEST").read_text().strip() == kept[-1]
    newest = Checkpoints(run.checkpoints, run="id", keep=2).newest()
    assert newest is not None and f"step-{newest.step:08d}" == kept[-1]
    said = capsys.readouterr().out
    assert "remove  " in said and "in all; keeps step-" in said and "removed " in said
    assert clean(tmp_path, "run") == 0  # nothing left to ask about
    assert "nothing to remove" in capsys.readouterr().out


def test_a_broken_newest_checkpoint_saves_the_one_before(tmp_path: Path) -> None:
    """The mutant's way, to keep the highest number unread, would leave nothing to go on from."""
    run = make_run(tmp_path, best=10, finished=False)
    file = run.checkpoints / "step-00000040" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert clean(tmp_path, "run", "--yes") == 0
    assert left(run) == ["LATEST", "step-00000010", "step-00000030"]
    newest = Checkpoints(run.checkpoints, run="id", keep=2).newest()
    assert newest is not None and newest.step == 30


def test_where_no_checkpoint_is_whole_none_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path, best=None, finished=False, steps=(10, 20))
    for manifest in run.checkpoints.glob("*/MANIFEST.json"):
        manifest.write_text("{")
    assert clean(tmp_path, "run", "--yes") == 0
    assert left(run) == ["LATEST", "broken-step-00000005-1234", "step-00000010", "step-00000020"]


def test_nothing_goes_without_a_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, best=30, finished=True)
    before = left(run)
    assert clean(tmp_path, "run", "--json") == 2
    said = capsys.readouterr()
    assert "give the same command with --yes" in said.err and "step-00000010" in said.out
    assert left(run) == before


@pytest.mark.parametrize(("answer", "goes"), [("yes\n", True), ("\n", False)])
def test_a_terminal_is_asked(tmp_path: Path, answer: str, goes: bool) -> None:
    """A real terminal: a pseudo-terminal that types the answer."""
    import pty

    run = make_run(tmp_path, best=30, finished=True)
    child, terminal = pty.fork()
    if child == 0:
        command = [sys.executable, "-m", "tunesmith.cli", "clean", "run", "--runs-dir", str(tmp_path)]
        os.execv(sys.executable, command)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(terminal, 1024)
    os.write(terminal, answer.encode())
    try:
        while more := os.read(terminal, 1024):
            said += more
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (left(run) == ["LATEST", "step-00000030"]) == goes
    assert (b"nothing is removed" in said) != goes


def test_a_run_at_work_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, best=30, finished=True)
    before = left(run)
    with run.lock():
        assert clean(tmp_path, "run", "--yes") == 2
    assert "works in this run" in capsys.readouterr().err
    assert left(run) == before


@pytest.mark.parametrize("moment", range(6))
def test_an_interruption_leaves_whole_checkpoints_only(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the middle of each removal: what has a checkpoint's name is one; the next clean ends the work."""
    run = make_run(tmp_path, best=20, finished=False)
    calls = 0
    real = shutil.rmtree

    def torn(path: Path, **_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > moment:
            for file in list(Path(path).iterdir())[:1]:
                file.unlink()
            raise KeyboardInterrupt
        real(path)

    monkeypatch.setattr(shutil, "rmtree", torn)
    code = clean(tmp_path, "run", "--yes")
    monkeypatch.undo()
    assert code == (75 if moment < 4 else 0)
    checkpoints = Checkpoints(run.checkpoints, run="id", keep=9)
    assert all(
        checkpoints.problem(run.checkpoints / f"step-{step:08d}") is None for step in checkpoints.steps()
    )
    assert {20, 40} <= set(checkpoints.steps())
    assert clean(tmp_path, "run", "--yes") == 0
    assert left(run) == ["LATEST", "step-00000020", "step-00000040"]


def test_a_cleaned_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole, stopped = (make_project(tmp_path, name=name) for name in ("whole", "stopped"))
    assert train_to_end(whole, tmp_path / "runs") == 0
    process = start_training(stopped, tmp_path / "runs", "after the save of step 15: SIGKILL")
    checkpoints = tmp_path / "runs" / "stopped" / "checkpoints"
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    assert clean(tmp_path / "runs", "stopped", "--yes") == 0
    assert 1 <= len(list(checkpoints.glob("step-*"))) <= 2
    assert train_to_end(stopped, tmp_path / "runs") == 0
    assert metrics(tmp_path / "runs" / "stopped") == metrics(tmp_path / "runs" / "whole")
    assert "resumed at step" in (tmp_path / "runs" / "stopped" / "log.txt").read_text()


def test_rows_that_no_run_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / ".rows"
    for key in ("shared", "orphan", ".half.tmp", ".killed.tmp"):
        (cache / key).mkdir(parents=True)
        (cache / key / "train.ids.npy").write_bytes(b"x" * 5000)
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "train.ids.npy").hardlink_to(cache / "shared" / "train.ids.npy")
    with held(cache / ".half.tmp"):  # as the process that fills it does
        assert clean(tmp_path, "--cache", "--yes", "--json") == 0
        said = capsys.readouterr().out
        assert "keeps 1 that runs share, and 1 at which a process works" in said
        last = json.loads(said.splitlines()[-1])
        assert sorted(Path(name).name for name in last["removed"]) == [".killed.tmp", "orphan"]
        assert last["bytes"] == 10000
        assert sorted(path.name for path in cache.iterdir()) == [".half.tmp", "shared"]
        shutil.rmtree(tmp_path / "run")
        assert clean(tmp_path, "--cache", "--yes") == 0
        assert [path.name for path in cache.iterdir()] == [".half.tmp"]


def test_rows_that_are_being_prepared_stay_and_those_of_a_killed_process_go(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom tunesmith.data.cache import filling\n"
        "with filling(Path(sys.argv[1])) as place:\n"
        "    (place / 'rows').write_text('x')\n    print('fills', flush=True)\n    time.sleep(60)"
    )
    cache = tmp_path / ".rows"
    with subprocess.Popen(
        [sys.executable, "-c", script, cache / "key"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "fills\n"
        assert clean(tmp_path, "--cache", "--yes") == 0 and len(list(cache.iterdir())) == 1
        process.kill()
        process.wait()
    assert len(list(cache.iterdir())) == 1
    assert clean(tmp_path, "--cache", "--yes") == 0 and list(cache.iterdir()) == []


def test_what_is_to_be_cleaned_must_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean(tmp_path) == 2 and clean(tmp_path, "run", "--cache") == 2
    assert clean(tmp_path, "s3://bucket/run") == 2
    assert "clean RUN, or clean --cache" in capsys.readouterr().err
