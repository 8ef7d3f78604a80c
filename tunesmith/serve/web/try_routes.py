"""Routes of the playground: its models, rows of a run to try, and answers checked field by field."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from tunesmith.errors import TunesmithError
from tunesmith.example import Example
from tunesmith.recipe_file import load_recipe
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.serve.protocol import ModelStatus, Served
from tunesmith.serve.state import ServeState
from tunesmith.serve.web.fields import field_table, read
from tunesmith.serve.web.told import Missing, ToldRoute, run_of, state_of, status_of
from tunesmith.tasks.answered import gold_of
from tunesmith.tasks.own_task import blamed
from tunesmith.tasks.protocol import Task
from tunesmith.view.scored import run_task

router = APIRouter(prefix="/ui", route_class=ToldRoute)
Split = Literal["validation", "test"]


class RowName(BaseModel):
    """A row of a run."""

    model_config = ConfigDict(extra="forbid")
    model: Annotated[str, Field(max_length=500)]
    split: Split
    number: Annotated[int, Field(ge=0)]


class Given(BaseModel):
    """An answer of a model."""

    model_config = ConfigDict(extra="forbid")
    model: Annotated[str, Field(max_length=500)]
    answer: Annotated[str, Field(max_length=1 << 20)]


class Answers(BaseModel):
    """The body of POST /ui/check."""

    model_config = ConfigDict(extra="forbid")
    answers: Annotated[list[Given], Field(min_length=1, max_length=4)]
    row: RowName | None = None


class _Known(NamedTuple):
    task: Task
    schema: dict[str, Any] | None


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """Every model: how far it is, and what a request gets that says nothing. Loads none."""
    state = state_of(request)
    return {"models": [await _model(state, status) for status in state.models.status()]}


async def _model(state: ServeState, status: ModelStatus) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": status.name, "state": status.state, "detail": status.detail, "done": status.done,
        "facts": {key: str(value) for key, value in status.facts.items() if value is not None},
        "defaults": None, "engine": None, "run": None, "rows": {},
    }  # fmt: skip
    if status.state == "ready":
        served = await state.models.get(status.name)
        made["engine"] = served.engine
        made["defaults"] = {
            "max_tokens": served.max_tokens, "temperature": served.temperature, "top_p": served.top_p,
        }  # fmt: skip
    run = await run_of(state, status.name)
    if run is not None:
        made["run"] = run.name
        made["rows"] = await run_in_threadpool(_counts, run)
    return made


def _counts(run: Run) -> dict[str, int]:
    return {
        name: len(Rows.open(run.data, name)) for name in ("validation", "test") if Rows.exists(run.data, name)
    }


@router.get("/rows")
async def row(
    request: Request, model: str, split: Split, number: Annotated[int, Query(ge=0)] = 0
) -> dict[str, Any]:
    """One row: its turns and its gold answer."""
    run = await _run(state_of(request), model)
    example, count = await run_in_threadpool(_example, run, split, number)
    return {
        "id": example.id,
        "number": number,
        "count": count,
        "split": split,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in example.prompt],
        "gold": example.answer,
        "slices": dict(example.slices),
    }


@router.post("/check")
async def check(request: Request, body: Answers) -> dict[str, Any]:
    """Answers side by side, field by field."""
    state = state_of(request)
    schema = None
    for one in body.answers:
        schema = schema or await _schema(state, one.model)
    example = task = None
    if body.row is not None:
        run = await _run(state, body.row.model)
        example, _ = await run_in_threadpool(_example, run, body.row.split, body.row.number)
        task = (await run_in_threadpool(_known, run)).task
    return await run_in_threadpool(_checked, body.answers, schema, example, task)


def _checked(
    answers: list[Given], schema: dict[str, Any] | None, example: Example | None, task: Task | None
) -> dict[str, Any]:
    reads = [read(one.answer, schema) for one in answers]
    details = []
    right: list[bool | None] = [None for _ in answers]
    if example is not None and task is not None and example.answer is not None:
        with blamed(task, example.id):
            gold = gold_of(task, example)
            if gold.value is not None:
                parsed = [task.parse(one.answer) for one in answers]
                details = [task.details(gold, one) for one in parsed]
                right = [bool(task.correct(gold, one)) for one in parsed]
    objects = any(one.value is not None for one in reads)
    fields = field_table(reads, schema if objects else None, details) if objects or any(details) else []
    return {
        "fields": fields,
        "answers": [
            {
                "json": one.value is not None,
                "problems": one.problems if objects or schema else [],
                "right": ok,
            }
            for one, ok in zip(reads, right, strict=True)
        ],
        "schema": schema is not None,
        "task": None if task is None else task.name,
    }


async def _schema(state: ServeState, model: str) -> dict[str, Any] | None:
    """That of the model, else the one that its run's task has inferred from the training answers."""
    if status_of(state, model).state == "ready":
        served: Served = await state.models.get(model)
        if served.schema is not None:
            return dict(served.schema)
    run = await run_of(state, model)
    try:
        return None if run is None else (await run_in_threadpool(_known, run)).schema
    except Missing:  # no training rows here: the run was fetched, or its rows were put away
        return None


def _known(run: Run) -> _Known:
    try:
        stamp = (run.data / "train.lines.npy").stat().st_mtime_ns, run.recipe_file.stat().st_mtime_ns
    except OSError:
        raise Missing(
            "this run has no training rows here, so its task is not known", where=run.name
        ) from None
    return _task(run.path, stamp)


@lru_cache(maxsize=8)
def _task(path: Any, _written: tuple[int, int]) -> _Known:
    run = Run(path)
    task = run_task(load_recipe(run.recipe_file), run)
    schema = getattr(task, "schema", None)
    return _Known(task, dict(schema) if schema is not None else None)


async def _run(state: ServeState, model: str) -> Run:
    run = await run_of(state, model)
    if run is None:
        raise Missing("no run is known that made this model, so there are no rows of it", where=model)
    return run


def _example(run: Run, split: str, number: int) -> tuple[Example, int]:
    if not Rows.exists(run.data, split):
        raise Missing(f"this run has no {split} rows", where=run.name)
    rows = Rows.open(run.data, split)
    if number >= len(rows):
        raise TunesmithError(
            f"there are {len(rows)} {split} rows", where=f"row {number + 1}", fix="a lower number"
        )
    return rows.example(number), len(rows)
