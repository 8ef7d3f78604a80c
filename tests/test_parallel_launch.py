"""`train.parallel: ddp` as a user starts it: stopped, killed, out of memory, resumed. Real commands and signals."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_project import _train, adapter_sha256, make_project, metrics, prepare_run
from tiny_ranks import lines, newest, prepared, together

from tunesmith.errors import SetupError
from tunesmith.train import launch

PATIENCE = (
    240.0  # seconds: four starts of two ranks, each of which imports torch, on a machine that has other work
)
linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


def command(project: Path, name: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[str]:
    monkeypatch.setenv(launch.COUNT, "2")
    recipe = make_project(
        project, name=name, model={"dtype": "float32"}, train={"parallel": "ddp", **settings}
    )
    return ["train", str(recipe), "--runs-dir", str(project / "runs")]


def start(recipe: Path, runs: Path, place: Path | None = None) -> BaseProcess:
    """`tunesmith train RECIPE` as `start_training` starts it, on two ranks, with a folder of theirs to import from."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_with_two_ranks, args=(str(recipe), str(runs), place))
    process.start()
    return process


def _with_two_ranks(recipe: str, runs: str, place: Path | None) -> None:
    os.environ[launch.COUNT] = "2"
    if place:
        os.environ["PYTHONPATH"] = str(place)
    _train(recipe, runs, None)


def ranks_of(run: Path) -> dict[int, int]:
    """Process ids by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if "tunesmith.train.rank" in words and str(run) in words:
            found[int(words[-4])] = int(path.parent.name)
    return found


def until(happened: Callable[[], Any], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


STANDS = """
import time
from pathlib import Path
from tunesmith.train.log import Log

metrics, stand = Log.metrics, Path(__file__).with_name("stand")


def standing(self, line):
    while stand.exists() and line["step"] >= int(stand.read_text() or 10**9):
        time.sleep(0.01)
    return metrics(self, line)


Log.metrics = standing
"""


@linux
def test_stopped_a_rank_killed_all_killed_and_resumed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"epochs": 16, "save_every": 10, "evaluate_every": 20}
    whole = prepare_run(Path(command(project, "whole", monkeypatch, **settings)[1]), project / "runs")
    assert together(*whole, 2) == [None, None]
    recipe = Path(command(project, "hurt", monkeypatch, **settings)[1])
    run, runs, place = project / "runs" / "hurt", project / "runs", project / "stands"
    place.mkdir()
    (place / "sitecustomize.py").write_text(STANDS)
    stand = place / "stand"

    def started(steps: int) -> Any:
        """It stands still behind that checkpoint while `stand` is there."""
        stand.write_text(f"{steps + 5}")
        process = start(recipe, runs, place)
        until(lambda: len(list((run / "checkpoints").glob("step-*"))) and newest(run) >= steps)
        assert process.pid is not None
        return process

    process = started(10)
    os.kill(process.pid, signal.SIGTERM)
    until(lambda: "SIGTERM: finishing this step" in (run / "log.txt").read_text())
    stand.unlink()
    process.join(PATIENCE)
    state = json.loads((run / "state.json").read_text())
    assert process.exitcode == 75 and state["phase"] == "stopped" and state["step"] == newest(run) < 160
    assert (run / "log.txt").read_text().count("SIGTERM: finishing this step") == 1
    assert (run / "log.txt").read_text().count("train.parallel: ddp: 2 ranks") == 1

    process = started(newest(run) + 10)
    os.kill(ranks_of(run)[1], signal.SIGKILL)
    stand.unlink()
    process.join(PATIENCE)
    assert process.exitcode == 75 and not ranks_of(run)
    assert (
        "rank 1 of 2 was ended by SIGKILL" in json.loads((run / "state.json").read_text())["ended"]["error"]
    )

    process = started(newest(run) + 10)
    process.kill()  # the ranks see their parent go: the run's lock went with it
    until(lambda: not ranks_of(run))
    stand.unlink()
    process = start(recipe, runs)
    process.join(PATIENCE)
    assert process.exitcode == 0
    saved = json.loads((run / "checkpoints" / f"step-{newest(run):08d}" / "state.json").read_text())
    assert [resume["exact"] for resume in saved["resumes"]] == [True] * 3
    assert metrics(run) == metrics(runs / "whole") and adapter_sha256(run) == adapter_sha256(runs / "whole")


SPOILT = """
import sys
import torch
from tunesmith.engine.reference import ReferenceEngine

step = ReferenceEngine.step


def spoilt(self, batch, scale):
    if batch.step >= 12 and sys.argv[3:4] == ["1"]:
        raise {error}
    return step(self, batch, scale)


ReferenceEngine.step = spoilt
"""


def test_a_rank_without_memory_is_told_once_and_resumable(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tunesmith.cli import main

    (tmp_path / "sitecustomize.py").write_text(SPOILT.format(error="torch.OutOfMemoryError('none left')"))
    arguments = command(project, "memory", monkeypatch)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert main(arguments) == 75
    heard = capfd.readouterr().err
    assert heard.count("out of memory") == 1 and "where: rank 1, step 12, micro-batch 1 of 1" in heard
    assert "Traceback" not in heard
    assert newest(project / "runs" / "memory") == 10


def test_one_device_trains_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, run = prepared(project, "single", parallel="ddp")
    if not torch.cuda.is_available():
        monkeypatch.delenv(launch.COUNT, raising=False)
        launch.train(recipe, run)
        assert "there is one device here, so it trains alone" in capfd.readouterr().err
    for wrong in ("0", "two", "100000"):
        monkeypatch.setenv(launch.COUNT, wrong)
        with pytest.raises(SetupError, match=f"{launch.COUNT}={wrong}"):
            launch.count()
    assert math.isfinite(lines(run)[-1]["loss"])
