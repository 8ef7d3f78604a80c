"""Writes a model's safetensors files tensor by tensor: in memory is never more than the one being written.

The format (huggingface/safetensors): length of the header as 8 bytes, a JSON header with each tensor's type, shape and
place, then the tensors' bytes. Shapes and types are known before the first tensor is made, so the header comes first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from tunesmith.run import disk_error, require_disk

SHARD_BYTES = 4_000_000_000
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in TYPES.items()}


class Entry(NamedTuple):
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """On disk."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_shards(
    folder: Path, entries: Sequence[Entry], make: Callable[[str], Tensor], limit: int = SHARD_BYTES
) -> dict[str, str]:
    """Writes all `entries`, each made by `make(name)`, as files of at most `limit` bytes; one tensor is never split.

    Several files get an index. Returns file name → sha256. OutOfRoom before the first byte where the disk is too small.
    """
    total = sum(entry.bytes for entry in entries)
    require_disk(folder, total, "the merged model")
    shards = _divide(entries, limit)
    names = (
        [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        if len(shards) > 1
        else ["model.safetensors"]
    )
    sums = {}
    for name, shard in zip(names, shards, strict=True):
        try:
            sums[name] = write_file(folder / name, shard, make)
        except OSError as error:
            raise disk_error(error, folder / name) or error from None
    if len(shards) > 1:
        places = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, "utf-8")
    return sums


def _divide(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    room = limit
    for entry in entries:
        if shards[-1] and entry.bytes > room:
            shards.append([])
            room = limit
        shards[-1].append(entry)
        room -= entry.bytes
    return shards


def write_file(path: Path, entries: Sequence[Entry], make: Callable[[str], Tensor]) -> str:
    """One file, synced; its sha256. Raises OSError. Tensors on the CPU are written as they lie, without a copy;
    writing and hashing leave the interpreter free for other threads."""
    ordered = sorted(
        entries, key=lambda entry: -entry.dtype.itemsize
    )  # keeps every tensor aligned to its type
    header, place = {"__metadata__": {"format": "pt"}}, 0
    about: dict[str, object] = dict(header)
    for entry in ordered:
        about[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [place, place + entry.bytes],
        }
        place += entry.bytes
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        _put(file, digest.update, len(text).to_bytes(8, "little") + text)
        for entry in ordered:
            tensor = make(entry.name)
            if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                raise ValueError(f"{entry} became {tensor.dtype}, {tuple(tensor.shape)}")
            flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
            _put(file, digest.update, flat.numpy().data)
            del tensor, flat  # or it would lie beside the next one
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _put(file: BinaryIO, hash_too: Callable[[bytes | memoryview], None], content: bytes | memoryview) -> None:
    file.write(content)
    hash_too(content)
