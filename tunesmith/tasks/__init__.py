"""Task families: how an answer is parsed, checked and scored. Pure: no torch, no files but a schema's."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from traceback import extract_tb
from typing import Any

from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.lookup import find
from tunesmith.tasks.protocol import Detail, Golds, Parsed, Table, Task, TaskMaker

__all__ = ["TASKS", "Detail", "Golds", "Parsed", "Table", "Task", "TaskMaker", "make_task"]


def _extraction(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    from tunesmith.tasks.extraction import ExtractionTask

    return ExtractionTask.make(schema, golds)


def _text(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    from tunesmith.tasks.text import TextTask

    return TextTask()


def _annotations(name: str) -> TaskMaker:
    def make(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
        from tunesmith.tasks.annotated.annotations import AnnotationTask

        return AnnotationTask.make(name, golds)

    return make


def _preference(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    from tunesmith.tasks.preference import PreferenceTask

    return PreferenceTask()


def _qa(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    from tunesmith.tasks.prose.question_answering import QuestionTask

    return QuestionTask.make(golds)


def _language(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    from tunesmith.tasks.prose.language import LanguageTask

    return LanguageTask.make(golds)


def _records(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    from tunesmith.tasks.generated.records import RecordsTask

    return RecordsTask(list(golds))


def _auto(schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    """Extraction where a schema is given or most answers are JSON objects, else text: a handful of broken rows must
    not turn the scores of fields into scores of words. The data check `unparsable` names those rows."""
    from tunesmith.tasks.json_answer import read_object

    golds = list(golds)
    objects = [gold for gold in golds if read_object(gold).value is not None]
    if schema is not None or 2 * len(objects) > len(golds):
        return _extraction(schema, objects)
    return _text(schema, golds)


TASKS: dict[str, TaskMaker] = {
    "auto": _auto,
    "extraction": _extraction,
    "text": _text,
    "qa": _qa,
    "language": _language,
    "preference": _preference,
    "records": _records,
    "entities": _annotations("entities"),
    "relations": _annotations("relations"),
    "annotations": _annotations("annotations"),
}


_FIX = "give module:function, with def function(schema, golds): … that returns a task"


def make_task(name: str, schema: Mapping[str, Any] | None = None, golds: Golds = ()) -> Task:
    """The task that a recipe names. `schema`: `data.schema` as a JSON schema; `golds`: answers of the TRAINING rows,
    from which fields and types are inferred where there is no schema. RecipeError where a user's own makes none."""
    maker = find(name, TASKS, "task")
    return maker(schema, golds) if name in TASKS else _own(name, maker, schema, golds)


def _own(name: str, maker: TaskMaker, schema: Mapping[str, Any] | None, golds: Golds) -> Task:
    if not callable(maker):
        raise RecipeError(f"the task {name!r} is no function", where="evaluate.task", fix=_FIX)
    try:
        signature(maker).bind(schema, golds)
    except TypeError as error:
        raise RecipeError(
            f"the task {name!r} can't be called with a schema and the training answers: {error}",
            where="evaluate.task",
            fix=_FIX,
        ) from None
    try:
        made = maker(schema, golds)
    except TunesmithError:
        raise
    except Exception as error:  # the user's own code: anything may happen
        last = extract_tb(error.__traceback__)[-1]
        raise RecipeError(
            f"the task {name!r} fails: {type(error).__name__}: {error}",
            where=f"{last.filename}:{last.lineno}",
            fix="mend that line, then the same command again",
        ) from error
    wanted = {*Task.__annotations__, *(member for member in vars(Task) if not member.startswith("_"))}
    if missing := sorted(member for member in wanted if not hasattr(made, member)):
        raise RecipeError(
            f"the task {name!r} made a {type(made).__name__}, which has no {', '.join(missing)}",
            where="evaluate.task",
            fix="tunesmith/tasks/protocol.py says what a task has",
        )
    return made
