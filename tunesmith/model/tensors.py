"""The tensors of a base's safetensors files by name: one at a time, or one after another onto a device."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tunesmith.base import Base
from tunesmith.errors import ModelError
from tunesmith.model.shards import TYPES
from tunesmith.model.stream import Place, stream

# buffers that old checkpoints carry although every model computes them
COMPUTED = re.compile(r"rotary_emb\.inv_freq$")
# what bitsandbytes stores beside a packed weight
COMPANION = re.compile(
    r"\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)$|\.(SCB|weight_format)$"
)


class StoredTensors:
    """All tensors of the base's files by name; each is read when it is asked for."""

    def __init__(self, base: Base) -> None:
        self.folder = base.folder
        self._file_of: dict[str, Any] = {}
        self._path_of: dict[str, Path] = {}
        index = base.folder / "model.safetensors.index.json"
        listed: dict[str, str] | None = None
        if index.is_file():
            listed = json.loads(index.read_text("utf-8"))["weight_map"]
        names = sorted(set(listed.values())) if listed else [path.name for path in base.weight_files]
        for name in names:
            file = self._open(base.folder / name)
            for key in file.keys():  # noqa: SIM118  # not a dict
                if listed is None and key in self._file_of:
                    raise ModelError(
                        f"two weight files hold {key}",
                        where=str(base.folder),
                        fix="remove one of them",
                    )
                if listed is None or listed.get(key) == name:
                    self._file_of[key], self._path_of[key] = file, base.folder / name
        lacking = sorted(set(listed or ()) - set(self._file_of))
        if lacking:
            raise ModelError(
                f"the weight files lack {lacking[0]} ({len(lacking)} such), which their index lists",
                where=str(index),
                fix="download it again",
            )

    @staticmethod
    def _open(path: Path) -> Any:
        try:
            return safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ModelError(
                f"the weight file can't be read: {error}",
                where=str(path),
                fix="download it again",
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU."""
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def read_all(self, names: Sequence[str], device: torch.device) -> Iterator[Tensor]:
        """The tensors `names` in this order, on `device`: on CUDA read ahead (stream.py), elsewhere one by one."""
        places = self.places(names) if device.type == "cuda" else None
        return (self.read(name).to(device) for name in names) if places is None else stream(places, device)

    def places(self, names: Sequence[str]) -> list[Place] | None:
        """Where they lie in their files; None where one is of a type that is not known here."""
        headers = {path: _header(path) for path in {self._path_of[name] for name in names}}
        places = []
        for name in names:
            path = self._path_of[name]
            begin, entries = headers[path]
            dtype = TYPES.get(entries[name]["dtype"])
            if dtype is None:
                return None
            places.append(
                Place(path, begin + entries[name]["data_offsets"][0], dtype, tuple(entries[name]["shape"]))
            )
        return places

    def about(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type (as safetensors names it) and shape, without reading the tensor."""
        part = self._file_of[name].get_slice(name)
        return part.get_dtype(), tuple(part.get_shape())

    def is_quantized(self, name: str) -> bool:
        """Whether bitsandbytes stored this tensor in NF4 or in 8 bits."""
        return f"{name}.absmax" in self or (
            name.endswith(".weight") and f"{name.removesuffix('.weight')}.SCB" in self
        )

    def companions(self, name: str) -> dict[str, Tensor]:
        """`name` and what bitsandbytes stored beside it: under its own name (NF4), or its linear's (8 bits)."""
        of_linear = (f"{name.removesuffix('.weight')}.SCB", f"{name}_format")
        return {
            key: self.read(key)
            for key in self._file_of
            if key == name or key.startswith(f"{name}.") or key in of_linear
        }


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors' bytes begin, and type, shape and offsets from there by name. It has been opened before."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, json.loads(file.read(length))
