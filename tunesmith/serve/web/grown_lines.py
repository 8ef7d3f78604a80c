"""New lines of files that grow: only what came since the last look, whole lines alone.

A resumed training puts cut files in the old ones' place: then everything is told anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_MOST = 8 << 20  # bytes of a file in one look; the rest comes with the next


class Grown(NamedTuple):
    """What a look found."""

    files: list[list[dict[str, Any]]]
    after: str
    """To be given with the next look."""
    reset: bool
    """These lines are all there are: what was told before no longer stands."""


def grown(paths: Sequence[Path], after: str) -> Grown:
    """`after`: what the last look gave, empty for the first. Lines that are no JSON objects are left out."""
    before = _places(after, len(paths))
    opened = [_open(path) for path in paths]
    try:
        now = [_here(file) for file in opened]
        same = before is not None and all(
            old[0] == new[0] and old[1] <= new[1] for old, new in zip(before, now, strict=True)
        )
        starts = [place for _, place in before] if same and before is not None else [0] * len(paths)
        files, marks = [], []
        for file, start, (node, _) in zip(opened, starts, now, strict=True):
            lines, end = ([], 0) if file is None else _lines(file, start)
            files.append(lines)
            marks.append(f"{node}:{end}")
    finally:
        for file in opened:
            if file is not None:
                os.close(file)
    return Grown(files, ",".join(marks), not same)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _here(file: int | None) -> tuple[int, int]:
    """Which file it is, and its bytes; zeros where there is none."""
    if file is None:
        return 0, 0
    told = os.fstat(file)
    return told.st_ino, told.st_size


def _lines(file: int, start: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines from byte `start` on, and the byte behind them."""
    content = os.pread(file, _MOST, start)
    end = content.rfind(b"\n") + 1
    made = []
    for line in content[:end].split(b"\n"):
        try:
            one = json.loads(line, parse_constant=lambda _: None)
        except ValueError:
            continue
        if isinstance(one, dict):
            made.append(one)
    return made, start + end


def _places(after: str, count: int) -> list[tuple[int, int]] | None:
    """None for a mark that is none of ours."""
    try:
        made = [(int(node), int(place)) for node, place in (one.split(":") for one in after.split(","))]
    except ValueError:
        return None
    return made if len(made) == count and all(place >= 0 for _, place in made) else None
