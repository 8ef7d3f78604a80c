"""The fused engine on a card: gradients beside fp32's on a slice of the 8B shape, equal bits at every level of memory,
no waiting for the device. The reference engine in the same half type is the measure of what rounding alone does."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_memory import LEVELS
from tunesmith.engine.plan import MicroBatchPlan
from tunesmith.engine.protocol import PackedBatch, pack_sequences
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.model.attention import register
from tunesmith.model.lora import adapters, add_lora, linears
from tunesmith.model.weights import FrozenLinear, quantized
from tunesmith.recipe import Data, Model, Recipe, Train, Tune

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]
DEVICE = "cuda"
SHAPE: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 2, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 8192, "rope_theta": 500000.0,
}  # fmt: skip
RAGGED, DENSE = (300, 17, 128, 513, 64), (256, 256, 256, 256)


def recipe(dropout: float) -> Recipe:
    return Recipe(
        name="slice",
        model=Model(base="x"),
        data=Data(train="x"),
        tune=Tune(rank=16, alpha=32, dropout=dropout),
        train=Train(),
    )


def model(
    kind: torch.dtype, quantize: str, dropout: float, layers: int = 2, tied: bool = False
) -> PreTrainedModel:
    """Equal numbers in every type: drawn in fp32, rounded to bf16 first."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        sizes = SHAPE | {"num_hidden_layers": layers, "tie_word_embeddings": tied}
        found = LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation=register()))
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.02)
                parameter.copy_(parameter.bfloat16())
    if quantize != "none":
        for name in linears(found):
            linear = found.get_submodule(name)
            assert isinstance(linear, torch.nn.Linear)
            parent, _, leaf = name.rpartition(".")
            frozen = FrozenLinear(quantized(linear.weight.detach().bfloat16(), quantize))
            setattr(found.get_submodule(parent), leaf, frozen)
    _narrow(found, kind)
    add_lora(found, recipe(dropout).tune, 0)
    for adapter in adapters(found):
        adapter.B.data.normal_(0, 0.02, generator=torch.Generator(DEVICE).manual_seed(1))
    return found


def _narrow(found: PreTrainedModel, kind: torch.dtype) -> None:
    """Parameters alone: rotary frequencies and scales of quantised weights stay, as in a model from disk."""
    for parameter in found.parameters():
        parameter.data = parameter.data.to(kind)


def batch(lengths: tuple[int, ...], share: float = 0.5) -> PackedBatch:
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(1, SHAPE["vocab_size"], (n,), generator=generator).tolist() for n in lengths]
    learned = [[t >= n * (1 - share) for t in range(n)] for n in lengths]
    return pack_sequences(ids, learned, list(range(len(ids))), 3)


def gradient(engine: ReferenceEngine, lengths: tuple[int, ...], share: float = 0.5) -> tuple[float, Tensor]:
    engine.parameters.zero_grad()
    rows = batch(lengths, share)
    loss = engine.step(rows, 1.0 / rows.learned_tokens).loss.item()
    return loss / rows.learned_tokens, engine.parameters.grad.clone()


def plan(
    level: str = "none", images: int = 0, dense: int | None = None, away: bool = False
) -> MicroBatchPlan:
    layers = (level,) * SHAPE["num_hidden_layers"]
    return MicroBatchPlan(
        tokens=1 << 20, rows=None, recompute=layers, images=images, dense=dense, outer_on_host=away
    )


@cache
def truth(quantize: str, dropout: float, lengths: tuple[int, ...], share: float) -> tuple[float, Tensor]:
    return gradient(ReferenceEngine(model(torch.float32, quantize, dropout), recipe(dropout)), lengths, share)


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.double(), b.double(), dim=0).item()


