"""When a step can't be done: not a number, no memory, no disk. What is said, the exit code, and what is left."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_project import adapter_sha256, make_project, metrics, prepare_run

import tunesmith.train.loop as loop
import tunesmith.train.train as stage
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.errors import NotFinite, OutOfRoom
from tunesmith.rows import Rows
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.schedule import Schedule
from tunesmith.train.step import Stepper
from tunesmith.train.train import train

FP32: dict[str, Any] = {"model": {"dtype": "float32"}}


def poison(project: Path, letter: str) -> str:
    """Gives the base an infinite embedding for a letter that one long training row holds; returns the row's id."""
    rows = [json.loads(line) for line in (project / "train.jsonl").read_text().splitlines()]
    rows[17] |= {"prompt": f"{letter} " + "very long " * 12, "id": "the-bad-one"}
    (project / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from tokenizers import Tokenizer

    (token,) = Tokenizer.from_file(str(project / "base" / "tokenizer.json")).encode(letter).ids
    weights = load_file(project / "base" / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("inf")
    save_file(weights, project / "base" / "model.safetensors", metadata={"format": "pt"})
    return "the-bad-one"


def test_a_loss_that_is_not_a_number_names_step_and_rows(tmp_path: Path) -> None:
    recipe_path = make_project(tmp_path, **FP32, train={"micro_batch": 2, "save_every": 1, "log_every": 1})
    name = poison(tmp_path, "Z")
    recipe, run = prepare_run(recipe_path, tmp_path / "runs")
    rows = Rows.open(run.data, "train")
    number = next(i for i in range(len(rows)) if rows.example(i).id == name)
    with pytest.raises(NotFinite) as caught:
        train(recipe, run)
    said = str(caught.value)
    bad_step = len(metrics(run.path).splitlines()) + 1
    assert caught.value.exit_code == 3
    assert f"the loss of step {bad_step} is not finite" in said
    assert (
        f"{name} ({rows.lengths[number]} tokens)" in said and said.count(" tokens)") == 2
    )  # its micro-batch alone
    assert "train.learning_rate" in said
    kept = max(Checkpoints(run.checkpoints, run="", keep=2).steps())
    assert kept == bad_step - 1 and f"the checkpoint of step {kept} is kept" in said


def test_a_gradient_that_is_not_a_number_is_found_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ReferenceEngine.step

    def spoilt(self: ReferenceEngine, batch: Any, scale: float) -> Any:
        sums = step(self, batch, scale)
        if batch.step == 4:
            self.parameters.grad[7] = float("nan")
        return sums

    monkeypatch.setattr(ReferenceEngine, "step", spoilt)
    recipe, run = prepare_run(make_project(tmp_path, **FP32), tmp_path / "runs")
    with pytest.raises(NotFinite, match="the gradient of step 4 is not finite; no checkpoint yet"):
        train(recipe, run)


def test_an_update_that_blows_up_is_found_by_the_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {"train": {"evaluate_every": 4, "save_every": 2, "log_every": 100}}
    recipe, run = prepare_run(make_project(tmp_path, **FP32, **sections), tmp_path / "runs")
    rate = Schedule.rate
    monkeypatch.setattr(Schedule, "rate", lambda self, step: 1e38 if step == 4 else rate(self, step))
    with pytest.raises(
        NotFinite, match=r"validation loss after the update of step 4 .* checkpoint of step 2 is kept"
    ):
        train(recipe, run)
    assert not metrics(run.path)


def limit_memory(monkeypatch: pytest.MonkeyPatch, tokens: int, from_step: int = 0) -> None:
    """Stands for the accelerator: a batch of more tokens raises what torch raises."""
    step = ReferenceEngine.step

    def limited(self: ReferenceEngine, batch: Any, scale: float) -> Any:
        if batch.tokens > tokens and batch.step >= from_step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(self, batch, scale)

    monkeypatch.setattr(ReferenceEngine, "step", limited)


def test_the_probe_finds_a_lack_of_memory_before_step_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = prepare_run(make_project(tmp_path, **FP32), tmp_path / "runs")
    limit_memory(monkeypatch, tokens=250)
    with pytest.raises(OutOfRoom) as caught:
        train(recipe, run)
    said = str(caught.value)
    assert caught.value.exit_code == 2 and not run.metrics_file.exists()
    assert "the probe of the longest micro-batch: row lengths [" in said and "train.micro_batch" in said
    # the advice works: another micro-batch makes another plan, in the same run
    smaller = recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_batch": 1})})
    train(smaller, run)
    assert len(metrics(run.path).splitlines()) == 12


def test_validation_rows_without_room_are_found_before_step_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be longer than any row of training, and come after an epoch of work."""
    recipe, run = prepare_run(make_project(tmp_path, **FP32), tmp_path / "runs")
    longest = sorted(Rows.open(run.data, "validation").lengths.tolist(), reverse=True)
    usual = ReferenceEngine.row_losses

    def limited(self: ReferenceEngine, batch: Any) -> Any:
        if batch.tokens >= sum(longest[:4]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return usual(self, batch)

    monkeypatch.setattr(ReferenceEngine, "row_losses", limited)
    with pytest.raises(OutOfRoom) as caught:
        train(recipe, run)
    assert f"the probe of the longest validation rows: {longest[:4]} tokens" in str(caught.value)
    assert caught.value.exit_code == 2 and not run.metrics_file.exists()


def test_memory_that_runs_out_after_a_checkpoint_is_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = prepare_run(make_project(tmp_path, **FP32), tmp_path / "runs")
    with monkeypatch.context() as patch:
        limit_memory(patch, tokens=1, from_step=12)
        with pytest.raises(OutOfRoom, match=r"step 12, micro-batch 1 of 2: row lengths \[") as caught:
            train(recipe, run)
    assert caught.value.exit_code == 75
    train(recipe, run)
    assert json.loads((run.adapter / "training.json").read_text())["steps"] == 30


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_in_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = FP32 | {"train": {"log_every": 1}}
    recipe, run = prepare_run(make_project(tmp_path, **each), tmp_path / "runs")
    other, whole = prepare_run(make_project(tmp_path, name="whole", **each), tmp_path / "runs")
    train(other, whole)
    save = Checkpoints.save

    def on_a_full_disk(self: Checkpoints, state: Any, tensors: Any, best_step: int | None) -> Any:
        if state["step"] >= 10:  # from here on, so that the thread meets it
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        folder = save(self, state, tensors, best_step)
        self._join()
        return folder

    with monkeypatch.context() as patch, largest_file(-1):
        patch.setattr(Checkpoints, "save", on_a_full_disk)
        with pytest.raises(OutOfRoom, match="no room on disk for the checkpoint of step 10") as caught:
            train(recipe, run)
    assert caught.value.exit_code == 75 and not list(run.checkpoints.glob(".*"))
    assert len(metrics(run.path).splitlines()) == 10  # no step is trained that could not be kept
    train(recipe, run)
    assert metrics(run.path) == metrics(whole.path) and adapter_sha256(run.path) == adapter_sha256(whole.path)


def test_a_stop_says_nothing_is_saved_where_the_write_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of a stop is written by the thread, too: leaving waits for it and tells what became of it."""
    recipe, run = prepare_run(make_project(tmp_path, **FP32), tmp_path / "runs")
    step = Stepper.step

    def and_a_signal(self: Stepper) -> None:
        step(self)
        if self.state.step == 7:  # no checkpoint is due here
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, largest_file(-1):
        patch.setattr(Stepper, "step", and_a_signal)
        with pytest.raises(OutOfRoom, match="no room on disk for the checkpoint of step 7") as caught:
            train(recipe, run)
    assert caught.value.exit_code == (75 if list(run.checkpoints.glob("step-*")) else 2)


def test_a_disk_that_fills_up_while_writing_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, run = prepare_run(make_project(tmp_path, **FP32), tmp_path / "runs")
    write = loop.Loop._write_line

    def on_a_full_disk(self: loop.Loop, *rest: Any) -> None:
        with largest_file(1_200):
            write(self, *rest)

    monkeypatch.setattr(loop.Loop, "_write_line", on_a_full_disk)
    with pytest.raises(OutOfRoom, match="the disk is full") as caught:
        train(recipe, run)
    assert caught.value.exit_code == 75


def test_too_little_disk_is_said_before_step_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, run = prepare_run(make_project(tmp_path, **FP32), tmp_path / "runs")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(OutOfRoom, match="4 checkpoints take") as caught:
        train(recipe, run)
    assert caught.value.exit_code == 2 and not run.metrics_file.exists()


def test_a_disk_that_fills_up_while_the_adapter_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = prepare_run(make_project(tmp_path, **FP32), tmp_path / "runs")
    write = stage.adapter.write_adapter

    def on_a_full_disk(*rest: Any) -> None:
        with largest_file(20_000):
            write(*rest)

    with monkeypatch.context() as patch:
        patch.setattr(stage.adapter, "write_adapter", on_a_full_disk)
        with pytest.raises(OutOfRoom, match="the disk is full") as caught:
            train(recipe, run)
    assert caught.value.exit_code == 75 and not list(run.path.glob(".adapter*")) and not run.adapter.exists()
    train(recipe, run)
    assert (run.adapter / "adapter_model.safetensors").exists()
