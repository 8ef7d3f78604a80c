"""What the pages' routes share: errors in words, and models and runs by the names that a page may say."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from tunesmith.errors import AccessError, TunesmithError
from tunesmith.run import Run, runs_in
from tunesmith.serve.protocol import Busy, ModelStatus, UnknownModel
from tunesmith.serve.state import ServeState


class Missing(TunesmithError):
    """Nothing of that name: 404."""


class ToldRoute(APIRoute):
    """A route whose TunesmithErrors become JSON: {"error": {"message", "where", "fix"}}."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with errors in words."""
        handler = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handler(request)
            except TunesmithError as error:
                return refusal(error)

        return told


def refusal(error: TunesmithError) -> JSONResponse:
    """An error as the pages show it."""
    status = 404 if isinstance(error, Missing | UnknownModel) else 429 if isinstance(error, Busy) else 400
    content = {"message": error.what, "where": error.where, "fix": error.fix}
    headers = {"Retry-After": str(error.seconds)} if isinstance(error, Busy) else None
    return JSONResponse({"error": content}, status, headers)


def state_of(request: Request) -> ServeState:
    """The server's state."""
    state: ServeState = request.app.state.serve
    return state


def named_run(state: ServeState, name: str) -> Run:
    """A run by a name of the list: what is no name of a run in `runs_dir` is no path either."""
    for run in _runs(state):
        if run.name == name:
            return run
    raise Missing("there is no run of this name", fix="choose one of the list")


def status_of(state: ServeState, model: str) -> ModelStatus:
    """How far a model is; UnknownModel for a name that none has."""
    for status in state.models.status():
        if status.name == model:
            return status
    raise UnknownModel("no model has this name", fix=f"one of: {', '.join(state.models.names())}")


async def run_of(state: ServeState, model: str) -> Run | None:
    """The run that a model was trained in, where that is known. Loads nothing."""
    status = status_of(state, model)
    if status.state == "ready":
        served = await state.models.get(model)
        if served.run is not None:
            return served.run
    told = str(status.facts.get("run") or "")
    if not told:  # not loaded yet: a run's tuned model is called as the run
        return (
            next((run for run in _runs(state) if run.name == model), None)
            if status.state != "ready"
            else None
        )
    found = [run for run in _runs(state) if told in (run.name, str(run.path), str(run.path.resolve()))]
    if found:
        return found[0]
    folder = Path(told)  # the server's own word, never a request's
    return Run(folder) if folder.is_absolute() and (folder / "recipe.yaml").is_file() else None


def _runs(state: ServeState) -> list[Run]:
    return runs_in(state.runs_dir) if state.runs_dir.is_dir() else []


def inside(run: Run, path: Path) -> Path:
    """A file of a run; Missing where there is none, AccessError where a link leads out of the run."""
    if not path.is_file():
        raise Missing(f"this run has no {path.name} yet", where=run.name)
    real = os.path.realpath(path)
    if not real.startswith(os.path.realpath(run.path) + os.sep):
        raise AccessError(
            f"{path.name} lies outside the run", where=run.name, fix="put the file itself there"
        )
    return Path(real)
