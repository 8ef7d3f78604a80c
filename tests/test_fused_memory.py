"""The fused engine's planner: its arithmetic against what is really kept and what a card measured; rules of a plan."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from test_engine_exact import ROWS, batch
from test_fused_engine import _bytes, keeps, pair, plan
from test_memory_plan import LLAMA_8B, ragged, recipe
from tiny_models import SIZES

from tunesmith.engine.fused_memory import LEVELS, FusedShape, ladder, make_fused_plan
from tunesmith.engine.memory import GIB, Budget, Shape
from tunesmith.engine.plan import MicroBatchPlan
from tunesmith.errors import OutOfRoom
from tunesmith.recipe import Recipe, Tune

CARD = int(139.8 * GIB)
# torch's allocator on an H200 (benchmarks/profile_gpu.py: NF4, r16 on all linears, without optimiser state):
# (tokens, level, images) -> GiB allocated at the peak. Beside it the script holds up to two gradients of 0.16 GiB,
# which is all that a prediction may be under it
MEASURED = {
    (16384, "none", 32): 66.13,
    (16384, "none", 0): 53.32,
    (4615, "none", 32): 32.20,
    (4096, "none", 2): 18.91,
    (4096, "full", 0): 7.76,
    (3310, "none", 0): 15.66,
}


def found(wanted: Recipe, lengths: list[int], card: int | None = CARD) -> MicroBatchPlan:
    return make_fused_plan(FusedShape.of(LLAMA_8B, wanted), Budget.of(wanted.train, card), lengths)


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_prediction_is_what_a_card_measured(case: tuple[int, str, int]) -> None:
    tokens, level, images = case
    fused = FusedShape.of(LLAMA_8B, recipe())
    predicted = fused.peak(tokens, (level,) * 32, images) - 8 * fused.shape.trained
    assert -0.16 <= predicted / GIB - MEASURED[case] < 0.03 * MEASURED[case]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("targets", ["all", ("q_proj", "down_proj")])
def test_kept_bytes_are_what_the_engine_keeps(kind: str, level: str, targets: Any) -> None:
    """The first layer: the last one leaves out tokens that nothing needs."""
    fused = pair(kind, tune={"target_modules": targets, "rank": 16})[1]
    fused.use(plan(level, level))
    kept = keeps(fused)[0]
    config = SIZES | {"model_type": kind, "head_dim": 16}
    shape = Shape.of(config, fused.recipe.model_copy(update={"model": recipe("none", dtype="float32").model}))
    counted = FusedShape(shape, shape.adapted).kept(level) - (
        4 * shape.heads if LEVELS.index(level) < 3 else 0
    )
    real = _bytes(kept) / batch(range(ROWS)).tokens  # without the tails that lie behind some rows
    assert counted * 0.8 <= real <= counted


def test_plans_are_within_their_budget() -> None:
    for memory in (7.0, 10.0, 16.0, 22.0, 40.0, 80.0, "auto"):
        for lengths in (ragged(), [2048] * 300):
            wanted = recipe(memory=memory)
            made = found(wanted, lengths)
            fused, usable = FusedShape.of(LLAMA_8B, wanted), Budget.of(wanted.train, CARD).usable
            assert made.tokens is not None and usable is not None and made.tokens >= max(lengths)
            assert fused.peak(made.tokens, made.recompute, made.images, made.outer_on_host) <= usable
            images = made.images + 1
            more = (
                images < 33 and fused.peak(made.tokens, made.recompute, images, made.outer_on_host) <= usable
            )
            assert not more
            assert made == MicroBatchPlan.from_json(made.to_json()) == found(wanted, lengths)


def test_more_memory_is_faster() -> None:
    fused = FusedShape.of(LLAMA_8B, recipe())

    def rate(made: MicroBatchPlan) -> float:
        assert made.tokens is not None
        return fused.seconds(made.tokens, made.recompute, made.images, made.outer_on_host) / made.tokens

    plans = [found(recipe(memory=m), [2048] * 300) for m in (7.0, 8.0, 10.0, 12.0, 16.0, 22.0, 40.0, 80.0)]
    assert [rate(p) for p in plans] == sorted((rate(p) for p in plans), reverse=True)
    assert set(plans[0].recompute) & {"offload"} and set(plans[-1].recompute) == {"none"}
    assert plans[0].outer_on_host and not plans[-1].outer_on_host
    assert plans[0].images == 0 and plans[-1].images > 10


def test_a_ladder_goes_down_in_memory() -> None:
    fused = FusedShape.of(LLAMA_8B, recipe())
    steps = ladder(32, "auto")
    assert len(steps) == 129 and steps[0] == ("none",) * 32 and steps[-1] == ("offload",) * 32
    peaks = [fused.peak(8192, levels, 0) for levels in steps]
    assert peaks == sorted(peaks, reverse=True)
    times = [fused.seconds(8192, levels) for levels in steps]
    assert times == sorted(times)
    assert fused.peak(4096, steps[-1], 0, True) < fused.peak(4096, steps[-1], 0) - 0.9 * GIB
    assert fused.seconds(4096, steps[-1], 0, True) > fused.seconds(4096, steps[-1])


def test_what_the_recipe_asks_for() -> None:
    assert found(recipe(recompute="full"), ragged()).recompute == ("full",) * 32
    assert set(found(recipe(recompute="none", memory=20.0), ragged()).recompute) == {"none"}
    by_rows = found(recipe(micro_batch=4), ragged())
    assert by_rows.rows == 4 and by_rows.tokens is None
    on_cpu = found(recipe("none", dtype="float32"), ragged(), card=None)
    assert on_cpu.tokens == 4096 and on_cpu.images == 0 and on_cpu.gib is None
    assert found(recipe("none"), [2048] * 300).images == 0  # dense weights need no image
    with pytest.raises(OutOfRoom, match=r"would take about [\d.]+ GiB") as caught:
        found(recipe(memory=6.0), [2048] * 100)
    assert "a card with more memory" in str(caught.value.fix)


def test_rows_of_one_length_are_said() -> None:
    assert found(recipe(), [2048] * 300).dense == 2048
    assert found(recipe(), [2048] * 300 + [100] * 300).dense == 2048
    assert found(recipe(), ragged()).dense is None
    assert found(recipe(), [64] * 300).dense is None


def test_adapters_on_attention_alone_keep_less() -> None:
    """In both engines: what no adapter reads is not kept by the reference, and tails are narrower in the fused one."""
    fewer = recipe().model_copy(update={"tune": Tune(rank=16, target_modules=("q_proj", "v_proj"))})
    whole, part = FusedShape.of(LLAMA_8B, recipe()), FusedShape.of(LLAMA_8B, fewer)
    assert part.peak(8192, ("none",) * 32, 0) < whole.peak(8192, ("none",) * 32, 0)
    assert part.shape.kept < 0.85 * whole.shape.kept
    assert dataclasses.replace(part.shape, adapted=whole.shape.adapted).kept == whole.shape.kept


def test_planning_needs_no_torch() -> None:
    code = "import sys, tunesmith.engine.fused_memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
