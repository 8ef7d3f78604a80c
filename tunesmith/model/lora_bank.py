"""Several adapters over one base, any of them or none for each token.

    y = W x + bias + ((x A_catᵀ) * gain) B_catᵀ

A_cat [R, in] and B_cat [out, R] are the adapters' matrices one below (beside) the other, R the sum of their ranks. A
token's row of `gain` holds its adapter's scaling in that adapter's columns and zeros elsewhere, so that it gets the
numbers that `LoraLinear` would give it, and nothing of its neighbours' adapters. Nothing of the base is copied.

How a generator uses it: it keeps the number of each slot's adapter (`index`) in an int64 tensor on the device, and says
before every forward pass whose tokens are in the stream:

    adapter_N[slot] = bank.index(request.adapter)          # 0: the base alone
    with bank.use(adapter_N[slots_T]):                     # prefill: the slot of each token
        model(...)
    with bank.use(adapter_N[:count]):                      # decoding: one token a slot; also while a graph is captured
        model(...)

`use` and the layers read the tensor on the device alone, so a captured CUDA graph follows what is written into that
tensor between two replays. Outside `use` the model is its base.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.lookup import nearest
from tunesmith.model.adapter import WEIGHTS, StoredPair, read_adapter
from tunesmith.model.lora import adapters, linears
from tunesmith.model.weights import FrozenLinear

_BASE_FIX = "use the base that it was trained on"


class _Part(NamedTuple):
    """An adapter's columns in one layer."""

    number: int  # of the adapter, from 1
    rank: int
    scaling: float


_Layout = tuple[_Part, ...]


class LoraBank:
    """Puts the adapters of `folders` (name → folder in PEFT's format) beside the linears of a model without adapters.

    ModelError where one can't be read, or was made for another base. The model is changed only where all of them fit.
    """

    def __init__(self, model: PreTrainedModel, folders: Mapping[str, Path]) -> None:
        if adapters(model):
            raise ValueError("the model has adapters already")
        if not all(folders):
            raise ValueError("an adapter without a name")
        self.names, self.device = tuple(folders), model.device
        pairs = {name: _fitting(model, folder, read_adapter(folder)) for name, folder in folders.items()}
        self._tables: dict[_Layout, Tensor] = {}
        self._gains: dict[_Layout, Tensor] = {}
        model.requires_grad_(False)
        for layer in linears(model):
            parts = {n: found[layer] for n, found in enumerate(pairs.values(), 1) if layer in found}
            if parts:
                self._attach(model, layer, parts)

    def index(self, name: str) -> int:
        """The number of an adapter, from 1; 0 for the empty name, which is the base alone. ModelError if unknown."""
        if not name:
            return 0
        if name not in self.names:
            guess = nearest(name, self.names)
            raise ModelError(
                f"there is no adapter {name!r}" + (f"; did you mean {guess!r}?" if guess else ""),
                fix=f"one of: {', '.join(self.names)}",
            )
        return self.names.index(name) + 1

    @contextmanager
    def use(self, which: Sequence[str] | Tensor) -> Iterator[None]:
        """Within, token t of the stream has the adapter `which[t]`: names, or int64 [T] of `index` on the device.

        A tensor is read when the layers run, not now: nothing is copied to or from the host.
        """
        if not isinstance(which, Tensor):
            which = torch.tensor([self.index(name) for name in which], device=self.device)
        before = self._gains
        self._gains = {layout: table[which] for layout, table in self._tables.items()}
        try:
            yield
        finally:
            self._gains = before

    def gain(self, layout: _Layout) -> Tensor | None:
        """[T, R] for a layer; None outside `use`."""
        return self._gains.get(layout)

    def _attach(self, model: PreTrainedModel, name: str, parts: Mapping[int, StoredPair]) -> None:
        holder, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        found = getattr(holder, leaf)
        base = FrozenLinear.over(found) if isinstance(found, nn.Linear) else found
        assert isinstance(base, FrozenLinear)
        layout = tuple(_Part(n, len(pair.A), scaling_of(pair)) for n, pair in parts.items())
        like = next(base.buffers())
        if layout not in self._tables:
            self._tables[layout] = _table(layout, len(self.names), model.dtype).to(like.device)
        dtype = model.dtype
        A_RI = torch.cat([pair.A for pair in parts.values()]).to(like.device, dtype)
        B_OR = torch.cat([pair.B for pair in parts.values()], dim=1).to(like.device, dtype)
        setattr(holder, leaf, BankLinear(self, layout, base, A_RI, B_OR))


