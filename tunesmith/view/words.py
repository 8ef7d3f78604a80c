"""Figures as short words: sizes, ages, durations, numbers. For terminals of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def size(count: float) -> str:
    """Bytes as people say them: 1.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 9.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age(seconds: float) -> str:
    """The largest unit alone: 40 s, 3 min, 5 h, 12 d."""
    seconds = max(0.0, seconds)  # another machine's clock may be ahead
    name, length = next(((name, length) for name, length in _UNITS if seconds >= length), _UNITS[-1])
    return f"{seconds / length:.0f} {name}"


def clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def number(value: object) -> str:
    """Four digits of a float, anything else as it is, – for nothing."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shortened(text: str, room: int) -> str:
    """`text` in `room` columns: the middle goes, since names differ at their ends."""
    if len(text) <= room:
        return text
    tail = (room - 1) // 2
    return f"{text[: room - 1 - tail]}…{text[len(text) - tail :]}"


def headline(found: Mapping[str, Any] | None) -> str:
    """base → tuned."""
    return "–" if found is None else f"{found['base']:.2f} → {found['tuned']:.2f}"
