"""Runs compared by the verb itself, in a process of its own: a bootstrap must not hold up answers that are streamed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.run import Run
from tunesmith.serve.protocol import Busy

_SECONDS = 180.0
_KEPT = 16
_done: OrderedDict[tuple[Any, ...], dict[str, Any]] = OrderedDict()
_busy = False


async def compared(runs: Sequence[Run], runs_dir: Path) -> dict[str, Any]:
    """The content of `tunesmith compare RUN RUN… --out FILE.json`. TunesmithError as the verb says it; Busy while
    another comparison is made."""
    key = tuple((str(run.path), _written(run)) for run in runs)
    if key in _done:
        _done.move_to_end(key)
        return _done[key]
    global _busy
    if _busy:
        raise Busy("another comparison is being made", fix="try again in a moment")
    _busy = True
    try:
        content = await _made([run.path for run in runs], runs_dir)
    finally:
        _busy = False
    _done[key] = content
    while len(_done) > _KEPT:
        _done.popitem(last=False)
    return content


def _written(run: Run) -> tuple[int, ...]:
    names = (run.predictions / "tuned.jsonl", run.predictions / "base.jsonl", run.recipe_file)
    return tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in names)


async def _made(paths: Sequence[Path], runs_dir: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        out = Path(folder) / "comparison.json"
        words = [
            "compare",
            *(str(path.resolve()) for path in paths),
            "--runs-dir",
            str(runs_dir),
            "--out",
            str(out),
        ]
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tunesmith", *words,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            start_new_session=True, env=os.environ | {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            _, said = await asyncio.wait_for(child.communicate(), _SECONDS)
        except TimeoutError:
            raise TunesmithError(
                f"comparing took longer than {_SECONDS:.0f} s", fix="tunesmith compare RUN RUN, in a terminal"
            ) from None
        finally:  # a client that goes away ends it too
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
        if child.returncode != 0:
            raise _told(said.decode("utf-8", "replace"))
        content: dict[str, Any] = json.loads(out.read_text("utf-8"))
        return content


def _told(said: str) -> TunesmithError:
    """The verb's own words: what, where, fix."""
    lines = [line for line in said.splitlines() if line.strip()]
    found: dict[str, str] = {}
    for line in lines:
        for key in ("where", "fix"):
            if line.strip().startswith(f"{key}:"):
                found[key] = line.strip().partition(":")[2].strip()
    what = next((line for line in lines if not line.startswith(("  ", "warning"))), "the comparison failed")
    return TunesmithError(what.removeprefix("error: "), where=found.get("where"), fix=found.get("fix"))