class BankLinear(nn.Module):
    """A frozen linear with the bank's adapters for it."""

    A_RI: Tensor
    B_OR: Tensor

    def __init__(
        self, bank: LoraBank, layout: _Layout, base: FrozenLinear, A_RI: Tensor, B_OR: Tensor
    ) -> None:
        super().__init__()
        self.base, self.layout = base, layout
        self.in_features, self.out_features = base.in_features, base.out_features
        self._gain = bank.gain
        self.register_buffer("A_RI", A_RI)
        self.register_buffer("B_OR", B_OR)

    @property
    def weight(self) -> nn.Module:
        """The frozen weight, where a model's code looks for one."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """x_*I -> y_*O. Not differentiable in A and B."""
        x_TI = x.reshape(-1, self.in_features)
        y_TO: Tensor = self.base(x_TI)
        gain_TR = self._gain(self.layout)
        if gain_TR is not None:
            if len(gain_TR) != len(x_TI):
                raise ValueError(f"{len(gain_TR)} tokens have adapters, {len(x_TI)} are in the stream")
            z_TR = linear(x_TI, self.A_RI.to(x.dtype))
            if (
                x.dtype == torch.float16
            ):  # another adapter's product may be infinite, and 0 · inf is no number
                z_TR = z_TR.masked_fill(gain_TR == 0, 0)
            # in fp32 and rounded once, as a product with a plain number is
            y_TO.addmm_(z_TR.mul_(gain_TR), self.B_OR.to(x.dtype).t())
        return y_TO.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return ", ".join(f"adapter {one.number}: rank {one.rank}" for one in self.layout)


def scaling_of(pair: StoredPair) -> float:
    """alpha / rank, or alpha / √rank (rsLoRA)."""
    return pair.alpha / (math.sqrt(pair.rank) if pair.rslora else pair.rank)


def _table(layout: _Layout, count: int, dtype: torch.dtype) -> Tensor:
    """[1 + adapters, R], fp32 (fp64 in an fp64 model): a token's gain with each adapter; row 0 is the base's."""
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    table = torch.zeros(1 + count, sum(part.rank for part in layout), dtype=kind)
    begin = 0
    for part in layout:
        table[part.number, begin : begin + part.rank] = part.scaling
        begin += part.rank
    return table


def _fitting(
    model: PreTrainedModel, folder: Path, pairs: Mapping[str, StoredPair]
) -> Mapping[str, StoredPair]:
    """The pairs, where each has its place in the model. ModelError otherwise."""
    shapes = {name: _shape(model.get_submodule(name)) for name in linears(model)}
    where = str(folder / WEIGHTS)
    for name, pair in pairs.items():
        if name not in shapes:
            raise ModelError(
                f"the adapter is for {name}, which this base does not have", where=where, fix=_BASE_FIX
            )
        out, into = shapes[name]
        for half, found, wanted in (("A", pair.A, (pair.rank, into)), ("B", pair.B, (out, pair.rank))):
            if tuple(found.shape) != wanted:
                raise ModelError(
                    f"{name}.lora_{half} is {list(found.shape)}; this base with the adapter's rank needs "
                    f"{list(wanted)}",
                    where=where,
                    fix=_BASE_FIX,
                )
            if not bool(torch.isfinite(found).all()):
                raise ModelError(
                    f"{name}.lora_{half} holds numbers that are not finite", where=where, fix="train it again"
                )
    return pairs


def _shape(module: nn.Module) -> tuple[int, int]:
    assert isinstance(module, nn.Linear | FrozenLinear)
    return module.out_features, module.in_features
