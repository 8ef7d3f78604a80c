"""Merging: the adapter's product added to the base's weights, tensor by tensor, from file to file.

    W' = cast(fp32(W) + s · B A)

W is read from the base's own files (`original`), or is the image that the quantised base has in training
(`dequantized`: quantised afresh as loading does, never read from a model that has worked). Merging into weights that
are then quantised again would lose most of the adapter, so nothing here does that. Memory: a tensor or two.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tunesmith import console
from tunesmith.base import Base
from tunesmith.errors import ModelError
from tunesmith.model.adapter import read_adapter
from tunesmith.model.load import empty_model, name_in
from tunesmith.model.lora import linears
from tunesmith.model.shards import SHARD_BYTES, TYPES, Entry, write_shards
from tunesmith.model.tensors import COMPANION, COMPUTED, StoredTensors
from tunesmith.model.weights import quantized, stored_weight

Source = Literal["original", "dequantized"]
HALVES = (torch.bfloat16, torch.float16)
_ROWS = 1024


class Delta(NamedTuple):
    """What an adapter adds to one weight [out, in]: scaling · B A, with A [r, in] and B [out, r]."""

    A: Tensor
    B: Tensor
    scaling: float


def read_deltas(adapter: Path) -> dict[str, Delta]:
    """Name of a linear → what the adapter in PEFT's format adds to its weight."""
    return {
        name: Delta(pair.A, pair.B, pair.alpha / (math.sqrt(pair.rank) if pair.rslora else pair.rank))
        for name, pair in read_adapter(adapter).items()
    }


def merged_weight(weight_OI: Tensor, delta: Delta, dtype: torch.dtype) -> Tensor:
    """The merged weight, rounded once, to `dtype`."""
    A, B = (half.to(weight_OI.device, torch.float32) for half in (delta.A, delta.B))
    return torch.addmm(weight_OI.float(), B, A, alpha=delta.scaling).to(dtype)


class Kept:
    """How much of an adapter rounding has left in the weights it was merged into.

    A change of less than half a step of the type falls back on the number that it began from: a short training at a low
    rate may be lost so, weight by weight, without one large error anywhere.
    """

    def __init__(self) -> None:
        self._left = self._whole = 0.0

    @property
    def share(self) -> float:
        """Σ change that was stored · change that was meant ÷ Σ change that was meant²: 1 all, 0 none."""
        return self._left / self._whole if self._whole else 0.0

    def add(self, before_OI: Tensor, delta: Delta, merged_OI: Tensor) -> None:
        """Of one weight, a thousand rows at a time."""
        A, B = (half.to(before_OI.device, torch.float32) for half in (delta.A, delta.B))
        for first in range(0, len(before_OI), _ROWS):
            at = slice(first, first + _ROWS)
            meant = delta.scaling * (B[at] @ A)
            stored = merged_OI[at].float() - before_OI[at].float()
            self._left += float((stored * meant).sum(dtype=torch.float64))
            self._whole += float((meant * meant).sum(dtype=torch.float64))


def stored_types(base: Base) -> Counter[torch.dtype]:
    """How many of the base's floating numbers are stored in which type."""
    sizes: Counter[torch.dtype] = Counter()
    tensors = StoredTensors(base)
    for name in tensors:
        kind, shape = tensors.about(name)
        dtype = TYPES.get(kind, torch.uint8)
        if dtype.is_floating_point:
            sizes[dtype] += math.prod(shape)
    return sizes


def exact_type(base: Base) -> torch.dtype:
    """A type that holds all of the base's numbers: the one they are stored in, or fp32."""
    types = list(stored_types(base))
    return types[0] if len(types) == 1 and types[0] in HALVES else torch.float32


def merged_type(base: Base, trained_in: torch.dtype) -> torch.dtype:
    """The 16-bit type to answer in: that of training; after training in fp32 the base's own; else bf16."""
    stored = [dtype for dtype, _ in stored_types(base).most_common(1)]
    return next((dtype for dtype in (trained_in, *stored) if dtype in HALVES), torch.bfloat16)


