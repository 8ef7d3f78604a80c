"""Task families: how an answer is parsed, checked and scored. Pure: no torch, no files but a schema's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.lookup import find
from tunesmith.tasks.protocol import Detail, Golds, Parsed, Table, Task, TaskMaker

__all__ = ["TASKS", "Detail", "Golds", "Parsed", "Table", "Task", "TaskMaker", "make_task"]


def _extraction(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    from tunesmith.tasks.extraction import ExtractionTask

    return ExtractionTask.make(schema, golds)


def _text(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    from tunesmith.tasks.text import TextTask

    return TextTask()


def _auto(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    """Extraction where a schema is given or most answers are JSON objects, else text: a handful of broken rows must
    not turn the scores of fields into scores of words. The data check `unparsable` names those rows."""
    from tunesmith.tasks.json_answer import read_object

    golds = list(golds)
    objects = [gold for gold in golds if read_object(gold).value is not None]
    if schema is not None or 2 * len(objects) > len(golds):
        return _extraction(schema, objects)
    return _text(schema, golds)


TASKS: dict[str, TaskMaker] = {"auto": _auto, "extraction": _extraction, "text": _text}


def make_task(name: str, schema: Mapping[str, Any] | None = None, golds: Golds = ()) -> Task:
    """The task that a recipe names. `schema`: `data.schema` as a JSON schema; `golds`: answers of the TRAINING rows,
    from which fields and types are inferred where there is no schema."""
    return find(name, TASKS, "task")(schema, golds)
