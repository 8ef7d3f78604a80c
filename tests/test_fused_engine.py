"""The fused engine beside the reference: the same losses, gradients and adapters at every level of memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from test_engine_exact import ALL, ONE_BY_ONE, ROWS, add_random_lora, batch, distance, recipe, total
from tiny_models import KINDS, tiny
from torch import Tensor

from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_host import Away, Courier
from tunesmith.engine.fused_layer import Kept
from tunesmith.engine.fused_memory import LEVELS
from tunesmith.engine.plan import MicroBatchPlan
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.errors import OutOfRoom
from tunesmith.kernels import plain
from tunesmith.model.attention import register
from tunesmith.model.lora import adapters_off, add_lora, linears
from tunesmith.model.weights import FrozenLinear, quantized
from tunesmith.recipe import Recipe, Tune
from tunesmith.train.optimizer import Optimizer, clip


def pair(
    kind: str = "llama", *, dtype: torch.dtype = torch.float32, dropout: float = 0.1, quantize: str = "none",
    tune: dict[str, Any] | None = None, **config: Any,
) -> tuple[ReferenceEngine, FusedEngine]:  # fmt: skip
    """Both engines over models of their own with equal numbers."""
    wanted = recipe(dropout=dropout)
    wanted = wanted.model_copy(update={"tune": Tune(**(wanted.tune.model_dump() | (tune or {})))})
    return _one(ReferenceEngine, kind, dtype, wanted, quantize, config), _one(
        FusedEngine, kind, dtype, wanted, quantize, config
    )


def _one(
    engine_kind: Any, kind: str, dtype: torch.dtype, wanted: Recipe, quantize: str, config: dict[str, Any]
) -> Any:
    model = tiny(kind, dtype=dtype, attention=register(), **config)
    if quantize != "none":
        for name in linears(model):
            linear = model.get_submodule(name)
            parent, _, leaf = name.rpartition(".")
            bias = None if linear.bias is None else linear.bias.detach()
            frozen = FrozenLinear(quantized(linear.weight.detach(), quantize), bias)
            setattr(model.get_submodule(parent), leaf, frozen)
    add_random_lora(model, wanted.tune)
    return engine_kind(model, wanted)


def plan(*levels: str, images: int = 0, away: bool = False) -> MicroBatchPlan:
    return MicroBatchPlan(tokens=100, rows=None, recompute=levels, images=images, outer_on_host=away)


def keeps(fused: FusedEngine) -> list[Kept]:
    """What the layers leave for their backward, all rows at once."""
    whole = batch(range(ROWS))
    x = fused._outer.embed(whole.ids, whole.ids)
    return fused._layers_forward(x, fused._stream(whole, drops=True), keeps=True)[2]


def apart(fused: ReferenceEngine, told: ReferenceEngine) -> float:
    """Largest difference of the loss, or of one adapter's gradient relative to its norm."""
    loss, found = total(told, ALL)[0], total(fused, ALL)[0]
    gaps = [abs(found - loss) / loss]
    for name, gradient in told.parameters.grads.items():
        gaps.append(((fused.parameters.grads[name] - gradient).norm() / gradient.norm()).item())
    return max(gaps)


