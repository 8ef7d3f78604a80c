"""Rows are prepared once: under the hash of all that decides them, beside the runs that use them.

`<runs>/.rows/<key>/` holds a finished preparation; runs share its files by hard links (copies where there are none).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tunesmith
from tunesmith.contract import Contract
from tunesmith.data.own_code import code_hash, processor_files, task_files
from tunesmith.data.sources import SourceFile
from tunesmith.errors import AccessError, RowError
from tunesmith.recipe import Recipe
from tunesmith.run import beside, disk_error, held, sha256_file

FOLDER = ".rows"
_CODE = (
    "data",
    "tasks",
    "contract.py",
    "example.py",
    "lookup.py",
    "proof.py",
    "recipe.py",
    "recipe_evaluate.py",
    "rows.py",
    "section.py",
    "templates.py",
    "tokenizer_files.py",
    "word_ids.py",
    "starter/reports.py",
    "starter/values.py",
)
_LIBRARIES = (
    "jinja2", "jsonschema", "nltk", "numpy", "pyarrow", "referencing", "regex", "sacrebleu", "scipy", "tokenizers",
)  # fmt: skip
_SIZES = "sizes.json"
Stat = tuple[int, int, int] | None


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
        "own code": [
            code_hash(processor_files(recipe.data.processor)),
            code_hash(task_files(recipe.evaluate.task)),
        ],
        "code": _package_hash(),
        "libraries": {name: version(name) for name in _LIBRARIES} | {"python": platform.python_version()},
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:20]


def stats(recipe: Recipe, sources: Sequence[SourceFile]) -> dict[Path, Stat]:
    """Size, time and inode of every file whose content is in the key."""
    rows = [source.path for source in sources if source.path is not None]
    schema = [Path(recipe.data.json_schema)] if recipe.data.json_schema else []
    own = processor_files(recipe.data.processor) + task_files(recipe.evaluate.task)
    return {path: _stat(path) for path in (*rows, *schema, *own)}


def require_unchanged(before: dict[Path, Stat]) -> None:
    """RowError where a file is no longer as it was: the rows that were read may not be those of the key."""
    if changed := [str(path) for path, stat in before.items() if _stat(path) != stat]:
        raise RowError(
            f"changed while rows were prepared: {', '.join(changed)}",
            where=changed[0],
            fix="run the same command again when nothing writes to it",
        )


def _stat(path: Path) -> Stat:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def is_whole(folder: Path) -> bool:
    """Whether a finished preparation lies there with every file in its full size."""
    try:
        sizes = json.loads((folder / _SIZES).read_text("utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when the block ends well and vanishes when it does not."""
    temporary = beside(folder)
    try:
        temporary.mkdir(parents=True)
        with ExitStack() as stack:
            with suppress(OSError):  # a file system without locks
                stack.enter_context(held(temporary))  # `clean` leaves it alone
            yield temporary
            sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
            (temporary / _SIZES).write_text(json.dumps(sizes), "utf-8")
            _put(temporary, folder)
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


def _put(temporary: Path, folder: Path) -> None:
    """Renames into place. What another process finished first stays; what is damaged goes."""
    while not is_whole(folder):
        with suppress(FileNotFoundError):
            damaged = beside(folder)
            folder.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        try:
            temporary.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    shutil.rmtree(temporary)


def share(path: Path, place: Path) -> None:
    """`path` under another name: a hard link, or a copy where the file system has none."""
    temporary = beside(place)
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)  # two names of one file: replacing does nothing


def _package_hash() -> str:
    root = Path(tunesmith.__file__).parent
    digest = hashlib.sha256()
    for name in _CODE:
        place = root / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()
