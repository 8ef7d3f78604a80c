"""Which merge of a quantised base is kept, and the noise that proofs are held against."""

# ruff: noqa: F401, F811  (fixtures)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export import base, recipe_for, run
from tiny_run import recipe

from tunesmith.errors import ProofFailed
from tunesmith.export import measure, proofs
from tunesmith.export import merged as stage
from tunesmith.export.choose import Compared, choose
from tunesmith.export.export import export
from tunesmith.export.measure import Rerounded, proof_rows, reround
from tunesmith.model.weights import Dense
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.run import Run, write_atomic
from tunesmith.statistics import Interval


def compared(score: float, low: float, high: float, lower: bool = False) -> Compared:
    return Compared(score, Interval((low + high) / 2, low, high, 50), lower)


def test_of_a_metric_that_gets_better_as_it_falls_the_lower_candidate_is_kept() -> None:
    worse, better = compared(0.4, -0.1, 0.2, True), compared(0.3, -0.2, 0.1, True)
    assert choose({"dequantized": worse, "original": better}) == "original"
    assert choose({"dequantized": better, "original": worse}) == "dequantized"


def test_the_better_candidate_that_agrees_is_kept() -> None:
    alike = compared(0.8, -0.02, 0.02)
    assert choose({"dequantized": alike, "original": compared(0.82, -0.01, 0.05)}) == "original"
    assert choose({"dequantized": alike, "original": compared(0.79, -0.03, 0.01)}) == "dequantized"
    assert choose({"dequantized": alike, "original": compared(0.8, -0.02, 0.02)}) == "dequantized"
    assert choose({"dequantized": alike, "original": compared(0.9, 0.05, 0.15)}) == "dequantized"
    assert (
        choose({"dequantized": compared(0.2, -0.7, -0.5), "original": compared(0.1, -0.8, -0.6)})
        == "dequantized"
    )


def test_scores_far_from_the_live_adapters_fail(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both candidates answer nonsense, the live adapter the truth."""
    right = stage.answer

    def answer(recipe: Recipe, run: Run, model: Any, examples: Any, name: str) -> None:
        right(recipe, run, model, examples, name)
        if name == "choice/live":
            path = run.predictions / f"{name}.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            text = "".join(json.dumps(line | {"answer": line["gold"]}) + "\n" for line in lines)
            write_atomic(path, text.encode())

    monkeypatch.setattr(stage, "answer", answer)
    with pytest.raises(ProofFailed, match="merged_scores_as_adapter"):
        export(recipe_for(base, "bfloat16", "nf4"), run)


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16, torch.float16])
def test_rerounding_moves_as_much_as_rounding_does(held: torch.dtype) -> None:
    """The noise of the second proof is the error of a merge: the same variance, in units in the last place."""
    torch.manual_seed(0)
    exact = torch.randn(400, 500, dtype=torch.float64) * 0.03
    target = held if held != torch.float32 else torch.bfloat16
    weight = exact.to(target).to(held)
    generator = torch.Generator().manual_seed(4)
    moved = reround(weight, target, generator).double() - weight.double()
    rounded = exact.to(target).double() - exact
    assert moved.std() == pytest.approx(float(rounded.std()), rel=0.05)
    assert abs(float(moved.mean())) < 0.02 * float(moved.std())
    frozen = Rerounded(Dense(weight), target, seed=3)
    assert torch.equal(frozen.dequantize(held), frozen.dequantize(held))


def test_zeros_and_tiny_numbers_survive_rerounding() -> None:
    weight = torch.tensor([0.0, 1e-7, -1e-7, 6e-8, 65504.0], dtype=torch.float16).repeat(1000)
    moved = reround(weight, torch.float16, torch.Generator().manual_seed(0))
    assert (moved[weight == 0] == 0).all()
    assert (moved[:-1].abs() < 65504.0).logical_or(weight[:-1] == 65504.0).all()
    assert not moved.isnan().any()


def test_numbers_that_are_not_finite_fail_every_proof() -> None:
    fine, broken = torch.zeros(2, 3), torch.full((2, 3), float("nan"))
    assert not proofs.merged_equals_fp32_merge(broken, fine, fine).passed
    assert not proofs.merged_close_to_adapter(broken, fine, fine + 1).passed
    assert proofs.merged_equals_fp32_merge(fine, fine, fine).passed


def test_rows_of_a_proof_are_few_and_short(run: Run) -> None:
    rows = Rows.open(run.data, "test")
    picked = proof_rows(rows, range(len(rows)))
    assert sum(map(sum, picked.learned)) <= measure.POSITIONS
    assert [len(row) for row in picked.ids] == sorted(rows.lengths.tolist())[: len(picked.ids)]
