"""Stage train on a card: no step waits for the device, deterministic runs resume bit by bit, real lack of memory."""

from __future__ import annotations

import signal
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
