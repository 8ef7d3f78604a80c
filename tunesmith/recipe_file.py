"""Reads a recipe from YAML 1.2 and `--set`; reports every problem at once, each with its line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import ComposerError
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tunesmith.errors import AccessError, RecipeError
from tunesmith.lookup import nearest
from tunesmith.recipe import Recipe

Key = tuple[str | int, ...]

_MOST_BYTES = 256 << 10
_MOST_OPEN = 1_000  # brackets; the reader's time grows with their square
_MOST_VALUES = 100_000

# what the recipe may say already and this version can't do: key -> values that it can
NOT_YET: dict[str, tuple[object, ...]] = {
    "model.trust_remote_code": (False,),
    "tune.bias": ("none",),
    "train.parallel": ("none", "ddp"),
    "publish.hub": (None,),
    "publish.s3": (None,),
    "targets": ({},),
}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with each `section.key=value` of `overrides` put over it.

    Raises RecipeError that lists every problem with its line, AccessError where the file can't be read.
    """
    path = Path(path)
    tree = _read(path)
    set_here: set[Key] = set()
    wrong = list(_apply(tree, overrides, set_here))

    def where(key: Key) -> str:
        return "--set" if any(key[: len(one)] == one for one in set_here) else _line(tree, key)

    plain = _plain(tree)
    problems = dict(_not_yet(plain))
    recipe = None
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        problems |= _invalid(error)
    if problems or wrong or recipe is None:
        lines = [f"{where(key)}  {text}" for key, text in problems.items()]
        raise RecipeError(
            _listing(path, lines + wrong), fix="mend these lines; `tunesmith schema` prints every key"
        )
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe, all defaults written out, as YAML."""
    out = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(recipe.to_json(), out)
    return out.getvalue()


def _read(path: Path) -> CommentedMap:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise RecipeError(f"{path} is no recipe: it has more than {_MOST_BYTES:,} bytes")
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise AccessError(
            f"there is no recipe {path}",
            fix="give the path of a .yaml file; there are complete ones in recipes/",
        ) from None
    except IsADirectoryError:
        raise AccessError(f"{path} is a folder, not a recipe", fix="give the path of a .yaml file") from None
    except PermissionError:
        raise AccessError(f"{path} may not be read", fix=f"chmod u+r {path}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start})", fix="save it as UTF-8") from None
    if _open_brackets(text) > _MOST_OPEN:
        raise RecipeError(f"{path} holds no recipe: it is nested too deep")
    try:
        tree = YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        first = str(error.problem).split("\n")[0]
        raise RecipeError(f"{path}: {first}", where=f"line {line}", fix="keep one of the two") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise RecipeError(f"{path} is not YAML: {_yaml_words(error)}", where=f"line {line}") from None
    except YAMLError as error:  # a control character
        raise RecipeError(f"{path} is not YAML: {_first_line(error)}", fix="remove the character") from None
    except RecursionError:
        raise RecipeError(f"{path} holds no recipe: it is nested too deep") from None
    if not isinstance(tree, CommentedMap):
        raise RecipeError(f"{path} holds no recipe", fix="start from one in recipes/")
    if _values(tree, {}) > _MOST_VALUES:
        raise RecipeError(f"{path} holds no recipe: written out, its aliases make too many values")
    return tree


def _open_brackets(text: str) -> int:
    """How many brackets are open at once at most, if all were YAML's own; those in texts count too."""
    most = now = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        now = now + 1 if bracket in "[{" else max(0, now - 1)
        most = max(most, now)
    return most


def _values(node: Any, known: dict[int, float]) -> float:
    """How many values a node is, with every alias written out; infinite where one holds itself."""
    if not isinstance(node, Mapping | list):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.values() if isinstance(node, Mapping) else node
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def _apply(tree: CommentedMap, overrides: Sequence[str], set_here: set[Key]) -> Iterator[str]:
    for override in overrides:
        key, equals, text = override.partition("=")
        steps = tuple(key.strip().split("."))
        if not equals or not all(steps):
            yield f"--set {override}: write section.key=value"
            continue
        try:
            value = YAML(typ="safe").load(text)
        except MarkedYAMLError as error:
            quoted = f": --set '{key}=\"{text}\"'" if isinstance(error, ComposerError) else ""
            yield f"--set {override}: {_yaml_words(error)}{quoted}"
            continue
        except YAMLError as error:
            yield f"--set {override!r}: {_first_line(error)}"
            continue
        place: Any = tree
        for step in steps[:-1]:
            if not isinstance(place.get(step), dict):
                place[step] = CommentedMap()
            place = place[step]
        place[steps[-1]] = value
        set_here.add(steps)


