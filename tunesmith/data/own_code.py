"""The files of a user's own processor, task or metrics: its module and what that imports from outside the installation.

Imports are read from the source, also those inside functions; what is imported by a computed name is not seen.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tunesmith.data.processors.process import find_processor
from tunesmith.errors import TunesmithError
from tunesmith.lookup import find
from tunesmith.run import sha256_file
from tunesmith.tasks import TASKS

_hashed: dict[Path, str] = {}


def processor_files(name: str | None) -> list[Path]:
    """Files of `package.module:function`; none for a processor of ours. RecipeError where there is none such."""
    if name is None or ":" not in name:
        return []
    find_processor(name)
    return _files(name)


def task_files(name: str) -> list[Path]:
    """Files of `package.module:function`; none for a task of ours. TunesmithError where there is none such."""
    if ":" not in name:
        return []
    find(name, TASKS, "task")
    return _files(name)


def metric_files(names: Iterable[str]) -> list[Path]:
    """Files of the functions of evaluate.metrics. TunesmithError where there is none such."""
    files: set[Path] = set()
    for name in names:
        find(name, {}, "metric")
        files.update(_files(name))
    return sorted(files)


def code_hash(files: Sequence[Path]) -> str | None:
    """One hash of these files; None for none. TunesmithError where one is no longer what this process has loaded."""
    for file in files:
        now = sha256_file(file)
        if _hashed.setdefault(file, now) != now:
            raise TunesmithError(
                "the code has changed since this process loaded it",
                where=str(file),
                fix="start again: a module that is loaded is not read a second time",
            )
    parts = sorted(f"{file.name} {_hashed[file]}" for file in files)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else None


def _files(name: str) -> list[Path]:
    """The file of a loaded module, and all that it reaches by imports."""
    module = name.partition(":")[0]
    source = getattr(sys.modules[module], "__file__", None)
    if source is None or not Path(source).is_file():
        raise TunesmithError(
            f"{name!r} lies in no file: a change of it could not be seen",
            fix="write it into a module of its own, and name that as module:function",
        )
    file = Path(source).resolve()
    root = file.parents[module.count(".") + (file.name == "__init__.py")]
    roots = [root, *(one for entry in sys.path if not _installed(one := Path(entry).resolve()))]
    own = (
        module.partition(".")[0] if _installed(root) else None
    )  # of an installed package no other is followed
    found, waiting = {file}, [file, *_on_the_way(root, module)]
    while waiting:
        found.add(here := waiting.pop())
        waiting += [there for there in _reached(here, roots, own) if there not in found]
    return sorted(found)


def _reached(file: Path, roots: Sequence[Path], own: str | None) -> Iterator[Path]:
    """Files that the imports of `file` may mean."""
    try:
        tree = ast.parse(file.read_bytes() if file.suffix == ".py" else b"")
    except SyntaxError:  # imported in a function that has not run yet
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, level = [alias.name for alias in node.names], 0
        elif isinstance(node, ast.ImportFrom):
            names = [".".join(filter(None, (node.module, alias.name))) for alias in node.names]
            level = node.level
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            if level:
                yield from _on_the_way(file.parents[level - 1], name)
            elif top != "tunesmith" and own in (None, top):
                for root in roots:
                    yield from _on_the_way(root, name)


def _on_the_way(root: Path, name: str) -> Iterator[Path]:
    """`a.b.c` → those of a.py, a/__init__.py, a/b.py, … that are there."""
    for part in name.split("."):
        root /= part
        for file in (root.with_name(f"{part}.py"), root / "__init__.py"):
            if file.is_file():
                yield file.resolve()


def _installed(folder: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(folder.parts)) or folder.is_relative_to(
        Path(sysconfig.get_path("stdlib")).resolve()
    )
