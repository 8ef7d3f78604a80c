"""Stage train with the fused engine: the reference's adapter and figures, its proofs, and exact resumption."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny_project import adapter_sha256, make_project, metrics, prepare_run
from torch import Tensor
from transformers import AutoModelForCausalLM

from tunesmith.engine.fused_weights import Projection
from tunesmith.errors import ProofFailed, Stopped
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.train.log import Log
from tunesmith.train.train import train

Prepared = Callable[..., tuple[Recipe, Run]]
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {"model": {"dtype": "float32"}},
    "nf4": {"model": {"dtype": "float32", "quantize": "nf4"}},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("project")

    def make(name: str, kind: str, engine: str = "fused") -> tuple[Recipe, Run]:
        settings = {"engine": engine, "memory": 8.0}
        return prepare_run(
            make_project(folder, name=name, **KINDS[kind], train=settings, tune={"dropout": 0.1}),
            folder / "runs",
        )

    return make


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def distance(run: Run, other: Run) -> float:
    """The worst tensor of two adapters, relative to its norm."""
    told = weights(other)
    return max(float((found - told[name]).norm() / told[name].norm()) for name, found in weights(run).items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_is_the_references(
    kind: str, prepared: Prepared, capfd: pytest.CaptureFixture[str]
) -> None:
    runs: list[Run] = []
    for engine in ("reference", "fused"):
        recipe, run = prepared(f"{engine}-{kind}", kind, engine)
        train(recipe, run)
        runs.append(run)
    assert "dense weights" in capfd.readouterr().err or kind == "fp32"
    told, fused = runs
    assert distance(fused, told) < 1e-4
    proofs = {proof["name"]: proof["passed"] for proof in fused.proofs()}
    assert proofs["adapter_reloads"] and proofs["packed_equals_unpacked"] and all(proofs.values())
    for line, other in zip(*(map(json.loads, metrics(run.path).splitlines()) for run in runs), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    recipe, again = prepared(f"other-{kind}", kind)
    recipe = recipe.model_copy(update={"seed": 1})
    train(recipe, again)
    assert distance(again, told) > 1e-2  # the mutant of the comparison: another seed


def test_plain_peft_gives_both_adapters_the_same_logits(prepared: Prepared) -> None:
    ids, found = torch.arange(5, 45)[None], []
    for engine in ("reference", "fused"):
        recipe, run = prepared(f"{engine}-for-peft", "fp32", engine)
        train(recipe, run)
        base = AutoModelForCausalLM.from_pretrained(recipe.model.base, dtype=torch.float32)
        with torch.no_grad():
            bare = base(ids).logits
            found.append(peft.PeftModel.from_pretrained(base, run.adapter)(ids).logits)
    effect = (found[0] - bare).norm()
    assert effect > 0.05 * bare.norm()
    assert (found[1] - found[0]).norm() < 1e-4 * effect
    # the mutant: an adapter read without its scaling
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    (run.adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["r"]}))
    other = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(recipe.model.base, dtype=torch.float32), run.adapter
    )
    assert (other(ids).logits - found[0]).norm() > 1e-2 * effect


def test_stopped_and_resumed_is_the_same_run(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, whole = prepared("whole", "nf4")
    train(recipe, whole)
    other, stopped = prepared("stopped", "nf4")
    write = Log.metrics

    def and_stop(self: Log, line: Any) -> float:
        if line["step"] >= 13:
            signal.raise_signal(signal.SIGTERM)
        return write(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "metrics", and_stop)
        with pytest.raises(Stopped):
            train(other, stopped)
    train(other, stopped)
    assert metrics(stopped.path) == metrics(whole.path)
    assert adapter_sha256(stopped.path) == adapter_sha256(whole.path)


def test_an_engine_that_keeps_old_adapters_is_found(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last proof puts new modules into the model; an engine that still reads the old ones fails it."""
    kept: dict[int, list[Any]] = {}
    own = Projection._modules.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Projection, "_modules", property(lambda self: kept.setdefault(id(self), own(self))))
    recipe, run = prepared("old", "fp32")
    with pytest.raises(ProofFailed, match="adapter_reloads"):
        train(recipe, run)
