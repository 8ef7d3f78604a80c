"""What a run would take on a card that isn't here: engine, plan, memory, time, cost. Arithmetic, no torch.

The plan is the one that the run would make on that card, by the same functions from the same rows in the same order;
its memory is that plan's own figure. Time is `duration.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.engine.cards import Card
from tunesmith.engine.duration import Pace
from tunesmith.engine.fits import engine_on, no_fp8
from tunesmith.engine.fused_memory import FusedShape, make_fused_plan
from tunesmith.engine.memory import GIB, Budget, Shape, allocated, make_plan
from tunesmith.engine.plan import MicroBatchPlan, Step
from tunesmith.errors import OutOfRoom, SetupError
from tunesmith.recipe import Recipe

_TIMED = 200  # steps whose times are added up, spread over the run
_LOADING, _PROVING = (
    0.6e9,
    12.0,
)  # bytes of the base a second (an H200 and a local disk), and seconds beside it


@dataclass(frozen=True)
class Work:
    """What a run reads: steps of the whole run, or some of them, which then count for all; rows of a validation."""

    lengths: Sequence[int]
    steps: Sequence[Step] | None
    count: int  # steps of the run
    tokens: int  # of all of them
    validation: Sequence[int] = ()
    validations: int = 0


@dataclass(frozen=True)
class Forecast:
    """`peak` is the most in torch's allocator, in bytes, and `seconds` those of all training steps."""

    card: Card
    engine: str
    why: str | None
    plan: MicroBatchPlan
    peak: float
    step: float
    seconds: float
    validating: float
    starting: float
    tokens_per_second: float

    @property
    def total(self) -> float:
        """Seconds from the command to the adapter; scoring and export come after."""
        return self.seconds + self.validating + self.starting

    def cost(self, price: float) -> float:
        """US dollars, at so many an hour."""
        return self.total / 3600 * price

    def to_json(self, price: float | None = None) -> dict[str, Any]:
        """For --json."""
        found: dict[str, Any] = {
            "card": self.card.name,
            "engine": self.engine,
            "plan": self.plan.to_json(),
            "peak_gib": round(self.peak / GIB, 2),
            "card_gib": self.plan.gib,
            "seconds_per_step": round(self.step, 4),
            "tokens_per_second": round(self.tokens_per_second),
            "seconds": {
                "start": round(self.starting), "steps": round(self.seconds), "validation": round(self.validating),
                "total": round(self.total),
            },
        }  # fmt: skip
        return (
            found if price is None else found | {"price_per_hour": price, "cost": round(self.cost(price), 2)}
        )


def forecast(
    recipe: Recipe, config: Mapping[str, Any], card: Card, work: Work, base_bytes: int = 0
) -> Forecast:
    """Raises OutOfRoom where the longest row has no room on the card, SetupError where it can't do what is asked."""
    train = recipe.train
    if train.memory != "auto" and train.memory * GIB > card.memory:
        raise OutOfRoom(
            f"train.memory: {train.memory:g} is more than the {card.memory / GIB:.1f} GiB of a {card.name}",
            where="train.memory",
            fix="train.memory: auto",
        )
    engine, why = engine_on(recipe, config, card.capability)
    if train.fp8 and (against := why or no_fp8(card.capability)):
        raise SetupError(f"fp8 can't be had there: {against}", where="train.fp8", fix="set train.fp8: false")
    if train.engine == "fused" and why:
        raise SetupError(
            f"the fused engine can't train this: {why}", where="train.engine", fix="set train.engine: auto"
        )
    shape, budget = Shape.of(config, recipe), Budget.of(train, card.memory)
    if engine == "fused":
        plan = make_fused_plan(FusedShape.of(config, recipe), budget, work.lengths, work.steps)
    else:
        plan = make_plan(shape, budget, work.lengths, work.steps)
    assert plan.gib is not None
    pace = Pace(card, engine, shape, plan, recipe.tune.dropout > 0, train.fp8)
    timed = (work.steps or ())[:: max(1, len(work.steps or ()) // _TIMED)] or [_typical(work, train.batch)]
    each = sum(map(pace.step, timed)) / len(timed)
    # a step that was timed may hold more or fewer tokens than one on average
    each *= work.tokens / work.count / (sum(sum(step.lengths) for step in timed) / len(timed))
    return Forecast(
        card=card,
        engine=engine,
        why=why,
        plan=plan,
        peak=allocated(plan.gib),
        step=each,
        seconds=each * work.count,
        validating=work.validations * _validation(pace, work.validation),
        starting=base_bytes / _LOADING + _PROVING,
        tokens_per_second=work.tokens / (each * work.count),
    )


def _typical(work: Work, batch: int) -> Step:
    """Of a run with too many steps to look at: rows spread over all lengths."""
    ordered = sorted(work.lengths)
    own = [ordered[i * len(ordered) // batch] for i in range(min(batch, len(ordered)))]
    return Step(own, own)


def _validation(pace: Pace, lengths: Sequence[int]) -> float:
    """Seconds of a loss over rows of these lengths, the longest first, as many at once as the plan allows."""
    seconds, part, room = 0.0, list[int](), pace.plan.tokens
    for length in sorted(lengths, reverse=True):
        full = len(part) == pace.plan.rows if room is None else sum(part) + length > room
        if part and full:
            seconds += pace.micro_batch(part, sum(part), learns=False)
            part = []
        part.append(length)
    return seconds + (pace.micro_batch(part, sum(part), learns=False) if part else 0.0)
