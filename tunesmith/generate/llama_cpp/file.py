"""What a GGUF file says of itself, checked before llama.cpp reads it: half a file would end the whole process.

The format: github.com/ggml-org/ggml, docs/gguf.md. Read here with `struct` and not with the `gguf` package, which takes
seconds for a vocabulary of 128,000 tokens; the sizes of quantised blocks are that package's.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import AccessError, ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_DEEPEST = 2  # arrays of arrays; nobody writes them deeper


@dataclass(frozen=True)
class GgufFile:
    """Header of a GGUF file."""

    path: Path
    metadata: Mapping[str, Any]
    """By key; arrays are lists."""
    tensors: Mapping[str, tuple[tuple[int, ...], int]]
    """Shape (fastest dimension first, as GGUF counts) and ggml type of each tensor."""

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as llama or qwen2."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def is_adapter(self) -> bool:
        """Whether it holds a LoRA and no model."""
        return self.metadata.get("general.type") == "adapter"

    def size(self, name: str, default: int = 0) -> int:
        """A number of the architecture's: `context_length`, `block_count`, …"""
        return int(self.metadata.get(f"{self.architecture}.{name}", default))


def read_gguf(path: Path) -> GgufFile:
    """The header of a whole file. ModelError where it is no GGUF, of another version, or ends too early."""
    try:
        with path.open("rb") as file:
            if not (head := file.read(8)):
                raise ModelError("the file is empty", where=str(path), fix=_AGAIN)
            if head[:4] != MAGIC:
                raise ModelError(
                    f"this is no GGUF file: it begins with {head[:4]!r}, not with {MAGIC!r}",
                    where=str(path),
                    fix=_large_file_hint(head),
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(path, content).read()
    except OSError as error:
        raise AccessError(
            f"the GGUF file can't be read: {error.strerror}",
            where=str(path),
            fix="check the path and its rights",
        ) from None


_AGAIN = "download or export the file again, and compare its SHA-256 with SHA256SUMS"


def _large_file_hint(head: bytes) -> str:
    if head.startswith(b"version "):
        return "this is Git LFS's pointer to the file: fetch the file itself (git lfs pull)"
    return "name a .gguf file; a folder in Hugging Face's format is named as the folder"


class _Reader:
    """Walks through the header once."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.at, self.end = path, content, 4, len(content)

    def read(self) -> GgufFile:
        version = self._number("<I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            what = "it was written for a big-endian machine" if swapped else f"it is of version {version}"
            raise ModelError(
                f"this GGUF file can't be read: {what}; versions {VERSIONS[0]} and {VERSIONS[1]} can",
                where=str(self.path),
                fix="convert the model again with a present-day llama.cpp, or: tunesmith export RUN",
            )
        count, keys = self._number("<Q"), self._number("<Q")
        self._require_room(count * 24 + keys * 13)  # the least that they take
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._text()
            metadata[key] = self._value(self._number("<I"), 0)
        tensors, placed = {}, []
        for _ in range(count):
            name, dims = self._text(), self._number("<I")
            if dims > 4:
                raise self._broken(f"tensor {name} has {dims} dimensions")
            shape = tuple(self._number("<Q") for _ in range(dims))
            kind, offset = self._number("<I"), self._number("<Q")
            tensors[name] = (shape, kind)
            placed.append((name, offset, self._bytes_of(name, shape, kind)))
        self._require_tensors(placed, int(metadata.get("general.alignment", 32)))
        return GgufFile(self.path, metadata, tensors)

    def _require_tensors(self, placed: list[tuple[str, int, int]], alignment: int) -> None:
        if alignment < 1 or alignment & (alignment - 1):
            raise self._broken(f"its alignment is {alignment}, which is no power of two")
        begin = -(-self.at // alignment) * alignment
        for name, offset, size in placed:
            if begin + offset + size > self.end:
                raise self._half(begin + max(offset + size for _, offset, size in placed), name)

    def _bytes_of(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (KeyError, ValueError):
            raise self._broken(f"tensor {name} has the unknown type {kind}") from None
        elements = 1
        for length in shape:
            elements *= length
        if shape and shape[0] % block:
            raise self._broken(f"rows of tensor {name} have {shape[0]} values, no multiple of {block}")
        return elements // block * size

    def _value(self, kind: int, depth: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise self._broken(f"a value has the unknown type {kind}")
            return self._number(_SCALARS[kind])
        if depth == _DEEPEST:
            raise self._broken("arrays lie in arrays in arrays")
        inner, count = self._number("<I"), self._number("<Q")
        if inner in _SCALARS:
            form = f"<{count}{_SCALARS[inner][1]}" if count < self.end else ""
            self._require_room(count * struct.calcsize(_SCALARS[inner]))
            values = struct.unpack_from(form, self.content, self.at)
            self.at += struct.calcsize(form)
            return list(values)
        self._require_room(count * 8)
        if inner == _STRING:
            return self._texts(count)
        return [self._value(inner, depth + 1) for _ in range(count)]

    def _number(self, form: str) -> Any:
        self._require_room(struct.calcsize(form))
        (value,) = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return value

    def _text(self) -> str:
        length = self._number("<Q")
        self._require_room(length)
        raw = self.content[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8", "surrogateescape")

    def _texts(self, count: int) -> list[str]:
        """`_text` so many times; vocabularies have hundreds of thousands."""
        content, at, end, length_at = self.content, self.at, self.end, struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            if at + 8 > end:
                raise self._half(at + 8, "its header")
            begin = at + 8
            at = begin + length_at(content, at)[0]
            if at > end:
                raise self._half(at, "its header")
            found.append(content[begin:at].decode("utf-8", "surrogateescape"))
        self.at = at
        return found

    def _require_room(self, size: int) -> None:
        if self.at + size > self.end:
            raise self._half(self.at + size, "its header")

    def _half(self, wanted: int, what: str) -> ModelError:
        return ModelError(
            f"the GGUF file is not whole: {what} reaches to byte {wanted:,}, the file has {self.end:,}",
            where=str(self.path),
            fix=_AGAIN,
        )

    def _broken(self, what: str) -> ModelError:
        return ModelError(f"the GGUF file is broken: {what}", where=str(self.path), fix=_AGAIN)
