"""Stage train on a card: no step waits for the device, deterministic runs resume bit by bit, real lack of memory."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_project import adapter_sha256, make_project, metrics, prepare_run

from tunesmith.errors import OutOfRoom, Stopped
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.train.log import Log
from tunesmith.train.step import Stepper
from tunesmith.train.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]
Prepared = Callable[..., tuple[Recipe, Run]]
KINDS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "nf4": {"model": {"quantize": "nf4"}},
    "fp16": {"model": {"dtype": "float16"}},
    "adamw_8bit": {"train": {"optimizer": "adamw_8bit"}},
    "paged_adamw_8bit": {
        "train": {"optimizer": "paged_adamw_8bit"},
        "tune": {"rank": 64},
    },  # paged from 1e5 numbers
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("project")

    def make(name: str, **sections: Any) -> tuple[Recipe, Run]:
        return prepare_run(make_project(folder, name=name, **sections), folder / "runs")

    return make


def test_no_step_waits_for_the_device(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Stepper.step
    steps = []

    def watched(self: Stepper) -> None:
        torch.cuda.set_sync_debug_mode("error" if self.state.step else "default")
        try:
            step(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        steps.append(self.state.step)

    monkeypatch.setattr(Stepper, "step", watched)
    train(*prepared("unwatched"))
    assert len(steps) == 30


@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_runs_resume_bit_by_bit(
    kind: str, prepared: Prepared, capfd: pytest.CaptureFixture[str]
) -> None:
    sections = dict(KINDS[kind])
    sections["train"] = {"deterministic": True, **sections.get("train", {})}
    recipe, whole = prepared(f"whole-{kind}", **sections)
    train(recipe, whole)
    other, stopped = prepared(f"stopped-{kind}", **sections)
    write = Log.metrics

    def and_stop(self: Log, line: Any) -> float:
        if line["step"] >= 13:
            signal.raise_signal(signal.SIGTERM)
        return write(self, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "metrics", and_stop)
        with pytest.raises(Stopped):
            train(other, stopped)
    train(other, stopped)
    assert "resumed at step 15 (exact: yes)" in capfd.readouterr().err
    assert metrics(stopped.path) == metrics(whole.path)
    assert adapter_sha256(stopped.path) == adapter_sha256(whole.path)


def test_a_card_that_is_too_small(prepared: Prepared) -> None:
    recipe, run = prepared("too-small", train={"epochs": 1}, tune={"rank": 64})
    free = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(6e6 / free)
    try:
        with pytest.raises(OutOfRoom, match="out of memory") as caught:
            train(recipe, run)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert caught.value.exit_code == 2


_TAKES_ALL = """
import torch
held, size = [], 1 << 32
while size >= 1 << 20:
    try:
        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        size //= 2
print("full", flush=True)
input()
"""


@pytest.mark.parametrize("gives_back", [False, True])
def test_another_process_takes_the_memory(gives_back: bool, prepared: Prepared) -> None:
    """The probe has taken what the largest micro-batch needs, so a run goes on; where its allocator had given memory
    back, it ends with a message and its checkpoint, and goes on exactly once the other process has gone."""
    sections = {"train": {"deterministic": True}}
    recipe, whole = prepared(f"alone-{gives_back}", **sections)
    train(recipe, whole)
    other, run = prepared(f"beside-{gives_back}", **sections)
    write, foreign = Log.metrics, list[subprocess.Popen[str]]()

    def and_crowd(self: Log, line: Any) -> float:
        if line["step"] == 15:
            if gives_back:
                torch.cuda.empty_cache()
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            foreign.append(subprocess.Popen([sys.executable, "-c", _TAKES_ALL], **pipes))  # type: ignore[call-overload]
            assert foreign[0].stdout is not None and foreign[0].stdout.readline() == "full\n"
        return write(self, line)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Log, "metrics", and_crowd)
            if gives_back:
                with pytest.raises(OutOfRoom, match="out of memory") as caught:
                    train(other, run)
                assert caught.value.exit_code == 75 and "step 16" in str(caught.value)
                assert "step-00000015" in {path.name for path in run.checkpoints.iterdir()}
            else:
                train(other, run)
        assert foreign and foreign[0].poll() is None  # it was there to the end
    finally:
        for process in foreign:
            process.communicate("\n", timeout=60)
    train(other, run)
    assert metrics(run.path) == metrics(whole.path)
    assert adapter_sha256(run.path) == adapter_sha256(whole.path)
