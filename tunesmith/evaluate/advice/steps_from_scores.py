"""Next steps from scores, slices and studies: what the rows can tell, and where they tell of something weak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.evaluate.advice.step import Rule, Seen, Step, total, worth_saying

WIDE = 0.05  # half an interval that is worth more documents
SURER = 0.1  # mean confidence less the share right, from which on it misleads
FEW = 20  # documents below which no line says that two systems differ
LOWER = 0.05  # difference of a slice or a kind of values that is worth a line


def few_documents(seen: Seen) -> Step | None:
    """An interval so wide that differences drown in it."""
    metric, documents = seen.content["headline"]["metric"], seen.content["documents"]
    score = seen.content["scores"][seen.system].get(metric)
    if not score or score["low"] is None or score["high"] is None:
        return None
    half, wide = (score["high"] - score["low"]) / 2, WIDE * _scale(seen)
    wanted = round(documents * (half / wide) ** 2)
    if half <= wide or wanted <= documents:
        return None
    say = (
        f"{documents:,} documents give {metric} an interval of ±{half:.3f}: for ±{wide:g} score about "
        f"{wanted:,} "
        "(the interval narrows with the root of their number)."
    )
    return Step(say, documents, wanted, 1)


def near_floor(seen: Seen) -> Step | None:
    """Hardly better than copying the nearest training row."""
    over, scores = seen.content.get("over_floors", {}).get("nearest"), seen.content["scores"]
    if seen.system != "tuned" or not over or over["value"] is None:
        return None
    worse = seen.content["headline"].get("better") == "lower"
    gain = -over["value"] if worse else over["value"]
    ends = [end for end in (over["low"], over["high"]) if end is not None]
    if gain >= LOWER * _scale(seen) and all((-end if worse else end) > 0 for end in ends):
        return None
    reached = scores["nearest"][seen.content["headline"]["metric"]]["value"]
    rows = f"these {seen.content['rows']:,} rows"
    if gain < 0:
        say = (
            f"Copying the answer of the nearest training row scores {reached:.3f} on {rows}, better by {-gain:.3f}: "
            "too little was learned. Train longer or at another learning rate, and see whether the training loss falls."
        )
    else:
        say = (
            f"Copying the answer of the nearest training row scores {reached:.3f} on {rows}, within {gain:.3f}: the "
            "rows look too alike to show more, or no more was learned; score rows from another source or time."
        )
    return Step(say, seen.content["rows"], seen.content["rows"], 3)


def worse_than_base(seen: Seen) -> Step | None:
    """Tuning did harm, and the interval shows it."""
    change, headline = seen.content["headline"].get("difference"), seen.content["headline"]
    if seen.system != "tuned" or not change or change["value"] is None or change["low"] is None:
        return None
    worst = change["low"] if headline.get("better") == "lower" else -change["high"]
    if worst <= 0 or seen.content["documents"] < FEW:
        return None
    rows = seen.content["rows"]
    say = (
        f"Don't use this adapter: {headline['metric']} is worse than the base's by {abs(change['value']):.3f} "
        f"on these {rows:,} rows. See whether training answers fit their inputs, then lower train.learning_rate or "
        "the number of steps."
    )
    return Step(say, rows, rows, 5)


def _scale(seen: Seen) -> float:
    """100 where the headline runs to 100, such as chrF."""
    return float(seen.content["headline"].get("scale", 1))


def unseen(seen: Seen) -> Step | None:
    """Values or surface forms that training did not have are found less often."""
    scores = seen.content["scores"][seen.system]
    for name in scores:
        known = scores.get(name.replace("unseen", "seen"))
        if "unseen" not in name or known is None or not lower(scores[name], known):
            continue
        value = scores[name]["value"]
        counts = [seen.sums.get(name.replace("_recall_", f"_{part}_")) for part in ("gold", "hits")]
        gold, hits = (
            (seen.content["rows"], 0) if None in counts else (round(counts[0] or 0), round(counts[1] or 0))
        )
        say = (
            f"{name} is {value:.2f}, lower by {known['value'] - value:.2f} than of seen ones: add training rows with "
            "other names and forms, not more of the same."
        )
        return Step(say, gold - hits, gold, 2)
    return None


def weak_slice(seen: Seen) -> Step | None:
    """The slice that scores lowest, where it is large enough to tell."""
    metric = seen.content["headline"]["metric"]
    whole = seen.content["scores"][seen.system].get(metric)
    if seen.content["headline"].get("better") == "lower":
        return None
    weak = [
        (part["scores"][seen.system][metric]["value"], part)
        for part in seen.content.get("slices", ())
        if not part["small"]
        and lower(part["scores"].get(seen.system, {}).get(metric), whole, LOWER * _scale(seen))
    ]
    if not weak or not whole:
        return None
    value, part = min(weak, key=lambda one: one[0])
    say = (
        f"{part['slice']}: {part['value']} scores lower by {whole['value'] - value:.2f} "
        f"({part['rows']:,} of "
        f"{seen.content['rows']:,} rows): add training rows like these."
    )
    return Step(say, part["rows"], seen.content["rows"], 2)


def look_at_unsure(seen: Seen) -> Step | None:
    """Wrong answers among the least sure tenth."""
    studies = seen.content.get("studies", {}).get(seen.system, ())
    curve = next((table for table in studies if table["kind"] == "risk_coverage"), None)
    points = {round(kept, 2): wrong for kept, wrong in curve["rows"]} if curve else {}
    known = next((table for table in studies if table["title"] == "Confidence"), None)
    if known is None or not {0.9, 1.0} <= set(points):
        return None
    n = next(row[1] for row in known["rows"] if row[0] == "all fields")
    wrong = round(points[1.0] * n)
    found = round(wrong - 0.9 * n * points[0.9])
    if found < 0.3 * wrong:
        return None
    say = (
        f"The least sure tenth of the values holds {found:,} of {wrong:,} wrong ones: have people look "
        "at it first."
    )
    return worth_saying(say, found, wrong, 1)


def inferred(seen: Seen) -> Step | None:
    """Values that the input does not state are found less often."""
    scores = seen.content["scores"][seen.system]
    apart = [scores.get(f"recall_{kind}") for kind in ("inferred", "stated")]
    if not lower(*apart):
        return None
    items = total(seen.sums, "gold_items:") - total(seen.sums, "stated_items:")
    lost = items - (total(seen.sums, "hits:") - total(seen.sums, "stated_hits:"))
    say = (
        f"Values that the input does not state are found less often ({apart[0]['value']:.2f} against "
        f"{apart[1]['value']:.2f}; {lost:,} of {items:,} not found): have people check these fields, or "
        "take such rows out "
        "of training if only stated values are wanted."
    )
    return worth_saying(say, lost, items, 3)


def too_sure(seen: Seen) -> Step | None:
    """Confidences above the share that is right."""
    studies = seen.content.get("studies", {}).get(seen.system, ())
    known = next((table for table in studies if table["title"] == "Confidence"), None)
    if known is None:
        return None
    columns = {name: place for place, name in enumerate(known["columns"])}
    row = next(row for row in known["rows"] if row[0] == "all fields")
    n, right, sure, ece, chance = (
        row[columns[name]] for name in ("n", "right", "mean confidence", "ECE", "ECE by chance")
    )
    if sure - right < SURER or ece < 2 * chance:
        return None
    say = (
        f"Confidences are too high: {sure:.2f} on average, and {right:.2f} of the values are right (ECE {ece:.2f}, by "
        f"chance {chance:.2f}): don't set a threshold on them before they are calibrated on validation rows."
    )
    return worth_saying(say, round(n * (1 - right)), n, 2)


def lower(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None, by: float = LOWER) -> bool:
    """Whether `one` lies below `other` by as much, and its interval below the other's value."""
    if not one or not other or None in (one["value"], one["high"], other["value"]):
        return False
    return bool(one["value"] <= other["value"] - by and one["high"] < other["value"])


SCORE_RULES: tuple[Rule, ...] = (
    worse_than_base,
    inferred,
    near_floor,
    unseen,
    weak_slice,
    few_documents,
    too_sure,
    look_at_unsure,
)
