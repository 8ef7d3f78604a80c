"""Rows are prepared once: under the hash of all that decides them, beside the runs that use them.

`<runs>/.rows/<key>/` holds a finished preparation; runs share its files by hard links (copies where there are none).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tunesmith
from tunesmith.contract import Contract
from tunesmith.data.processors.ready import PROCESSORS
from tunesmith.data.sources import SourceFile
from tunesmith.errors import AccessError
from tunesmith.recipe import Recipe
from tunesmith.run import disk_error, sha256_file

FOLDER = ".rows"
_CODE = (
    "data",
    "tasks",
    "contract.py",
    "example.py",
    "rows.py",
    "templates.py",
    "starter/reports.py",
    "starter/values.py",
)
_LIBRARIES = ("tokenizers", "jinja2", "numpy")


def cache_key(recipe: Recipe, contract: Contract, sources: Sequence[SourceFile]) -> str:
    """The hash of rows, tokenizer, template, code, and every key of the recipe that has a say.

    The levels of checks have none: they judge what is found, and are applied afterwards.
    """
    data = recipe.data.model_dump(mode="json", by_alias=True, exclude={"checks"})
    files = [
        (source.split, source.name, source.weight, sha256_file(source.path) if source.path else "starter")
        for source in sources
    ]
    schema = recipe.data.json_schema
    decides: dict[str, Any] = {
        "data": data,
        "seed": recipe.seed,
        "task": recipe.evaluate.task,
        "contract": contract.sha256,
        "files": files,
        "schema": sha256_file(Path(schema)) if schema and Path(schema).is_file() else None,
        "own code": [module_hash(name) for name in (recipe.data.processor, recipe.evaluate.task)],
        "code": _code_hash(),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:20]


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when the block ends well and vanishes when it does not."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():  # another process was faster
            shutil.rmtree(temporary)
        else:
            temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise disk_error(error, folder) or AccessError(
            f"prepared rows can't be written: {error.strerror or error}",
            where=str(folder),
            fix="choose another --runs-dir",
        ) from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def share(path: Path, place: Path) -> None:
    """`path` under another name: a hard link, or a copy where the file system has none."""
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(place)


def _code_hash() -> str:
    root = Path(tunesmith.__file__).parent
    digest = hashlib.sha256()
    for name in _CODE:
        place = root / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def module_hash(name: str | None) -> str | None:
    """The code of a user's own processor or task; the package's own counts as code."""
    if name is None or name in PROCESSORS or ":" not in name:
        return None
    try:
        spec = find_spec(name.partition(":")[0])
    except ModuleNotFoundError:
        return None  # told where it is used
    return sha256_file(Path(spec.origin)) if spec and spec.origin and Path(spec.origin).is_file() else None
