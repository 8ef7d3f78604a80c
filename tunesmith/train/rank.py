"""One of the processes that train together: `python -m tunesmith.train.rank RUN FOLDER RANK SIZE PORT`.

Started by `launch` alone. How it ended lies in FOLDER as `<rank>.ended` for the process that started it; exit code 0:
nothing is wrong, and others may still be at work (a stop that all ranks agreed on, too).
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

import torch

from tunesmith import console
from tunesmith.errors import Stopped, TunesmithError
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import load_recipe
from tunesmith.run import Run
from tunesmith.train import parallel
from tunesmith.train.train import train


def main(run: Run, folder: Path, rank: int, size: int, port: int) -> int:
    """Trains, and says how it ended. Returns the process's exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until training itself listens
    error: TunesmithError | str
    code = 1
    try:
        work(load_recipe(folder / "recipe.yaml"), run, rank, size, port)
    except TunesmithError as mendable:
        error = mendable
        code = int(not isinstance(mendable, Stopped) or isinstance(mendable, parallel.PeerLost))
    except KeyboardInterrupt:
        error = Stopped("stopped before training went on", fix="the same command goes on")
    except Exception:
        error = traceback.format_exc()
    else:
        return 0
    (folder / f"{rank}.ended").write_bytes(pickle.dumps((time.time(), error)))
    return code


def work(recipe: Recipe, run: Run, rank: int, size: int, port: int) -> None:
    """Joins the others and trains. Rank 0 speaks; what the others say stays in their own stderr."""
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
        device = torch.device("cuda", rank)
    else:
        device = torch.device("cpu")
    with console.log_to(run.log_file) if rank == 0 else nullcontext():
        train(recipe, run, parallel.join(rank, size, port, device))


def _end_with_parent() -> None:
    """Standard input is a pipe that only the parent holds: it ends when the parent does, however that came about.

    The run's lock ends with the parent, too, so nobody may go on working.
    """
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    _run, _folder, *_numbers = sys.argv[1:]
    _code = main(Run(Path(_run)), Path(_folder), *map(int, _numbers))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_code)  # nothing is left to write; a group whose members are gone would be waited for
