"""What is told of ranks that failed: the first cause alone, and 75 only where the same command helps."""

from __future__ import annotations

import pickle
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_project import make_project

from tunesmith.errors import AccessError, SetupError, Stopped, TunesmithError
from tunesmith.run import Run
from tunesmith.train import launch
from tunesmith.train.parallel import PeerLost, Ranks
from tunesmith.train.signals import StopRequest

Error = TunesmithError | str | None
Cause = Callable[..., BaseException]


def ended(how: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["sh", "-c", how])
    process.wait()
    return process


@pytest.fixture
def cause(tmp_path: Path) -> Cause:
    """What is raised of ranks that ended so: a shell command and an error for each."""
    run = Run(tmp_path)

    def told(
        *ranks: tuple[str, Error], stop: signal.Signals | None = None, saved: bool = False
    ) -> BaseException:
        request = StopRequest()
        request.signal = stop
        found = [
            launch._Rank(number, ended(how), None, at=number, error=error)
            for number, (how, error) in enumerate(ranks)
        ]
        if found[-1].number:
            found[-1].log = tmp_path / "log.rank1.txt"
            found[-1].log.write_text("its last words")
        if saved:
            (run.checkpoints / "step-00000005").mkdir(parents=True)
            (run.checkpoints / "step-00000005" / "MANIFEST.json").touch()
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            launch._raise_cause(found, run, request, before=[])
        return caught.value

    return told


LOST = PeerLost("the other ranks have gone: Connection closed by peer")


def test_a_crash_is_no_stop(cause: Cause) -> None:
    """Exit code 75 would make a loop around the command repeat it for ever."""
    crashed = cause(("exit 1", LOST), ("kill -SEGV $$", None))
    assert isinstance(crashed, RuntimeError) and "rank 1 of 2 crashed with SIGSEGV" in str(crashed)
    assert "/dev/shm" in str(cause(("exit 1", LOST), ("kill -BUS $$", None)))
    assert isinstance(cause(("exit 1", LOST), ("kill -KILL $$", None)), Stopped)


def test_ranks_that_can_not_talk_are_no_stop(cause: Cause) -> None:
    """NCCL's own errors look like a lost peer to every rank."""
    first = PeerLost("the other ranks have gone: NCCL error: unhandled cuda error")
    parted = cause(("exit 1", first), ("exit 1", LOST))
    assert isinstance(parted, SetupError) and parted.exit_code == 2
    assert "unhandled cuda error" in parted.what and "NCCL_DEBUG" in str(parted.fix)
    assert cause(("exit 1", first), ("exit 1", LOST), saved=True).exit_code == 75  # type: ignore[attr-defined]


def test_one_that_did_not_answer_is_a_stop(cause: Cause) -> None:
    """It was killed by us at the end: the other's word is the one to tell."""
    run, request = Run(Path("nowhere")), StopRequest()
    hung = launch._Rank(1, ended("kill -KILL $$"), None, ours=True)
    with pytest.raises(PeerLost):
        launch._raise_cause([launch._Rank(0, ended("exit 1"), None, error=LOST), hung], run, request, [])


def test_a_stop_before_the_first_step_is_told_as_one(cause: Cause) -> None:
    """Whoever heard it first went, and took the others' sums away."""
    stopped = Stopped("stopped before training went on")
    assert cause(("exit 1", LOST), ("exit 1", stopped), stop=signal.SIGTERM) is stopped
    both = cause(("exit 1", LOST), ("exit 1", LOST), stop=signal.SIGTERM)
    assert isinstance(both, Stopped) and "stopped by SIGTERM" in both.what


def test_a_rank_that_ends_without_a_word_is_shown(cause: Cause, capsys: pytest.CaptureFixture[str]) -> None:
    """An import that fails in one process only."""
    assert "[1, 1]" in str(cause(("exit 1", LOST), ("exit 1", None)))
    assert "its last words" in capsys.readouterr().err


def test_our_own_lack_of_memory_is_no_lost_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensor: torch.Tensor, **_: object) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(torch.distributed, "all_reduce", full)
    with pytest.raises(torch.OutOfMemoryError):
        Ranks(0, 2).add(torch.ones(1))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nobody_else_can_reach_the_store() -> None:
    store = launch._store()
    end = f":{store.port:04X}"
    places = [
        words[1]
        for name in ("tcp", "tcp6")
        for words in map(str.split, Path("/proc/net", name).read_text().splitlines()[1:])
        if words[1].endswith(end) and words[3] == "0A"
    ]
    assert places == [f"{socket.inet_aton('127.0.0.1')[::-1].hex().upper()}{end}"]
    store.set("a", "b")
    assert store.get("a") == b"b"


def test_ranks_without_rows_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunesmith.recipe_file import load_recipe

    def never(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(launch, "_start", never)
    recipe = load_recipe(make_project(tmp_path, train={"batch": 2}))
    for size, idle in ((2, False), (3, True)):
        with pytest.raises(InterruptedError):
            launch._together(recipe, Run(tmp_path), size)
        assert ("1 of 3 ranks have nothing to do" in capsys.readouterr().err) == idle


def rank(folder: Path, code: str = "") -> subprocess.Popen[bytes]:
    """A rank's process, with `code` as its torch.py."""
    (folder / "torch.py").write_text(code)
    start = (
        "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
        "runpy.run_module('tunesmith.train.rank', None, '__main__')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", start, str(folder), str(folder), str(folder), "0", "2", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_ctrl_c_during_imports_is_quiet(tmp_path: Path) -> None:
    process = rank(tmp_path, "import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    assert process.stdout is not None and process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    _, heard = process.communicate(timeout=100)
    assert (process.returncode, heard) == (-signal.SIGINT, b"")


def test_a_file_that_may_not_be_written_is_no_bug_and_a_bug_keeps_its_traceback(
    cause: Cause, tmp_path: Path
) -> None:
    """As without ranks, where stage train says so."""
    code = """
import os, sys
from pathlib import Path
from tunesmith.train import rank
def work(recipe, run, number, size, port):
    raise (TypeError("a bug") if number else PermissionError(13, "Permission denied", "checkpoints"))
rank.work = work
(Path(sys.argv[1]) / "recipe.yaml").write_text("{name: a, model: {base: starter}, data: {train: a.jsonl}}")
os._exit(sum(rank.main(Path(sys.argv[1]), Path(sys.argv[1]), number, 2, 1) for number in (0, 1)))
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE)
    process.wait(250)
    assert process.stdin is not None
    process.stdin.close()
    (_, error), (_, bug) = (pickle.loads((tmp_path / f"{n}.ended").read_bytes()) for n in (0, 1))
    assert process.returncode == 2 and isinstance(error, AccessError)
    told = cause(("exit 1", LOST), ("exit 1", bug))
    assert isinstance(told, RuntimeError)
    assert re.search(r"(?s)rank 1 of 2 failed:.*Traceback.*in work.*TypeError: a bug", str(told))


def test_under_a_launcher_the_command_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun sets these in each process: each would be a whole run, and fight for the lock."""
    from tunesmith.cli import main

    recipe, runs = make_project(tmp_path), tmp_path / "runs"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", str(recipe), "--runs-dir", str(runs)]) == 2
    assert "without torchrun" in capsys.readouterr().err and not runs.exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["prepare", str(recipe), "--runs-dir", str(runs)]) == 0


def test_the_package_is_a_command() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "tunesmith", "--version"], capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith("tunesmith ")