def _yaml_words(error: MarkedYAMLError) -> str:
    if isinstance(error, ComposerError):  # the user means a star, not a reference to an anchor
        return "a value that begins with * has to stand in quotes"
    return str(error.problem)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _plain(node: Any) -> Any:
    """ruamel's round-trip types as plain ones: strict validation wants a float, not a ScalarFloat."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    if (
        type(node).__name__ == "ScalarBoolean"
    ):  # an int subclass of ruamel's, seen where a boolean carries an anchor
        return bool(node)
    return node


def _not_yet(plain: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    for dotted, can in NOT_YET.items():
        node: Any = plain
        steps = tuple(dotted.split("."))
        for step in steps:
            node = node.get(step) if isinstance(node, dict) and step in node else can[0]
        if node not in can:
            only = " or ".join("left out" if value in (None, [], {}) else _yaml(value) for value in can)
            yield steps, f"{dotted}: {_yaml(node)} is not available yet in this version (it can be {only})"


def _yaml(value: object) -> str:
    return (
        {True: "true", False: "false", None: "null"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


def _line(tree: Any, key: Key) -> str:
    """`line N` of the deepest part of `key` that the file has."""
    line: int | None = None
    node = tree
    for step in key:
        try:
            if isinstance(node, CommentedMap) and step in node:
                line = node.lc.key(step)[0] + 1
            elif isinstance(node, CommentedSeq) and isinstance(step, int):
                line = node.lc.item(step)[0] + 1
            else:
                break
        except (AttributeError, KeyError, TypeError):
            break
        node = node[step]
    return f"line {line}" if line else "file"


def _invalid(error: ValidationError) -> dict[Key, str]:
    """pydantic's complaints by key, in words for the user; those of a union's members become one line."""
    expected: dict[Key, list[str]] = {}
    got: dict[Key, object] = {}
    said: dict[Key, str] = {}
    for one in error.errors():
        # the name of a union's member is no key of the file
        key = tuple(step for step in one["loc"] if not (isinstance(step, str) and _MEMBER.match(step)))
        dotted = ".".join(map(str, key))
        if one["type"] == "extra_forbidden":
            guess = nearest(str(key[-1]), _known(key[:-1]))
            said[key] = f"{dotted}: unknown key" + (f"; did you mean {guess}?" if guess else "")
        elif one["type"] == "missing":
            said[key] = f"{dotted}: is required"
        elif one["type"] == "value_error":
            text = one["msg"].removeprefix("Value error, ")
            if key:
                said[key] = f"{dotted}: {text}"
            else:  # the recipe's own validator names the keys
                said[tuple(text.partition(": ")[0].split(" and ")[0].split("."))] = text
        else:
            expected.setdefault(key, []).append(_wanted(one["type"], one["msg"], one.get("ctx", {})))
            got[key] = one["input"]
    for key, texts in expected.items():
        # where something inside is told, the other shapes that the whole could have say nothing
        if not any(other[: len(key)] == key and other != key for other in (*expected, *said)):
            wanted = " or ".join(dict.fromkeys(texts))
            said[key] = f"{'.'.join(map(str, key))}: should be {wanted}, not {got[key]!r}"
    return said


def _wanted(kind: str, message: str, limits: Mapping[str, Any]) -> str:
    """What should stand there. pydantic's words where they are plain already."""
    if kind == "too_short":
        return f"a list of at least {limits['min_length']}"
    return _PLAIN.get(kind) or message.removeprefix("Input should be ").removeprefix("String should ")


_PLAIN = {
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a section with keys",
    "model_type": "a section with keys",
    "string_pattern_mismatch": "letters, digits, dots, dashes and underscores, a letter or digit first",
}
_MEMBER = re.compile(r"^(int|str|float|tuple|constrained-\w+|\w+\[.*)$")


def _known(path: Key) -> list[str]:
    model: type[BaseModel] = Recipe
    for step in path:
        field = model.model_fields.get(str(step))
        found = next((kind for kind in _models(field.annotation) if kind), None) if field else None
        if found is None:
            return []
        model = found
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    for kind in getattr(annotation, "__args__", (annotation,)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


def _listing(path: Path, problems: Sequence[str]) -> str:
    unique = list(dict.fromkeys(problems))

    def order(problem: str) -> tuple[int, str]:
        head = problem.split("  ")[0].removeprefix("line ")
        return (int(head), "") if head.isdigit() else (1 << 30, problem)

    lines = "\n".join(f"  {problem}" for problem in sorted(unique, key=order))
    return f"{path} has {len(unique)} problem{'s' if len(unique) > 1 else ''}:\n{lines}"
