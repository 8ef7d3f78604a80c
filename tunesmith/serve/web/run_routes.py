"""Routes of the runs: the list, one run, its growing curves, its report, several runs compared."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from tunesmith.errors import AccessError
from tunesmith.run import Run, unreadable
from tunesmith.serve.state import ServeState
from tunesmith.serve.web.compare_child import compared
from tunesmith.serve.web.grown_lines import grown
from tunesmith.serve.web.told import ToldRoute, inside, named_run, state_of
from tunesmith.view.next_command import next_command
from tunesmith.view.series import Gap, gaps, load_series
from tunesmith.view.sources import Source, all_runs, look_at
from tunesmith.view.summary import summarise, summarise_any

router = APIRouter(prefix="/ui", route_class=ToldRoute)
Name = Annotated[str, Query(max_length=255)]

# a report brings its own style and script; without `allow-same-origin` it is nobody's page: no cookie, no API
REPORT_POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; font-src data:; connect-src 'none'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_REPORTS = {"report": "report/report.html", "data": "data/report.html"}
_LOG = 64 << 10  # bytes of the log's end that are shown


@router.get("/runs")
async def runs(request: Request) -> dict[str, Any]:
    """Every run in a line, newest first."""
    return await run_in_threadpool(_listed, state_of(request))


@router.get("/run")
async def run(request: Request, name: Name) -> dict[str, Any]:
    """One run: all that its small files say."""
    return await run_in_threadpool(_shown, state_of(request), name)


@router.get("/curve")
async def curve(
    request: Request, name: Name, after: Annotated[str, Query(max_length=200)] = ""
) -> dict[str, Any]:
    """Lines of metrics.jsonl and timing.jsonl that came since `after`; `reset`: all of them, the files began anew."""
    return await run_in_threadpool(_curve, state_of(request), name, after)


@router.get("/log")
async def log(request: Request, name: Name) -> dict[str, Any]:
    """The end of log.txt."""
    return await run_in_threadpool(_log, state_of(request), name)


@router.get("/report")
async def report(request: Request, name: Name, of: Literal["report", "data"] = "report") -> Response:
    """A report as a page of its own, shut in: it can't reach the server."""
    found = named_run(state_of(request), name)
    path = inside(found, found.path / _REPORTS[of])
    headers = {
        "Content-Security-Policy": REPORT_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    content = await run_in_threadpool(path.read_bytes)
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


@router.get("/compare")
async def compare(
    request: Request, run: Annotated[list[str], Query(min_length=2, max_length=8)]
) -> dict[str, Any]:
    """What `tunesmith compare` says of the runs, in the order given."""
    state = state_of(request)
    found = [named_run(state, name) for name in run]
    return await compared(found, state.runs_dir)


def _listed(state: ServeState) -> dict[str, Any]:
    now = time.time()
    if not state.runs_dir.is_dir():
        return {"runs": [], "runs_dir": str(state.runs_dir), "now": now}
    with all_runs(state.runs_dir) as sources:
        found = [_line(source, now, str(state.runs_dir)) for source in sources]
    found.sort(key=lambda one: (-(one["heartbeat"] or 0.0), one["name"]))
    return {"runs": found, "runs_dir": str(state.runs_dir), "now": now}


def _line(source: Source, now: float, runs_dir: str) -> dict[str, Any]:
    one = summarise_any(source, now)
    if one.name != (name := _written(one.name)):  # no JSON holds such a name, and the list is one answer
        why = "its name is no UTF-8 text: rename the folder"
        one = replace(one, name=name, address=_written(one.address), state="unreadable", error=why)
    answers = source.run.predictions / "tuned.jsonl"
    return one.to_json() | {"comparable": answers.is_file() and one.state != "unreadable"}


def _written(text: str) -> str:
    """A name as text: bytes that are no UTF-8 as the terminal shows them."""
    return os.fsencode(text).decode("utf-8", "replace")


def _shown(state: ServeState, name: str) -> dict[str, Any]:
    now = time.time()
    found = named_run(state, name)
    with look_at([str(found.path)], state.runs_dir) as (source,):
        one = summarise(source, now)
        proofs, damaged = _proofs(found)
        splits = found.read_json(found.data / "report.json").get("splits", {})
        if not isinstance(splits, dict):
            raise unreadable(found.data / "report.json", f"splits is {splits!r}")
        return {
            "summary": one.to_json(),
            "now": now,
            "next": next_command(one, source, str(state.runs_dir)),
            "proofs": proofs,
            "damaged": damaged,
            "recipe": found.read_json(found.lock_file).get("recipe", {}),
            "rows": {split: told.get("rows") for split, told in splits.items() if isinstance(told, dict)},
            "reports": [of for of, path in _REPORTS.items() if (found.path / path).is_file()],
            "gaps": [_gap(point) for point in gaps(load_series(found))],
        }


def _proofs(run: Run) -> tuple[list[dict[str, Any]], str | None]:
    try:
        return run.proofs(), None
    except AccessError as error:
        return [], str(error)


def _gap(point: Gap) -> dict[str, Any]:
    return {"step": point.step, "gap": point.gap}


def _curve(state: ServeState, name: str, after: str) -> dict[str, Any]:
    found = named_run(state, name)
    told = found.read_json(found.state_file)
    lines = grown((found.metrics_file, found.timing_file), after)
    with look_at([str(found.path)], state.runs_dir) as (source,):
        one = summarise(source, time.time())
    return {
        "metrics": lines.files[0],
        "timing": lines.files[1],
        "after": lines.after,
        "reset": lines.reset,
        "state": one.state,
        "phase": one.phase,
        "steps": one.steps,
        "step": told.get("step"),
        "heartbeat": one.heartbeat,
        "now": time.time(),
        "gaps": [_gap(point) for point in gaps(load_series(found))],
    }


def _log(state: ServeState, name: str) -> dict[str, Any]:
    run = named_run(state, name)
    return {"log": _tail(inside(run, run.log_file))}


def _tail(path: Path) -> str:
    """The last whole lines."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LOG))
        text = file.read(_LOG)
    if size > _LOG:
        text = text[text.find(b"\n") + 1 :]
    return text.decode("utf-8", "replace")
