"""A user's own metrics beside those of the task: evaluate.metrics: [package.module:function].

    def function(prompt: str, gold: str, answer: str) -> float | bool | None | dict[str, float | bool | None]

The mean over rows stands in the report under the function's name (of a dict under `name.key`), with its interval; None
says that a row doesn't count. The function is called on every gold answer first: what fails there fails before a model
is loaded. Samples of a row are averaged, as all counts are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import getdoc, signature, unwrap
from numbers import Real
from traceback import extract_tb
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import RecipeError
from tunesmith.example import Example
from tunesmith.lookup import find
from tunesmith.tasks.answered import for_answers, gold_of
from tunesmith.tasks.protocol import Parsed, Task
from tunesmith.tasks.sums import Metric, Share, Sums, ratio

Function = Callable[[str, str, str], Any]
_FIX = "give package.module:function, with def function(prompt, gold, answer): … that returns a number"


def with_own_metrics(task: Task, names: Sequence[str]) -> Task:
    """The task with counts `own:NAME` and `ownrows:NAME` and the metrics `NAME`; the task itself where there are none.

    RecipeError where a function can't be found or called, or has the name of another metric.
    """
    if not names:
        return task
    return cast(Task, _WithMetrics(task, require(names, task.metrics())))


def require(names: Sequence[str], known: Iterable[str] = ()) -> tuple[_Metric, ...]:
    """The functions. RecipeError where one can't be found or called, or has a name that is `known`."""
    found = tuple(_Metric.load(name) for name in names)
    taken = set(known)
    for one in found:
        if one.name in taken:
            raise RecipeError(
                f"there is a metric {one.name!r} already, so {one.spelled!r} would hide it",
                where="evaluate.metrics",
                fix="give the function another name",
            )
        taken.add(one.name)
    return found


@dataclass
class _Metric:
    """One function, and what has been seen of its results."""

    spelled: str
    name: str
    function: Function
    keys: tuple[str, ...] | None = None
    """Names of its figures, known once it has returned one."""
    graded: set[str] = field(default_factory=set)
    """Figures that have been something else than yes or no."""

    @classmethod
    def load(cls, spelled: str) -> _Metric:
        function: Function = find(spelled, {}, "metric")
        try:
            signature(function).bind("prompt", "gold", "answer")
        except (TypeError, ValueError) as error:
            what = (
                f"the metric {spelled!r} can't be called with a prompt, a gold answer and an answer: {error}"
            )
            raise RecipeError(what, where="evaluate.metrics", fix=_FIX) from None
        return cls(spelled, spelled.partition(":")[2].rpartition(".")[2], function)

    def figures(self, prompt: str, gold: str, answer: str, row: str) -> dict[str, float | None]:
        """name → value of one answer. RecipeError that names function, row and line where there is none to be had."""
        try:
            made = self.function(prompt, gold, answer)
        except (Exception, SystemExit) as error:  # the user's own code: anything may happen
            place = extract_tb(error.__traceback__)[-1]
            own = [one for one in extract_tb(error.__traceback__)[1:] if one.filename == self._file()]
            place = own[-1] if own else place
            raise self._wrong(
                f"fails: {type(error).__name__}: {error}", row, f"{place.filename}:{place.lineno}"
            ) from error
        if made is None and self.keys is None:
            return {}
        if not isinstance(made, Mapping):
            given = {self.name: made}
        elif not made or not all(isinstance(key, str) and key and ":" not in key for key in made):
            raise self._wrong(f"returned a dict with the keys {list(made)}, which name no figures", row)
        else:
            given = {f"{self.name}.{key}": value for key, value in made.items()}
        if self.keys is None:
            self.keys = tuple(given)
        if made is None:
            given = dict.fromkeys(self.keys)
        if set(given) != set(self.keys):
            shown = ", ".join(self.keys)
            raise self._wrong(
                f"returned {', '.join(given)}, where it had returned {shown} for another row", row
            )
        return {key: self._number(key, value, row) for key, value in given.items()}

    def _number(self, key: str, value: Any, row: str) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool | np.bool_):
            return float(value)
        if not isinstance(value, Real):
            raise self._wrong(f"returned {value!r:.80} as {key}, which is no number", row)
        self.graded.add(key)
        if not math.isfinite(number := float(value)):
            raise self._wrong(f"returned {number} as {key}", row)
        return number

    def _wrong(self, what: str, row: str, place: str | None = None) -> RecipeError:
        fix = "return a number, True or False, a dict of these, or None for a row that doesn't count"
        return RecipeError(
            f"the metric {self.spelled!r} {what}",
            where=f"{place or f'{self._file()}:{self._line()}'}, on row {row}",
            fix="mend that line, then the same command again" if place else fix,
        )

    def _file(self) -> str | None:
        code = getattr(unwrap(self.function), "__code__", None)
        return None if code is None else str(code.co_filename)

    def _line(self) -> int | None:
        code = getattr(unwrap(self.function), "__code__", None)
        return None if code is None else int(code.co_firstlineno)


