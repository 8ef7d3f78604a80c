"""A merged model's folder as other programs expect it: configuration, stops, tokenizer with its template, checksums."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tunesmith.base import Base
from tunesmith.contract import Contract
from tunesmith.generate.protocol import Decoding
from tunesmith.run import Run, sha256_file, write_atomic

SUMS = "SHA256SUMS"
ORIGIN = "merge.json"
_LEFT = ".merged.*.tmp"


@contextmanager
def new_folder(run: Run) -> Iterator[Path]:
    """A folder beside the run's other things that goes when the block ends; `publish` makes it `merged/`."""
    folder = run.path / _LEFT.replace("*", uuid.uuid4().hex[:8])
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clean(run: Run) -> None:
    """Removes what a killed export has left."""
    for left in run.path.glob(_LEFT):
        shutil.rmtree(left)


def publish(folder: Path, run: Run) -> None:
    """The folder becomes `merged/`, whole, in the place of an older one."""
    if run.merged.exists():
        with new_folder(run) as old:
            run.merged.rename(old / "merged")
    folder.rename(run.merged)


def complete(
    folder: Path,
    base: Base,
    contract: Contract,
    decoding: Decoding,
    dtype: torch.dtype,
    origin: Mapping[str, Any],
    sums: Mapping[str, str],
) -> None:
    """Writes all that stands beside the weights (`sums`: their files → sha256), checksums last.

    `origin` says what was merged from what: merge.json.
    """
    _write_json(folder / "config.json", _config(base, dtype))
    _write_json(folder / "generation_config.json", _generation(base, contract, decoding))
    contract.save(folder)
    _write_json(folder / ORIGIN, dict(origin))
    known = dict(sums)
    for path in sorted(folder.iterdir()):
        if path.name not in known and path.name != SUMS:
            known[path.name] = sha256_file(path)
    lines = "".join(f"{known[name]}  {name}\n" for name in sorted(known))
    write_atomic(folder / SUMS, lines.encode())


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
