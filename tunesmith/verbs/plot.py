"""plot: the curves of one or more runs as a PNG, while they train or afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.errors import TunesmithError
from tunesmith.run import Run, require_writable
from tunesmith.view.series import load_series
from tunesmith.view.sources import Source, look_at


def plot(names: Sequence[str], runs_dir: str | Path, out: Path | None) -> dict[str, Any]:
    """Draws into `out`; without one into <run>.png in the working folder."""
    if out is not None and out.suffix.lower() != ".png":
        raise TunesmithError(
            f"{out} does not end in .png", where="--out", fix=f"--out {out.with_suffix('.png')}"
        )
    with look_at(names, runs_dir) as sources:
        curves = {name: load_series(run) for name, run in named(sources).items()}
    require_steps({name: bool(series) for name, series in curves.items()})
    out = out or Path(f"{_file_name(list(curves))}.png")
    require_writable(out)
    from tunesmith.view.figures import png
    from tunesmith.view.overlay import overlay

    png(overlay({name: series for name, series in curves.items() if series}), out)
    console.say(f"picture: {out}")
    return {"out": str(out), "runs": list(curves)}


def named(sources: Sequence[Source]) -> dict[str, Run]:
    """Each run under its name; under its address where two have the same."""
    names = [source.run.name for source in sources]
    return {
        source.run.name if names.count(source.run.name) == 1 else source.address: source.run
        for source in sources
    }


def require_steps(logged: Mapping[str, bool]) -> None:
    """`logged`: whether a run has logged a step. A warning where one has not, TunesmithError where none has."""
    silent = [name for name, some in logged.items() if not some]
    if len(silent) == len(logged):
        raise TunesmithError(
            f"no step is logged yet in {', '.join(silent)}",
            fix="train first, or wait for train.log_every steps",
        )
    for name in silent:
        console.warn(f"no step is logged yet in {name}")


def _file_name(names: Sequence[str]) -> str:
    first = Path(names[0]).name
    return first if len(names) == 1 else f"{first}-and-{len(names) - 1}-more"
