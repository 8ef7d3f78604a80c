"""The merged model as a quantised folder, tensor by tensor, as transformers and bitsandbytes store one.

Quantised from the merged files themselves, never from a model that has worked: on some CPUs bitsandbytes repacks NF4
weights on their first forward pass, and what is saved after that is wrong without an error. Memory: a tensor or two.
Each weight is quantised twice, since its scales lie in another part of the file than its numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tunesmith import console
from tunesmith.base import resolve
from tunesmith.model.load import empty_model, name_in
from tunesmith.model.lora import linears
from tunesmith.model.shards import SHARD_BYTES, TYPES, Entry, write_shards
from tunesmith.model.tensors import StoredTensors
from tunesmith.model.weights import BLOCK, STATE_BYTES, Int8, Nf4
from tunesmith.recipe import Model

Held = Literal["nf4", "int8"]
_NESTED = 256  # scales that share one of the second kind


def write_quantized(
    merged: Path,
    folder: Path,
    kind: Held,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, str]:
    """Writes the safetensors of the model in `merged` (stored in `dtype`), linears of its layers in `kind`.

    Embeddings, norms and the head stay as they are. Returns file name → sha256. OutOfRoom before the first byte where
    the disk is too small.
    """
    base = resolve(Model(base=str(merged)))
    model, _ = empty_model(base, dtype, "none")
    in_layers = {f"{name}.weight" for name in linears(model)}
    wanted = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    tensors = StoredTensors(base)
    entries: list[Entry] = []
    owner: dict[str, str] = {}  # a written tensor → the merged one that it is made of
    for key in tensors:
        stored, shape = tensors.about(key)
        found = [Entry(key, TYPES[stored], shape)]
        if name_in(model, key, wanted) in in_layers:
            found = entries_of(kind, key, (shape[0], shape[1]))
        entries += found
        owner |= {entry.name: key for entry in found if entry.name != key or len(found) > 1}
    last: tuple[str, dict[str, Tensor]] = ("", {})
    with console.progress(f"quantise {kind}", total=len(entries), unit="tensors") as bar:

        def make(name: str) -> Tensor:
            nonlocal last
            bar.update()
            key = owner.get(name)
            if key is None:
                return tensors.read(name)
            if last[0] != key:
                last = ("", {})  # or it would lie beside the next one
                last = (key, _quantise(kind, key, tensors.read(key).to(device), dtype))
            return last[1][name]

        return write_shards(folder, entries, make, shard_bytes)


def _quantise(kind: Held, key: str, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    return Nf4.quantize(weight).tensors(key, dtype) if kind == "nf4" else Int8.quantize(weight).tensors(key)


def entries_of(kind: Held, key: str, shape: tuple[int, int]) -> list[Entry]:
    """What a quantised weight [out, in] becomes in a file, its numbers and their scales."""
    linear = key.removesuffix(".weight")
    if kind == "int8":
        return [
            Entry(key, torch.int8, shape),
            Entry(f"{linear}.SCB", torch.float32, (shape[0],)),
            Entry(f"{key}_format", torch.uint8, ()),
        ]
    numbers = shape[0] * shape[1]
    blocks = -(-numbers // BLOCK)
    return [
        Entry(key, torch.uint8, (-(-numbers // 2), 1)),
        Entry(f"{key}.absmax", torch.uint8, (blocks,)),
        Entry(f"{key}.quant_map", torch.float32, (16,)),
        Entry(f"{key}.nested_absmax", torch.float32, (-(-blocks // _NESTED),)),
        Entry(f"{key}.nested_quant_map", torch.float32, (_NESTED,)),
        Entry(f"{key}.quant_state.bitsandbytes__nf4", torch.uint8, (STATE_BYTES,)),
    ]


def quantization_config(kind: Held, dtype: torch.dtype) -> dict[str, Any]:
    """What config.json says of it to transformers."""
    told: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": kind == "nf4"}
    told["load_in_8bit"] = kind == "int8"
    if kind == "nf4":
        told |= {
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
        }
    return told
