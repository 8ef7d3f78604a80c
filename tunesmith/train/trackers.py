"""Trackers beside TensorBoard: a table of names, or your own as package.module:function.

A tracker works in a thread of its own and is asked how far it has come. It gets the lines that it lacks from
metrics.jsonl and then each new one, so a killed and resumed run goes on in the same tracked run and no step is logged
twice. Whatever goes wrong there is one warning; training never waits for it, except half a minute at its end.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any

from tunesmith import console
from tunesmith.errors import SetupError, TunesmithError
from tunesmith.lookup import find
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.train.tracker import CURVES, Outcome, Tracker

Line = Mapping[str, Any]
_AT_THE_END: dict[Outcome, float] = {
    "finished": 30.0,
    "failed": 30.0,
    "stopped": 10.0,
}  # seconds for what it still holds


Opener = Callable[[Recipe, Run, str | None], Tracker]
"""Recipe, run and the id of the tracked run to go on with (None: begin one) → a tracker."""


def _wandb(recipe: Recipe, run: Run, id: str | None) -> Tracker:
    from tunesmith.train.track_wandb import WeightsAndBiases

    assert id is not None  # `_OURS`
    return WeightsAndBiases(recipe, run, id)


def _mlflow(recipe: Recipe, run: Run, id: str | None) -> Tracker:
    from tunesmith.train.track_mlflow import MLflow

    return MLflow(recipe, run, id)


def _tensorboard(recipe: Recipe, run: Run, id: str | None) -> Tracker:
    raise AssertionError("train/log.py writes TensorBoard's files")


TRACKERS: dict[str, Opener] = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


# its runs are named by us: the name is kept before the service hears of it, so a kill in between begins no second run
_OURS = frozenset({"wandb"})


def require(recipe: Recipe) -> None:
    """SetupError where a tracker is not installed, AccessError where its key is missing. Before anything is spent."""
    for name in recipe.train.trackers:
        find(name, TRACKERS, "tracker")
        if name in ("wandb", "mlflow") and find_spec(name) is None:
            raise SetupError(
                f"{name} is not installed", where="train.trackers", fix=f'pip install "tunesmith[{name}]"'
            )
        if name == "wandb":
            from tunesmith.train.track_wandb import require_key

            require_key()


def open_trackers(recipe: Recipe, run: Run) -> list[Tracked]:
    """A thread for each tracker of the recipe; nothing is sent before `begin`."""
    require(recipe)
    names = dict.fromkeys(name for name in recipe.train.trackers if name != "tensorboard")
    return [Tracked(name, find(name, TRACKERS, "tracker"), recipe, run) for name in names]


class Tracked:
    """One tracker behind a queue. Its calls return at once; after a failure they do nothing."""

    def __init__(self, name: str, opener: Opener, recipe: Recipe, run: Run) -> None:
        self.name = name
        self._opener, self._recipe, self._run = opener, recipe, run
        self._file = run.path / "trackers" / f"{name.replace(':', '.')}.json"
        self._queue: SimpleQueue[Line | Outcome] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._fresh, self._left = True, False

    def begin(self, lines: Sequence[Line]) -> None:
        """Opens it. `lines`: those up to the resumed step; none of them: training begins anew."""
        self._fresh = not lines
        for line in lines:
            self._queue.put(line)
        self._thread.start()

    def log(self, line: Line) -> None:
        """A line of metrics.jsonl with its timing: `step`, figures, `time`."""
        self._queue.put(dict(line))

    def close(self, outcome: Outcome) -> None:
        """Waits a while for what is under way; less after a signal, since whoever sent it waits too."""
        within = _AT_THE_END[outcome]
        self._queue.put(outcome)
        self._thread.join(within)
        if self._thread.is_alive():
            self._left = True
            console.warn(
                f"{self.name} has not answered within {within:.0f} s: its last lines may be missing there"
            )

    def _work(self) -> None:
        try:
            known = self._known_id()
            if known is None and self.name in _OURS:
                known = uuid.uuid4().hex[:12]
                self._keep(known)
            tracker = self._opener(self._recipe, self._run, known)
            self._keep(tracker.id)
            last = tracker.last_step
            while True:
                item = self._queue.get()
                if isinstance(item, str):
                    tracker.close(item)
                    return
                if item["step"] > last:
                    last = item["step"]
                    figures = {
                        tag: float(item[key]) for key, tag in CURVES.items() if item.get(key) is not None
                    }
                    tracker.log(last, figures, float(item.get("time", 0.0)))
        except Exception as error:  # a service of somebody else's: no fault of it may end a training
            what = error.what if isinstance(error, TunesmithError) else str(error).strip().partition("\n")[0]
            if not self._left:
                console.warn(f"{self.name} is left out from here on: {type(error).__name__}: {what[:200]}")

    def _keep(self, id: str) -> None:
        self._run.write_json(self._file, {"id": id, "recipe": self._recipe.hash()})

    def _known_id(self) -> str | None:
        """The tracked run to go on with; another recipe that begins anew begins another."""
        known = self._run.read_json(self._file)
        if self._fresh and known.get("recipe") != self._recipe.hash():
            return None
        return known.get("id")
