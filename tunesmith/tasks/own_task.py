"""Errors in a user's own task while rows are scored: told as theirs, with line and row. In ours they stay bugs."""

from __future__ import annotations

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
        places = extract_tb(error.__traceback__)
        own = [one for one in places if one.filename == _file(task)] or places
        raise TunesmithError(
            f"the task {task.name!r} fails{' on a row' if row else ''}: {type(error).__name__}: {error}",
            where=f"{own[-1].filename}:{own[-1].lineno}" + (f", on row {row}" if row else ""),
            fix="mend that line, then the same command again",
        ) from error


def is_own(task: Task) -> bool:
    """Whether a user wrote the task's class, be it around one of ours."""
    return not type(getattr(task, "_task", task)).__module__.startswith("tunesmith.")


def _file(task: Task) -> str | None:
    code = getattr(getattr(type(getattr(task, "_task", task)), "counts", None), "__code__", None)
    return None if code is None else str(code.co_filename)
