"""Whether an adapter was made for this base, as far as the files tell: the run's lock, else the name it gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.base import Base, resolve
from tunesmith.errors import ModelError
from tunesmith.recipe import Model

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def require_own_base(adapter: Path, base: Base) -> None:
    """ModelError where the adapter in this folder was trained on another base; a warning where nobody can tell.

    The lock of the run that it lies in holds the hash of the base. Without a lock the name in adapter_config.json is
    compared: a folder that is here by its content, a hub id by its name and revision. Shapes are judged on loading.
    """
    lock = _json(adapter.parent / "lock.json") if adapter.name == "adapter" else {}
    trained_on = lock.get("rows", {}).get("base")
    if trained_on is not None:
        if trained_on != base.fingerprint:
            raise _other(adapter, base, "the base of its run had other weights")
        return
    config = _json(adapter / "adapter_config.json")
    name, revision = str(config.get("base_model_name_or_path") or ""), config.get("revision")
    if name == base.name:
        if revision and base.revision and revision != base.revision:
            raise _other(adapter, base, f"it was trained on revision {revision}, this is {base.revision}")
        return
    if name == "starter" or (name and (Path(name) / "config.json").is_file()):
        if resolve(Model(base=name)).fingerprint != base.fingerprint:
            raise _other(adapter, base, f"it was trained on {name}")
        return
    here = _HUB_ID.fullmatch(base.name) and not Path(base.name).exists()
    if base.name == "starter" or (here and _HUB_ID.fullmatch(name)):
        raise _other(adapter, base, f"it was trained on {name or 'a base without a name'}")
    last = {Path(base.name).name.lower(), base.folder.name.lower()}
    if not name or Path(name).name.lower() not in last:
        console.warn(
            f"nobody can tell whether {adapter} was trained on {base.name}: it names {name or 'no base'}"
        )


def _other(adapter: Path, base: Base, why: str) -> ModelError:
    return ModelError(
        f"the adapter was made for another base than {base.name}: {why}",
        where=str(adapter),
        fix="serve it on the base that it was trained on",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} can't be read: {error}", where=str(path)) from None
    return found if isinstance(found, dict) else {}
