"""The app: every route, and what stands before all of them."""

from __future__ import annotations

from fastapi import FastAPI

from tunesmith.serve import health, ollama, openai
from tunesmith.serve.errors import add_handlers
from tunesmith.serve.guard.body import BodyGuard
from tunesmith.serve.guard.headers import HeaderGuard
from tunesmith.serve.guard.origin import OriginGuard
from tunesmith.serve.guard.record import RecordGuard
from tunesmith.serve.guard.token import TokenGuard
from tunesmith.serve.state import ServeState
from tunesmith.serve.web import pages

GUARDS = (HeaderGuard, RecordGuard, OriginGuard, TokenGuard, BodyGuard)
"""Outermost first. They stand before the router, so that a route that comes later is behind them too."""


def create_app(state: ServeState) -> FastAPI:
    """The app of one server; its routes find `state` in `request.app.state.serve`."""
    app = FastAPI(title="tunesmith", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.serve = state
    add_handlers(app)
    for router in (health.router, openai.router, ollama.router, pages.router):
        app.include_router(router)
    for guard in reversed(GUARDS):
        app.add_middleware(guard, state=state)
    return app
