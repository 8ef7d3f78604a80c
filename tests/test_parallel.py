"""Several ranks give what one process gives: real processes that meet through gloo, on a tiny Llama."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_ranks import lines, newest, prepared, together

from tunesmith.engine.plan import evenly
from tunesmith.errors import NotFinite, ProofFailed
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.train.order import Order
from tunesmith.train.parallel import PeerLost
from tunesmith.train.train import train


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


def distance(run: Run, other: Run) -> float:
    """The largest relative difference of a loss, a validation loss or a gradient norm, and of the last weights."""
    found = []
    for ours, theirs in zip(lines(run), lines(other), strict=True):
        assert (ours["tokens"], ours["learned_tokens"]) == (theirs["tokens"], theirs["learned_tokens"])
        figures = [key for key in ("loss", "validation_loss", "gradient_norm") if theirs[key] is not None]
        found += [abs(ours[key] / theirs[key] - 1) for key in figures]
    weights = [load_file(one.checkpoints / "step-00000006" / "weights.safetensors") for one in (run, other)]
    flat = [torch.cat([tensor.flatten().double() for _, tensor in sorted(one.items())]) for one in weights]
    return max(*found, float((flat[0] - flat[1]).norm() / flat[1].norm()))


@pytest.fixture(scope="module")
def alone(project: Path) -> Callable[[str], Run]:
    """The same run in one process."""

    def make(dtype: str = "float64", **settings: Any) -> Run:
        recipe, run = prepared(
            project, "-".join(["alone", dtype, *map(str, settings.values())]), dtype, **settings
        )
        if not run.metrics_file.exists():
            train(recipe, run)
        return run

    return make


def test_a_share_has_every_row_once_and_about_the_same_tokens() -> None:
    draw = random.Random(4)
    for _ in range(300):
        lengths = [draw.randint(1, 4000) for _ in range(draw.randint(1, 40))]
        ranks = draw.randint(1, 9)
        made = evenly(lengths, ranks)
        assert len(made) == ranks and sorted(i for share in made for i in share) == list(range(len(lengths)))
        loads = [sum(lengths[i] for i in share) for share in made]
        assert max(loads) - min(loads) <= max(lengths)
        assert made == evenly(list(lengths), ranks)
    assert evenly([7] * 16, 2) == [list(range(0, 16, 2)), list(range(1, 16, 2))]
    assert evenly([5, 9], 3) == [[1], [0], []]


def test_two_ranks_equal_one_process(project: Path, alone: Callable[..., Run]) -> None:
    """In fp64, where nothing but the order of sums is left: 1e-12, against 1e-3 and more for each mutant below."""
    recipe, run = prepared(project, "two", "float64")
    assert together(recipe, run, 2) == [None, None]
    assert distance(run, alone()) < 1e-11
    (proof,) = (one for one in run.proofs() if one["name"] == "ranks_agree")
    assert proof["passed"] and proof["figure"] == 0


def test_two_ranks_equal_one_process_in_fp32(project: Path, alone: Callable[..., Run]) -> None:
    recipe, run = prepared(project, "two-fp32")
    assert together(recipe, run, 2) == [None, None]
    assert distance(run, alone("float32")) < 1e-5


def test_more_ranks_than_rows_in_a_step(project: Path, alone: Callable[..., Run]) -> None:
    recipe, run = prepared(project, "three", "float64", batch=2)
    assert together(recipe, run, 3) == [None] * 3
    assert distance(run, alone("float64", batch=2)) < 1e-11


@pytest.mark.parametrize("mutant", ["mean of means", "averaged", "left out", "twice"])
def test_a_wrong_sum_shows(mutant: str, project: Path, alone: Callable[..., Run]) -> None:
    recipe, run = prepared(project, mutant.replace(" ", "-"), "float64")
    assert together(recipe, run, 2, mutant) == [None, None]
    assert distance(run, alone()) > 1e-4


@pytest.mark.parametrize("mutant", ["not summed", "one bit"])
def test_ranks_that_drift_apart_are_found_at_the_next_checkpoint(mutant: str, project: Path) -> None:
    recipe, run = prepared(project, mutant.replace(" ", "-"))
    first = together(recipe, run, 2, mutant)[0]
    assert isinstance(first, ProofFailed) and "ranks_agree" in first.what
    assert not list(run.checkpoints.glob("step-*"))


def test_a_loss_that_is_not_a_number_is_told_alike_by_all(project: Path) -> None:
    """Whoever's micro-batch it was: its rows are named, and no other's."""
    recipe, run = prepared(project, "nan", micro_batch=2)
    first, second = together(recipe, run, 2, "nan on rank 1")
    assert isinstance(first, NotFinite) and isinstance(second, NotFinite) and first.where == second.where
    rows = Rows.open(run.data, "train")
    order = Order(len(rows), batch=8, seed=recipe.seed, epochs=3, max_steps=6)
    lengths = rows.lengths[order.numbers(4)].tolist()
    own = order.numbers(4)[evenly(lengths, 2)[1]][2:4]
    named = ", ".join(f"{rows.example(n).id} ({rows.lengths[n]} tokens)" for n in own)
    assert "the loss of step 4 is not finite" in str(first) and first.where == f"rows {named}"


def test_nobody_waits_for_ever(project: Path) -> None:
    recipe, run = prepared(project, "hangs")
    begin = time.monotonic()
    first = together(recipe, run, 2, "hangs")[0]
    assert isinstance(first, PeerLost) and first.exit_code == 75 and time.monotonic() - begin < 200
    assert newest(run.path) == 3


def test_an_overflow_in_float16_is_one_for_all_ranks(project: Path, alone: Callable[..., Run]) -> None:
    """A rank that did a step again by itself would wait for the others for ever, and end up with other weights."""
    recipe, run = prepared(project, "fp16", "float16")
    assert together(recipe, run, 2, "large scale") == [None, None]
    saved = json.loads((run.checkpoints / "step-00000006" / "state.json").read_text())
    assert 1.0 <= saved["loss_scale"] < 2.0**34 and saved["step"] == 6
    assert [one["passed"] for one in run.proofs() if one["name"] == "ranks_agree"] == [True]
    assert lines(run)[-1]["loss"] == pytest.approx(lines(alone("float32"))[-1]["loss"], rel=5e-3)


def test_the_validation_loss_is_the_same_bits_for_every_number_of_ranks(
    project: Path, alone: Callable[..., Run]
) -> None:
    """With a rate that moves no weight; nine rows, four at a time: the last round has ranks without rows."""
    adapter = str(alone("float32").adapter)
    losses = set()
    for size in (1, 2, 3):
        recipe, run = prepared(
            project, f"still-{size}", tune={"from_adapter": adapter}, learning_rate=1e-30, max_steps=3
        )
        if size == 1:
            train(recipe, run)
        else:
            assert together(recipe, run, size) == [None] * size
        losses.add(lines(run)[-1]["validation_loss"])
    assert len(losses) == 1


def test_a_checkpoint_serves_any_number_of_ranks(project: Path, alone: Callable[..., Run]) -> None:
    recipe, run = prepared(project, "fewer")
    assert together(recipe, run, 2) == [None, None]
    shutil.rmtree(run.checkpoints / "step-00000006")
    shutil.rmtree(run.adapter)
    train(recipe, run)
    saved = json.loads((run.checkpoints / "step-00000006" / "state.json").read_text())
    assert saved["resumes"][0]["step"] == 3 and "ranks was 2, is 1" in saved["resumes"][0]["reasons"]
    assert distance(run, alone("float32")) < 1e-5
