"""Eight rows learned by heart: if a base can't do that with a recipe's settings, nothing that takes hours will help.

Steps are budgeted, never seconds. Learning rates are the self-test's own, high enough to learn by heart and set by what
they act on: an adapter's output moves by scaling × rate, a full weight's by rate × width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedModel

from tunesmith import console
from tunesmith.contract import Contract
from tunesmith.engine.protocol import Engine, MicroBatchPlan
from tunesmith.generate.protocol import Decoding
from tunesmith.generate.slots import SlotGenerator
from tunesmith.model.lora import adapters
from tunesmith.proof import Proof
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.train import scaling
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.order import Order
from tunesmith.train.schedule import Schedule
from tunesmith.train.state import State
from tunesmith.train.step import Stepper

ROWS = 8
STEPS = 150
LOSS = 0.05  # nats a learned token; above it some answers can't be repeated
ENOUGH = 0.005  # training stops here
_WARMUP = 5
STOPPED, REPEATED = 1.0, 0.75  # shares of the answers
_LOOKED_AT = 256  # rows that the eight are picked from


def pick(rows: Rows) -> list[int]:
    """The shortest rows among the first ones; no two with the same prompt, which could not both be learned."""
    shortest: dict[object, int] = {}
    lengths = rows.lengths
    for number in sorted(range(min(len(rows), _LOOKED_AT)), key=lambda n: (lengths[n], n)):
        example = rows.example(number)
        shortest.setdefault(example.messages[0] if example.is_text else example.prompt, number)
    return sorted(list(shortest.values())[:ROWS])


def rate(model: PreTrainedModel) -> float:
    """The learning rate of the lesson."""
    found = adapters(model)
    if found:
        return min(4e-3, max(2.5e-4, 2e-3 / found[0].scaling))
    return 0.25 / int(model.config.hidden_size)


def learned_by_heart(
    recipe: Recipe, model: PreTrainedModel, engine: Engine, plan: MicroBatchPlan, rows: Rows
) -> Proof:
    """Trains on all of `rows` at once until the loss is low or the steps are spent; by the loop's own stepper."""
    state = State()
    scaling.start(state, recipe.model.dtype)
    peak = rate(model)
    stepper = Stepper(
        engine=engine,
        plan=plan,
        rows=rows,
        order=Order(len(rows), batch=len(rows), seed=recipe.seed, epochs=STEPS, max_steps=STEPS),
        schedule=Schedule("constant", peak, _WARMUP, STEPS),
        optimizer=Optimizer(recipe.train.optimizer, engine.parameters, weight_decay=0.0),
        clip=1.0,
        state=state,
        scaled=recipe.model.dtype == "float16",
        last_good=lambda: None,
    )
    losses: list[float] = []
    with console.progress("learn by heart", total=STEPS, unit="steps") as bar:
        while len(losses) < STEPS and (not losses or losses[-1] > ENOUGH):
            stepper.step()
            stepper.settle()
            losses.append(stepper.mean_loss())
            bar.update(loss=losses[-1])
    engine.parameters.publish()
    detail = (
        f"loss a learned token of {len(rows)} rows after {len(losses)} of at most {STEPS} steps, "
        f"{losses[0]:.2f} at first (learning rate {peak:.2g})"
    )
    return Proof("eight_rows_learned", losses[-1] <= LOSS, losses[-1], LOSS, detail)


class Gold(NamedTuple):
    """A prompt and the answer that was learned for it, as ids and as text."""

    prompt: list[int]
    answer: str
    tokens: int


def golds(contract: Contract, rows: Rows) -> list[Gold]:
    """The rows that end in an answer; plain text has none."""
    found = []
    for number in range(len(rows)):
        example = rows.example(number)
        if example.answer is None:
            continue
        prompt = contract.prompt_ids(example.prompt)
        ids = rows.ids(number)[len(prompt) :].tolist()
        found.append(Gold(prompt, contract.decode(ids), len(ids)))
    return found


def answers_repeat(model: PreTrainedModel, contract: Contract, wanted: Sequence[Gold]) -> list[Proof]:
    """Greedy answers to the learned rows: do they end by themselves, and are they the learned ones?"""
    longest = max(gold.tokens for gold in wanted)
    decoding = Decoding(max_tokens=longest + longest // 4 + 16)
    made = SlotGenerator(model, slots=len(wanted)).generate(
        [gold.prompt for gold in wanted], decoding, contract.stop_ids
    )
    found = sorted(made, key=lambda one: one.index)
    stopped = sum(one.stopped for one in found) / len(found)
    same = [contract.decode(one.ids) == gold.answer for one, gold in zip(found, wanted, strict=True)]
    repeated = sum(same) / len(same)
    ended = (
        f"share of {len(found)} answers that end by {contract.terminator} within {decoding.max_tokens} tokens"
    )
    return [
        Proof("answers_stop", stopped >= STOPPED, stopped, STOPPED, ended),
        Proof(
            "answers_repeat",
            repeated >= REPEATED,
            repeated,
            REPEATED,
            f"share of {len(found)} greedy answers that are the learned ones, letter by letter",
        ),
    ]
