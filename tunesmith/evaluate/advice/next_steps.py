"""What to do next: one line for each finding that a user can act on, tied to the counts it comes from.

A rule looks at one system's faults, scores, slices and studies, and gives a step or nothing. It stays silent on little
(step.py). No line holds words of rows.
"""

from __future__ import annotations

from typing import Any

from tunesmith.evaluate.advice.step import Seen
from tunesmith.evaluate.advice.steps_from_faults import FAULT_RULES
from tunesmith.evaluate.advice.steps_from_scores import SCORE_RULES

MOST = 8
RULES = (*FAULT_RULES, *SCORE_RULES)


def next_steps(seen: Seen) -> list[dict[str, Any]]:
    """[{say, count, of}], most harmful first, at most MOST."""
    found = [step for rule in RULES if (step := rule(seen)) is not None]
    found.sort(key=lambda step: (-step.harm, -step.count / step.of))
    return [{"say": step.say, "count": step.count, "of": step.of} for step in found[:MOST]]
