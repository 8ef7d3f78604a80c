"""The fused engine's gradients: finite differences, and mutants of its formulas that have to be seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_engine_exact import ALL, batch, distance, total
from test_fused_engine import _up_without_mask, apart, pair, plan
from tiny_models import KINDS
from torch import Tensor

from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_layer import FusedLayer, Kept
from tunesmith.engine.fused_memory import LEVELS
from tunesmith.errors import ModelError
from tunesmith.kernels import plain

SMALL = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 96, "head_dim": 4}


class _Loss(torch.autograd.Function):
    """The engine's loss as a function of its flat parameters, with the gradient that the engine itself gives."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, trainer: FusedEngine) -> Tensor:
        trainer.parameters.data.copy_(flat)
        trainer.parameters.zero_grad()
        loss = trainer.step(batch([0, 4, 7]), 0.01).loss * 0.01
        ctx.save_for_backward(trainer.parameters.grad.clone())
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


def holds(trainer: FusedEngine, fast: bool = True) -> bool:
    """Whether gradients are those of finite differences."""
    flat = trainer.parameters.data.clone().requires_grad_()
    apply: Callable[..., Tensor] = _Loss.apply
    return torch.autograd.gradcheck(
        lambda x: apply(x, trainer), (flat,), eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=fast,
        raise_exception=False,
    )  # fmt: skip


def slope_error(trainer: FusedEngine) -> float:
    """The gradient along a random direction against a central difference, relative: gradcheck's quick sister."""
    flat = trainer.parameters.data.clone()
    direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1), dtype=flat.dtype)
    apply: Callable[..., Tensor] = _Loss.apply
    x = flat.clone().requires_grad_()
    apply(x, trainer).backward()
    assert x.grad is not None
    told = (x.grad @ direction).item()
    ends = [apply(flat + sign * 1e-6 * direction, trainer).item() for sign in (1, -1)]
    return abs(told / ((ends[0] - ends[1]) / 2e-6) - 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("level", LEVELS)
def test_gradients_are_finite_differences(kind: str, dropout: float, level: str) -> None:
    fused = pair(kind, dtype=torch.float64, dropout=dropout, **SMALL)[1]
    fused.use(plan(level, level))
    assert holds(fused)


def test_the_quick_check_agrees() -> None:
    """What the mutants below are measured by holds where nothing is broken."""
    assert slope_error(pair(dtype=torch.float64, **SMALL)[1]) < 1e-5


def test_every_number_of_the_gradient() -> None:
    assert holds(
        pair("qwen3", dtype=torch.float64, tune={"rank": 1}, num_hidden_layers=1, **SMALL)[1], fast=False
    )


def _norm_without_mean(d, x, weight, eps, add, out, again):  # type: ignore[no-untyped-def]
    plain.norm_backward(d, x, weight, eps, add, out, again)
    if out is not None:
        normed, rstd = plain._normed(x, eps)
        out += rstd * normed * (d * weight * normed).mean(-1, keepdim=True)


def _rotate_forwards(dq, dk, dv, cos, sin, norms, eps, qkv):  # type: ignore[no-untyped-def]
    plain.rotate_backward(dq, dk, dv, cos, -sin, norms, eps, qkv)


def _swiglu_linear(gate_up, d):  # type: ignore[no-untyped-def]
    gate, up = (part.clone() for part in gate_up.chunk(2, dim=-1))
    before = d.clone()
    plain.swiglu_backward(gate_up, d)
    gate_up[:, : gate.shape[1]] = before * up * torch.sigmoid(gate)


def _outer_without_mask(d, x, drops):  # type: ignore[no-untyped-def]
    return d.t() @ x


def _down_without_mask(x, a, drops, scale, out):  # type: ignore[no-untyped-def]
    out.copy_(x @ a.t() * scale)


MUTANTS = {
    "norm_backward": _norm_without_mean,
    "rotate_backward": _rotate_forwards,
    "swiglu_backward": _swiglu_linear,
    "lora_up": _up_without_mask,
    "lora_outer": _outer_without_mask,
    "lora_down": _down_without_mask,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = dataclasses.replace(plain.PLAIN, **{name: MUTANTS[name]})
    monkeypatch.setattr("tunesmith.engine.fused.kernels_for", lambda device: broken)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ModelError, match="gradients of"):
            pair(dtype=dtype)
    monkeypatch.setattr(FusedEngine, "_require_equal_layers", lambda self: None)
    told, fused = pair()
    assert apart(fused, told) > 1e-3
    if name != "lora_down":  # a forward without masks is another function, with a gradient of its own
        assert slope_error(pair(dtype=torch.float64, **SMALL)[1]) > 1e-3
    if name == "norm_backward":  # few numbers: gradcheck compares all of them before it says no
        few = {"rank": 1, "target_modules": ("q_proj",)}
        assert not holds(pair(dtype=torch.float64, tune=few, num_hidden_layers=1, **SMALL)[1])


def test_mutant_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputing q, k and v without their rotation; a last layer that keeps the wrong tokens."""
    fused = pair()[1]
    told = total(fused, ALL)
    fused.use(plan("qkv", "qkv"))
    with monkeypatch.context() as patch:
        patch.setattr(FusedLayer, "_again", _again_unrotated)
        assert distance(total(fused, ALL), told) > 1e-3
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.engine.fused.needed", lambda predicting, tokens: predicting + 1)
        assert distance(total(fused, ALL), told) > 1e-3
    assert distance(total(fused, ALL), told) == 0


def _again_unrotated(self: FusedLayer, kept: Kept, stream: Any) -> None:
    normed = self.qkv.input(len(kept.x))
    self.kernels.norm(kept.x, None, self.first_norm, self.first_eps, None, normed[:, : self.qkv.K])
    kept.qkv, _ = self.qkv.forward(normed, stream, tail=True)
