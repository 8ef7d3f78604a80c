"""Do long inputs score worse? The headline metric over rows sorted by the length of what was asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tunesmith.evaluate.score import FIRST, SMALL, Systems, headline_of, metrics_of

_MOST = 8  # parts
_DRAWS = 1000


def by_length(systems: Systems, seed: int) -> dict[str, Any]:
    """{unit, parts: [{low, high, mean, rows, documents, scores: {system: interval}}]}: equally many rows a part.

    At least SMALL rows a part, so that each can say something; empty where that makes fewer than two.
    """
    lengths = np.array([len(example.asked) for example in systems.examples])
    count = min(_MOST, len(lengths) // SMALL)
    if count < 2 or lengths.min() == lengths.max():
        return {}
    parts, headline = [], headline_of(systems)
    for numbers in np.array_split(np.argsort(lengths, kind="stable"), count):
        kept = np.zeros(len(lengths), bool)
        kept[numbers] = True
        part = replace(
            systems,
            examples=[systems.examples[int(i)] for i in np.flatnonzero(kept)],
            scored={name: systems.scored[name].take(kept) for name in FIRST if name in systems.scored}
            or {name: one.take(kept) for name, one in list(systems.scored.items())[:1]},
        )
        drawn = part.draw(_DRAWS, seed)
        metric = metrics_of(systems.task, next(iter(part.scored.values())))[headline]
        parts.append(
            {
                "low": int(lengths[kept].min()),
                "high": int(lengths[kept].max()),
                "mean": float(lengths[kept].mean()),
                "rows": drawn.rows,
                "documents": drawn.documents,
                "scores": {name: drawn.interval(name, metric).to_json() for name in part.scored},
            }
        )
    return {"unit": "characters of the input", "parts": parts}
