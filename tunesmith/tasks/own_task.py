"""Errors in a user's own task while rows are scored: told as theirs, with line and row. In ours they stay bugs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import extract_tb

from tunesmith.errors import TunesmithError
from tunesmith.tasks.protocol import Task


@contextmanager
def blamed(task: Task, row: str = "") -> Iterator[None]:
    """TunesmithError where code of a user's own task raises; what our own tasks raise goes through."""
    try:
        yield
    except TunesmithError:
        raise
    except Exception as error:  # the user's own code: anything may happen
        if not is_own(task):
            raise
        made = type(_inner(task))
        file = getattr(sys.modules.get(made.__module__), "__file__", None) or made.__module__
        own = [one.lineno for one in extract_tb(error.__traceback__) if one.filename == file]
        raise TunesmithError(
            f"the task {task.name!r} fails{' on a row' if row else ''}: {type(error).__name__}: {error}",
            where=f"{file}:{own[-1] if own else f' {made.__name__}'}" + (f", on row {row}" if row else ""),
            fix="mend what it does or returns, then the same command again",
        ) from error


def is_own(task: Task) -> bool:
    """Whether a user wrote the task's class, be it around one of ours."""
    return not type(_inner(task)).__module__.startswith("tunesmith.")


def _inner(task: Task) -> Task:
    """Without the user's own metrics around it."""
    made: Task = getattr(task, "_task", task)
    return made
