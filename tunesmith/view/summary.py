"""A run in a line: how far it is, whether somebody works in it, what it found. From its small files alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.notify import stage_of
from tunesmith.view.series import best, load_series
from tunesmith.view.sources import Source

_QUIET = {"train": 180.0}  # seconds; training gives a sign every ten
_QUIET_ELSEWHERE = 3600.0  # other stages give one at their start only


@dataclass(frozen=True)
class Summary:
    """`state` is running, done, stopped (resumable), failed, or stale: it ended without a word (SIGKILL, power)."""

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
    """Why it stopped or failed, where it could still say so."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def summarise(source: Source, now: float) -> Summary:
    """`now`: unix seconds."""
    run = source.run
    content = run.read_json(run.state_file)
    series = load_series(run)
    lowest = best(series)
    ended = content.get("ended") or {}
    heartbeat = content.get("heartbeat")
    return Summary(
        name=run.name,
        address=source.address,
        state=_state(content, source.locked, None if heartbeat is None else now - heartbeat),
        phase=stage_of(ended if ended.get("phase") else content),
        step=max([content.get("step") or 0, *series["loss"].steps])
        if "loss" in series
        else content.get("step"),
        steps=content.get("steps"),
        heartbeat=heartbeat,
        best_step=lowest and lowest[0],
        best_loss=lowest and lowest[1],
        headline=run.read_json(run.report / "report.json").get("headline"),
        size=source.size,
        error=ended.get("error"),
    )


def _state(content: dict[str, Any], locked: bool | None, age: float | None) -> str:
    """The lock tells for certain; where nobody can be asked, the age of the heartbeat in seconds."""
    phase, ended = str(content.get("phase")), content.get("ended")
    if locked:
        return "running"
    if ended:
        return "stopped" if ended["exit"] == 75 else "failed"
    if phase.endswith(" done"):
        return "done"
    if phase == "stopped":
        return "stopped"
    if locked is None and age is not None and age < _QUIET.get(phase, _QUIET_ELSEWHERE):
        return "running"
    return "stale"
