"""A base's licence, and what it asks of models that are made from it.

Llama 3's licences ask for three things: the licence itself beside the model, a notice with a fixed text, and a name
that begins with Llama (section 1.b of each of them; the addresses stand below). Llama 2's and those of some Qwen
models (2.5-3B, 2.5-72B) ask for the first two, Qwen's for words that name it as well (sections 3.c and 4.b).
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.base import Base
from tunesmith.run import write_atomic

_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")
_LLAMA = {
    "llama3": ("Meta Llama 3", "https://www.llama.com/llama3/license/"),
    "llama3.1": ("Llama 3.1", "https://www.llama.com/llama3_1/license/"),
    "llama3.2": ("Llama 3.2", "https://www.llama.com/llama3_2/license/"),
    "llama3.3": ("Llama 3.3", "https://www.llama.com/llama3_3/license/"),
}
_LLAMA2 = (
    "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
    "All Rights Reserved."
)
_QWEN = {"qwen": "Qwen LICENSE AGREEMENT", "qwen-research": "Qwen RESEARCH LICENSE AGREEMENT"}
_QWEN_NOTICE = re.compile(r"Qwen is licensed under the Qwen [^\"“”]*?All Rights Reserved\.")
_TITLE = re.compile(r"(?:META )?LLAMA 3(\.\d)? COMMUNITY LICENSE", re.IGNORECASE)
_APACHE = re.compile(r"Apache License\s+Version 2\.0")
_MIT = re.compile(r"^\s*(?:The )?MIT License", re.IGNORECASE)


@dataclass(frozen=True)
class Licence:
    """What is known; `id` is the hub's name of it, empty where nothing tells."""

    id: str = ""
    name: str = ""
    """Where the hub has no name for it (`id` is other)."""
    link: str = ""
    notice: str = ""
    """The text that has to stand in a file NOTICE."""
    built_with: str = ""
    """What has to be shown with the model."""
    prefix: str = ""
    """What the model's name has to begin with."""
    files: tuple[Path, ...] = ()
    """The base's own files, to be handed on."""


def licence_of(base: Base) -> Licence:
    """From the metadata of the base's README.md, else from its licence file's title."""
    found = tuple(path for pattern in _FILES for path in sorted(base.folder.glob(pattern)) if path.is_file())
    if base.name == "starter":
        return Licence("apache-2.0", files=found)
    told = _metadata(base.folder / "README.md")
    known = str(told.get("license") or "").lower()
    name, link = str(told.get("license_name") or ""), str(told.get("license_link") or "")
    if known in ("", "other"):
        known = _by_title(found) or known
    if known in _LLAMA:
        family, address = _LLAMA[known]
        notice = (
            f"{family} is licensed under the {family} Community License, Copyright © Meta Platforms, Inc. "
            "All Rights Reserved."
        )
        built = "Built with Meta Llama 3" if known == "llama3" else "Built with Llama"
        prefix = "Llama 3" if known == "llama3" else "Llama"
        return Licence(known, name, link or address, notice, built, prefix, found)
    if known == "llama2":
        return Licence(known, name, link or "https://ai.meta.com/llama/license/", _LLAMA2, files=found)
    if qwen := next((one for one in (known, name) if one in _QWEN), None):
        return Licence("other", qwen, link, _qwen_notice(qwen, found), "Built with Qwen", files=found)
    return Licence(known, name, link, files=found)


def _qwen_notice(name: str, files: tuple[Path, ...]) -> str:
    """As the base's own licence words it: its owner's name has changed over the years."""
    told = (_QWEN_NOTICE.search(_text(path)) for path in files)
    found = next((" ".join(one[0].split()) for one in told if one), None)
    return found or (
        f"Qwen is licensed under the {_QWEN[name]}, Copyright (c) Alibaba Cloud. All Rights Reserved."
    )


def named(name: str, licence: Licence) -> str:
    """The model's name as the base's licence asks for it."""
    prefix = licence.prefix.replace(" ", "-")
    return name if name.lower().startswith(prefix.lower()) else f"{prefix}-{name}"


def hand_on(licence: Licence, folder: Path) -> None:
    """The base's licence files, and the notice that it asks for, into `folder`."""
    for path in licence.files:
        if path.resolve().parent != folder.resolve():
            shutil.copyfile(path, folder / path.name)
    if licence.notice and not any(path.name.upper().startswith("NOTICE") for path in licence.files):
        write_atomic(folder / "NOTICE", f"{licence.notice}\n".encode())


def _metadata(readme: Path) -> dict[str, Any]:
    """The block between the first two lines of three dashes; a broken one is none."""
    text = _text(readme)
    if not text.startswith("---"):
        return {}
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe").load(text.split("---", 2)[1])
    except YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _by_title(files: tuple[Path, ...]) -> str:
    for path in files:
        head = _text(path)[:2000]
        if title := _TITLE.search(head):
            return f"llama3{title[1] or ''}"
        if re.search("LLAMA 2 COMMUNITY LICENSE", head, re.IGNORECASE):
            return "llama2"
        if qwen := next((name for name, title in _QWEN.items() if title.lower() in head.lower()), None):
            return qwen
        if _APACHE.search(head):
            return "apache-2.0"
        if _MIT.search(head):
            return "mit"
    return ""


def _text(path: Path) -> str:
    """Another's file may be written in any encoding."""
    return path.read_text("utf-8", errors="replace") if path.is_file() else ""