# ---- against the reference


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_loss_and_gradients_are_the_references(kind: str, dropout: float) -> None:
    told, fused = pair(kind, dropout=dropout)
    assert apart(fused, told) < 1e-5


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_quantised_bases_and_kept_images(quantize: str) -> None:
    told, fused = pair("qwen2", quantize=quantize)
    assert apart(fused, told) < 1e-5
    before = total(fused, ALL)
    for images in (1, 2, 0):
        fused.use(plan("none", "full", images=images))
        after = total(fused, ALL)
        assert before[0] == after[0] and torch.equal(before[1], after[1])
        found, expected = fused.row_losses(batch(range(ROWS)))[0], told.row_losses(batch(range(ROWS)))[0]
        assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    "tune",
    [
        {"target_modules": ("q_proj", "v_proj")},
        {"target_modules": ("o_proj",)},
        {"target_modules": ("k_proj", "up_proj")},
        {"target_modules": ("gate_proj", "down_proj")},
        {"target_modules": ("layers.1.mlp.up_proj",)},
        {"target_modules": ("layers.0.self_attn.k_proj",)},
        {"rank": 1},
        {"rank": 40, "rslora": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_any_linears_and_any_rank(tune: dict[str, Any], dropout: float) -> None:
    told, fused = pair(dropout=dropout, tune=tune)
    assert apart(fused, told) < 1e-5
    fused.use(plan("full", "gate_up"))
    assert apart(fused, told) < 1e-5


def fifty_steps(trainer: ReferenceEngine) -> Tensor:
    """The adapters after them."""
    optimizer = Optimizer("adamw", trainer.parameters, weight_decay=0.0)
    for step in range(1, 51):
        total(trainer, [[0, 1, 2, 3], [4, 5, 6, 7]], step)
        clip(trainer.parameters.grad, 1.0)
        optimizer.step(2e-3)
    return trainer.parameters.data.clone()


def _up_without_mask(d, a, drops, out):  # type: ignore[no-untyped-def]
    out += d @ a


def test_fifty_steps_end_in_the_same_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    told, fused = pair()
    start = told.parameters.data.clone()
    end = fifty_steps(told)
    assert (end - start).norm() > 0.1 * start.norm()
    assert (fifty_steps(fused) - end).norm() < 1e-4 * end.norm()
    # the mutant: masks of dropout that miss one adapter's way back
    broken = dataclasses.replace(plain.PLAIN, lora_up=_up_without_mask)
    monkeypatch.setattr("tunesmith.engine.fused.kernels_for", lambda device: broken)
    monkeypatch.setattr(FusedEngine, "_require_equal_layers", lambda self: None)
    assert (fifty_steps(pair()[1]) - end).norm() > 1e-3 * end.norm()


def test_few_or_many_learned_tokens() -> None:
    """With few, the last layer's second half leaves the others out; with nearly all it does not."""
    from tunesmith.engine.protocol import pack_sequences

    told, fused = pair()
    for first in (0, 3, 7):
        rows = [list(range(1, 12)), list(range(5, 30))]
        packed = pack_sequences(rows, [[t >= first for t in range(len(r))] for r in rows], [0, 1], 1)
        for trainer in (told, fused):
            trainer.parameters.zero_grad()
        assert abs(told.step(packed, 0.1).loss - fused.step(packed, 0.1).loss) < 1e-4
        gap = fused.parameters.grad - told.parameters.grad
        assert gap.norm() < 1e-5 * told.parameters.grad.norm()


def test_rows_change_nothing_by_their_layout() -> None:
    fused = pair(dtype=torch.float64)[1]
    assert distance(total(fused, ALL), total(fused, ONE_BY_ONE)) < 1e-10


def test_half_types() -> None:
    exact = total(pair(dtype=torch.float32)[0], ALL)[1]
    for dtype in (torch.bfloat16, torch.float16):
        told, found = (total(trainer, ALL)[1] for trainer in pair(dtype=dtype))
        ours, theirs = (torch.cosine_similarity(exact, g, dim=0).item() for g in (found, told))
        assert ours > 0.995 and ours > theirs - 2e-3


def test_logits_and_switched_off_adapters() -> None:
    told, fused = pair("qwen3")
    whole = batch(range(ROWS))
    assert (fused.logits(whole) - told.logits(whole)).abs().max() < 1e-4
    with adapters_off(fused.model), adapters_off(told.model):
        bare = told.logits(whole)
        assert (fused.logits(whole) - bare).abs().max() < 1e-4
    assert (fused.logits(whole) - bare).abs().max() > 1e-2


def test_dense_weights_are_there_once() -> None:
    """They move into the engine's images, and the model goes on reading them there."""
    plain_model = tiny(attention=register())
    before = {name: parameter.clone() for name, parameter in plain_model.named_parameters()}
    wanted = recipe()
    add_lora(plain_model, wanted.tune.model_copy(update={"target_modules": ("q_proj",)}), 0)
    fused = FusedEngine(plain_model, wanted)
    for layer in fused.layers:
        for projection in layer.projections:
            image = projection._image
            assert image is not None
            for module in projection._modules:
                weight = getattr(module, "base", module).weight
                data = getattr(weight, "data")  # noqa: B009  # a buffer's or a parameter's
                assert data.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()
    for name, tensor in before.items():
        if "k_proj" in name or "down_proj" in name:
            assert torch.equal(plain_model.get_parameter(name), tensor)


# ---- levels of memory


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_recomputing_changes_no_bit(kind: str, dropout: float) -> None:
    fused = pair(kind, dropout=dropout)[1]
    told = total(fused, ALL)
    for levels in [(level, level) for level in LEVELS] + [("full", "none"), ("qkv", "gate_up")]:
        fused.use(plan(*levels))
        found = total(fused, ALL)
        assert told[0] == found[0] and torch.equal(told[1], found[1]), levels


def test_recomputing_keeps_less() -> None:
    """The mutant of the test above: levels that keep everything would pass it."""
    fused = pair()[1]
    found = []
    for level in LEVELS:
        fused.use(plan(level, level))
        found.append(sum(_bytes(one) for one in keeps(fused)))
    assert found[0] > 1.1 * found[1] > 1.1 * 1.5 * found[2] > 1.1 * 1.5 * 1.5 * found[3]
    assert found[3] > 1.5 * found[4]


@pytest.mark.parametrize("tied", [False, True])
def test_the_host_changes_no_bit(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of layers, embedding and head in host memory: the same step, validation and logits, and back again."""
    fused = pair(num_hidden_layers=4, tie_word_embeddings=tied)[1]
    rows = batch(range(ROWS))
    told, losses, logits = total(fused, ALL), fused.row_losses(rows)[0], fused.logits(rows)
    places = [[fused.head.weight.data, fused.body.embed_tokens.weight.data]]
    assert (places[0][0].data_ptr() == places[0][1].data_ptr()) == tied
    for levels in [("offload",) * 4, ("offload", "full", "offload", "none"), ("none",) * 3 + ("offload",)]:
        for away in (True, False):
            fused.use(plan(*levels, away=away))
            found = total(fused, ALL)
            assert told[0] == found[0] and torch.equal(told[1], found[1]), levels
            assert torch.equal(fused.row_losses(rows)[0], losses) and torch.equal(fused.logits(rows), logits)
            places.append([fused.head.weight.data, fused.body.embed_tokens.weight.data])
    addresses = {weight.data_ptr() for place in places for weight in place}  # none is reused: all are held
    assert len(addresses) == len(places) * (1 if tied else 2)
    # the mutant: an input comes back as another layer's
    fused.use(plan(*("offload",) * 4))
    monkeypatch.setattr(Away, "take", lambda self: first.setdefault("x", self._there))
    first: dict[str, Tensor] = {}
    assert not torch.equal(total(fused, ALL)[1], told[1])


@pytest.mark.parametrize("tied", [False, True])
def test_a_brought_head_leaves_the_embedding_on_the_host(tied: bool) -> None:
    """Hidden states are computed inside the block, too: a tied embedding must not follow the head to the card."""
    fused = pair(tie_word_embeddings=tied)[1]
    outer, made = fused._outer, []
    host = outer._courier.host
    outer._courier.host = lambda like: made.append(host(like)) or made[-1]  # type: ignore[method-assign]
    fused.use(plan("none", "none", away=True))
    assert len(made) == (1 if tied else 2)  # nothing is copied twice
    on_host = [weight.data_ptr() for weight in (fused.body.embed_tokens.weight, fused.head.weight)]
    with fused._here() as head:
        assert head.weight.data_ptr() not in on_host and torch.equal(head.weight, fused.head.weight)
        assert [w.data_ptr() for w in (fused.body.embed_tokens.weight, fused.head.weight)] == on_host
    assert head.weight.numel() == 0 and outer._brought is None


def test_a_host_without_room_is_told() -> None:
    with pytest.raises(OutOfRoom, match=r"the host has no 262144\.00 GiB") as caught:
        Courier(torch.device("cpu")).host(torch.empty(1).expand(1 << 46))
    assert "train.micro_batch" in str(caught.value.fix)


def _bytes(kept: Kept) -> int:
    tensors = [getattr(kept, field.name) for field in dataclasses.fields(kept)]
    flat = [t for one in tensors if one is not None for t in (one if isinstance(one, tuple) else (one,))]
    return sum(t.numel() * t.element_size() for t in flat if isinstance(t, Tensor))


def test_a_small_card_has_embedding_and_head_away_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is a plan: the comparison with autograd sees the same numbers."""
    usual = pair(quantize="nf4")[1]
    monkeypatch.setattr(FusedEngine, "_is_tight", lambda self: True)
    tight = pair(quantize="nf4")[1]
    assert tight._outer.on_host and not usual._outer.on_host
    assert (tight.hidden_apart, tight.gradient_apart) == (usual.hidden_apart, usual.gradient_apart)
    assert torch.equal(total(tight, ALL)[1], total(usual, ALL)[1])
    monkeypatch.undo()
    assert [_with_memory(usual, gib)._is_tight() for gib in (0.7, 80.0)] == [True, False]


def _with_memory(engine: FusedEngine, gib: float) -> FusedEngine:
    train = engine.recipe.train.model_copy(update={"memory": gib})
    engine.recipe = engine.recipe.model_copy(update={"train": train})
    return engine


def test_a_plan_for_another_model_is_refused() -> None:
    fused = pair()[1]
    for levels in (("none",) * 3, ("none", "some")):
        with pytest.raises(ValueError, match="the plan is for"):
            fused.use(plan(*levels))
