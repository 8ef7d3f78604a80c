"""Mistakes of a merge that the proofs have to find."""

# ruff: noqa: F401, F811  (fixtures)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import base, recipe_for, run, write_adapter

from tunesmith.base import resolve
from tunesmith.errors import ProofFailed
from tunesmith.export import measure, yardstick
from tunesmith.export import merged as stage
from tunesmith.export.export import export
from tunesmith.model.lora import adapters
from tunesmith.model.merge import Delta
from tunesmith.model.weights import quantized
from tunesmith.run import Run

Change = Callable[[dict[str, Delta]], dict[str, Delta]]


def transposed(delta: Delta) -> Delta:
    """(B A)ᵀ instead of B A, where the weight is square."""
    square = delta.B.shape[0] == delta.A.shape[1]
    return Delta(delta.B.t(), delta.A.t(), delta.scaling) if square else delta


DELTAS: dict[str, Change] = {
    "scaling forgotten": lambda d: {name: one._replace(scaling=1.0) for name, one in d.items()},
    "added twice": lambda d: {name: one._replace(scaling=2 * one.scaling) for name, one in d.items()},
    "transposed": lambda d: {name: transposed(one) for name, one in d.items()},
    "zero": lambda d: {name: one._replace(scaling=0.0) for name, one in d.items()},
    "one layer skipped": lambda d: {name: one for name, one in d.items() if ".layers.1." not in name},
    "one linear skipped": lambda d: {name: one for name, one in d.items() if "1.mlp.up_proj" not in name},
}


@pytest.mark.parametrize("mistake", DELTAS)
def test_a_wrong_delta_fails_the_first_proof(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    right = stage.read_deltas
    monkeypatch.setattr(stage, "read_deltas", lambda folder: DELTAS[mistake](right(folder)))
    with pytest.raises(ProofFailed, match="merged_equals_fp32_merge"):
        export(recipe_for(base), run)
    assert not run.merged.exists()
    assert not list(run.path.glob(".merged*"))


@pytest.mark.parametrize("mistake", sorted(set(DELTAS) - {"one linear skipped"}))
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_the_same_mistake_in_both_merges_fails_another(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch, mistake: str, quantize: str
) -> None:
    """A mistake in what both ways of merging share is seen by the live adapter, which shares nothing."""
    right_file, right_memory = stage.read_deltas, measure.load_adapter

    def spoil(model: Any, folder: Path) -> list[str]:
        names = right_memory(model, folder)
        found = {one.name: Delta(one.A, one.B, one.scaling) for one in adapters(model)}
        spoiled = DELTAS[mistake](found)
        for one in adapters(model):
            delta = spoiled.get(one.name, Delta(one.A, one.B, 0.0))
            one.A, one.B = torch.nn.Parameter(delta.A), torch.nn.Parameter(delta.B)
            one.scaling = delta.scaling
        return names

    monkeypatch.setattr(stage, "read_deltas", lambda folder: DELTAS[mistake](right_file(folder)))
    monkeypatch.setattr(measure, "load_adapter", spoil)
    wanted = "merged_has_effect" if mistake == "zero" else "merged_close_to_adapter"
    with pytest.raises(ProofFailed, match=wanted):
        export(recipe_for(base, "bfloat16" if quantize == "nf4" else "float32", quantize), run)


def after_writing(monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]) -> None:
    right = stage.merge_weights

    def merge_weights(*given: Any, **more: Any) -> dict[str, str]:
        sums = right(*given, **more)
        change(given[2])
        return sums

    monkeypatch.setattr(stage, "merge_weights", merge_weights)


def test_requantising_the_merged_weights_fails(base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def requantise(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file(
            {
                name: quantized(t, "nf4").dequantize(t.dtype) if "_proj" in name else t
                for name, t in tensors.items()
            },
            folder / "model.safetensors",
        )

    after_writing(monkeypatch, requantise)
    with pytest.raises(ProofFailed, match="merged_equals_fp32_merge"):
        export(recipe_for(base, "bfloat16", "nf4"), run)


def test_the_wrong_base_fails(base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """16-bit weights where the image of the quantised ones is meant: the commonest mistake with QLoRA."""
    right = stage.merge_weights
    monkeypatch.setattr(
        stage, "merge_weights", lambda *given, **more: right(*given, **more | {"source": "original"})
    )
    with pytest.raises(ProofFailed, match="merged_equals_fp32_merge"):
        export(recipe_for(base, "bfloat16", "nf4"), run)


def test_the_wrong_base_in_both_merges_fails(base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    files, memory = stage.merge_weights, yardstick.merged_in_memory
    wrong = {"source": "original"}
    monkeypatch.setattr(stage, "merge_weights", lambda *given, **more: files(*given, **more | wrong))
    monkeypatch.setattr(yardstick, "merged_in_memory", lambda *given, **more: memory(*given, **more | wrong))
    with pytest.raises(ProofFailed, match="merged_close_to_adapter"):
        export(recipe_for(base, "bfloat16", "nf4"), run)


def test_merging_a_merged_base_again_fails(
    base: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(recipe_for(base), run)
    twice = resolve(recipe_for(run.merged.rename(tmp_path / "once")).model)
    right = stage.merge_weights
    monkeypatch.setattr(stage, "merge_weights", lambda _base, *given, **more: right(twice, *given, **more))
    with pytest.raises(ProofFailed, match="merged_equals_fp32_merge"):
        export(recipe_for(base), run)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_an_adapter_without_effect_fails(base: Path, run: Run, quantize: str) -> None:
    write_adapter(base, run.adapter, strength=0.0)
    with pytest.raises(ProofFailed, match="merged_has_effect"):
        export(recipe_for(base, "bfloat16", quantize), run)


def test_an_adapter_below_the_steps_of_the_stored_type_fails(base: Path, run: Run) -> None:
    """All logits are as near as rounding makes them, and four fifths of the adapter are gone."""
    write_adapter(base, run.adapter, strength=2e-5)
    with pytest.raises(ProofFailed, match="merged_keeps_adapter") as caught:
        export(recipe_for(base, "bfloat16"), run)
    assert "train longer" in str(caught.value.fix) and not run.merged.exists()


def test_a_failed_merge_takes_the_older_one_with_it(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(recipe_for(base), run)
    write_adapter(base, run.adapter, strength=0.06)
    monkeypatch.setattr(stage, "read_deltas", lambda _: {})
    with pytest.raises(ProofFailed):
        export(recipe_for(base), run)
    assert not run.merged.exists()
    assert not (run.predictions / "merged.jsonl").exists()  # or the report would show the old one's scores
