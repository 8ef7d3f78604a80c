"""The run folder: whole files, one process at a time, stamps, names on the command line."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import errors
from tunesmith.errors import AccessError, OutOfRoom, ProofFailed, RunLocked, TunesmithError
from tunesmith.proof import Proof
from tunesmith.run import Run, disk_error, find_run, write_atomic

HOLDER = """
import sys, time
from pathlib import Path
from tunesmith.run import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    run = Run(tmp_path / "one")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, run.path], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RunLocked, match=f"process {holder.pid}"), run.lock():
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with run.lock():  # the kernel has freed it
        pass


def test_write_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutOfRoom, match="disk is full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="No space") as caught,
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert isinstance(disk_error(caught.value, tmp_path), OutOfRoom)
    assert disk_error(OSError(5, "I/O"), tmp_path) is None


def test_proofs_are_kept_and_a_failed_one_stops(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.prove(Proof("a", True, 0.5, 1.0, "first"))
    run.prove(Proof("a", True, 0.25, 1.0, "again"))
    with pytest.raises(ProofFailed, match="proof b failed"):
        run.prove(Proof("b", False, 2, 1, "too much"))
    stored = json.loads(run.proofs_file.read_text())
    assert stored["schema_version"] == 1
    assert [(one["name"], one["passed"], one["figure"]) for one in stored["proofs"]] == [
        ("a", True, 0.25),
        ("b", False, 2),
    ]


def test_stamps(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.is_current("train", {"rows": "1"})
    run.stamp("train", {"rows": "1"})
    assert run.is_current("train", {"rows": "1"})
    assert not run.is_current("train", {"rows": "2"})
    assert run.inputs_of("train") == {"rows": "1"}


def test_find_run(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("")
        Run(tmp_path / name).write_state(phase="x")
    os.utime(tmp_path / "first" / "state.json", (1, 1))
    assert find_run("first", tmp_path).name == "first"
    assert find_run(str(tmp_path / "first"), Path("nowhere")).name == "first"
    assert find_run("latest", tmp_path).name == "second"
    with pytest.raises(TunesmithError, match="did you mean 'first'"):
        find_run("frist", tmp_path)


def test_errors_survive_pickling() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TunesmithError)
    ]
    for kind in kinds:
        error = kind("what", where="where", fix="fix")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.exit_code) == (kind, str(error), error.exit_code)
    assert pickle.loads(pickle.dumps(OutOfRoom("x", resumable=True))).exit_code == 75


def test_a_file_where_the_run_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(AccessError, match="the run's folder can't be made"), Run(path).lock():
            pass
