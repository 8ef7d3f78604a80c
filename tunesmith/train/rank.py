"""One of the processes that train together: `python -m tunesmith.train.rank RUN FOLDER RANK SIZE PORT`.

Started by `launch` alone. How it ended lies in FOLDER as `<rank>.ended` for the process that started it; exit code 0:
nothing is wrong, and others may still be at work (a stop that all ranks agreed on, too).

Imports that take seconds come after the process has said what a signal means to it: Ctrl-C during them is no traceback.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunesmith.errors import TunesmithError
    from tunesmith.recipe import Recipe
    from tunesmith.run import Run


def main(path: Path, folder: Path, rank: int, size: int, port: int) -> int:
    """Trains, and says how it ended. Returns the process's exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from tunesmith.errors import Stopped, TunesmithError
    from tunesmith.recipe_file import load_recipe
    from tunesmith.run import Run, disk_error
    from tunesmith.train.parallel import PeerLost

    run = Run(path)
    error: TunesmithError | str
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # until training itself listens
            signal.signal(number, _interrupt)
        work(load_recipe(folder / "recipe.yaml"), run, rank, size, port)
    except TunesmithError as mendable:
        error = mendable
        code = int(not isinstance(mendable, Stopped) or isinstance(mendable, PeerLost))
    except KeyboardInterrupt:
        error = Stopped("stopped before training went on", fix="the same command goes on")
    except Exception as fault:
        known = disk_error(fault, run.path) if isinstance(fault, OSError) else None
        error = known or traceback.format_exc()
    else:
        return 0
    told = folder / f".{rank}"
    told.write_bytes(pickle.dumps((time.time(), error)))
    told.rename(folder / f"{rank}.ended")  # whole, or not there
    return code


def work(recipe: Recipe, run: Run, rank: int, size: int, port: int) -> None:
    """Joins the others and trains. Rank 0 speaks; what the others say stays in their own stderr."""
    import torch

    from tunesmith import console
    from tunesmith.train import parallel
    from tunesmith.train.train import train

    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
        device = torch.device("cuda", rank)
    else:
        device = torch.device("cpu")
    with console.log_to(run.log_file) if rank == 0 else nullcontext():
        train(recipe, run, parallel.join(rank, size, port, device))


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Once: a batch system signals every process, and the parent passes its own signal on."""
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Standard input is a pipe that only the parent holds: it ends when the parent does, however that came about.

    The run's lock ends with the parent, too, so nobody may go on working.
    """
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _run, _folder, *_numbers = sys.argv[1:]
    _code = main(Path(_run), Path(_folder), *map(int, _numbers))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_code)  # nothing is left to write; a group whose members are gone would be waited for
