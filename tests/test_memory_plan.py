"""The planner: its arithmetic against what autograd really keeps, and the rules of a plan."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny_models import SIZES

from tunesmith.engine.memory import GIB, Budget, Shape, make_plan
from tunesmith.engine.plan import MicroBatchPlan
from tunesmith.errors import ModelError, OutOfRoom
from tunesmith.recipe import Data, Model, Recipe, Train, Tune
from tunesmith.verbs.doctor.needs import LLAMA_8B

CARD = 24 * GIB


def recipe(quantize: str = "nf4", method: str = "lora", dtype: str = "bfloat16", **train: Any) -> Recipe:
    return Recipe(
        name="test",
        model=Model.model_validate({"base": "x", "quantize": quantize, "dtype": dtype}),
        data=Data(train="x"),
        tune=Tune.model_validate({"method": method, "rank": 16}),
        train=Train(**train),
    )


def ragged(n: int = 2000, low: int = 60, high: int = 2048) -> list[int]:
    generator = random.Random(0)
    return [min(high, max(low, round(generator.lognormvariate(5.5, 0.5)))) for _ in range(n)]


def plan(
    wanted: Recipe, lengths: list[int], card: int | None = CARD, config: Any = LLAMA_8B
) -> MicroBatchPlan:
    return make_plan(Shape.of(config, wanted), Budget.of(wanted.train, card), lengths)


def test_weights_are_those_of_the_model() -> None:
    shape = Shape.of(LLAMA_8B, recipe())
    assert shape.layers * shape.layer_weights == 6_979_321_856 and shape.trained == 41_943_040
    assert abs(shape.weights / GIB - 5.31) < 0.01  # measured on an H200 with 8 of 32 layers: within 1.2 %
    assert abs(Shape.of(LLAMA_8B, recipe("none")).weights / GIB - 14.96) < 0.01
    attention = recipe().model_copy(update={"tune": Tune(rank=16, target_modules=("q_proj", "v_proj"))})
    assert Shape.of(LLAMA_8B, attention).trained == 32 * 16 * (4096 + 4096 + 4096 + 1024)


# torch's allocator on an H200: 8 layers of this shape, r16 on all linears, dropout 0.1, rows of 256 tokens,
# a third learned; (quantize, tokens, recomputed) -> GiB allocated at the peak, without optimiser state
MEASURED = {
    ("nf4", 1024, 0): 4.759,
    ("nf4", 2048, 0): 6.392,
    ("nf4", 4096, 0): 9.221,
    ("nf4", 8192, 0): 14.885,
    ("nf4", 4096, 4): 6.591,
    ("nf4", 4096, 8): 4.271,
    ("nf4", 8192, 8): 5.605,
    ("none", 2048, 0): 8.803,
    ("none", 8192, 0): 17.297,
    ("none", 4096, 4): 9.002,
    ("none", 8192, 8): 8.017,
}


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_prediction_is_what_a_card_measured(case: tuple[str, int, int]) -> None:
    quantize, tokens, recomputed = case
    shape = Shape.of(LLAMA_8B | {"num_hidden_layers": 8}, recipe(quantize))
    predicted = shape.peak(tokens, recomputed, tokens // 3) - 8 * shape.trained
    assert -0.02 < predicted / GIB / MEASURED[case] - 1 < 0.05


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_kept_bytes_are_what_autograd_keeps(kind: str) -> None:
    """Counted by hooks in fp32 on a CPU: two depths, so that only what a layer adds is compared."""
    from tiny_models import tiny

    from tunesmith.engine.protocol import pack_sequences
    from tunesmith.engine.reference import ReferenceEngine
    from tunesmith.model.attention import register
    from tunesmith.model.lora import add_lora

    wanted = recipe("none", dtype="float32").model_copy(update={"tune": Tune(rank=16, dropout=0.1)})
    batch = pack_sequences([list(range(1, 65))], [[t > 32 for t in range(64)]], [0], 1)

    def kept(layers: int) -> int:
        model = tiny(kind, attention=register(), num_hidden_layers=layers)
        add_lora(model, wanted.tune, 0)
        trainer = ReferenceEngine(model, wanted)
        own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        own.add(trainer.parameters.data.untyped_storage().data_ptr())
        found: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            hidden = trainer._hidden(batch)
        assert hidden.requires_grad
        return sum(found.values())

    config = SIZES | {"model_type": kind}
    counted = (kept(4) - kept(2)) / 2 / batch.tokens
    assert abs(counted / Shape.of(config, wanted).kept - 1) < 0.1


def test_a_plan_is_within_its_budget_and_nearly_fills_it() -> None:
    for memory in (10.0, 16.0, 22.0, 40.0, 80.0):
        for quantize in ("nf4", "none") if memory > 20 else ("nf4",):
            for lengths in (ragged(), [2048] * 300):
                wanted = recipe(quantize, memory=memory)
                found, shape = plan(wanted, lengths), Shape.of(LLAMA_8B, wanted)
                recomputed = found.recompute.count("full")
                assert found.gib is not None and found.tokens is not None and found.tokens >= max(lengths)
                assert 0.85 * memory < found.gib < 0.95 * memory
                assert found.recompute == ("full",) * recomputed + ("none",) * (32 - recomputed)
                assert shape.peak(found.tokens, recomputed) <= memory * GIB


def test_more_memory_recomputes_less() -> None:
    counts = [
        plan(recipe(memory=m), [2048] * 300).recompute.count("full") for m in (10.0, 14.0, 18.0, 22.0, 30.0)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > 24 and counts[-1] == 0


def test_a_plan_is_a_function_of_its_inputs() -> None:
    first, second = plan(recipe(), ragged()), plan(recipe(), ragged())
    assert first == second == MicroBatchPlan.from_json(first.to_json())
    assert (
        plan(recipe(memory=24.0), ragged(), card=None)
        == first
        == plan(recipe(memory=24.0), ragged(), card=80 * GIB)
    )


def test_what_the_recipe_asks_for() -> None:
    assert plan(recipe(recompute="full"), ragged()).recompute == ("full",) * 32
    assert plan(recipe(recompute="none"), ragged()).recompute == ("none",) * 32
    by_rows = plan(recipe(micro_batch=4), ragged())
    assert by_rows.rows == 4 and by_rows.tokens is None
    assert plan(recipe(packing=False), ragged()).padded
    on_cpu = plan(recipe("none", dtype="float32"), ragged(), card=None)
    assert on_cpu.tokens == 4096 and set(on_cpu.recompute) == {"none"} and on_cpu.gib is None
    assert plan(recipe("none"), [9000], card=None).tokens == 9000  # the longest row always fits
    for found in (by_rows, on_cpu):
        assert found.note and "layer" in found.note


@pytest.mark.parametrize(
    "wanted, says",
    [
        (recipe(memory=7.0), "a card with more memory"),
        (recipe("none", memory=16.0), "model.quantize: nf4"),
        (recipe(memory=12.0, recompute="none"), "train.recompute: auto"),
        (recipe(memory=22.0, micro_batch=64), "train.micro_batch: auto"),
        (recipe("none", "full", memory=40.0), "tune.method: lora"),
    ],
)
def test_no_room_says_what_to_change(wanted: Recipe, says: str) -> None:
    with pytest.raises(OutOfRoom, match=r"would take about [\d.]+ GiB, and there are") as caught:
        plan(wanted, [2048] * 100)
    assert caught.value.fix is not None and says in caught.value.fix


def test_a_config_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelError, match="hidden_size"):
        Shape.of({"n_embd": 768}, recipe())


# ---- splitting a step


def test_split_covers_each_row_once_within_the_budget() -> None:
    generator = random.Random(1)
    for padded in (False, True):
        for _ in range(200):
            lengths = [generator.randint(1, 500) for _ in range(generator.randint(1, 32))]
            found = MicroBatchPlan(tokens=600, rows=None, recompute=(), padded=padded)
            parts = found.split(lengths)
            assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
            for part in parts:
                own = [lengths[i] for i in part]
                assert (max(own) * len(own) if padded else sum(own)) <= 600
            assert found.split(lengths) == parts
            if not padded:
                assert len(parts) <= 2 * (sum(lengths) / 600 + 1)


def test_split_is_even() -> None:
    parts = MicroBatchPlan(tokens=1000, rows=None, recompute=()).split([250] * 5)
    assert sorted(len(part) for part in parts) == [2, 3]  # and not 4 and 1


def test_split_by_rows_and_overlong() -> None:
    assert MicroBatchPlan(tokens=None, rows=2, recompute=()).split([9, 8, 7]) == [[0, 1], [2]]
    assert sorted(MicroBatchPlan(tokens=100, rows=None, recompute=()).split([500, 20, 30])) in (
        [[0], [1, 2]],
        [[0], [1], [2]],
    )
    assert MicroBatchPlan(tokens=100, rows=None, recompute=()).split([]) == []


def test_planning_needs_no_torch() -> None:
    code = "import sys, tunesmith.engine.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
