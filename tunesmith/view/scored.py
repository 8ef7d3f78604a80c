"""Which rows of a Run are scored, by which task, decoded how: the same for evaluate, export and predict. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import RowCheckFailed
from tunesmith.example import Example
from tunesmith.generate.protocol import Decoding
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.tasks import Golds, Task, make_task
from tunesmith.tasks.own_metrics import with_own_metrics
from tunesmith.tasks.schema import load_schema

GOLDS = 20_000  # training answers from which a task infers its fields


class ScoredRows(NamedTuple):
    """The rows of a report, in the order of their file."""

    split: str
    """test, or validation where the recipe has no test rows."""
    numbers: list[int]
    """Places in the split."""
    examples: list[Example]
    rows: Rows
    selected: bool
    """Some of these rows also chose the checkpoint (the best one is kept by validation loss)."""
    overlap: dict[str, int]
    """train, validation → scored rows whose prompt stands there too, to the letter."""


def scored_rows(recipe: Recipe, run: Run) -> ScoredRows:
    """data.test, else data.validation; the first `evaluate.rows` of them after a seeded shuffle."""
    split = next((name for name in ("test", "validation") if Rows.exists(run.data, name)), None)
    if split is None:
        raise RowCheckFailed(
            "there are no rows to score",
            where=str(run.data),
            fix="give data.test or data.validation, or set some of data.train aside: data.split.validation: 0.1",
        )
    rows = Rows.open(run.data, split)
    numbers = chosen(len(rows), recipe.evaluate.rows, recipe.evaluate.decoding.seed)
    examples = [rows.example(i) for i in numbers]
    overlap = {name: _standing_in(run, name, examples) for name in ("train", "validation")}
    return ScoredRows(
        split, numbers, examples, rows, split == "validation" or overlap["validation"] > 0, overlap
    )


def _standing_in(run: Run, split: str, examples: Sequence[Example]) -> int:
    """How many of `examples` have a prompt that a row of `split` has too."""
    if not Rows.exists(run.data, split):
        return 0
    known = {_prompt(example) for example in Rows.open(run.data, split).examples()}
    return sum(_prompt(example) in known for example in examples)


def _prompt(example: Example) -> bytes:
    """A hash, so that a million rows' texts need not lie in memory together."""
    turns = repr([(message.role, message.content) for message in example.prompt])
    return hashlib.sha256(turns.encode("utf-8", "surrogatepass")).digest()


def chosen(total: int, wanted: int | str, seed: int) -> list[int]:
    """`wanted` of `total` numbers, drawn by a hash (the same on every machine and version), ascending."""
    if wanted == "all" or int(wanted) >= total:
        return list(range(total))
    shuffled = sorted(range(total), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    return sorted(shuffled[: int(wanted)])


def run_task(recipe: Recipe, run: Run) -> Task:
    """The recipe's task; what the schema does not say is inferred from the training answers."""
    return task_of(recipe, training_answers(run))


def task_of(recipe: Recipe, golds: Golds) -> Task:
    """The recipe's task with the user's own metrics; what the schema does not say is inferred from `golds`."""
    schema = load_schema(recipe.data.json_schema) if recipe.data.json_schema else None
    return with_own_metrics(make_task(recipe.evaluate.task, schema, golds), recipe.evaluate.metrics)


def training_answers(run: Run) -> list[str]:
    """Answers of the training rows, evenly spread over them where they are many."""
    rows = Rows.open(run.data, "train").sample(GOLDS)
    return [example.answer for example in rows if example.answer is not None]


def run_decoding(recipe: Recipe, run: Run) -> Decoding:
    """evaluate.decoding with `max_tokens: auto` resolved.

    auto: a quarter over the longest known answer, plus 16, but no more than the longest scored prompt leaves room for.
    """
    decoding = recipe.evaluate.decoding
    return Decoding(
        max_tokens=_longest_answer(run) if decoding.max_tokens == "auto" else decoding.max_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        seed=decoding.seed,
        samples=decoding.samples,
    )


def _longest_answer(run: Run) -> int:
    known = {
        name: Rows.open(run.data, name)
        for name in ("train", "validation", "test")
        if Rows.exists(run.data, name)
    }
    wanted = max(int(rows.learned_counts.max()) for rows in known.values()) * 5 // 4 + 16
    positions = run.read_json(run.data / "report.json").get("positions")
    scored = known.get("test", known.get("validation"))
    if positions is None or scored is None:
        return wanted
    room = int(positions) - max(_prompt_length(scored.learned(i)) for i in range(len(scored)))
    return max(1, min(wanted, room))


def _prompt_length(learned: NDArray[np.bool_]) -> int:
    """Where the last answer begins."""
    begins = np.flatnonzero(learned & ~np.concatenate([[False], learned[:-1]]))
    return int(begins[-1]) if len(begins) else len(learned)
