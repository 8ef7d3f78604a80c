"""What is usual in these rows, learned from a sample of the training rows before any row is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.inspect.answer_shape import ShapeNorms
from tunesmith.data.inspect.boilerplate import BoilerplateNorms
from tunesmith.data.inspect.field_values import ValueModels
from tunesmith.data.inspect.grounding import Ground, Grounder, GroundingNorms, values_of
from tunesmith.data.inspect.prompt_shape import PromptNorms
from tunesmith.data.inspect.row_view import RowView
from tunesmith.data.inspect.scripts import ScriptNorms
from tunesmith.data.pool import Pool
from tunesmith.example import Example
from tunesmith.tasks.prose.script import main_script, script_letters
from tunesmith.tasks.protocol import Parsed

MOST = 8_000  # rows that the norms are learned from
_RUN = 16  # rows read behind one another: a file is read in stretches, not row by row


@dataclass(frozen=True)
class Norms:
    """All habits together. Picklable: every worker gets them."""

    prompt: PromptNorms
    values: ValueModels
    grounding: GroundingNorms
    shape: ShapeNorms
    scripts: ScriptNorms
    boilerplate: BoilerplateNorms


def sample(side: NDArray[np.int8], most: int = MOST) -> NDArray[np.int64]:
    """Rows spread evenly over the training rows, in short runs; over all rows where none is for training."""
    rows = np.flatnonzero(side == 0)
    if not len(rows):
        rows = np.arange(len(side))
    if len(rows) <= most:
        return rows
    starts = np.linspace(0, len(rows) - _RUN, most // _RUN).astype(np.int64)
    return rows[np.unique((starts[:, None] + np.arange(_RUN)).ravel())]


def read_sample(pool: Pool, rows: NDArray[np.int64], parse: Callable[[str], Parsed]) -> list[RowView]:
    """The sampled rows."""
    return [RowView(number, example, parse, True) for number, example in _read(pool, rows)]


def _read(pool: Pool, rows: NDArray[np.int64]) -> Iterator[tuple[int, Example]]:
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        if len(run):
            yield from enumerate(pool.examples(int(run[0]), int(run[-1]) + 1), int(run[0]))


def learn(rows: list[RowView]) -> Norms:
    """From training rows; each part needs some dozens of them, and says nothing below."""
    asked = [row for row in rows if not row.is_text]
    fields = [row.fields for row in asked if row.fields is not None]
    return Norms(
        PromptNorms.learn(asked),
        ValueModels.learn(fields),
        GroundingNorms.learn(_grounds(asked)),
        ShapeNorms.learn(
            [row.parsed.value for row in asked if row.parsed and isinstance(row.parsed.value, dict)]
        ),
        ScriptNorms.learn(
            (main_script(script_letters(row.asked)), main_script(script_letters(row.said))) for row in rows
        ),
        BoilerplateNorms.learn([row.answer for row in asked if row.answer and row.fields is None]),
    )


def _grounds(rows: list[RowView]) -> Iterator[tuple[str, str, Ground]]:
    grounder = Grounder()
    for row in rows:
        for name, text in values_of(row):
            if text is not None:
                yield name, text, grounder.ground(text, row, row.asked_set)
