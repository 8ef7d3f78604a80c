"""Several runs on the same rows: scores side by side, paired differences, and what these rows can and can't tell.

Runs of one recipe that differ by nothing but `seed` are one group: pooled, with an interval that holds both which
documents were scored and which seeds were trained (pooled.py). Every group is compared with the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluate.score import SMALL, Systems, metrics_of
from tunesmith.evaluate.slices import FEW_DOCUMENTS, values_of
from tunesmith.pooled import Estimate, pooled, pooled_difference
from tunesmith.statistics import DRAWS, Drawn, mcnemar, sign_test
from tunesmith.tasks.answered import answers_headline, lower_is_better
from tunesmith.tasks.score import Scored
from tunesmith.tasks.sums import Metric


@dataclass(frozen=True)
class Group:
    """Systems that stand side by side as one column: a run, the seeds of a recipe, or the base."""

    name: str
    systems: tuple[str, ...]
    """Names in `Systems.scored`, one for each seed."""
    kind: str = "tuned"
    """tuned or base."""


def compare(
    systems: Systems, groups: Sequence[Group], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """`groups`: the first one is what the others are compared with. A lone tuned group is compared with its base."""
    shared = _shared(systems)
    metric = systems.task.headline if systems.task.headline in shared else answers_headline(systems.task)
    drawn = systems.draw(draws, seed)
    tuned = [group for group in groups if group.kind == "tuned"]
    pairs = [(tuned[0], other) for other in tuned[1:]]
    if not pairs:
        pairs = [(base, tuned[0]) for base in groups if base.kind == "base"][:1]
    scores = {
        group.name: {name: _json(pooled(drawn, group.systems, of)) for name, of in shared.items()}
        for group in groups
    }
    lower = metric in lower_is_better(systems.task)
    return {
        "task": systems.task.name,
        "metric": metric,
        "better": "lower" if lower else "higher",
        "rows": drawn.rows,
        "documents": drawn.documents,
        "effective_documents": round(drawn.effective, 1),
        "bootstrap": {"draws": draws, "seed": seed, "unit": "document"},
        "groups": [{"name": one.name, "kind": one.kind, "seeds": len(one.systems)} for one in groups],
        "scores": scores,
        "comparisons": [_compared(systems, drawn, *pair, shared, metric, (draws, seed)) for pair in pairs],
        "meaning": systems.task.explain(),
    }


def _compared(
    systems: Systems,
    drawn: Drawn,
    first: Group,
    second: Group,
    shared: Mapping[str, Metric],
    metric: str,
    how: tuple[int, int],
) -> dict[str, Any]:
    """`second` less `first`: every metric, the headline's power, a test of rows all right, slices."""
    found = {name: pooled_difference(drawn, first.systems, second.systems, of) for name, of in shared.items()}
    main = found[metric]
    return {
        "first": first.name,
        "second": second.name,
        "differences": {name: _json(one) for name, one in found.items()},
        "difference": _json(main) | _power(main, drawn.documents),
        "test": _all_right(systems, first, second),
        "slices": _slices(systems, first, second, shared[metric], how),
    }


def _shared(systems: Systems) -> dict[str, Metric]:
    """Metrics that all systems have."""
    each = [metrics_of(systems.task, one) for one in systems.scored.values()]
    return {name: metric for name, metric in each[0].items() if all(name in one for one in each)}


def _json(estimate: Estimate) -> dict[str, Any]:
    made: dict[str, Any] = estimate.interval.to_json()
    seeds = [None if np.isnan(one) else one for one in estimate.seeds]
    return made | ({"seeds": seeds} if len(seeds) > 1 else {})


def _power(estimate: Estimate, documents: int) -> dict[str, Any]:
    """What such rows can show at all. None where one document tells nothing."""
    known = not np.isnan(estimate.smallest)
    return {
        "half_width": estimate.half_width if known else None,
        "smallest_shown": estimate.smallest if known else None,
        "documents_needed": estimate.documents_for(estimate.interval.value, documents) if known else None,
        "of_seeds": estimate.of_seeds / (estimate.of_seeds + estimate.of_documents)
        if known and estimate.of_seeds
        else 0.0,
    }


def _right(systems: Systems, group: Group) -> NDArray[np.float64]:
    """[rows]: in which share of the group's seeds a row is all right."""
    made: NDArray[np.float64] = np.mean([systems.scored[name].correct for name in group.systems], axis=0)
    return np.round(made, 9)  # thirds must be equal to thirds


def _all_right(systems: Systems, first: Group, second: Group) -> dict[str, Any]:
    """McNemar where rows know nothing of each other and each side is one run; else a sign test over documents."""
    one, other = _right(systems, first), _right(systems, second)
    documents = systems.documents
    if len(set(documents)) == len(documents) and len(first.systems) == len(second.systems) == 1:
        test = mcnemar(one > 0, other > 0)
        return {
            "name": "McNemar",
            "only_first": test.only_first,
            "only_second": test.only_second,
            "p": test.p,
        }
    signs = sign_test(one, other, documents)
    return {
        "name": "sign test",
        "unit": "document",
        "first_better": signs.first_better,
        "second_better": signs.second_better,
        "equal": signs.equal,
        "p": signs.p,
    }


def _slices(
    systems: Systems, first: Group, second: Group, metric: Metric, how: tuple[int, int]
) -> list[dict[str, Any]]:
    """The headline of both sides and their difference in each slice; `small` where there is too little to say much."""
    both = {name: systems.scored[name] for name in (*first.systems, *second.systems)}
    made = []
    for slice_name, value, kept in values_of(systems.examples):
        drawn = _draw({name: one.take(kept) for name, one in both.items()}, how)
        difference = pooled_difference(drawn, first.systems, second.systems, metric)
        made.append(
            {
                "slice": slice_name,
                "value": value,
                "rows": drawn.rows,
                "documents": drawn.documents,
                "small": drawn.rows < SMALL or drawn.documents < FEW_DOCUMENTS,
                "first": _json(pooled(drawn, first.systems, metric)),
                "second": _json(pooled(drawn, second.systems, metric)),
                "difference": _json(difference),
            }
        )
    return made


def _draw(scored: Mapping[str, Scored], how: tuple[int, int]) -> Drawn:
    documents = next(iter(scored.values())).documents
    return Drawn({name: one.counts for name, one in scored.items()}, documents, *how)
