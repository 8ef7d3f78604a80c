"""OpenAI's API: chat completions, completions, models."""

from __future__ import annotations

from tunesmith.serve.openai.routes import router

__all__ = ["router"]
