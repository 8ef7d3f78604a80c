"""The app: every route, and what stands before all of them."""

from __future__ import annotations

from fastapi import FastAPI

from tunesmith.serve import ollama, openai
from tunesmith.serve.state import ServeState
from tunesmith.serve.web import pages


def create_app(state: ServeState) -> FastAPI:
    """The app of one server; its routes find `state` in `request.app.state.serve`."""
    app = FastAPI(title="tunesmith", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.serve = state
    app.include_router(openai.router)
    app.include_router(ollama.router)
    app.include_router(pages.router)
    return app