class _Read(Parsed):
    """A parsed answer that keeps its text, and of a gold answer its row and its own figures."""

    text: str
    row: str
    figures: dict[str, float | None]

    @classmethod
    def of(cls, parsed: Parsed, text: str, row: str = "") -> _Read:
        made = cls(*parsed)
        made.text, made.row, made.figures = text, row, {}
        return made


class _WithMetrics:
    """The task, and beside its counts and metrics those of the functions. What it doesn't say is the task's."""

    def __init__(
        self, task: Task, own: tuple[_Metric, ...], tried: dict[int, dict[str, float | None]] | None = None
    ) -> None:
        self._task, self._own = task, own
        self._tried = {} if tried is None else tried  # gold answers that the functions have seen

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_task":  # while it is being unpickled there is no task yet
            raise AttributeError(name)
        return getattr(self._task, name)

    def parse(self, answer: str) -> Parsed:
        """As the task reads it."""
        return _Read.of(self._task.parse(answer), answer)

    def gold(self, example: Example) -> Parsed:
        """As the task reads it; the functions are tried on it."""
        text = example.answer or ""
        made = _Read.of(gold_of(self._task, example), text, example.id)
        if made.value is not None:
            key = hash((example.id, example.asked, text))
            if key not in self._tried:
                self._tried[key] = self._figures(example.asked, text, text, example.id)
            made.figures = self._tried[key]
        return made

    def counts(self, prompt: str, gold: Parsed, predicted: Parsed) -> dict[str, float]:
        """The task's, and `own:NAME`, `ownrows:NAME` of each figure."""
        assert isinstance(gold, _Read) and isinstance(predicted, _Read)
        for one in (
            self._own
        ):  # every row needs the same counts: what gave None for all gold answers gives one figure
            one.keys = one.keys or (one.name,)
        if predicted is gold and gold.figures:
            figures = gold.figures
        else:
            figures = self._figures(prompt, gold.text, predicted.text, gold.row)
        made = dict(self._task.counts(prompt, gold, predicted))
        for key in self._keys():
            value = figures.get(key)
            made |= {f"own:{key}": value or 0.0, f"ownrows:{key}": float(value is not None)}
        return made

    def metrics(self) -> dict[str, Metric]:
        """The task's, and the mean of each figure over the rows that count."""
        graded = {key for one in self._own for key in one.graded}
        made = dict(self._task.metrics())
        for key in self._keys():
            mean = partial(_mean, key)
            made[key] = (
                mean if key in graded else Share(mean)
            )  # of yes and no the interval at 0 and 1 is exact
        return made

    def explain(self) -> dict[str, str]:
        """The task's, and the first line of each function's docstring."""
        made = dict(self._task.explain())
        for one in self._own:
            said = (getdoc(one.function) or "").split("\n")[0].strip()
            made |= dict.fromkeys(one.keys or (), f"{said or 'your own'} ({one.spelled}, mean over rows)")
        return made

    def for_answers(self, answers: Sequence[str]) -> Task:
        """The same beside the task as it scores one system."""
        inner = for_answers(self._task, answers)
        return cast(Task, self if inner is self._task else _WithMetrics(inner, self._own, self._tried))

    def _keys(self) -> list[str]:
        """A function that has returned nothing but None has no figure."""
        return [key for one in self._own for key in one.keys or ()]

    def _figures(self, prompt: str, gold: str, answer: str, row: str) -> dict[str, float | None]:
        made: dict[str, float | None] = {}
        for one in self._own:
            made |= one.figures(prompt, gold, answer, row)
        return made


def _mean(key: str, sums: Sums) -> NDArray[np.float64]:
    return ratio(sums[f"own:{key}"], sums[f"ownrows:{key}"])
