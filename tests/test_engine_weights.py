"""The reference engine on other weights: full fine-tuning, flat parameters, half types, quantised bases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_engine_exact import ALL, LIMIT, ONE_BY_ONE, ROWS, batch, distance, engine, recipe, rows, total
from tiny_models import tiny
from torch.nn.functional import cross_entropy

from tunesmith.engine.protocol import FlatParameters, MicroBatchPlan
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.model.attention import register
from tunesmith.model.lora import adapters, add_lora, linears
from tunesmith.model.weights import Dense, FrozenLinear, quantized


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "qwen2"])
def test_full_fine_tuning(kind: str) -> None:
    model, referee = tiny(kind, dtype=torch.float64, attention=register()), tiny(kind, dtype=torch.float64)
    trainer = ReferenceEngine(model, recipe())
    assert distance(total(trainer, ALL), total(trainer, ONE_BY_ONE)) < LIMIT
    ids, learned = rows()
    loss = torch.zeros((), dtype=torch.float64)
    for row, mask in zip(ids, learned, strict=True):
        targets = torch.tensor([t for t in range(1, len(row)) if mask[t]])
        logits = referee(torch.tensor([row]), use_cache=False).logits[0]
        loss = loss + cross_entropy(logits[targets - 1], torch.tensor(row)[targets], reduction="sum")
    (loss / batch(range(ROWS)).learned_tokens).backward()
    total(trainer, ALL)
    assert trainer.parameters.names == tuple(name for name, _ in referee.named_parameters())
    for name, parameter in referee.named_parameters():
        assert torch.allclose(trainer.parameters.grads[name], parameter.grad, rtol=1e-5, atol=1e-7), name


def test_full_fine_tuning_in_bf16_has_fp32_masters() -> None:
    model = tiny("llama_tied", dtype=torch.bfloat16, attention=register())
    trainer = ReferenceEngine(model, recipe())
    flat = trainer.parameters
    assert flat.data.dtype == flat.grad.dtype == torch.float32
    before = total(trainer, ALL)[0]
    assert all(p.grad is None for p in model.parameters()) and flat.grads["model.embed_tokens.weight"].any()
    small = (
        model.model.norm.weight[0].item() * 2.0**-10
    )  # less than half an ulp of bf16: kept by the master alone
    flat.data -= 0.05 * flat.grad / flat.grad.norm()
    flat.views["model.norm.weight"][0] += small
    assert total(trainer, ALL)[0] < before
    assert torch.equal(model.model.norm.weight, flat.views["model.norm.weight"].bfloat16())


def test_flat_parameters_are_views() -> None:
    trainer = engine(dtype=torch.float32)
    adapter = adapters(trainer.model)[3]
    trainer.parameters.data.fill_(0.25)
    assert adapter.A.eq(0.25).all() and adapter.A.grad is not None
    total(trainer, ALL)
    name = f"{adapter.name}.A"
    assert (
        torch.equal(adapter.A.grad, trainer.parameters.grads[name]) and trainer.parameters.grads[name].any()
    )
    assert trainer.parameters.data.numel() == sum(np.prod(shape) for shape in trainer.parameters.shapes)
    with pytest.raises(ValueError, match="nothing to train"):
        FlatParameters([])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_close(dtype: torch.dtype) -> None:
    told, found = total(engine(dtype=torch.float32), ALL), total(engine(dtype=dtype), ALL)
    cosine = torch.cosine_similarity(told[1], found[1], dim=0).item()
    assert abs(told[0] - found[0]) < 0.02 and cosine > 0.995


def test_loss_scale_keeps_small_fp16_gradients() -> None:
    """With 1/learned alone most of a confident token's gradient is below fp16's range; scaled, it is not."""
    told = total(engine(dtype=torch.float32), ALL)[1]
    trainer = engine(dtype=torch.float16)

    def error(factor: float) -> float:
        trainer.parameters.zero_grad()
        trainer.step(batch(range(ROWS)), factor / batch(range(ROWS)).learned_tokens)
        return ((trainer.parameters.grad / factor - told).norm() / told.norm()).item()

    assert error(2.0**8) < 0.05 < error(2.0**-14)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_quantised_base_trains_as_its_dense_image(how: str) -> None:
    """Loss and gradients are those of a dense base that holds the rounded weights; evaluating changes nothing."""
    wanted = recipe()
    trainers = []
    for dense in (False, True):
        model = tiny("qwen2", attention=register())
        for name in linears(model):
            linear = model.get_submodule(name)
            weight = quantized(linear.weight.detach(), how)
            if dense:
                weight = Dense(weight.dequantize(torch.float32))
            parent, _, leaf = name.rpartition(".")
            bias = None if linear.bias is None else linear.bias.detach()
            setattr(model.get_submodule(parent), leaf, FrozenLinear(weight, bias))
        add_lora(model, wanted.tune, 0)
        trainers.append(ReferenceEngine(model, wanted))
        trainers[-1].parameters.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(5))
    told, before = total(trainers[1], ALL), total(trainers[0], ALL)
    assert distance(before, told) < 1e-5
    assert distance(total(trainers[0], ONE_BY_ONE), told) < 1e-5
    trainers[0].row_losses(batch(range(ROWS)))
    after = total(trainers[0], ALL)
    assert before[0] == after[0] and torch.equal(before[1], after[1])


def test_the_engines_plan_covers_its_layers_and_rows() -> None:
    trainer = engine()
    found = trainer.plan(np.array([5, 5000, 30]))
    assert found.tokens == 5000 and found.recompute == ("none", "none")
    trainer.use(found)
    with pytest.raises(ValueError, match="3 layers"):
        trainer.use(MicroBatchPlan(tokens=1, rows=None, recompute=("none",) * 3))
