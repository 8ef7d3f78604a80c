"""Checkpoints: whole or not there, verified before use, pruned after."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tunesmith.errors import AccessError, OutOfRoom
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.faults import room
from tunesmith.train.state import State


def save(checkpoints: Checkpoints, step: int, best: int | None = None, size: int = 50) -> Path:
    flat = torch.arange(2 * size, dtype=torch.float32) + step
    weights = {
        "a": flat[:size].view(5, -1),
        "b": flat[size:],
    }  # views of one buffer, as FlatParameters has them
    folder = checkpoints.save(State(step=step, loss_sum=0.1 + step).to_json(), {"weights": weights}, best)
    checkpoints.wait()
    return folder


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, run="r", keep=2)
    save(checkpoints, 3)
    found = checkpoints.newest()
    assert found is not None and found.step == 3
    assert State.from_json(found.state) == State(step=3, loss_sum=0.1 + 3)
    tensors = found.tensors("weights")
    assert torch.equal(tensors["b"], torch.arange(50, 100) + 3.0) and tensors["a"].shape == (5, 10)
    assert (tmp_path / "LATEST").read_text() == "step-00000003\n"


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    folder = save(Checkpoints(tmp_path, run="r", keep=2), 1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "MANIFEST.json",
        "state.json",
        "weights.safetensors",
    ]
    assert b"pickle" not in (folder / "weights.safetensors").read_bytes()


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, run="r", keep=2)
    for step in range(1, 7):
        save(checkpoints, step, best=2 if step >= 2 else None)
    assert checkpoints.steps() == [2, 5, 6]


@pytest.mark.parametrize("damage", ["a bit", "cut", "file gone", "manifest gone", "manifest torn"])
def test_a_broken_newest_one_falls_back_to_the_one_before(
    tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path, run="r", keep=3)
    save(checkpoints, 10)
    newest = save(checkpoints, 20)
    weights, manifest = newest / "weights.safetensors", newest / "MANIFEST.json"
    if damage == "a bit":
        content = bytearray(weights.read_bytes())
        content[-3] ^= 1
        weights.write_bytes(content)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif damage == "file gone":
        (newest / "state.json").unlink()
    elif damage == "manifest gone":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:40])
    found = checkpoints.newest()
    assert found is not None and found.step == 10
    assert "warning: checkpoint step-00000020 is not usable" in capfd.readouterr().err
    assert checkpoints.steps() == [10]  # set aside, so step 20 can be saved again
    assert len(list(tmp_path.glob("broken-step-00000020-*"))) == 1
    save(checkpoints, 20)
    assert checkpoints.newest() is not None and checkpoints.steps() == [10, 20]


def test_another_runs_checkpoint_is_never_used(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, run="another", keep=2), 5)
    assert Checkpoints(tmp_path, run="mine", keep=2).newest() is None


def test_leftovers_of_a_killed_save_are_removed_and_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real SIGKILL while the save is at work: once its first file is written."""
    script = (
        "import os, signal, sys, torch; from pathlib import Path; from tunesmith.train import checkpoint\n"
        "from tunesmith.train.checkpoint import Checkpoints\n"
        "c = Checkpoints(Path(sys.argv[1]), run='r', keep=2)\n"
        "w = {'weights': {'a': torch.ones(8)}}\n"
        "c.save({'step': 1}, w, None); c.wait()\n"
        "write = checkpoint.write_file\n"
        "checkpoint.write_file = lambda *to: (write(*to), os.kill(os.getpid(), signal.SIGKILL))\n"
        "c.save({'step': 2}, w, None); c.wait()\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == -signal.SIGKILL
    left = list(tmp_path.glob(".step-00000002.*.tmp"))
    assert len(left) == 1
    checkpoints = Checkpoints(tmp_path, run="r", keep=2)
    checkpoints.clean()
    assert f"removed {left[0].name}" in capfd.readouterr().err
    found = checkpoints.newest()
    assert found is not None and found.step == 1 and not list(tmp_path.glob(".*"))


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    """A step is saved again after a signal had cut its validation short; it may be the only checkpoint there is."""
    script = (
        "import os, signal, sys, torch; from pathlib import Path\n"
        "from tunesmith.train.checkpoint import Checkpoints\n"
        "c = Checkpoints(Path(sys.argv[1]), run='r', keep=1)\n"
        "w = {'weights': {'a': torch.ones(8)}}\n"
        "c.save({'step': 4}, w, None); c.wait()\n"
        "rename = Path.rename\n"
        "def killed(self, to):\n"
        "    rename(self, to)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.rename = killed\n"
        "c.save({'step': 4}, w, None); c.wait()\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == -signal.SIGKILL
    checkpoints = Checkpoints(tmp_path, run="r", keep=1)
    assert checkpoints.steps() == []
    checkpoints.clean()
    found = checkpoints.newest()
    assert found is not None and found.step == 4 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("published", [True, False])
def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, published: bool) -> None:
    """RLIMIT_FSIZE stands for the full disk: the same failing write, as EFBIG."""
    checkpoints = Checkpoints(tmp_path, run="r", keep=2)
    if published:
        save(checkpoints, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OutOfRoom) as caught:
            save(checkpoints, 2, size=50_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.exit_code == (75 if published else 2)
    assert "no room on disk for the checkpoint of step 2" in str(caught.value)
    assert not list(tmp_path.glob(".*.tmp"))
    assert checkpoints.steps() == ([1] if published else [])


def test_the_manifest_names_every_file_with_size_and_hash(tmp_path: Path) -> None:
    folder = save(Checkpoints(tmp_path, run="r", keep=2), 4)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert manifest["run"] == "r" and manifest["step"] == 4
    assert set(manifest["files"]) == {"state.json", "weights.safetensors"}
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (folder / name).stat().st_size and len(entry["sha256"]) == 64


class Held(Checkpoints):
    """The thread stands still before its first byte until `go` is set; everything else is the real thing."""

    go = threading.Event()

    def _publish(
        self, step: int, files: Mapping[str, bytes], tensors: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> None:
        assert self.go.wait(60)
        super()._publish(step, files, tensors)


@pytest.fixture
def held(tmp_path: Path) -> Held:
    checkpoints = Held(tmp_path, run="r", keep=2)
    checkpoints.go = threading.Event()
    return checkpoints


def test_what_is_written_is_the_state_at_the_save_while_training_goes_on(held: Held) -> None:
    flat, moment = torch.arange(100.0), torch.ones(7, dtype=torch.uint8)
    state = {"step": 1, "resumes": [{"step": 0}]}
    held.save(
        state, {"weights": {"a": flat[:60].view(6, 10).t(), "b": flat[60:]}, "optimizer": {"0.m": moment}}, 1
    )
    flat.fill_(-1.0)  # the next steps
    moment.zero_()
    state["resumes"].append({"step": 1})  # type: ignore[attr-defined]
    assert not list(held.folder.glob("step-*"))  # save has returned, and nothing is published
    held.go.set()
    found = held.newest()
    assert found is not None and found.state == {"step": 1, "resumes": [{"step": 0}]}
    weights = found.tensors("weights")
    assert torch.equal(weights["a"], torch.arange(60.0).view(6, 10).t())
    assert torch.equal(weights["b"], torch.arange(60.0, 100.0))
    assert torch.equal(found.tensors("optimizer")["0.m"], torch.ones(7, dtype=torch.uint8))


@pytest.mark.parametrize("call", ["save", "steps", "newest", "wait", "exit"])
def test_whoever_needs_the_checkpoint_waits_for_it(held: Held, call: str) -> None:
    held.save({"step": 1}, {"weights": {"a": torch.ones(8)}}, None)
    seen: list[object] = []

    def ask() -> None:
        if call == "save":
            held.save({"step": 2}, {"weights": {"a": torch.ones(8)}}, None)
        elif call == "exit":
            held.__exit__(None, None, None)
        else:
            getattr(held, call)()
        seen.append([path.name for path in held.folder.glob("step-00000001")])

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(0.2)
    assert not seen  # still waiting
    held.go.set()
    asking.join()
    assert seen == [["step-00000001"]]
    held.wait()


@pytest.mark.parametrize("told", ["check", "wait", "save", "exit"])
def test_what_the_thread_failed_with_is_told_once_where_training_can_stop(tmp_path: Path, told: str) -> None:
    checkpoints = Checkpoints(tmp_path / "c", run="r", keep=2)
    tensors = {"weights": {"a": torch.ones(8)}}
    checkpoints.folder.rmdir()
    checkpoints.folder.write_text("no folder any more")
    checkpoints.save({"step": 1}, tensors, None)
    assert checkpoints._thread is not None
    checkpoints._thread.join()
    calls = {
        "check": checkpoints.check,
        "wait": checkpoints.wait,
        "save": lambda: checkpoints.save({"step": 2}, tensors, None),
        "exit": lambda: checkpoints.__exit__(None, None, None),
    }
    with pytest.raises(NotADirectoryError):
        calls[told]()
    checkpoints.check()


def test_a_first_error_is_not_covered_by_the_threads(tmp_path: Path) -> None:
    """Leaving by another error waits for the write, and says only that error."""
    checkpoints = Checkpoints(tmp_path / "c", run="r", keep=2)
    checkpoints.folder.rmdir()
    checkpoints.folder.write_text("no folder any more")
    checkpoints.save({"step": 1}, {"weights": {"a": torch.ones(8)}}, None)
    with pytest.raises(KeyError), checkpoints:
        raise KeyError("of training")
    assert checkpoints._thread is None


def test_no_access_in_the_thread_is_said_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, run="r", keep=2)
    mkdir = Path.mkdir

    def refused(
        self: Path, *rest: object, **named: object
    ) -> None:  # root, as tests may run, is refused nothing
        if self.name.startswith(".step-"):
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refused)
    with (
        pytest.raises(AccessError, match="may not be written") as caught,
        room(lambda: "step 1", resumable=lambda: bool(checkpoints.steps())),
        checkpoints,
    ):
        checkpoints.save({"step": 1}, {"weights": {"a": torch.ones(8)}}, None)
    assert caught.value.exit_code == 2
