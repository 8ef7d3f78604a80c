"""Scores of the rows that carry a slice's value: source, specialty, values seen in training or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluate.score import FIRST, SMALL, Systems, headline_of, metrics_of
from tunesmith.example import Example

FEW_DOCUMENTS = 10  # below which a slice says little, however many rows they have
MOST_VALUES = 50  # of one slice name that are scored: the commonest


def slices(systems: Systems, draws: int, seed: int) -> list[dict[str, Any]]:
    """Each slice's scores and headline difference; `small` where there is too little to say much."""
    made = []
    for slice_name, value, kept in values_of(systems.examples):
        made.append({"slice": slice_name, "value": value} | _slice(systems, kept, draws, seed))
    return made


def values_of(examples: Sequence[Example]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Each slice's name, its commonest values, and which rows carry them; in order of names."""
    for name in sorted({name for example in examples for name in example.slices}):
        values = [example.slices.get(name) for example in examples]
        common = Counter(value for value in values if value is not None).most_common(MOST_VALUES)
        for value, _ in sorted(common):
            yield name, value, np.array([one == value for one in values])


def _slice(systems: Systems, kept: NDArray[np.bool_], draws: int, seed: int) -> dict[str, Any]:
    part = replace(
        systems,
        examples=[example for example, keep in zip(systems.examples, kept, strict=True) if keep],
        scored={system: one.take(kept) for system, one in systems.scored.items()},
    )
    drawn = part.draw(draws, seed)
    made: dict[str, Any] = {
        "rows": drawn.rows,
        "documents": drawn.documents,
        "small": drawn.rows < SMALL or drawn.documents < FEW_DOCUMENTS,
        "scores": {
            system: {
                name: drawn.interval(system, metric).to_json()
                for name, metric in metrics_of(systems.task, one).items()
                if ":" not in name
            }
            for system, one in part.scored.items()
        },
    }
    if all(system in part.scored for system in FIRST):
        headline = metrics_of(systems.task, part.scored["tuned"])[headline_of(part)]
        made["difference"] = drawn.difference("base", "tuned", headline).to_json()
    return made
