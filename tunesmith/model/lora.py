"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) beside frozen linears.

    y = W x + bias + s · B (A drop(x))        s = alpha / rank, or alpha / √rank (rsLoRA, arXiv 2312.03732)

A [r, in] and B [out, r] are fp32 masters (fp64 in an fp64 model), computed in the type of x. The file format is
`adapter.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tunesmith.errors import ModelError, RecipeError
from tunesmith.lookup import nearest
from tunesmith.model.dropout import Dropout, Mask, feature_factors, mix, named
from tunesmith.model.weights import FrozenLinear
from tunesmith.recipe import Tune


class LoraLinear(nn.Module):
    """A frozen linear with an adapter. `name` is its path in the base model; `enabled` False gives the base alone."""

    factors: Tensor

    def __init__(
        self,
        name: str,
        base: FrozenLinear,
        rank: int,
        alpha: float,
        rslora: bool,
        dropout: Dropout,
    ) -> None:
        super().__init__()
        self.name, self.base, self.rank, self.alpha, self.rslora = (
            name,
            base,
            rank,
            alpha,
            rslora,
        )
        self.in_features, self.out_features = base.in_features, base.out_features
        self.scaling = alpha / (math.sqrt(rank) if rslora else rank)
        self.dropout, self.enabled = dropout, True
        like = next(base.buffers())
        master = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.A = nn.Parameter(torch.zeros(rank, base.in_features, dtype=master, device=like.device))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=master, device=like.device))
        factors = feature_factors(name, base.in_features).to(like.device)
        self.register_buffer("factors", factors, persistent=False)

    @property
    def weight(self) -> nn.Module:
        """The frozen weight, where a model's code looks for one."""
        return self.base.weight

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """A uniform in ±1/√in (Kaiming with a = √5, as PEFT), B zero: a function of seed and name alone, bit by bit."""
        places, device = torch.arange(self.A.numel(), device=self.A.device), self.A.device
        numbers = mix(mix(named(self.name) ^ mix(torch.tensor(seed))) + places)
        uniform = (numbers >> 40 & (1 << 24) - 1).to(torch.float64) * 2.0**-23 - 1
        # by a tensor: CUDA divides by a plain number by multiplying with its rounded reciprocal
        root = torch.tensor(math.sqrt(self.in_features), dtype=torch.float64, device=device)
        self.A.copy_((uniform / root).view_as(self.A))
        self.B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """x_*I -> y_*O."""
        if not self.enabled:
            y: Tensor = self.base(x)
        else:
            y = _LoraProduct.apply(x, self.A, self.B, self)  # type: ignore[no-untyped-call]  # torch's is untyped
        return y

    def extra_repr(self) -> str:
        return f"{self.name}, rank {self.rank}, scaling {self.scaling:g}, dropout {self.dropout.p:g}"


class _LoraProduct(torch.autograd.Function):
    """Keeps x and the [T, r] product; weights are dequantised and masks drawn again in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, layer: LoraLinear) -> Tensor:
        x_TI = x.reshape(-1, layer.in_features)
        y_TO = linear(x_TI, layer.base.weight.dequantize(x.dtype), layer.base.bias)
        ctx.layer, ctx.keys, ctx.scaling = layer, layer.dropout.keys, layer.scaling
        dropped_TI = x_TI
        if ctx.keys is not None:
            ctx.scaling /= 1 - layer.dropout.p
            dropped_TI = _mask(ctx).drop(x_TI)
        z_TR = linear(dropped_TI, A.to(x.dtype)).mul_(ctx.scaling)
        y_TO.addmm_(z_TR, B.to(x.dtype).t())
        ctx.save_for_backward(x_TI, A, B, z_TR)
        return y_TO.view(*x.shape[:-1], layer.out_features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x_TI, A, B, z_TR = ctx.saved_tensors
        dy_TO = grads[0].reshape(-1, ctx.layer.out_features)
        mask = None if ctx.keys is None else _mask(ctx)
        dz_TR = (dy_TO @ B.to(dy_TO.dtype)).mul_(ctx.scaling)
        dB = dy_TO.t() @ z_TR
        dA = dz_TR.t() @ (x_TI if mask is None else mask.drop(x_TI))
        if not ctx.needs_input_grad[0]:  # the first layer of a frozen model
            return None, dA.to(A.dtype), dB.to(B.dtype), None
        dx_TI = dy_TO @ ctx.layer.base.weight.dequantize(dy_TO.dtype)
        if mask is None:
            dx_TI.addmm_(dz_TR, A.to(dy_TO.dtype))
        else:
            dx_TI.add_(mask.drop_(dz_TR @ A.to(dy_TO.dtype)))
        return (
            dx_TI.view(*grads[0].shape[:-1], -1),
            dA.to(A.dtype),
            dB.to(B.dtype),
            None,
        )


def _mask(ctx: Any) -> Mask:
    return Mask(ctx.keys, ctx.layer.factors, ctx.layer.dropout.threshold)


def adapters(model: nn.Module) -> list[LoraLinear]:
    """The model's adapters, in the model's order."""
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within, the model is its base."""
    before = [(adapter, adapter.enabled) for adapter in adapters(model)]
    try:
        for adapter, _ in before:
            adapter.enabled = False
        yield
    finally:
        for adapter, enabled in before:
            adapter.enabled = enabled


def add_lora(model: nn.Module, tune: Tune, seed: int) -> list[str]:
    """Freeze `model` and put an adapter beside each linear that `tune` names; returns their names.

    Raises RecipeError for a target that doesn't exist, ModelError for a model without decoder layers.
    """
    if tune.bias != "none":
        raise RecipeError(
            "trained biases are not available yet",
            where="tune.bias",
            fix="set tune.bias: none",
        )
    if adapters(model):
        raise ValueError("the model has adapters already")
    dropout = Dropout(tune.dropout)
    names = choose(linears(model), tune.target_modules)
    model.requires_grad_(False)
    for name in names:
        attach(model, name, tune.rank, tune.alpha, tune.rslora, dropout).initialize(seed)
    return names


def attach(
    model: nn.Module, name: str, rank: int, alpha: float, rslora: bool, dropout: Dropout
) -> LoraLinear:
    """Swap the linear `name` for itself with an adapter of zeros."""
    parent, _, leaf = name.rpartition(".")
    holder = model.get_submodule(parent)
    found = getattr(holder, leaf)
    base = FrozenLinear.over(found) if isinstance(found, nn.Linear) else found
    if not isinstance(base, FrozenLinear):
        raise ModelError(f"{name} can't take an adapter: it is a {type(found).__name__}")
    adapter = LoraLinear(name, base, rank, alpha, rslora, dropout)
    setattr(holder, leaf, adapter)
    return adapter


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the decoder layers, of any causal model of transformers."""
    prefix = getattr(model, "base_model_prefix", "")
    body = getattr(model, prefix, None) if prefix else None
    layers = getattr(body, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(
            f"{type(model).__name__} has no list of decoder layers where one is expected",
            where=f"{prefix or 'model'}.layers",
            fix="use a decoder of the Llama kind (Llama, Mistral, Qwen2, Qwen3, ...)",
        )
    return f"{prefix}.layers", layers


def linears(model: nn.Module) -> list[str]:
    """Names of all linears inside the decoder layers: what an adapter can stand beside (never the head)."""
    path, layers = decoder_layers(model)
    kinds = (nn.Linear, FrozenLinear)
    return [f"{path}.{name}" for name, module in layers.named_modules() if isinstance(module, kinds)]


def choose(names: Sequence[str], targets: str | Sequence[str]) -> list[str]:
    """Those of `names` that `targets` means: all, or each that is, or ends in, one of the given names."""
    if targets == "all":
        return list(names)
    leaves = sorted({name.rpartition(".")[2] for name in names})
    for target in targets:
        if not any(_ends(name, target) for name in names):
            guess = nearest(target, leaves)
            raise RecipeError(
                f"no linear of this model is named {target!r}"
                + (f"; did you mean {guess!r}?" if guess else ""),
                where="tune.target_modules",
                fix=f"use all, or some of {', '.join(leaves)}",
            )
    return [name for name in names if any(_ends(name, target) for target in targets)]


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
