"""What the answers of every model say beyond scores: the task's studies, faults by type and slice, what to do next.

All of it needs the predictions alone, and the first sample of each row; a study may ask for every sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.evaluate.advice.faults import find_faults, summary
from tunesmith.evaluate.advice.next_steps import next_steps
from tunesmith.evaluate.advice.step import Seen
from tunesmith.evaluate.score import FIRST, Systems
from tunesmith.tasks.answered import Answered, answered, for_answers, study_of, wants_every_sample


def analyse(systems: Systems, content: Mapping[str, Any]) -> dict[str, Any]:
    """studies and faults of every system that is no floor, and `next` about the one that the report is about.

    `content`: scores, slices and floors, from which the next steps are read too.
    """
    names = systems.no_floors or list(systems.scored)
    main = next((name for name in FIRST if name in names), names[0])
    made: dict[str, Any] = {"studies": {}, "faults": {}, "next": []}
    for name in names:
        rows = _rows(systems, name)
        task = for_answers(systems.task, [row.line["answer"] for row in rows])
        every = wants_every_sample(task) and len(systems.scored[name].predictions[0]) > 1
        # parsed answers take room
        tables = study_of(task, _rows(systems, name, every=True) if every else rows)
        if tables:
            made["studies"][name] = [table._asdict() for table in tables]
        found = find_faults(task, rows)
        made["faults"][name] = summary(rows, found)
        if name == main:
            sums = {count: float(values.sum()) for count, values in systems.scored[name].counts.items()}
            seen = Seen({**content, "studies": made["studies"]}, name, rows, found, sums)
            made["next"] = next_steps(seen)
    return made


def _rows(systems: Systems, name: str, every: bool = False) -> list[Answered]:
    lines = systems.scored[name].predictions
    return [
        answered(systems.task, example, line)
        for example, said in zip(systems.examples, lines, strict=True)
        for line in (said if every else said[:1])
    ]
