"""The optimiser over the flat buffer against torch's plain AdamW, and its state through safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunesmith.engine.protocol import FlatParameters
from tunesmith.train.optimizer import Optimizer, clip

KINDS = ["adamw", "adamw_8bit", "paged_adamw_8bit"]


def flat(seed: int = 0) -> FlatParameters:
    torch.manual_seed(seed)
    return FlatParameters(
        [("w", nn.Parameter(torch.randn(96, 64))), ("norm", nn.Parameter(torch.randn(64))),
         ("v", nn.Parameter(torch.randn(64, 80)))]
    )  # fmt: skip


def move(parameters: FlatParameters, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(100 + step)
        parameters.grad.copy_(torch.randn_like(parameters.grad))
        clip(parameters.grad, 1.0)
        optimizer.step(1e-2 / (step + 1))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_torchs_adamw_with_decay_on_matrices_only(weight_decay: float) -> None:
    parameters = flat()
    reference = {name: nn.Parameter(view.clone()) for name, view in parameters.views.items()}
    theirs = torch.optim.AdamW(
        [{"params": [reference["w"], reference["v"]], "weight_decay": weight_decay},
         {"params": [reference["norm"]], "weight_decay": 0.0}], lr=1e-2
    )  # fmt: skip
    ours = Optimizer("adamw", parameters, weight_decay=weight_decay)
    for step in range(5):
        torch.manual_seed(step)
        parameters.grad.copy_(torch.randn_like(parameters.grad))
        for name, parameter in reference.items():
            parameter.grad = parameters.grads[name].clone()
        theirs.param_groups[0]["lr"] = theirs.param_groups[1]["lr"] = 1e-2 / (step + 1)
        theirs.step()
        ours.step(1e-2 / (step + 1))
    for name, parameter in reference.items():
        torch.testing.assert_close(parameters.views[name], parameter.data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_state_through_safetensors_goes_on_bit_by_bit(kind: str, weight_decay: float, tmp_path: Path) -> None:
    whole = flat()
    uninterrupted = Optimizer(kind, whole, weight_decay=weight_decay)  # type: ignore[arg-type]
    move(whole, uninterrupted, range(6))

    begun = flat()
    first = Optimizer(kind, begun, weight_decay=weight_decay)  # type: ignore[arg-type]
    move(begun, first, range(3))
    save_file(first.tensors(), tmp_path / "state.safetensors")
    weights = begun.data.clone()

    resumed = flat(seed=9)
    second = Optimizer(kind, resumed, weight_decay=weight_decay)  # type: ignore[arg-type]
    resumed.data.copy_(weights)
    second.load(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(resumed.data, weights)  # loading state changes no weight
    move(resumed, second, range(3, 6))
    assert torch.equal(resumed.data, whole.data)

    cold = flat(seed=9)  # the mutant: weights without the optimiser's state
    cold.data.copy_(weights)
    move(cold, Optimizer(kind, cold, weight_decay=weight_decay), range(3, 6))  # type: ignore[arg-type]
    assert not torch.equal(cold.data, whole.data)


def test_another_optimisers_state_is_refused() -> None:
    eight_bit = Optimizer("adamw_8bit", flat(), weight_decay=0.0)
    with pytest.raises(ValueError, match="differs"):
        Optimizer("adamw", flat(), weight_decay=0.0).load(eight_bit.tensors())


def test_8_bit_state_takes_a_quarter_of_the_room() -> None:
    def size(kind: str) -> int:
        tensors = Optimizer(kind, flat(), weight_decay=0.0).tensors()  # type: ignore[arg-type]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    assert size("adamw_8bit") < 0.3 * size("adamw")


def test_clip_scales_to_the_limit_and_returns_the_norm_before() -> None:
    gradient = torch.tensor([3.0, 4.0])
    assert clip(gradient, 1.0).item() == 5.0
    torch.testing.assert_close(gradient, torch.tensor([0.6, 0.8]))
    small = torch.tensor([0.3, 0.4])
    clip(small, 1.0)
    assert small.tolist() == torch.tensor([0.3, 0.4]).tolist()  # bit by bit
    untouched = torch.tensor([30.0, 40.0])
    clip(untouched, None)
    assert untouched.tolist() == [30.0, 40.0]
