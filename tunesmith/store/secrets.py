"""Secrets by name: from the environment, else from `.env` in the working folder. Never logged, never stored."""

from __future__ import annotations

import os
from pathlib import Path


def secret(name: str) -> str | None:
    """The value of `name`, or None."""
    if os.environ.get(name):
        return os.environ[name]
    file = Path(".env")
    if file.is_file():
        for line in file.read_text("utf-8").splitlines():
            key, equals, value = line.strip().removeprefix("export ").partition("=")
            if equals and key.strip() == name:
                return value.strip().strip("\"'") or None
    return None
