"""Logits that a merge's proofs compare, on a few rows: the live adapter's, an in-memory merge's, a folder's.

All are computed in the type of training (the recipe's model.dtype), so that they differ by their weights alone. Each
model is loaded, measured and dropped before the next one. n predicting positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.base import Base, resolve
from tunesmith.engine.protocol import pack_sequences
from tunesmith.model.adapter import load_adapter
from tunesmith.model.attention import Packed
from tunesmith.model.load import load_model, stored_quantized
from tunesmith.model.lora import LoraLinear, adapters, linears
from tunesmith.model.merge import Delta, Source, exact_type, merged_weight
from tunesmith.model.weights import Dense, FrozenLinear, FrozenWeight, quantized
from tunesmith.recipe import Model
from tunesmith.rows import Rows

ROWS, TOKENS, POSITIONS = 8, 2048, 256  # most that a proof looks at
_FLIP = 1 / 12  # chance of moving by a whole unit in the last place: the variance of rounding, ulp² / 12


class ProofRows(NamedTuple):
    """Rows with the mask of the positions that are compared."""

    ids: list[list[int]]
    learned: list[list[bool]]


def proof_rows(rows: Rows, numbers: Sequence[int]) -> ProofRows:
    """The shortest of the rows `numbers`: proofs are to be cheap, and what they look for is in every row."""
    lengths = rows.lengths
    made = ProofRows([], [])
    tokens, positions = 0, POSITIONS
    for number in sorted(numbers, key=lambda n: (lengths[n], n))[:ROWS]:
        tokens += int(lengths[number])
        if made.ids and (tokens > TOKENS or positions <= 0):
            break
        learned = rows.learned(number).tolist()
        for t in range(len(learned)):
            positions -= learned[t]
            learned[t] = learned[t] and positions >= 0
        made.ids.append(rows.ids(number).tolist())
        made.learned.append(learned)
    return made


@torch.no_grad()
def logits(model: PreTrainedModel, rows: ProofRows, *, singly: bool = False) -> Tensor:
    """fp32 [n, V] on the CPU, the rows as one stream, or `singly`."""
    if singly:
        parts = [logits(model, ProofRows([i], [m])) for i, m in zip(*rows, strict=True) if any(m[1:])]
        return torch.cat(parts)
    batch = pack_sequences(rows.ids, rows.learned, range(len(rows.ids)), step=0).to(model.device)
    found: Tensor = model(
        input_ids=batch.ids[None],
        position_ids=batch.positions[None],
        use_cache=False,
        attention=Packed(batch.cu_seqlens, batch.max_length),
        logits_to_keep=batch.targets - 1,
    ).logits
    return found[0].float().cpu()


def folder_model(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model folder as its weights lie there, working in `dtype`."""
    base = resolve(Model(base=str(folder)))
    return load_model(base, dtype=dtype, quantize=stored_quantized(base), device=device)


@torch.no_grad()
def merged_in_memory(
    base: Base,
    adapter: Path | None,
    *,
    dtype: torch.dtype,
    source: Source,
    quantize: str,
    trained_in: torch.dtype,
    device: torch.device,
    strength: float = 1.0,
) -> PreTrainedModel:
    """The merge by another way than `merge_weights`: loaded, the adapter put on, each product added in fp32.

    All weights are rounded to `dtype` and work in `trained_in`. `strength` 0: the same without the adapter's part.
    """
    exact, how = (exact_type(base), "none") if source == "original" else (trained_in, quantize)
    model = load_model(base, dtype=exact, quantize=how, device=device)
    if adapter is not None:
        load_adapter(model, adapter)
    done = set()
    for layer in adapters(model):
        delta = Delta(layer.A, layer.B * strength, layer.scaling)
        merged = merged_weight(layer.base.weight.dequantize(exact), delta, dtype)
        layer.base.weight = Dense(merged.to(trained_in))
        parent, _, leaf = layer.name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.base)
        done.add(id(layer.base))
    for module in model.modules():
        if isinstance(module, FrozenLinear):
            if id(module) not in done:
                module.weight = Dense(module.weight.dequantize(exact).to(dtype).to(trained_in))
            if module.bias is not None:
                module.bias = module.bias.to(dtype).to(trained_in)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).to(trained_in)
    return model


