"""Stage train in this process, on a tiny Llama in fp32: what it leaves, what it does again, and what it says."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import adapter_sha256, make_project, metrics, prepare_run

import tunesmith.train.train as stage
from tunesmith.errors import RecipeError, Stopped
from tunesmith.model.load import load_model
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.train import environment
from tunesmith.train.log import Log
from tunesmith.train.train import train

FP32 = {"model": {"dtype": "float32"}}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def prepared(project: Path) -> Callable[..., tuple[Recipe, Run]]:
    def make(name: str, **sections: Any) -> tuple[Recipe, Run]:
        return prepare_run(make_project(project, name=name, **{**FP32, **sections}), project / "runs")

    return make


Prepared = Callable[..., tuple[Recipe, Run]]


@pytest.fixture(scope="module")
def whole(prepared: Prepared) -> Run:
    """A finished run."""
    recipe, run = prepared("whole")
    train(recipe, run)
    return run


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics(run.path).splitlines()]


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM to this process while the line of a step is written."""
    write = Log.metrics

    def and_stop(self: Log, line: Any) -> float:
        if line["step"] >= step:
            signal.raise_signal(signal.SIGTERM)
        return write(self, line)

    monkeypatch.setattr(Log, "metrics", and_stop)


def stopped_at(step: int, recipe: Recipe, run: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(Stopped, match="stopped by SIGTERM after step") as caught:
            train(recipe, run)
    assert caught.value.exit_code == 75


def test_a_run_learns_and_leaves_an_adapter(whole: Run) -> None:
    logged = lines(whole)
    assert logged[-1]["step"] == 30 and logged[-1]["loss"] < logged[0]["loss"] - 0.2
    assert [line["step"] for line in logged] == sorted({*range(3, 31, 3), *range(8, 31, 8), 30})
    assert [line["step"] for line in logged if line["validation_loss"] is not None] == [8, 16, 24, 30]
    keys = ["step", "loss", "validation_loss", "learning_rate", "gradient_norm", "tokens", "learned_tokens"]
    assert all(list(line) == keys for line in logged)
    assert {path.name for path in whole.adapter.iterdir()} >= {
        "adapter_model.safetensors", "adapter_config.json", "contract.json", "training.json", "tokenizer.json"
    }  # fmt: skip
    assert {proof["name"]: proof["passed"] for proof in whole.proofs()} | dict.fromkeys(
        ["packed_equals_unpacked", "accumulation_exact", "adapter_has_effect", "adapter_reloads"], True
    ) == {proof["name"]: True for proof in whole.proofs()}
    timing = [json.loads(line) for line in whole.timing_file.read_text().splitlines()]
    assert [line["step"] for line in timing] == [line["step"] for line in logged]
    assert not list(whole.path.rglob("*.pt")) and not list(whole.path.rglob("*.bin"))


def test_the_adapter_is_the_best_checkpoints(whole: Run) -> None:
    about = json.loads((whole.adapter / "training.json").read_text())
    validated = {line["step"]: line["validation_loss"] for line in lines(whole) if line["validation_loss"]}
    assert about["step"] == min(validated, key=lambda step: validated[step])
    assert about["validation_loss"] == min(validated.values())
    weights = load_file(whole.checkpoints / f"step-{about['step']:08d}" / "weights.safetensors")
    adapter = load_file(whole.adapter / "adapter_model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    assert torch.equal(weights[f"{name}.B"], adapter[f"base_model.model.{name}.lora_B.weight"])


def test_the_validation_loss_is_over_all_rows_per_token(whole: Run, project: Path) -> None:
    """The referee: transformers' own attention and loss on one row at a time, with the adapter merged by hand."""
    from transformers import LlamaForCausalLM

    from tunesmith.rows import Rows

    model = LlamaForCausalLM.from_pretrained(project / "base", dtype=torch.float32)
    adapter = load_file(whole.adapter / "adapter_model.safetensors")
    for name in {key.removeprefix("base_model.model.").rsplit(".", 2)[0] for key in adapter}:
        a, b = (adapter[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
        model.get_submodule(name).weight.data += 2.0 * b @ a
    rows, total, count = Rows.open(whole.data, "validation"), 0.0, 0
    for row in range(len(rows)):
        ids = torch.tensor(rows.ids(row).astype("int64"))[None]
        learned = torch.from_numpy(rows.learned(row).copy())
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        total, count = total + float(nll[learned[1:]].sum()), count + int(learned[1:].sum())
    about = json.loads((whole.adapter / "training.json").read_text())
    assert math.isclose(total / count, about["validation_loss"], rel_tol=1e-5)


def test_the_same_call_again_does_nothing(
    whole: Run, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*") if path.is_file()}
    monkeypatch.setattr(stage, "build_model", None)  # would fail if anything were loaded
    train(prepared("whole")[0], whole)
    assert {path: path.stat().st_mtime_ns for path in whole.path.rglob("*") if path.is_file()} == before


def test_a_missing_adapter_is_made_again_from_the_checkpoint(prepared: Prepared, whole: Run) -> None:
    recipe, run = prepared("whole")
    before = adapter_sha256(run.path)
    (run.adapter / "adapter_model.safetensors").rename(run.path / "kept")
    for path in run.adapter.iterdir():
        path.unlink()
    run.adapter.rmdir()
    train(recipe, run)
    assert adapter_sha256(run.path) == before


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_stopped_and_resumed_with_every_optimizer(optimizer: str, prepared: Prepared) -> None:
    sections = {
        "train": {"optimizer": optimizer, "packing": optimizer != "adamw_8bit", "micro_batch": "auto"}
    }
    recipe, run = prepared(f"whole-{optimizer}", **sections)
    train(recipe, run)
    other, stopped = prepared(f"stopped-{optimizer}", **sections)
    stopped_at(13, other, stopped)
    train(other, stopped)
    assert metrics(stopped.path) == metrics(run.path)
    assert adapter_sha256(stopped.path) == adapter_sha256(run.path)


def test_a_signal_in_the_middle_of_a_validation(prepared: Prepared, whole: Run) -> None:
    """The step is saved at once, unclosed; the resume begins with the validation that was cut short."""
    import tunesmith.train.loop as loop

    recipe, run = prepared("in-validation")
    validate = loop.validation_loss

    def interrupted(engine: Any, rows: Any, plan: Any, stopped: Any, ranks: Any) -> float | None:
        if engine.parameters.data.any() and (run.checkpoints / "step-00000015").exists():
            signal.raise_signal(signal.SIGTERM)
        return validate(engine, rows, plan, stopped, ranks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "validation_loss", interrupted)
        with pytest.raises(Stopped, match="after step 16 of 30"):
            train(recipe, run)
    assert lines(run)[-1]["step"] == 15
    assert not json.loads((run.checkpoints / "step-00000016" / "state.json").read_text())["closed"]
    train(recipe, run)
    assert metrics(run.path) == metrics(whole.path) and adapter_sha256(run.path) == adapter_sha256(whole.path)


def test_a_broken_newest_checkpoint_costs_steps_not_the_run(
    prepared: Prepared, whole: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, run = prepared("broken")
    stopped_at(18, recipe, run)
    newest = run.checkpoints / (run.checkpoints / "LATEST").read_text().strip()
    optimizer = newest / "optimizer.safetensors"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 4
    optimizer.write_bytes(content)
    capfd.readouterr()
    train(recipe, run)
    heard = capfd.readouterr().err
    assert f"warning: checkpoint {newest.name} is not usable" in heard
    assert "resumed at step 16 (exact: yes)" in heard
    assert metrics(run.path) == metrics(whole.path) and adapter_sha256(run.path) == adapter_sha256(whole.path)


def test_another_machine_is_said_to_be_inexact(
    prepared: Prepared, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = prepared("moved")
    stopped_at(6, recipe, run)
    describe = environment.describe
    monkeypatch.setattr(
        environment, "describe", lambda *a, **k: describe(*a, **k) | {"torch": "0.1", "device": "another CPU"}
    )
    train(recipe, run)
    heard = capfd.readouterr().err
    assert "resumed at step 6 (exact: no: device was" in heard and "is another CPU" in heard
    newest = run.checkpoints / (run.checkpoints / "LATEST").read_text().strip()
    (resume,) = json.loads((newest / "state.json").read_text())["resumes"]
    assert resume["step"] == 6 and resume["exact"] is False and len(resume["reasons"]) == 2


def test_another_micro_batch_changes_the_plan_but_no_result(prepared: Prepared, whole: Run) -> None:
    """fp32: the sums are added in another order, so equal to rounding; a per-batch mean would be far off."""
    recipe, run = prepared("one-by-one", train={"micro_batch": 1, "packing": False})
    train(recipe, run)
    for ours, theirs in zip(lines(run), lines(whole), strict=True):
        assert math.isclose(ours["loss"], theirs["loss"], rel_tol=2e-3), (ours, theirs)
        assert (ours["tokens"], ours["learned_tokens"]) == (theirs["tokens"], theirs["learned_tokens"])


def test_patience_ends_the_run_and_the_best_is_kept(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tunesmith.train.loop as loop

    scripted = iter([3.0, 2.0, 2.5, 2.6, 2.4, 9.9, 9.9, 9.9])
    monkeypatch.setattr(loop, "validation_loss", lambda *_: next(scripted))
    recipe, run = prepared(
        "patient", train={"patience": 3, "evaluate_every": 2, "save_every": 1, "keep": 1, "log_every": 100}
    )
    train(recipe, run)
    assert [line["step"] for line in lines(run)] == [2, 4, 6, 8, 10]
    assert sorted(path.name for path in run.checkpoints.glob("step-*")) == ["step-00000004", "step-00000010"]
    assert json.loads((run.adapter / "training.json").read_text())["step"] == 4


def test_without_validation_rows_the_last_step_is_taken(prepared: Prepared) -> None:
    recipe, run = prepared(
        "no-validation", data={"validation": None}, train={"max_steps": 7, "save_every": "epoch"}
    )
    train(recipe, run)
    about = json.loads((run.adapter / "training.json").read_text())
    assert about["step"] == 7 and about["validation_loss"] is None
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-00000007"]


def test_float16_scales_its_loss_and_loses_no_step_to_an_overflow(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.train.scaling.FIRST", 2.0**34)
    sections = {"model": {"dtype": "float16"}, "train": {"max_steps": 12, "save_every": 3}}
    recipe, run = prepared("fp16-whole", **sections)
    train(recipe, run)
    assert lines(run)[-1]["loss"] < lines(run)[0]["loss"]
    state = json.loads((run.checkpoints / "step-00000012" / "state.json").read_text())
    assert 1.0 <= state["loss_scale"] < 2.0**34 and state["step"] == 12
    other, stopped = prepared("fp16-stopped", **sections)
    stopped_at(6, other, stopped)
    train(other, stopped)
    assert metrics(stopped.path) == metrics(run.path) and adapter_sha256(stopped.path) == adapter_sha256(
        run.path
    )


def test_full_fine_tuning_leaves_a_model(prepared: Prepared, project: Path) -> None:
    from tunesmith.base import resolve

    recipe, run = prepared(
        "full", tune={"method": "full", "dropout": 0.0}, train={"learning_rate": 0.003, "max_steps": 12}
    )
    train(recipe, run)
    assert lines(run)[-1]["validation_loss"] < lines(run)[0]["loss"]
    model = load_model(
        resolve(recipe.model.model_copy(update={"base": str(run.adapter)})), dtype=torch.float32
    )
    base = load_file(project / "base" / "model.safetensors")
    best = json.loads((run.adapter / "training.json").read_text())["step"]
    weights = load_file(run.checkpoints / f"step-{best:08d}" / "weights.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]) and not torch.equal(parameter, base[name].float())


def test_training_goes_on_from_an_adapter(prepared: Prepared, whole: Run, project: Path) -> None:
    recipe, run = prepared("continued", tune={"from_adapter": str(whole.adapter)}, train={"max_steps": 3})
    train(recipe, run)
    assert lines(run)[0]["loss"] < lines(whole)[0]["loss"] - 0.1
    mismatch, other = prepared("mismatch", tune={"from_adapter": str(whole.adapter), "rank": 5})
    with pytest.raises(RecipeError, match=r"rank 4, alpha 8"):
        train(mismatch, other)
    fewer = {"from_adapter": str(whole.adapter), "target_modules": ["q_proj"]}
    mismatch, other = prepared("fewer", tune=fewer)
    with pytest.raises(RecipeError, match=r"tune.target_modules says otherwise"):
        train(mismatch, other)


def test_tensorboard_shows_each_step_once(prepared: Prepared) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, run = prepared("board")
    stopped_at(14, recipe, run)
    newest = run.checkpoints / (run.checkpoints / "LATEST").read_text().strip()
    for path in newest.iterdir():
        path.unlink()  # so that lines were written which have to be cut back
    train(recipe, run)
    board = EventAccumulator(str(run.tensorboard))
    board.Reload()
    assert [event.step for event in board.Scalars("loss/train")] == [line["step"] for line in lines(run)]
    assert [event.step for event in board.Scalars("loss/validation")] == [8, 16, 24, 30]


def test_what_may_change_between_stop_and_resume(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice for a lack of memory must be one that a run in progress takes; what changes results it refuses."""
    from tunesmith.cli import main

    def command(**settings: Any) -> int:
        recipe = make_project(project, name="changed", **FP32, train=settings)
        return main(["train", str(recipe), "--runs-dir", str(project / "runs")])

    with monkeypatch.context() as patch:
        stop_at(6, patch)
        assert command() == 75
    assert command(learning_rate=0.02) == 2
    assert "train.learning_rate: was 0.01, is 0.02" in capfd.readouterr().err
    assert command(micro_batch=2, keep=5) == 0
    assert "resumed at step 6 (exact: no: the micro-batch plan has changed)" in capfd.readouterr().err