@pytest.mark.parametrize("quantize", ["none", "nf4", "int8"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("lengths, share", [(RAGGED, 0.5), (RAGGED, 1.0), (DENSE, 1.0)])
def test_gradients_are_as_near_to_fp32_as_the_references(
    quantize: str, dropout: float, lengths: tuple[int, ...], share: float
) -> None:
    told = truth(quantize, dropout, lengths, share)
    usual = gradient(
        ReferenceEngine(model(torch.bfloat16, quantize, dropout), recipe(dropout)), lengths, share
    )
    fused = FusedEngine(model(torch.bfloat16, quantize, dropout), recipe(dropout))
    fused.use(plan(images=1, dense=256 if lengths == DENSE else None))
    found = gradient(fused, lengths, share)
    ours, theirs = cosine(found[1], told[1]), cosine(usual[1], told[1])
    print(f"{quantize} {dropout} {lengths} {share}: cosine {ours:.6f}, reference {theirs:.6f}; "
          f"loss {found[0]:.5f} {usual[0]:.5f} {told[0]:.5f}")  # fmt: skip
    assert ours >= 0.999 and ours >= theirs - 1e-4
    assert abs(found[0] - told[0]) <= 3e-4 * told[0]  # rounding alone moves the reference's by 2.1e-4


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("lengths", [RAGGED, DENSE])
def test_memory_never_changes_a_bit(dropout: float, lengths: tuple[int, ...]) -> None:
    """Levels of recomputation and kept images. Attention sums in one order, or there would be no bits to compare."""
    torch.use_deterministic_algorithms(True)
    try:
        engine = FusedEngine(model(torch.bfloat16, "nf4", dropout), recipe(dropout))
        told = gradient(engine, lengths)
        for level in LEVELS:
            for images, away in ((0, False), (1, True), (2, False), (0, True)):
                engine.use(plan(level, images, away=away))
                found = gradient(engine, lengths)
                assert found[0] == told[0] and torch.equal(found[1], told[1]), (level, images, away)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("tied", [False, True])
def test_a_small_card_has_embedding_and_head_away_from_the_start(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FusedEngine, "_is_tight", lambda self: True)
    engine = FusedEngine(model(torch.bfloat16, "nf4", 0.1, tied=tied), recipe(0.1))
    weights = engine.body.embed_tokens.weight, engine.head.weight
    assert not any(weight.is_cuda for weight in weights) and engine.gradient_apart <= engine.gradient_limit
    assert bool(torch.isfinite(engine.logits(batch(RAGGED))).all())
    assert not any(weight.is_cuda for weight in weights)


def test_inputs_of_many_layers_go_and_come() -> None:
    """Copies beside the products, eight layers deep, again and again: the same bits each time, and less memory."""
    torch.use_deterministic_algorithms(True)
    try:
        engine = FusedEngine(model(torch.bfloat16, "nf4", 0.0, layers=8), recipe(0.0))
        peaks, told = [], None
        for level, away in [("full", False), *[("offload", True)] * 6]:
            engine.use(MicroBatchPlan(tokens=1 << 20, rows=None, recompute=(level,) * 8, outer_on_host=away))
            torch.cuda.reset_peak_memory_stats()
            found = gradient(engine, (1024,) * 4)
            peaks.append(torch.cuda.max_memory_allocated())
            told = told or found
            assert found[0] == told[0] and torch.equal(found[1], told[1])
        assert peaks[0] - peaks[-1] > 5 * 4096 * 4096 * 2  # six of eight inputs, and what the small head adds
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("level, away", [("none", False), ("full", False), ("offload", True)])
def test_no_step_waits_for_the_device(level: str, away: bool) -> None:
    engine = FusedEngine(model(torch.bfloat16, "nf4", 0.1), recipe(0.1))
    engine.use(plan(level, away=away))
    rows = batch(RAGGED)
    engine.step(rows, 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.step(rows, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_validation_is_the_references() -> None:
    fused = FusedEngine(model(torch.bfloat16, "nf4", 0.1), recipe(0.1))
    usual = ReferenceEngine(model(torch.bfloat16, "nf4", 0.1), recipe(0.1))
    rows = batch(RAGGED)
    ours, theirs = fused.row_losses(rows)[0], usual.row_losses(rows)[0]
    assert ((ours - theirs).abs() / theirs).max() < 2e-3
