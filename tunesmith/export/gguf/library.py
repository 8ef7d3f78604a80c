"""The `gguf` package, asked for when it is needed: it is an extra."""

from __future__ import annotations

import logging
from types import ModuleType

from tunesmith.errors import SetupError


def require_gguf() -> ModuleType:
    """The module `gguf`. SetupError where it is missing."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise SetupError(
            "the package gguf is not installed; it writes GGUF files", fix="pip install 'tunesmith[llamacpp]'"
        ) from None
    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)
    return gguf
