"""A tokenizer's files as they lie in a model's folder: read, checked, never executed."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
)


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Content of the files that say how a tokenizer works, by name. ModelError where one is broken or missing."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            "there is no tokenizer.json",
            where=str(folder),
            fix="save the tokenizer in that form (AutoTokenizer.from_pretrained(…).save_pretrained(…)) "
            "and name its folder in model.tokenizer",
        )
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES[:4] if (folder / name).is_file()}
    for name in TOKENIZER_FILES[1:3]:
        try:
            json.loads(files.get(name, b"{}"))
        except ValueError as error:
            raise ModelError(
                f"{name} is broken: {error}", where=str(folder), fix="download it again"
            ) from None
    return files


def kept_files(folder: Path, sha256: str) -> dict[str, bytes]:
    """The files of a contract that lies in this folder, in a run's `tokenizer/` or beside it.

    ModelError where tokenizer.json is gone, or not the one (`sha256`) that the contract was made with.
    """
    in_run = (folder / "tokenizer").is_dir()
    place = folder / "tokenizer" if in_run else folder
    path, spare = place / "tokenizer.json", folder / "adapter" / "tokenizer.json"
    if _has(path, sha256):
        return tokenizer_files(place)
    if not in_run:
        fix = "the folder is not as it was made: download it again, or make it again: tunesmith export RUN"
    elif _has(spare, sha256):
        fix = f"cp {shlex.quote(str(spare))} {shlex.quote(str(path))}"
    else:
        fix = "put the file back as it was, or begin anew beside this run: tunesmith prepare RECIPE --fork"
    what = "the tokenizer is not the one that this contract was made with"
    raise ModelError(what if path.is_file() else "there is no tokenizer.json", where=str(path), fix=fix)


def _has(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def own_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template that lies beside the tokenizer or in its configuration."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((one["template"] for one in template if one["name"] == "default"), None)
    return template


def special_tokens(config: Mapping[str, Any], files: Mapping[str, bytes], folder: Path) -> dict[str, str]:
    """bos, eos, pad and unk as text. ModelError without an eos."""
    stored = json.loads(files.get("special_tokens_map.json", b"{}"))
    found: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name) or stored.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if value:
            found[name] = value
    if "eos_token" not in found:
        raise ModelError(
            "the tokenizer names no eos_token",
            where=str(folder / "tokenizer_config.json"),
            fix='add "eos_token": "<the token that ends a text>"',
        )
    return found
