"""LoRA: its mathematics by autograd, its names, its initial values, and its file format with PEFT as the referee."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from torch import nn
from torch.nn.functional import linear

from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.adapter import load_adapter, save_adapter
from tunesmith.model.dropout import Dropout, keep_mask, token_keys
from tunesmith.model.lora import LoraLinear, adapters, adapters_off, add_lora
from tunesmith.model.weights import Dense, FrozenLinear
from tunesmith.recipe import Tune

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.tensor([[5, 7, 11, 13, 17, 19, 23]])


def randomize(model: nn.Module) -> None:
    """Both halves of each adapter, so that it has an effect."""
    generator = torch.Generator().manual_seed(1)
    for adapter in adapters(model):
        for parameter in (adapter.A, adapter.B):
            parameter.data = (
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
                * 0.2
            )


def layer(p: float, *, bias: bool = True) -> LoraLinear:
    """24 -> 40 in fp64, rank 4, both halves random."""
    torch.manual_seed(2)
    frozen = FrozenLinear(
        Dense(torch.randn(40, 24, dtype=torch.float64)),
        torch.randn(40, dtype=torch.float64) if bias else None,
    )
    lora = LoraLinear("some.layer", frozen, 4, 6.0, False, Dropout(p))
    for parameter in (lora.A, lora.B):
        nn.init.normal_(parameter)
    return lora


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_forward_and_gradients_are_the_formula(p: float) -> None:
    lora, keys = layer(p), token_keys(0, 1, torch.arange(6), torch.arange(6))
    x = torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True)
    kept = keep_mask(keys, lora.factors, lora.dropout.threshold).view(2, 3, 24) if p else 1.0
    frozen = lora.base
    told = linear(x, frozen.weight.dequantize(x.dtype), frozen.bias)
    told = told + 6.0 / 4 / (1 - p) * linear(linear(x * kept, lora.A), lora.B)
    with lora.dropout.draws(keys):
        y = lora(x)
    assert torch.allclose(y, told, atol=1e-12)
    weight = torch.randn_like(y)
    parts = (x, lora.A, lora.B)
    for ours, by_formula in zip(
        torch.autograd.grad((y * weight).sum(), parts),
        torch.autograd.grad((told * weight).sum(), parts),
        strict=True,
    ):
        assert torch.allclose(ours, by_formula, atol=1e-12)


def test_without_draws_nothing_is_dropped_and_disabled_is_the_base() -> None:
    lora, x = layer(0.3), torch.randn(5, 24, dtype=torch.float64)
    assert torch.equal(lora(x), layer(0.0)(x))
    with adapters_off(lora):
        assert torch.equal(lora(x), lora.base(x))
    assert not torch.allclose(lora(x), lora.base(x))


def test_rslora_scales_by_the_root() -> None:
    frozen = FrozenLinear(Dense(torch.zeros(8, 8)))
    assert LoraLinear("a", frozen, 16, 32.0, True, Dropout(0)).scaling == 8.0
    assert LoraLinear("a", frozen, 16, 32.0, False, Dropout(0)).scaling == 2.0


def test_targets() -> None:
    names = add_lora(tiny(), Tune(), 0)
    assert [name.rpartition(".")[2] for name in names] == ALL * 2
    assert names[0] == "model.layers.0.self_attn.q_proj" and not any("lm_head" in name for name in names)
    model = tiny()
    assert len(add_lora(model, Tune(target_modules=("q_proj", "layers.1.mlp.up_proj")), 0)) == 3
    assert sorted(n for n, p in model.named_parameters() if p.requires_grad) == sorted(
        f"{a.name}.{half}" for a in adapters(model) for half in "AB"
    )
    with pytest.raises(RecipeError, match="did you mean 'v_proj'") as caught:
        add_lora(tiny(), Tune(target_modules=("q_proj", "vproj")), 0)
    assert "gate_proj" in str(caught.value)
    with pytest.raises(RecipeError):
        add_lora(tiny(), Tune(target_modules=("lm_head",)), 0)
    with pytest.raises(RecipeError, match="biases"):
        add_lora(tiny(), Tune(bias="all"), 0)


def test_start_is_a_function_of_seed_and_name() -> None:
    whole, part, other = tiny(), tiny(), tiny()
    add_lora(whole, Tune(rank=8), 3)
    torch.manual_seed(99)
    add_lora(part, Tune(rank=8, target_modules=("down_proj",)), 3)
    add_lora(other, Tune(rank=8), 4)
    by_name = {adapter.name: adapter for adapter in adapters(whole)}
    for adapter in adapters(part):
        assert torch.equal(adapter.A, by_name[adapter.name].A) and not adapter.B.any()
    values = torch.cat([adapter.A.flatten() * math.sqrt(adapter.in_features) for adapter in adapters(whole)])
    assert values.abs().max() <= 1 and abs(values.mean()) < 0.02 and abs(values.var() - 1 / 3) < 0.01
    assert not torch.equal(adapters(whole)[0].A, adapters(other)[0].A)
    assert not torch.equal(
        by_name["model.layers.0.self_attn.k_proj"].A,
        by_name["model.layers.0.self_attn.v_proj"].A,
    )


@pytest.mark.parametrize(
    "tune",
    [
        Tune(rank=4, alpha=8),
        Tune(rank=4, alpha=8, rslora=True, target_modules=("q_proj", "up_proj")),
    ],
)
def test_peft_loads_ours(tune: Tune, tmp_path: Path) -> None:
    ours, base = tiny(dtype=torch.float64), tiny(dtype=torch.float64)
    add_lora(ours, tune, 0)
    randomize(ours)
    save_adapter(ours, tmp_path, "some/base", tune, revision="abc")
    plain = base(IDS).logits
    theirs = peft.PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=False)
    difference = (theirs(IDS).logits - ours(IDS).logits).abs().max().item()
    assert difference < 1e-12 and (plain - ours(IDS).logits).abs().max() > 0.1
    config = theirs.peft_config["default"]
    assert (config.base_model_name_or_path, config.revision, config.inference_mode) == (
        "some/base",
        "abc",
        True,
    )


def peft_adapter(folder: Path, **more: Any) -> nn.Module:
    """A PEFT model with random adapters, saved into `folder`."""
    torch.manual_seed(5)
    settings = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ALL,
        "task_type": "CAUSAL_LM",
    } | more
    model = peft.get_peft_model(
        tiny(dtype=torch.float64),
        peft.LoraConfig(**settings),
        autocast_adapter_dtype=False,
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"use_rslora": True},
        {
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 8},
            "alpha_pattern": {"up_proj": 3},
        },
        {"target_modules": ["v_proj"], "layers_to_transform": [1]},
    ],
    ids=["all", "rslora", "patterns", "one layer"],
)
def test_ours_loads_peft(more: dict[str, Any], tmp_path: Path) -> None:
    theirs = peft_adapter(tmp_path, **more)
    ours = tiny(dtype=torch.float64)
    names = load_adapter(ours, tmp_path)
    assert (theirs(IDS).logits - ours(IDS).logits).abs().max() < 1e-12
    saved_again = tmp_path / "again"
    save_adapter(ours, saved_again, "base", Tune())
    again = tiny(dtype=torch.float64)
    assert load_adapter(again, saved_again) == names
    assert torch.equal(again(IDS).logits, ours(IDS).logits)
    referee = peft.PeftModel.from_pretrained(
        tiny(dtype=torch.float64), saved_again, autocast_adapter_dtype=False
    )
    assert (referee(IDS).logits - ours(IDS).logits).abs().max() < 1e-12


def test_saving_is_deterministic(tmp_path: Path) -> None:
    model = tiny()
    add_lora(model, Tune(), 0)
    for name in ("a", "b"):
        save_adapter(copy.deepcopy(model), tmp_path / name, "base", Tune())
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    "more",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "lora_only"},
        {"init_lora_weights": "pissa_niter_4"},
        {"layer_replication": [[0, 2]]},
        {"fan_in_fan_out": True},
        {"peft_type": "IA3"},
        {"trainable_token_indices": [3]},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_would_be_ignored_is_refused(more: dict[str, Any], tmp_path: Path) -> None:
    model = tiny()
    add_lora(model, Tune(), 0)
    save_adapter(model, tmp_path, "base", Tune())
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    with pytest.raises(ModelError, match="which tunesmith lacks"):
        load_adapter(tiny(), tmp_path)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = tiny()
    add_lora(model, Tune(rank=4), 0)
    randomize(model)
    save_adapter(model, tmp_path, "base", Tune())
    path = tmp_path / "adapter_model.safetensors"
    good = load_file(path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    head = "base_model.model.lm_head.lora_A.weight"
    bad: list[tuple[dict[str, torch.Tensor], str]] = [
        ({k: v for k, v in good.items() if k != key}, r"lacks .*q_proj\.lora_B"),
        (good | {key: good[key][:, :2].contiguous()}, "needs"),
        (good | {key: good[key] * math.nan}, "not finite"),
        (
            good | {head: torch.ones(4, 64), head.replace("_A", "_B"): torch.ones(96, 4)},
            "lm_head",
        ),
        (
            good | {"base_model.model.model.norm.weight": torch.ones(64)},
            "no LoRA matrix",
        ),
        ({}, "empty"),
    ]
    for tensors, message in bad:
        save_file(tensors, path)
        with pytest.raises(ModelError, match=message):
            load_adapter(tiny(), tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        load_adapter(tiny(), tmp_path)


def test_an_adapter_without_effect_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    add_lora(model, Tune(), 0)
    save_adapter(model, tmp_path, "base", Tune())
    load_adapter(tiny(), tmp_path)
    assert "changes nothing" in capsys.readouterr().err
