"""Task families: how an answer is parsed, checked and scored. Pure: no torch, no files but a schema's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.errors import RowCheckFailed
from tunesmith.lookup import find
from tunesmith.tasks.protocol import Detail, Golds, Parsed, Table, Task, TaskMaker

__all__ = ["TASKS", "Detail", "Golds", "Parsed", "Table", "Task", "TaskMaker", "make_task"]


_NAMED, _SHOWN = 3, 60  # answers that a message lists, and characters of each


def _extraction(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    from tunesmith.tasks.extraction import ExtractionTask

    return ExtractionTask.make(schema, golds)


def _text(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    from tunesmith.tasks.text import TextTask

    return TextTask()


def _auto(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    """Extraction where a schema is given or every answer is a JSON object, text where few are; RowCheckFailed between:
    a handful of broken rows among objects must not turn the scores of fields into scores of words."""
    from tunesmith.tasks.json_answer import read_object

    golds = list(golds)
    if schema is not None:
        return _extraction(schema, golds)
    others = [gold for gold in golds if read_object(gold).value is None]
    if others and 2 * len(others) <= len(golds):
        shown = ", ".join(
            repr(gold if len(gold) <= _SHOWN else f"{gold[:_SHOWN]}…") for gold in others[:_NAMED]
        )
        raise RowCheckFailed(
            f"{len(others)} of {len(golds)} training answers are no JSON object, the others are: {shown}"
            + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""),
            where="evaluate.task: auto",
            fix="set evaluate.task: text or extraction, or mend these rows",
        )
    return (_text if others or not golds else _extraction)(schema, golds)


TASKS: dict[str, TaskMaker] = {"auto": _auto, "extraction": _extraction, "text": _text}


def make_task(name: str, schema: Mapping[str, Any] | None = None, golds: Golds = ()) -> Task:
    """The task that a recipe names. `schema`: `data.schema` as a JSON schema; `golds`: answers of the TRAINING rows,
    from which fields and types are inferred where there is no schema."""
    return find(name, TASKS, "task")(schema, golds)
