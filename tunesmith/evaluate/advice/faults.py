"""Error analysis of one system by type and by slice, from its answers alone: what goes wrong, where, how often.

Kinds and their harm stand in tasks/protocol.py; a task finds them (tasks/answered.py). Worst harm first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tunesmith.evaluate.slices import MOST_VALUES
from tunesmith.tasks import Task
from tunesmith.tasks.answered import Answered, faults_of
from tunesmith.tasks.protocol import FAULTS, Fault

MOST_PLACES = 20  # fields, sections or types of entities of one kind of fault


def find_faults(task: Task, rows: Sequence[Answered]) -> list[list[Fault]]:
    """Of every row. A kind that FAULTS doesn't name is a bug of the task: KeyError."""
    found = [faults_of(task, row) for row in rows]
    for fault in (one for row in found for one in row):
        if fault.kind not in FAULTS:
            raise KeyError(f"the {task.name} task names a kind of fault that FAULTS lacks: {fault.kind}")
    return found


def summary(rows: Sequence[Answered], found: Sequence[Sequence[Fault]]) -> dict[str, Any]:
    """{rows, faulty_rows, by_kind, by_slice}; `found`: faults of each row. Holds no words of rows."""
    return _counted(found) | {"by_slice": _by_slice(rows, found)}


def _counted(found: Sequence[Sequence[Fault]]) -> dict[str, Any]:
    """by_kind: [{kind, harm, meaning, times, rows, share, where: {place: times}}]; share: of all rows."""
    times: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    where: dict[str, Counter[str]] = {}
    for row in found:
        rows.update({fault.kind for fault in row})
        for fault in row:
            times[fault.kind] += 1
            if fault.where:
                where.setdefault(fault.kind, Counter())[fault.where] += 1
    kinds = sorted(times, key=lambda kind: (-FAULTS[kind][0], -rows[kind], kind))
    return {
        "rows": len(found),
        "faulty_rows": sum(any(FAULTS[fault.kind][0] for fault in row) for row in found),
        "by_kind": [
            {
                "kind": kind,
                "harm": FAULTS[kind][0],
                "meaning": FAULTS[kind][1],
                "times": times[kind],
                "rows": rows[kind],
                "share": rows[kind] / len(found),
                "where": dict(where.get(kind, Counter()).most_common(MOST_PLACES)),
            }
            for kind in kinds
        ],
    }


def _by_slice(rows: Sequence[Answered], found: Sequence[Sequence[Fault]]) -> list[dict[str, Any]]:
    """A slice name's values with the largest share of faulty rows first."""
    made = []
    for name in sorted({name for row in rows for name in row.example.slices}):
        groups: dict[str, list[Sequence[Fault]]] = {}
        for row, faults in zip(rows, found, strict=True):
            value = row.example.slices.get(name)
            if value is not None:
                groups.setdefault(value, []).append(faults)
        common = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))[:MOST_VALUES]
        parts = [{"slice": name, "value": value} | _counted(group) for value, group in common]
        made += sorted(parts, key=lambda part: (-part["faulty_rows"] / part["rows"], part["value"]))
    return made
