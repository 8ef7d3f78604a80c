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
        file, line = _place(task)
        own = [one.lineno for one in extract_tb(error.__traceback__) if one.filename == file]
        raise TunesmithError(
            f"the task {task.name!r} fails{' on a row' if row else ''}: {type(error).__name__}: {error}",
            where=f"{file}:{own[-1] if own else line}" + (f", on row {row}" if row else ""),
            fix="mend what this line does or returns, then the same command again",
        ) from error


def is_own(task: Task) -> bool:
    """Whether a user wrote the task's class, be it around one of ours."""
    return not type(getattr(task, "_task", task)).__module__.startswith("tunesmith.")


def _place(task: Task) -> tuple[str | None, int | None]:
    """File and line of the task's `counts`."""
    code = getattr(getattr(type(getattr(task, "_task", task)), "counts", None), "__code__", None)
    return (None, None) if code is None else (str(code.co_filename), int(code.co_firstlineno))
