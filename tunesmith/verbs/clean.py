"""clean: removes checkpoints that a run no longer needs, and prepared rows that no run shares. It says what, and asks.

A finished run keeps its best checkpoint; an unfinished one its newest whole one too, from which it goes on. adapter/,
merged/, predictions/ and report/ are never touched. Each folder is renamed before it is removed, so whatever kills this
leaves no half checkpoint under a good name.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.errors import TunesmithError
from tunesmith.run import Run, beside, find_run, held, write_atomic
from tunesmith.store.s3 import is_s3
from tunesmith.view import words
from tunesmith.view.sources import folder_size

CACHE = ".rows"
_A_DAY = 86400.0


def clean(name: str, runs_dir: Path, yes: bool) -> dict[str, Any]:
    """Removes what the run's state says is no longer needed. RunLocked while a process works in it."""
    if is_s3(name):
        raise TunesmithError(
            "clean works on folders", where=name, fix="aws s3 rm --recursive ADDRESS/checkpoints"
        )
    run = find_run(name, runs_dir)
    with run.lock():
        doomed, kept = _unneeded(run)
        what = f"keeps {', '.join(path.name for path in kept) or 'no checkpoint'}"
        return {"run": str(run.path)} | _remove_all(doomed, what, yes, before=lambda: _point_at(run, kept))


def clean_cache(runs_dir: Path, yes: bool) -> dict[str, Any]:
    """Removes entries of the cache of prepared rows whose files no run shares any more."""
    folder = runs_dir / CACHE
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    orphans = [entry for entry in entries if entry.is_dir() and not _shared(entry) and not _in_work(entry)]
    working = [entry for entry in entries if entry.name.startswith(".") and entry not in orphans]
    kept = f"keeps {len(entries) - len(orphans) - len(working)} that runs share"
    if working:
        kept += f", and {len(working)} at which a process works"
    return _remove_all(orphans, kept, yes)


def _shared(entry: Path) -> bool:
    return any(path.stat().st_nlink > 1 for path in entry.rglob("*") if path.is_file())


def _in_work(entry: Path) -> bool:
    """Being written under a passing name: the process that does holds its lock, which the kernel frees."""
    if not entry.name.startswith("."):
        return False
    try:
        with held(entry):
            return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: after a day it is what a killed process left
        return time.time() - entry.stat().st_mtime < _A_DAY


def _unneeded(run: Run) -> tuple[list[Path], list[Path]]:
    """What may go from checkpoints/, and which checkpoints stay."""
    if not run.checkpoints.is_dir():
        return [], []
    from tunesmith.train.checkpoint import Checkpoints

    found = Checkpoints(run.checkpoints, run=_identity(run), keep=1)
    whole = [run.checkpoints / f"step-{step:08d}" for step in found.steps()]
    whole = [folder for folder in whole if found.problem(folder) is None]
    if not whole:  # nothing to go on from: nothing that another look might save is thrown away
        return sorted(run.checkpoints.glob(".*.tmp")), []
    newest = whole[-1]
    best_step = json.loads((newest / "state.json").read_text("utf-8")).get("best_step")
    best = [folder for folder in whole if folder.name == f"step-{best_step or 0:08d}"]
    kept = best or [newest]
    if not run.inputs_of("train"):
        kept = sorted({*kept, newest})
    return [path for path in sorted(run.checkpoints.iterdir()) if path.is_dir() and path not in kept], kept


def _identity(run: Run) -> str:
    """The id that the run's checkpoints carry: that of the newest readable manifest."""
    for manifest in sorted(run.checkpoints.glob("step-*/MANIFEST.json"), reverse=True):
        try:
            return str(json.loads(manifest.read_text("utf-8"))["run"])
        except (ValueError, KeyError, TypeError):
            continue
    return ""


def _point_at(run: Run, kept: Sequence[Path]) -> None:
    if kept:
        write_atomic(run.checkpoints / "LATEST", f"{kept[-1].name}\n".encode())


def _remove_all(
    doomed: Sequence[Path], kept: str, yes: bool, before: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Lists, asks, removes. TunesmithError where nobody can be asked and --yes is missing."""
    sizes = {path: folder_size(path) for path in doomed}
    total = sum(sizes.values())
    if not doomed:
        console.say(f"nothing to remove; {kept}")
        return {"removed": [], "bytes": 0}
    for path, size in sizes.items():
        console.say(f"remove  {path}  {words.size(size)}")
    console.say(f"{words.size(total)} in all; {kept}")
    answer = True if yes else console.ask("remove them?")
    if answer is None:
        raise TunesmithError("nothing is removed without a yes", fix="give the same command with --yes")
    if not answer:
        console.say("nothing is removed")
        return {"removed": [], "bytes": 0}
    before()
    for path in doomed:
        gone = path
        if not path.name.endswith(".tmp"):
            gone = beside(path)
            path.rename(gone)
        shutil.rmtree(gone)
    console.say(f"removed {words.size(total)}")
    return {"removed": [str(path) for path in doomed], "bytes": total}
