"""Reads a package's imports and says where they break the house's plan (docs/architecture.md).

Imports inside functions and under TYPE_CHECKING count, and so do strings that name a module (`tunesmith.room:name`):
what may not be imported may not be looked up either. Only an import's weight is judged at the top of a file alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = "tunesmith"
MOST_LINES = 400
NAMELESS = {"utils", "util", "common", "misc", "helpers", "helper", "core", "base_utils"}

# lowest first; rooms of one tuple stand side by side and never import each other
FLOORS: tuple[tuple[str, ...], ...] = (
    ("",),  # the package itself: its version
    ("errors",),
    ("console",),
    ("lookup",),
    ("example",),
    ("tasks",),
    ("statistics",),
    ("pooled",),
    ("section",),
    ("recipe_evaluate",),
    ("recipe",),
    ("recipe_file",),
    ("templates",),
    ("tokenizer_files",),
    ("word_ids",),
    ("contract",),
    ("proof",),
    ("run",),
    ("rows",),
    ("trained_with",),
    ("store",),
    ("notify",),
    ("starter",),
    ("base",),
    ("kernels",),
    ("model",),
    ("generate",),
    ("answers",),
    ("engine",),
    ("view",),
    ("opened",),
    ("data", "train", "evaluate", "export", "serve", "targets"),
    ("pipeline",),
    ("selftest",),
    ("verbs",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# likewise inside a large room
INSIDE = {
    "data": ("read", "processors", "formats", "alike", "inspect", "shown"),
    "generate": ("llama_cpp", "live"),
    "export": ("gguf", "card"),
    "serve": ("writing", "openai", "ollama", "guard", "vllm", "web", "running"),
}

# imported at the top of a file only in the rooms that compute
HEAVY = {
    "accelerate", "bitsandbytes", "boto3", "botocore", "deepspeed", "mlflow", "peft", "torch", "transformers", "triton",
    "wandb",
}  # fmt: skip
COMPUTE = {
    "kernels",
    "model",
    "generate",
    "answers",
    "engine",
    "train",
    "evaluate",
    "export",
    "serve",
    "selftest",
}
# imported inside functions only, everywhere
LATE = {"matplotlib", "rich", "sklearn", "tensorboard"}


@dataclass(frozen=True)
class Import:
    """One import: who, line, what; `late` when it runs only in a function or never."""

    module: str
    line: int
    target: str
    late: bool


def problems(root: Path) -> list[str]:
    """All breaches of the plan in the package folder `root`; empty where it is kept."""
    modules = {_name(root, path): path for path in sorted(root.rglob("*.py"))}
    found = [one for name, path in modules.items() for one in _of_file(name, path)]
    all_imports = [one for name, path in modules.items() for one in imports(name, path, modules)]
    heavy = _heavy(all_imports)
    inside: dict[str, set[str]] = {}
    for one in all_imports:
        found += _of_import(one, modules, heavy)
        if one.target in modules and one.target != one.module and _room(one.target) == _room(one.module):
            inside.setdefault(one.module, set()).add(one.target)
    return found + _circles(inside)


def imports(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[Import]:
    """Imports of a file, those of the package as full module names."""
    tree = ast.parse(path.read_text("utf-8"), str(path))
    docs = {id(node.body[0].value) for node in ast.walk(tree) if _has_docstring(node)}  # type: ignore[attr-defined]
    for node, late in _walk(tree, late=False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, node.lineno, alias.name, late)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(name, path, node)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield Import(name, node.lineno, whole if whole in modules else base, late)
        elif isinstance(node, ast.Constant) and id(node) not in docs and _names_module(node.value):
            target = str(node.value).partition(":")[0]
            while target not in modules and "." in target:
                target = target.rpartition(".")[0]
            yield Import(name, node.lineno, target, late=True)


def _names_module(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"{PACKAGE}(\.\w+)+(:\w+)?", value) is not None


def _of_file(name: str, path: Path) -> Iterator[str]:
    room = _room(name)
    if room not in FLOOR:
        yield f"{path}: {room!r} has no floor"
    if path.stem in NAMELESS or room in NAMELESS:
        yield f"{path}: a file is named by what it does"
    lines = len(path.read_text("utf-8").splitlines())
    if lines > MOST_LINES:
        yield f"{path}: {lines} lines; at most {MOST_LINES}, one idea each"


def _heavy(all_imports: list[Import]) -> set[str]:
    """Modules whose import loads something heavy, by whatever way."""
    heavy: set[str] = set()
    while True:
        more = {
            one.module
            for one in all_imports
            if not one.late and (one.target.partition(".")[0] in HEAVY or one.target in heavy)
        }
        if more <= heavy:
            return heavy
        heavy |= more


def _of_import(one: Import, modules: Mapping[str, Path], heavy: set[str]) -> Iterator[str]:
    where = f"{modules[one.module]}:{one.line}"
    here = _room(one.module)
    outside = one.target.partition(".")[0]
    if outside == PACKAGE:
        there = _room(one.target)
        if there != here and here in FLOOR and there in FLOOR and FLOOR[there] >= FLOOR[here]:
            how = "stands beside" if FLOOR[there] == FLOOR[here] else "stands above"
            yield f"{where}: {here or PACKAGE} imports {one.target}, which {how} it"
        if there == here and _upward(one):
            yield f"{where}: {one.target} stands above {one.module} inside {here}/"
        if not one.late and one.target in heavy and here not in COMPUTE:
            yield f"{where}: {one.target} is heavy; import it inside a function"
    elif not one.late and (outside in LATE or (outside in HEAVY and here not in COMPUTE)):
        yield f"{where}: {outside} is heavy; import it inside a function"


def _upward(one: Import) -> bool:
    order = INSIDE.get(_room(one.module), ())
    here, there = ([*name.split("."), "", ""][2] for name in (one.module, one.target))
    return here in order and there in order and order.index(there) > order.index(here)


def _circles(inside: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        return ["circle: " + " -> ".join(error.args[1])]
    return []


def _walk(node: ast.AST, late: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, each with whether it runs later than the import of its file."""
    for child in ast.iter_child_nodes(node):
        inner = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inner = True
        yield child, inner
        yield from _walk(child, inner)


def _has_docstring(node: ast.AST) -> bool:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return isinstance(node, kinds) and ast.get_docstring(node) is not None


def _name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join((PACKAGE, *(part for part in parts if part != "__init__")))


def _absolute(name: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    kept = package[: len(package) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _room(module: str) -> str:
    return [*module.split("."), ""][1]