@torch.no_grad()
def quantised_in_memory(
    folder: Path, kind: str, dtype: torch.dtype, trained_in: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """The merged folder with the linears of its layers quantised, by another way than `write_quantized`: the whole
    model is loaded in `dtype`, and each weight becomes the dense image of its quantised self. Works in `trained_in`."""
    model = folder_model(folder, dtype, device)
    for name in linears(model):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        image = quantized(linear.weight.detach(), kind).dequantize(trained_in)
        bias = None if linear.bias is None else linear.bias.detach().to(trained_in)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, FrozenLinear(Dense(image), bias))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(trained_in)
    return model


@torch.no_grad()
def round_in_blocks(model: PreTrainedModel, bits: int, block: int = 32) -> None:
    """All matrices of the model to `bits` a number, the plainest way: a block of a row shares its largest magnitude."""
    steps = 2 ** (bits - 1) - 1
    for parameter in model.parameters():
        if parameter.ndim == 2:
            pieces = torch.split(parameter.data.float(), block, dim=1)
            for place, piece in zip(torch.split(parameter.data, block, dim=1), pieces, strict=True):
                scale = piece.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30) / steps
                place.copy_((piece / scale).round_() * scale)


@torch.no_grad()
def reround_model(model: PreTrainedModel, dtype: torch.dtype, *, everything: bool, seed: int = 0) -> None:
    """Moves the base's weights at random by what rounding to `dtype` once moves them: those with an adapter,
    `everything` after full fine-tuning, and whatever `dtype` can't hold exactly."""
    generator = torch.Generator(model.device).manual_seed(seed)
    with_adapter = {id(layer.base) for layer in adapters(model)}
    for module in model.modules():
        if isinstance(module, FrozenLinear):
            image = module.weight.dequantize(model.dtype)
            if id(module) in with_adapter or not _holds(image, dtype):
                number = int(torch.randint(2**31, (), generator=generator, device=model.device))
                module.weight = Rerounded(module.weight, dtype, number)
    for parameter in _dense(model):
        if everything or not _holds(parameter, dtype):
            parameter.data = reround(parameter.data, dtype, generator)


class Rerounded(FrozenWeight):
    """A frozen weight whose dense image is rounded once more, the same way each time."""

    def __init__(self, inner: FrozenWeight, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        self.shape, self.inner, self.dtype, self.seed = inner.shape, inner, dtype, seed

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        image = self.inner.dequantize(dtype)
        return reround(image, self.dtype, torch.Generator(image.device).manual_seed(self.seed))


def reround(weight: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """`weight` with the error of one rounding to `dtype`: even in ±½ ulp where its own type can say so finely, else a
    whole ulp up or down with the same variance."""
    numbers = weight.float()
    _, exponent = torch.frexp(numbers)  # number = m · 2^exponent, ½ ≤ |m| < 1
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    ulp = torch.ldexp(torch.full_like(numbers, torch.finfo(dtype).eps), exponent - 1).clamp_(min=least)
    drawn = torch.rand(numbers.shape, generator=generator, device=numbers.device)
    if torch.finfo(weight.dtype).eps < torch.finfo(dtype).eps:
        moved = drawn - 0.5
    else:
        moved = (drawn < _FLIP / 2).float() - (drawn > 1 - _FLIP / 2).float()
    return torch.where(numbers == 0, numbers, numbers + moved * ulp).to(weight.dtype)


def _holds(numbers: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(numbers.to(dtype).to(numbers.dtype), numbers)


def _dense(model: nn.Module) -> list[nn.Parameter]:
    own = {
        id(half) for layer in model.modules() if isinstance(layer, LoraLinear) for half in (layer.A, layer.B)
    }
    return [parameter for parameter in model.parameters() if id(parameter) not in own]
