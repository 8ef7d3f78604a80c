"""A run in a line: how far it is, whether somebody works in it, what it found. From its small files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunesmith.errors import AccessError
from tunesmith.notify import stage_of
from tunesmith.run import Run, unreadable
from tunesmith.view.series import best, load_series
from tunesmith.view.sources import Source

_QUIET = {"train": 180.0}  # seconds; training gives a sign every ten
_QUIET_ELSEWHERE = 3600.0  # other stages give one at their start only
_STATE = {"phase": str, "step": int, "steps": int, "heartbeat": int | float, "ended": dict}
_HEADLINE = {"metric": str, "base": int | float, "tuned": int | float, "difference": dict, "n": int}


@dataclass(frozen=True)
class Summary:
    """`state` is running, done, stopped (resumable), failed, stale: it ended without a word (SIGKILL, power), or
    unreadable: a file is damaged."""

    name: str
    address: str
    state: str
    phase: str
    """The stage: that is running, was done last, or was under way when the run ended."""
    step: int | None
    steps: int | None
    heartbeat: float | None
    """Unix seconds of the last sign of life."""
    best_step: int | None
    best_loss: float | None
    """Lowest validation loss, nats per token."""
    headline: dict[str, Any] | None
    size: int
    """Bytes."""
    error: str | None
    """Why it stopped or failed, where it could still say so; where the damaged file lies."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def summarise(source: Source, now: float) -> Summary:
    """`now`: unix seconds. AccessError where a file of the run is damaged."""
    run = source.run
    content = run.read_json(run.state_file)
    _fits(run.state_file, content, _STATE)
    report = run.report / "report.json"
    headline = run.read_json(report).get("headline")
    if headline is not None:
        _fits(report, headline, _HEADLINE, all_there=True)
        _fits(report, headline["difference"], {"value": int | float}, all_there=True)
    last, lowest = _curve(run.path, tuple(_stamp(path) for path in (run.metrics_file, run.timing_file)))
    ended = content.get("ended") or {}
    heartbeat = content.get("heartbeat")
    return Summary(
        name=run.name,
        address=source.address,
        state=_state(content, source.locked, None if heartbeat is None else now - heartbeat),
        phase=stage_of(ended if ended.get("phase") else content),
        step=content.get("step") if last is None else max(content.get("step") or 0, last),
        steps=content.get("steps"),
        heartbeat=heartbeat,
        best_step=lowest and lowest[0],
        best_loss=lowest and lowest[1],
        headline=headline,
        size=source.size,
        error=ended.get("error"),
    )


@lru_cache(maxsize=4096)
def _curve(run: Path, _written: Sequence[Any]) -> tuple[int | None, tuple[int, float] | None]:
    """Last logged step, and step and value of the lowest validation loss. Files that did not change are not read again:
    a page of runs looks every few seconds, and two hundred long ones take seconds to read."""
    series = load_series(Run(run))
    return (max(series["loss"].steps) if "loss" in series else None), best(series)


def _stamp(path: Path) -> tuple[int, ...]:
    """Differs as soon as somebody has written the file."""
    try:
        told = path.stat()
    except OSError:
        return ()
    return told.st_ino, told.st_size, told.st_mtime_ns


def summarise_any(source: Source, now: float) -> Summary:
    """As `summarise`; a run with a damaged file, or a folder that is no run of ours, is `unreadable`."""
    try:
        return summarise(source, now)
    except AccessError as error:
        return Summary(
            name=source.run.name, address=source.address, state="unreadable", phase="", step=None, steps=None,
            heartbeat=None, best_step=None, best_loss=None, headline=None, size=source.size, error=error.where,
        )  # fmt: skip


def _fits(path: Path, content: Any, kinds: Mapping[str, Any], all_there: bool = False) -> None:
    if not isinstance(content, dict):
        raise unreadable(path, f"{content!r} stands where keys should be")
    for key, kind in kinds.items():
        value = content.get(key)
        if (value is not None or all_there) and not isinstance(value, kind):
            raise unreadable(path, f"{key} is {value!r}")


def _state(content: dict[str, Any], locked: bool | None, age: float | None) -> str:
    """The lock tells for certain; where nobody can be asked, the age of the heartbeat in seconds."""
    phase, ended = str(content.get("phase")), content.get("ended")
    if locked:
        return "running"
    if ended:
        return "stopped" if ended.get("exit") == 75 else "failed"
    if phase.endswith(" done"):
        return "done"
    if phase == "stopped":
        return "stopped"
    if locked is None and age is not None and age < _QUIET.get(phase, _QUIET_ELSEWHERE):
        return "running"
    return "stale"
