"""From the recipe's model section to a local folder that can be trained on. No torch, nothing is loaded."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import starter
from tunesmith.errors import AccessError, ModelError, RecipeError
from tunesmith.recipe import Model
from tunesmith.run import sha256_file
from tunesmith.store import hub


@dataclass(frozen=True)
class Base:
    """A base model on this machine."""

    name: str
    """As the recipe says it."""
    folder: Path
    """config.json, safetensors, tokenizer."""
    revision: str | None
    """Commit of a hub model."""
    config: dict[str, Any]
    """config.json."""
    tokenizer_folder: Path
    """Where the tokenizer lies: the folder itself unless model.tokenizer names another."""

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files, in order."""
        return sorted(self.folder.glob("*.safetensors"))

    @property
    def fingerprint(self) -> str:
        """Hash of config and weights. Of local files over 256 MiB the header and 256 spread blocks are read."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path in self.weight_files:
            blob = path.resolve().name  # the hub's cache names a blob by its sha256
            digest.update((path.name + (blob if len(blob) == 64 else _fingerprint(path))).encode())
        return digest.hexdigest()


def _fingerprint(path: Path, whole_below: int = 1 << 28, blocks: int = 256, block: int = 1 << 14) -> str:
    size = path.stat().st_size
    if size <= whole_below:
        return sha256_file(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(1 << 20))  # the safetensors header
        for number in range(blocks):
            file.seek(size * number // blocks)
            digest.update(file.read(block))
    return digest.hexdigest()


def resolve(model: Model) -> Base:
    """The base that the recipe names: `starter`, a folder, or a hub id (downloaded unless cached).

    AccessError (unknown, gated, unreadable) or ModelError (no safetensors, remote code, no config) says what to do.
    """
    revision: str | None = None
    if model.base == "starter" or Path(model.base).is_dir():
        for key in ("revision", "cache_dir"):
            if getattr(model, key) is not None:
                raise RecipeError(
                    f"model.{key} is for hub ids; {model.base} is a folder", where=f"model.{key}"
                )
    if model.base == "starter":
        folder = starter.base_folder()
    elif Path(model.base).is_dir():
        folder = Path(model.base)
    elif model.base.startswith((".", "/", "~")) or model.base.count("/") > 1:
        raise AccessError(f"there is no folder {model.base}", where="model.base", fix="check the path")
    else:
        folder, revision = hub.fetch(model.base, model.revision, model.cache_dir, hub.MODEL_FILES)
    config = _read_config(folder)
    _check_weights(folder, config)
    tokenizer = Path(model.tokenizer) if model.tokenizer else folder
    if not tokenizer.is_dir():
        raise AccessError(f"there is no folder {tokenizer}", where="model.tokenizer", fix="check the path")
    return Base(model.base, folder, revision, config, tokenizer)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not os.access(folder, os.R_OK | os.X_OK) or (path.exists() and not os.access(path, os.R_OK)):
        raise AccessError(
            "the model's folder may not be read", where=str(folder), fix=f"chmod -R u+rX {folder}"
        )
    if not path.is_file():
        raise ModelError(
            "this folder holds no model: there is no config.json",
            where=str(folder),
            fix="name a model's folder in Hugging Face's format",
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise TypeError("it holds no JSON object")
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"config.json can't be read: {error}", where=str(path), fix="download or save the model again"
        ) from None
    if "auto_map" in config:
        raise ModelError(
            f"{config.get('model_type', 'this model')} brings its own Python code, which tunesmith does not run",
            where=str(path),
            fix="use a model whose architecture transformers knows by itself, or a converted copy of it",
        )
    return config


def _check_weights(folder: Path, config: dict[str, Any]) -> None:
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        if pickles:
            raise ModelError(
                f"the weights are a pickle ({pickles[0].name}), which can run code on loading",
                where=str(folder),
                fix="use a revision with safetensors, or convert it once where you trust it: "
                "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
            )
        raise ModelError("there are no weights (*.safetensors)", where=str(folder))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        missing = sorted(wanted - {path.name for path in weights})
        if missing:
            raise ModelError(
                f"{len(missing)} of {len(wanted)} weight files are missing: {', '.join(missing[:3])}",
                where=str(folder),
                fix="download it again",
            )
    for path in weights:
        if not os.access(path, os.R_OK):
            raise AccessError("a weight file may not be read", where=str(path), fix=f"chmod u+r {path}")
        if not _is_whole(path):
            raise ModelError(
                "a weight file is cut short, or is no safetensors", where=str(path), fix="download it again"
            )


def _is_whole(path: Path) -> bool:
    """Whether the file is as long as its safetensors header says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= min(size, 1 << 30):
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
    return size == 8 + length + max(ends, default=0)
