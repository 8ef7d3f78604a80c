"""One way to name a plug-in: a known name, or `package.module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from traceback import extract_tb
from typing import TypeVar

from tunesmith.errors import TunesmithError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelled one most likely means, or None."""
    found = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def find(name: str, table: Mapping[str, T], what: str) -> T:
    """`table[name]`, or the object that `package.module:function` names (looked up from the working folder too).

    Raises TunesmithError with the nearest known name when there is no such thing.
    """
    if name in table:
        return table[name]
    if ":" in name:
        return _load(name, what)
    guess = nearest(name, table)
    raise TunesmithError(
        f"there is no {what} named {name!r}" + (f"; did you mean {guess!r}?" if guess else ""),
        fix=f"use one of {', '.join(sorted(table))}, or your own as package.module:function",
    )


def _load(name: str, what: str) -> T:  # type: ignore[type-var]
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a user's own module lies in the working folder
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise TunesmithError(
                f"the {what} {name!r} can't be loaded: it imports {error.name!r}, which isn't there",
                where=_place(error),
                fix=f"install {error.name}, or mend the import",
            ) from error
        raise TunesmithError(
            f"the {what} {name!r} can't be loaded: there is no module {module_name!r}",
            fix="check the spelling; the module must be importable from the working folder",
        ) from error
    except (Exception, SystemExit) as error:  # a user's own code: anything may happen
        raise TunesmithError(
            f"the {what} {name!r} can't be loaded: {type(error).__name__}: {error}",
            where=_place(error),
            fix="mend the module",
        ) from error
    try:
        found: T = getattr(module, attribute)
    except AttributeError as error:
        guess = nearest(attribute, vars(module))
        raise TunesmithError(
            f"the module {module_name!r} has no {attribute!r}"
            + (f"; did you mean {guess!r}?" if guess else ""),
            fix=f"give the {what} as package.module:function",
        ) from error
    return found


def _place(error: BaseException) -> str | None:
    """File and line of the user's code that failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 1 else None  # the first is this file
