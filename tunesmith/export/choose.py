"""Where the base was quantised in training, the adapter can be merged into two bases; scores decide between them.

`original`    the base's own 16-bit weights: more exact than what training saw, but not what the adapter was fitted to
`dequantized` the image of the quantised weights that training saw
Both answer the validation rows beside the live adapter. The better one is kept, `dequantized` where they are equal; one
whose difference from the live adapter can't be chance is out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import NamedTuple

from transformers import PreTrainedModel

from tunesmith import console
from tunesmith.answers import answer_rows
from tunesmith.contract import Contract
from tunesmith.example import Example
from tunesmith.generate.protocol import Generator
from tunesmith.generate.slots import SlotGenerator
from tunesmith.model.merge import Source
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.statistics import Interval, paired_difference
from tunesmith.tasks.answered import answers_headline, lower_is_better
from tunesmith.tasks.score import score_predictions
from tunesmith.view.scored import chosen, run_decoding, run_task, scored_rows

MOST = 200  # validation rows that candidates are compared on, where these are not scored anyway
FOLDER = "choice"  # in predictions/


class Choice(NamedTuple):
    """The rows that candidates answer, and the live adapter's answers to them (a file in predictions/)."""

    examples: list[Example]
    live: str
    scored: bool
    """These are the report's rows."""


class Compared(NamedTuple):
    """A candidate's headline score, and by how much it differs from the live adapter's."""

    score: float
    difference: Interval
    lower: bool = False
    """Whether less of this metric is better, as of some users' own tasks."""

    @property
    def agrees(self) -> bool:
        """Whether the difference can be chance."""
        low, high = self.difference.ends
        return low <= 0 <= high


def choice_rows(recipe: Recipe, run: Run) -> Choice | None:
    """Validation rows, of which the report scores all or none. None where there are no validation rows."""
    scored = scored_rows(recipe, run)
    if scored.split == "validation":
        return Choice(scored.examples, "tuned", True)
    if not Rows.exists(run.data, "validation"):
        return None
    rows = Rows.open(run.data, "validation")
    numbers = chosen(len(rows), MOST, recipe.evaluate.decoding.seed)
    return Choice([rows.example(number) for number in numbers], f"{FOLDER}/live", False)


def answer(
    recipe: Recipe, run: Run, model: PreTrainedModel, examples: list[Example], name: str
) -> float | None:
    """`answer_by` of a model that is held in torch."""
    return answer_by(recipe, run, SlotGenerator.of(model, recipe), examples, name)


def answer_by(
    recipe: Recipe, run: Run, generator: Generator, examples: list[Example], name: str
) -> float | None:
    """Writes predictions/NAME.jsonl, by the contract and decoding that evaluate uses.

    Returns tokens a second, prompts' own time included; None where some answers were there already.
    """
    out = run.predictions / f"{name}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    contract, decoding = Contract.load(run.contract_folder), run_decoding(recipe, run)
    total = len(examples) * decoding.samples
    had: list[int] = []
    began = time.perf_counter()
    with console.progress(f"answer {name}", total=total, unit="answers") as bar:

        def done(count: int) -> None:
            had.append(count)
            bar.update(count)

        answer_rows(examples, contract, generator, run_task(recipe, run), decoding, out, on_done=done)
    seconds = time.perf_counter() - began
    if had[:1] != [0]:
        return None
    tokens: int = sum(json.loads(line)["tokens"] for line in out.read_text("utf-8").splitlines())
    return tokens / seconds


def compare(recipe: Recipe, run: Run, sources: list[Source], choice: Choice) -> dict[Source, Compared]:
    """Scores of the candidates against the live adapter, from predictions/."""
    task = run_task(recipe, run)
    headline = answers_headline(task)  # of a merged model only answers are known
    metric, seed = task.metrics()[headline], recipe.evaluate.decoding.seed
    live = score_predictions(run.predictions / f"{choice.live}.jsonl", choice.examples, task)
    made: dict[Source, Compared] = {}
    for source in sources:
        path = run.predictions / FOLDER / f"{source}.jsonl"
        scored = score_predictions(path, choice.examples, task)
        whole = {name: values.sum(keepdims=True) for name, values in scored.counts.items()}
        difference = paired_difference(live.counts, scored.counts, live.documents, metric, seed=seed)
        lower = headline in lower_is_better(task)
        made[source] = Compared(float(metric(whole)[0]), difference, lower)
        low, high = difference.ends
        console.note(
            f"merged into the {source} base: {headline} {made[source].score:.3f}, "
            f"live adapter {made[source].score - difference.value:.3f} "
            f"(difference {low:+.3f} to {high:+.3f}, n = {difference.n})"
        )
    return made


def choose(compared: Mapping[Source, Compared]) -> Source:
    """The better of those that agree with the live adapter; of all where none does."""
    agreeing = [source for source, one in compared.items() if one.agrees] or list(compared)
    sign = -1 if any(one.lower for one in compared.values()) else 1
    return max(agreeing, key=lambda source: (sign * compared[source].score, source == "dequantized"))