def merge_weights(
    base: Base,
    deltas: Mapping[str, Delta],
    folder: Path,
    *,
    dtype: torch.dtype,
    source: Source = "original",
    quantize: str = "none",
    trained_in: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    shard_bytes: int = SHARD_BYTES,
    kept: Kept | None = None,
) -> dict[str, str]:
    """Writes the merged model's safetensors into `folder`; returns file name → sha256.

    `dtype`: type of all floating tensors. `quantize` and `trained_in` (the recipe's model.quantize and model.dtype)
    say what `dequantized` means. `kept` is told of each weight.
    ModelError where the adapter doesn't fit the base or a number leaves the type's range.
    """
    model, packed = empty_model(base, trained_in, quantize)
    if packed and source == "original":
        raise ValueError("a base that is stored quantised has no original weights")
    in_layers = {f"{name}.weight" for name in linears(model)}
    wanted = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    tensors = StoredTensors(base)
    names: dict[str, str] = {}  # stored key → name in the model
    entries = []
    for key in tensors:
        if COMPUTED.search(key) or (packed and COMPANION.search(key)):
            continue
        name = name_in(model, key, wanted)
        if name is None:
            raise ModelError(f"{type(model).__name__} has no place for {key}", where=str(tensors.folder))
        names[key] = name
        entries.append(Entry(key, *_becomes(tensors.about(key), tuple(wanted[name].shape), dtype, packed)))
    _require_fit(deltas, names, {name: tuple(wanted[name].shape) for name in names.values()}, base)

    def weight(key: str) -> Tensor:
        if packed and tensors.is_quantized(key):
            return stored_weight(key, tensors.companions(key)).to(device).dequantize(trained_in)
        stored = tensors.read(key).to(device)
        if source == "dequantized" and names[key] in in_layers:
            return quantized(stored.to(trained_in), quantize).dequantize(trained_in)
        return stored

    with console.progress("merge", total=len(entries), unit="tensors") as bar:

        def make(key: str) -> Tensor:
            tensor = weight(key)
            delta = deltas.get(names[key].removesuffix(".weight"))
            if delta is not None:
                before, tensor = tensor, merged_weight(tensor, delta, dtype)
                if kept is not None:
                    kept.add(before, delta, tensor)
            elif tensor.is_floating_point():
                tensor = tensor.to(dtype)
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ModelError(
                    f"{key} does not fit into {str(dtype).removeprefix('torch.')}: some numbers are not finite",
                    where=str(base.folder),
                    fix="train with model.dtype: bfloat16",
                )
            bar.update()
            return tensor

        return write_shards(folder, entries, make, shard_bytes)


def _becomes(
    stored: tuple[str, tuple[int, ...]], shape: tuple[int, ...], dtype: torch.dtype, packed: bool
) -> tuple[torch.dtype, tuple[int, ...]]:
    """Type and shape in the merged files. A packed weight is stored as bytes in a shape of their own."""
    kind = TYPES.get(stored[0])
    if kind is None:
        raise ModelError(f"tensors of type {stored[0]} can't be merged")
    if packed and kind in (torch.uint8, torch.int8):
        return dtype, shape
    return (dtype if kind.is_floating_point else kind), stored[1]


def _require_fit(
    deltas: Mapping[str, Delta], names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], base: Base
) -> None:
    """Every delta has exactly one weight, of its shape."""
    times = Counter(names.values())
    for name, delta in deltas.items():
        found = times[f"{name}.weight"]
        if found != 1:
            raise ModelError(
                f"the base holds {name}.weight {'nowhere' if not found else 'more than once'}, "
                "where the adapter wants to be added",
                where=str(base.folder),
                fix="merge into the base that it was trained on",
            )
        shape = (delta.B.shape[0], delta.A.shape[1])
        if shape != shapes[f"{name}.weight"]:
            raise ModelError(
                f"the adapter's {name} is {list(shape)}, the base's {list(shapes[f'{name}.weight'])}",
                where=str(base.folder),
                fix="merge into the base that it was trained on",
            )
