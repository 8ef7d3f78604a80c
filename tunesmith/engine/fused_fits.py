"""Whether the fused engine can train this model by this recipe, and if not, why: said once, before anything runs."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.engine.fused_fp8 import CARD, SIZES
from tunesmith.kernels.chosen import has_triton
from tunesmith.model.lora import LoraLinear, adapters, decoder_layers, linears
from tunesmith.model.weights import FrozenLinear
from tunesmith.recipe import Recipe

KINDS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_LINEARS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def why_not(recipe: Recipe, model: PreTrainedModel) -> str | None:
    """What stands against the fused engine; None where nothing does."""
    kind = type(model).__name__
    if recipe.tune.method != "lora":
        return f"tune.method: {recipe.tune.method} trains the base's own weights"
    if not recipe.train.packing:
        return "train.packing: false asks for a padded rectangle"
    if kind not in KINDS:
        return f"{kind} is none of {', '.join(name.removesuffix('ForCausalLM') for name in KINDS)}"
    acting = str(getattr(model.config, "hidden_act", ""))
    if acting not in ("silu", "swish"):
        return f"the feed-forward acts by {acting}"
    if any(p.requires_grad for name, p in model.named_parameters() if not name.endswith((".A", ".B"))):
        return "weights of the base are trained"
    if len({(a.scaling, a.dropout.p) for a in adapters(model)}) != 1:
        return "its adapters differ in scaling or dropout"
    return _of_layers(decoder_layers(model)[1])


def why_no_fp8(model: PreTrainedModel) -> str | None:
    """What stands against fp8 products, where the fused engine can train; None where nothing does."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        found = torch.cuda.get_device_capability(device)
        if found < CARD:
            return (
                f"the card has compute capability {found[0]}.{found[1]}; fp8 begins with {CARD[0]}.{CARD[1]}"
            )
    for name in linears(model):
        linear = cast(nn.Linear, model.get_submodule(name))
        into, out = linear.in_features, linear.out_features
        if into % SIZES or out % SIZES:
            return f"{name.removesuffix('.base')} is {into} -> {out}; fp8 needs multiples of {SIZES}"
    return None


def why_slow(model: PreTrainedModel) -> str | None:
    """Why it would gain nothing here, although it could."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return "it is made for CUDA"
    if not has_triton():
        return "triton is not installed"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the card is older than Ampere"
    if next(model.parameters()).dtype not in (torch.bfloat16, torch.float16):
        return "model.dtype is not a half type"
    return None


def _of_layers(layers: nn.ModuleList) -> str | None:
    for number, layer in enumerate(layers):
        for holder, names in _LINEARS.items():
            parent = getattr(layer, holder, None)
            for name in names:
                linear = getattr(parent, name, None)
                if not isinstance(linear, nn.Linear | FrozenLinear | LoraLinear):
                    return f"layer {number} has no linear {holder}.{name}"
    return None
