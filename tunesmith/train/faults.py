"""What to say when a step can't be done: no memory, no disk, a loss that is not a number."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from tunesmith.errors import AccessError, NotFinite, OutOfRoom
from tunesmith.model.room import is_memory
from tunesmith.rows import Rows

_SHOWN = 8
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def room(what: Callable[[], str], resumable: Callable[[], bool]) -> Iterator[None]:
    """Turns running out of memory or disk inside the block into OutOfRoom.

    `what()` says what was going on; `resumable()` whether a checkpoint is on disk (exit code 75 instead of 2).
    """
    try:
        yield
    except OutOfRoom as error:
        if resumable():
            error.exit_code = 75
        raise
    except (OSError, SafetensorError) as error:
        if isinstance(error, PermissionError):
            raise AccessError(
                "may not be written", where=str(error.filename), fix="choose another --runs-dir, or chmod u+w"
            ) from error
        if not is_full_disk(error):
            raise
        raise OutOfRoom(
            "the disk is full",
            where=str(getattr(error, "filename", None) or what()),
            fix="make room and give the same command again",
            resumable=resumable(),
        ) from error
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        raise OutOfRoom(
            "out of memory",
            where=what(),
            fix="one of: lower train.memory or train.micro_batch, set train.recompute: full, model.quantize: nf4, "
            "data.max_length lower (none of the first three changes results)",
            resumable=resumable(),
        ) from error


def is_full_disk(error: Exception) -> bool:
    """Whether a write failed for want of room, a quota or a limit on a file's size."""
    if isinstance(error, OSError):
        return error.errno in _FULL_DISK
    return any(f"os error {number})" in str(error) for number in _FULL_DISK)  # safetensors gives it as text


def not_finite(what: str, step: int, rows: Rows, numbers: Sequence[int], last_good: int | None) -> NotFinite:
    """The error for a loss or gradient that is NaN or infinite, with the rows of the (micro-)batch it came from."""
    lengths = rows.lengths
    named = [f"{rows.example(n).id} ({lengths[n]} tokens)" for n in numbers[:_SHOWN]]
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    kept = f"the checkpoint of step {last_good} is kept" if last_good is not None else "no checkpoint yet"
    return NotFinite(
        f"{what} of step {step} is not finite; {kept}",
        where=f"rows {', '.join(named)}{more}",
        fix="look at these rows (tunesmith check --show); else lower train.learning_rate, raise train.warmup, "
        "or use model.dtype: bfloat16 or float32; then start again with --fork",
    )
