"""K-quants and their like by llama.cpp's own quantiser, checked before and after.

Before: every matrix's rows must fit the blocks, or llama.cpp would take wider types in silence. After: the file is
whole, holds the same tensors, and each is of a type that the kind is made of.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import ModelError, OutOfRoom
from tunesmith.export.gguf.imatrix import read_imatrix
from tunesmith.export.gguf.kinds import BLOCK, QUANTISED, Kind
from tunesmith.export.gguf.library import require_gguf
from tunesmith.generate.llama_cpp.file import GgufFile, read_gguf
from tunesmith.generate.llama_cpp.library import complaints, forget_complaints, require_llama_cpp
from tunesmith.run import beside, require_disk

_PLAIN = ("F32", "F16", "BF16")
_MOST_BITS = 6.6  # of a value in the widest type here, Q6_K


def quantize_gguf(source: Path, out: Path, kind: str, imatrix: Path | None = None) -> None:
    """Writes `source` (a GGUF of F32, F16 or BF16) as `out` in one of QUANTISED, whole or not at all.

    imatrix: a file that write_imatrix wrote. ModelError where the kind has no form for this model, where the matrix is
    another model's, or where llama.cpp fails; OutOfRoom; SetupError where llama-cpp-python is missing.
    """
    wanted = QUANTISED[kind]
    library = require_llama_cpp()
    file = read_gguf(source)
    rows = _matrices(file)
    _require_blocks(file, rows, kind)
    importance = read_imatrix(imatrix) if imatrix else {}
    if imatrix:
        _require_fit(importance, rows, imatrix)
    _require_disk(file, out)
    temporary = beside(out)
    try:
        _quantize(library, source, temporary, wanted, importance, out)
        try:
            made = read_gguf(temporary)
        except ModelError:
            _require_room(out)  # not every failed write is told
            raise
        _require_kind(made, file, wanted, kind, out)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _type_names(file: GgufFile) -> dict[str, str]:
    kinds = require_gguf().GGMLQuantizationType
    return {name: kinds(number).name for name, (_, number) in file.tensors.items()}


def _matrices(file: GgufFile) -> dict[str, int]:
    """Name → length of a row, of what is quantised."""
    return {
        name: shape[0]
        for name, (shape, _) in file.tensors.items()
        if len(shape) >= 2 and name.endswith("weight") and not name.endswith("_norm.weight")
    }


def _require_blocks(file: GgufFile, rows: Mapping[str, int], kind: str) -> None:
    types = _type_names(file)
    made = next((name for name in rows if types[name] not in _PLAIN), None)
    if made:
        raise ModelError(
            f"{made} is {types[made]} already",
            where=str(file.path),
            fix="quantise from F16 or BF16: twice rounded is worse than what the kind promises",
        )
    odd = [name for name, length in rows.items() if length % BLOCK]
    if odd:
        raise ModelError(
            f"{kind} takes rows of a multiple of {BLOCK} values; {odd[0]} has {rows[odd[0]]} ({len(odd)} such): "
            "llama.cpp would give these other widths",
            where=str(file.path),
            fix="export.gguf: [Q8_0] or [F16], which fit every width that is a multiple of 32",
        )


def _require_fit(importance: Mapping[str, Any], rows: Mapping[str, int], imatrix: Path) -> None:
    inner = [name for name in rows if name.startswith("blk.")]
    for name in inner:
        if name not in importance or len(importance[name]) != rows[name]:
            raise ModelError(
                f"the importance matrix doesn't fit this model: {name}"
                + (
                    " is not in it"
                    if name not in importance
                    else f" has {len(importance[name])} columns there"
                ),
                where=str(imatrix),
                fix="make it again from this model: tunesmith export RUN",
            )


def _require_disk(file: GgufFile, out: Path) -> None:
    values = sum(int(np.prod(shape)) for shape, _ in file.tensors.values())
    require_disk(out, int(values * _MOST_BITS / 8), out.name)


def _quantize(
    library: Any, source: Path, target: Path, kind: Kind, importance: Mapping[str, Any], out: Path
) -> None:
    params = library.llama_model_quantize_default_params()
    params.ftype = kind.number
    params.max_buf_size = 1 << 28  # bytes of rows at once; 8 GiB unless said
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in importance.items()}
    entries = (library.llama_model_imatrix_data * (len(arrays) + 1))()  # the last one, empty, is the end
    for entry, (name, array) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = name.encode(), array.size
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if arrays:
        params.imatrix = ctypes.cast(entries, ctypes.POINTER(library.llama_model_imatrix_data))
    forget_complaints()
    code = library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if code != 0:
        _require_room(out)
        raise ModelError(
            f"llama.cpp could not quantise {source.name}: {complaints() or 'it does not say why'}",
            where=str(out),
            fix="export F16 or Q8_0 in its place",
        )


def _require_room(out: Path) -> None:
    """After a failure: OutOfRoom where a full disk explains it."""
    if shutil.disk_usage(out.absolute().parent).free < 1 << 20:
        raise OutOfRoom(
            "the disk is full",
            where=str(out),
            fix="free some space, then run the same command again",
            resumable=True,
        )


def _require_kind(made: GgufFile, source: GgufFile, kind: Kind, name: str, out: Path) -> None:
    types, rows = _type_names(made), _matrices(source)
    if set(types) != set(source.tensors):
        strange = sorted(set(types) ^ set(source.tensors))[0]
        raise ModelError(f"llama.cpp's file differs from its source in {strange}", where=str(out))
    for tensor in rows:
        if types[tensor] != kind.own and types[tensor] not in kind.wider:
            raise ModelError(
                f"llama.cpp gave {tensor} the type {types[tensor]}, which {name} is not made of",
                where=str(out),
                fix="export F16 or Q8_0 in its place",
            )
    if rows and kind.own not in {types[tensor] for tensor in rows}:
        raise ModelError(
            f"no matrix of the file is {kind.own}", where=str(out), fix="export Q8_0 in its place"
        )
