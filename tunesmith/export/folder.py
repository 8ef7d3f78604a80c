"""A merged model's folder as other programs expect it: configuration, stops, tokenizer with its template, checksums."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tunesmith.base import Base
from tunesmith.contract import Contract
from tunesmith.generate.protocol import Decoding
from tunesmith.run import Run, beside, sha256_file, write_atomic

SUMS = "SHA256SUMS"
ORIGIN = "merge.json"
_LEFT = ".export.*.tmp"


@contextmanager
def new_folder(run: Run) -> Iterator[Path]:
    """A folder beside the run's other things that goes when the block ends; `publish` gives it its name."""
    folder = run.path / _LEFT.replace("*", uuid.uuid4().hex[:8])
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clean(run: Run) -> None:
    """Removes what a killed export has left."""
    for place in (run.path, run.quantized, run.gguf):
        for left in [
            *place.glob(_LEFT),
            *place.glob(".merged.*.tmp"),
            *place.glob(".nf4.*.tmp"),
            *place.glob(".int8.*.tmp"),
        ]:
            shutil.rmtree(left)


def publish(made: Path, place: Path) -> None:
    """A folder or file comes to its place, whole, instead of an older one."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():
        old = beside(place)
        place.rename(old)
        made.rename(place)
        shutil.rmtree(old)
    else:
        made.replace(place)


def own_files(folder: Path) -> list[Path]:
    """What was made and proved; without what a model card changes afterwards."""
    return [path for path in sorted(folder.iterdir()) if path.name not in ("README.md", SUMS)]


def write_sums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """SHA256SUMS over all files of a folder, as `sha256sum --check` reads it. `known`: name → sha256.

    A line stays where its file is older: gigabytes are read once, not again with each thing that comes beside them.
    """
    sums = _still_true(folder) | dict(known or {})
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in sums and path.name != SUMS and not path.name.startswith("."):
            sums[path.name] = sha256_file(path)
    lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    write_atomic(folder / SUMS, lines.encode())


def _still_true(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    if not path.is_file():
        return {}
    written = path.stat().st_mtime_ns
    found = {
        name: sum for sum, _, name in (line.partition("  ") for line in path.read_text("utf-8").splitlines())
    }
    files = {one.name: one.stat().st_mtime_ns for one in folder.iterdir() if one.is_file()}
    return {name: sum for name, sum in found.items() if name in files and files[name] < written}


def unlist(folder: Path, names: Collection[str]) -> None:
    """Takes names out of SHA256SUMS before what they name changes or goes: its lines are always true."""
    path = folder / SUMS
    if path.is_file():
        lines = path.read_text("utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.rstrip("\n").partition("  ")[2] not in names]
        if kept != lines:
            write_atomic(path, "".join(kept).encode())


def complete(
    folder: Path,
    base: Base,
    contract: Contract,
    decoding: Decoding,
    dtype: torch.dtype,
    origin: Mapping[str, Any],
    sums: Mapping[str, str],
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Writes all that stands beside the weights (`sums`: their files → sha256), checksums last.

    `origin` says what was merged from what: merge.json. `quantization`: config.json's word for quantised weights.
    """
    told = {"quantization_config": dict(quantization)} if quantization else {}
    _write_json(folder / "config.json", _config(base, dtype) | told)
    _write_json(folder / "generation_config.json", _generation(base, contract, decoding))
    contract.save(folder)
    _write_json(folder / ORIGIN, dict(origin))
    write_sums(folder, sums)


def _config(base: Base, dtype: torch.dtype) -> dict[str, Any]:
    name = str(dtype).removeprefix("torch.")
    kept = {
        key: value
        for key, value in base.config.items()
        if key not in ("quantization_config", "_name_or_path")
    }
    if "torch_dtype" in kept:  # older programs read this name
        kept["torch_dtype"] = name
    return kept | {"dtype": name}


def _generation(base: Base, contract: Contract, decoding: Decoding) -> dict[str, Any]:
    """The contract's stops, and the decoding that was measured instead of the base's."""
    ids = {"eos_token_id": sorted(contract.stop_ids), "pad_token_id": contract.pad_id}
    if contract.bos_id is not None:
        ids["bos_token_id"] = contract.bos_id
    if decoding.temperature == 0:
        return {**ids, "do_sample": False}
    # top_k 0: without it transformers would cut at the 50 likeliest
    return {
        **ids,
        "do_sample": True,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": 0,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())
