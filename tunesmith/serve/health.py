"""How the server is: alive, ready, and in figures."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from tunesmith.serve.metrics import CONTENT_TYPE
from tunesmith.serve.state import ServeState

router = APIRouter()


def _state(request: Request) -> ServeState:
    state: ServeState = request.app.state.serve
    return state


@router.api_route("/health", methods=["GET", "HEAD"])
async def health(request: Request) -> JSONResponse:
    """200 while it takes requests, 503 from SIGTERM on. Open to everybody, so it says nothing more."""
    if _state(request).draining:
        return JSONResponse({"status": "draining"}, 503)
    return JSONResponse({"status": "ok"})


@router.api_route("/ready", methods=["GET", "HEAD"])
async def ready(request: Request) -> JSONResponse:
    """200 once the first model can answer; until then 503 and how far each is."""
    state = _state(request)
    models = state.models.status()
    is_ready = bool(models) and models[0].state == "ready" and not state.draining
    told = [{"name": one.name, "state": one.state, "detail": one.detail, "done": one.done} for one in models]
    return JSONResponse(
        {"ready": is_ready, "draining": state.draining, "models": told}, 200 if is_ready else 503
    )


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    state = _state(request)
    state.metrics.in_progress = state.in_progress
    return Response(state.metrics.text(), media_type=CONTENT_TYPE)
