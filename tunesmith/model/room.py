"""Running out of memory while a model works, told so that the user can mend it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tunesmith.errors import OutOfRoom


@contextmanager
def room(doing: str, fix: str) -> Iterator[None]:
    """Turns running out of memory while `doing` something into OutOfRoom: what is on disk so far is kept (exit 75)."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        said = (str(error).splitlines() or ["no more to be had"])[0]
        raise OutOfRoom(f"out of memory while {doing}: {said}", fix=fix, resumable=True) from error


def is_memory(error: Exception) -> bool:
    """torch.OutOfMemoryError, Python's MemoryError, or the plain RuntimeError that torch's CPU allocator raises."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )
