"""What is scored, by what, and how the base is asked: all that evaluate may refuse, found out before a model is loaded.

The same is done before training where the recipe asks for more than tuned and base: hours later would be late.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.contract import Contract
from tunesmith.evaluate.prompts import Turns, asked_by
from tunesmith.example import Example
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.tasks import Task
from tunesmith.tasks.score import check_golds
from tunesmith.view.scored import ScoredRows, run_decoding, run_task, scored_rows

FLOOR_ROWS = 100_000  # training rows among which the nearest is looked for, evenly spread


@dataclass(frozen=True)
class Ready:
    """A prepared run, as evaluate reads it."""

    scored: ScoredRows
    task: Task
    contract: Contract
    train: list[Example]
    """Labelled training rows, from which floors and shots are taken."""
    asked: dict[str, list[Turns]]
    """One of evaluate.prompts → the turns that each row is asked by."""

    @classmethod
    def of(cls, recipe: Recipe, run: Run) -> Ready:
        """Raises what evaluate would raise of rows, task, metrics, schema and prompts."""
        scored, task = scored_rows(recipe, run), run_task(recipe, run)
        check_golds(task, scored.examples)
        if recipe.evaluate.constrained:
            from tunesmith.generate.guide import require_schema

            require_schema(task)
        if recipe.evaluate.bertscore_model:
            from tunesmith.evaluate.measured.bertscore import model_folder

            model_folder(recipe.evaluate.bertscore_model)
        contract = Contract.load(run.contract_folder)
        rows = Rows.open(run.data, "train").sample(FLOOR_ROWS)
        train = [example for example in rows if example.answer is not None]
        longest = run_decoding(recipe, run).max_tokens
        return cls(
            scored,
            task,
            contract,
            train,
            asked_by(recipe, longest, contract, task, train, scored.examples),
        )


def require_evaluable(recipe: Recipe, run: Run) -> None:
    """Raises what evaluate would refuse of a run that is only prepared, where the recipe asks for more than the usual;
    nothing where there are no rows to score."""
    given = recipe.evaluate
    asks_for_more = given.constrained or given.prompts or given.metrics or given.bertscore_model
    if asks_for_more and any(Rows.exists(run.data, split) for split in ("test", "validation")):
        Ready.of(recipe, run)
