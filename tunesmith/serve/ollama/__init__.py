"""Ollama's API: generate, chat, tags, show, version."""

from __future__ import annotations

from tunesmith.serve.ollama.routes import router

__all__ = ["router"]
