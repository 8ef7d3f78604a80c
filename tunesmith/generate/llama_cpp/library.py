"""llama.cpp's library, loaded once. It is silent; what it complained about is told when something has failed."""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import Any

from tunesmith.errors import SetupError

_KEPT = 12  # lines of complaints
_WARNING, _ERROR, _GOES_ON = 3, 4, 5  # ggml.h: enum ggml_log_level
_heard: deque[str] = deque(maxlen=_KEPT)
_level = 0
_callback: Any = None  # llama.cpp holds only its address


@cache
def require_llama_cpp() -> Any:
    """The module `llama_cpp.llama_cpp`, its log turned off. SetupError where it is missing or can't be loaded."""
    global _callback
    try:
        from llama_cpp import llama_cpp as library
    except ModuleNotFoundError as error:
        if error.name != "llama_cpp":
            raise
        raise SetupError(
            "llama-cpp-python is not installed; it runs GGUF files and makes K-quants",
            fix="pip install 'tunesmith[llamacpp]'   (it is compiled, five minutes; for a card: "
            'CMAKE_ARGS="-DGGML_CUDA=on" before it)',
        ) from None
    except (OSError, RuntimeError) as error:
        raise SetupError(
            f"llama.cpp's library can't be loaded: {error}",
            fix="build it on this machine: pip install --force-reinstall --no-cache-dir 'tunesmith[llamacpp]'",
        ) from None
    _callback = library.llama_log_callback(_hear)
    library.llama_log_set(_callback, None)
    library.llama_backend_init()
    return library


def forget_complaints() -> None:
    """What is heard from now on belongs to what is done next."""
    _heard.clear()


def complaints() -> str:
    """llama.cpp's last warnings and errors, a line each; empty where there were none."""
    return "".join(_heard).strip()


def last_complaint() -> str:
    """The last line of them, for an error message."""
    lines = complaints().splitlines()
    return lines[-1] if lines else "llama.cpp does not say why"


def _hear(level: int, text: bytes, _: object) -> None:
    global _level
    if level != _GOES_ON:
        _level = level
    if _level in (_WARNING, _ERROR):
        _heard.append(text.decode("utf-8", "replace"))
