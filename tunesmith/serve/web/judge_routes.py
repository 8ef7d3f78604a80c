"""Routes of judged answers: keep one, take it back, count and fetch them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from tunesmith.errors import TunesmithError
from tunesmith.run import Run
from tunesmith.serve.state import ServeState
from tunesmith.serve.web.judged import FILES, Judgement, counts, keep, next_lines, take_back
from tunesmith.serve.web.told import Missing, ToldRoute, run_of, state_of
from tunesmith.store.fetched import cache_home

router = APIRouter(prefix="/ui/feedback", route_class=ToldRoute)
Text = Annotated[str, Field(max_length=1 << 20)]


class Turn(BaseModel):
    """One message."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: Text


class Judged(BaseModel):
    """The body of POST /ui/feedback."""

    model_config = ConfigDict(extra="forbid")
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{8,64}$")]
    model: Annotated[str, Field(max_length=500)]
    prompt: Annotated[list[Turn], Field(min_length=1, max_length=200)]
    answer: Text
    verdict: Literal["good", "bad", "none"]
    """none: the judgement is taken back."""
    corrected: Text | None = None


@router.post("")
async def judge(request: Request, body: Judged) -> dict[str, Any]:
    """Keeps a judgement; it is on the disk when the answer comes."""
    folder, run = await _folder(state_of(request), body.model)
    if body.verdict == "none":
        await run_in_threadpool(take_back, folder, body.id)
        return {"kept": None} | await run_in_threadpool(_told, folder, run)
    if body.prompt[-1].role != "user" or not body.prompt[-1].content.strip():
        raise TunesmithError("the prompt has to end with a user's turn", fix="ask something first")
    wanted = None if body.corrected in (None, body.answer) else body.corrected
    if wanted is not None and not wanted.strip():
        raise TunesmithError("the corrected answer is empty", fix="write what the answer should have been")
    if body.verdict == "good" and wanted is None and not body.answer.strip():
        raise TunesmithError("an empty answer can't be learned", fix="correct it, or judge it as bad")
    turns = tuple((turn.role, turn.content) for turn in body.prompt)
    if any(role == "system" for role, _ in turns[1:]) or any(not text.strip() for _, text in turns):
        raise TunesmithError("a turn is empty, or a system prompt stands behind others", fix="ask anew")
    kept = await run_in_threadpool(
        keep, folder, run, Judgement(body.id, body.model, turns, body.answer, body.verdict, wanted)
    )
    return {"kept": kept} | await run_in_threadpool(_told, folder, run)


@router.get("")
async def feedback(request: Request, model: str) -> dict[str, Any]:
    """Counts, the file, and what to type to train on it."""
    folder, run = await _folder(state_of(request), model)
    return await run_in_threadpool(_told, folder, run)


@router.get("/download")
async def download(
    request: Request, model: str, place: Literal["train", "bad", "held_out"] = "train"
) -> Response:
    """The file of rows."""
    folder, _ = await _folder(state_of(request), model)
    path = folder / FILES[place]
    if not path.is_file():
        raise Missing("no answer has been judged yet", fix="judge one in the playground")
    headers = {
        "Content-Disposition": f'attachment; filename="{path.name}"',
        "X-Content-Type-Options": "nosniff",
    }
    content = await run_in_threadpool(path.read_bytes)
    return Response(content, media_type="application/x-ndjson; charset=utf-8", headers=headers)


def _told(folder: Path, run: Run | None) -> dict[str, Any]:
    count = counts(folder)
    lines = next_lines(folder, run) if count["train"] else {"recipe": "", "command": ""}
    return {"counts": count, "file": str(folder / FILES["train"]), "next": lines}


async def _folder(state: ServeState, model: str) -> tuple[Path, Run | None]:
    """The run's folder; that of all runs for a model that no run here made, or whose run was fetched: its folder in the
    cache is named by its content, and another export has another one."""
    run = await run_of(state, model)
    if run is None or run.path.resolve().is_relative_to(cache_home().resolve()):
        return state.runs_dir, None
    return run.path, run
