"""What a run would take on a card that isn't here, as `check --gpu` says it."""

from __future__ import annotations

from typing import Any

from tunesmith import console
from tunesmith.base import Base
from tunesmith.data.prepare import Prepared
from tunesmith.engine.cards import GIB, Card
from tunesmith.engine.forecast import Forecast, forecast
from tunesmith.recipe import Recipe
from tunesmith.train.work import work_of

_MEASURED = "H200"


def foretell(
    recipe: Recipe, base: Base, prepared: Prepared, card: Card, price: float | None
) -> dict[str, Any]:
    """Prints the forecast; returns it for --json. Raises OutOfRoom and SetupError as training on the card would."""
    splits = prepared.splits
    rows, validation = splits["train"], splits.get("validation")
    work = work_of(
        recipe, rows.lengths, rows.learned_counts, None if validation is None else validation.lengths
    )
    size = sum(path.stat().st_size for path in base.weight_files)
    told = forecast(recipe, base.config, card, work, size)
    console.say_under("card", _card(card))
    console.say_under("engine", told.engine + (f" (not the fused one: {told.why})" if told.why else ""))
    if card.capability < (8, 0) and recipe.model.dtype == "bfloat16":
        console.warn(f"a {card.name} has no bfloat16 in hardware: set model.dtype: float16")
    if recipe.train.parallel != "none":
        console.warn(f"train.parallel: {recipe.train.parallel} is not foretold: this is one card's work")
    console.say_under("plan", told.plan.note)
    console.say_under(
        "memory",
        f"{told.peak / GIB:.1f} GiB at the peak as torch counts it, {told.plan.gib:.1f} GiB with CUDA's own",
    )
    console.say_under("time", _time(told))
    if price is not None:
        cost = told.cost(price)
        said = f"{cost:,.2f}" if cost >= 0.01 or price == 0 else "less than 0.01"
        console.say_under("cost", f"{said} USD at {price:,.2f} an hour, training alone")
    return told.to_json(price)


def _card(card: Card) -> str:
    speed = f"{card.half / 1e12:,.0f} TFLOP/s in 16 bit, {card.bandwidth / 1e9:,.0f} GB/s"
    return f"{card.name}, {card.memory / GIB:.1f} GiB; by its datasheet {speed}"


def _time(told: Forecast) -> str:
    parts = [
        f"{clock(told.seconds)} of steps ({told.step:.2f} s each, {told.tokens_per_second:,.0f} tokens/s)"
    ]
    parts += [f"{clock(told.validating)} of validations"] if told.validating else []
    parts += [f"about {clock(told.starting)} to start"]
    fitted = (
        "fitted on such a card" if told.card.name == _MEASURED else "scaled from an H200 by the datasheets"
    )
    return (
        f"{clock(told.total)}: {', '.join(parts)}\n{fitted}: expect {_error(told)} of it; "
        "scoring and export come after it and are not counted"
    )


def _error(told: Forecast) -> str:
    return "0.85 to 1.15 times" if told.card.name == _MEASURED else "0.7 to 1.6 times"


def clock(seconds: float) -> str:
    """Seconds, minutes or hours, as a person would say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
