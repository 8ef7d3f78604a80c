"""Whether the fused engine can train this model by this recipe, and if not, why: said once, before anything runs."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.engine.fits import against, no_fp8, slow
from tunesmith.engine.fused_fp8 import SIZES
from tunesmith.kernels.chosen import has_triton
from tunesmith.model.families import LINEARS
from tunesmith.model.lora import LoraLinear, adapters, decoder_layers, linears
from tunesmith.model.weights import FrozenLinear
from tunesmith.recipe import Recipe


def why_not(recipe: Recipe, model: PreTrainedModel) -> str | None:
    """What stands against the fused engine; None where nothing does."""
    found = against(recipe, type(model).__name__, str(getattr(model.config, "hidden_act", "")))
    if found:
        return found
    if any(p.requires_grad for name, p in model.named_parameters() if not name.endswith((".A", ".B"))):
        return "weights of the base are trained"
    if len({(a.scaling, a.dropout.p) for a in adapters(model)}) != 1:
        return "its adapters differ in scaling or dropout"
    return _of_layers(decoder_layers(model)[1])


def why_no_fp8(model: PreTrainedModel) -> str | None:
    """What stands against fp8 products, where the fused engine can train; None where nothing does."""
    device = next(model.parameters()).device
    if device.type == "cuda" and (found := no_fp8(torch.cuda.get_device_capability(device))):
        return found
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
    half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    return slow(torch.cuda.get_device_capability(device), half)


def _of_layers(layers: nn.ModuleList) -> str | None:
    for number, layer in enumerate(layers):
        for holder, names in LINEARS.items():
            parent = getattr(layer, holder, None)
            for name in names:
                linear = getattr(parent, name, None)
                if not isinstance(linear, nn.Linear | FrozenLinear | LoraLinear):
                    return f"layer {number} has no linear {holder}.{name}"
    return None
