"""BERTScore in a report: report/bertscore.jsonl → counts of rows, and metrics of them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.tasks.sums import Metric, ratio

FILE = "bertscore.jsonl"
PARTS = ("precision", "recall", "f1")
_MEANING = {
    "precision": "how near the answer's word pieces are to the gold's",
    "recall": "how near the gold's word pieces are to the answer's",
    "f1": "both",
}


def bertscore_counts(
    rows: Sequence[Mapping[str, Any]], ids: Sequence[str], system: str
) -> dict[str, NDArray[np.float64]]:
    """Name → [rows]; empty where a row of `ids` was not measured for this system."""
    by_id = {row["id"]: row for row in rows}
    chosen = [by_id.get(identity, {}) for identity in ids]
    if not chosen or not all(system in row.get("f1", {}) for row in chosen):
        return {}
    made = {f"bertscore_{part}": np.array([row[part][system] for row in chosen], float) for part in PARTS}
    return made | {"bertscore_rows": np.ones(len(chosen))}


def bertscore_metrics(counts: Mapping[str, Any]) -> dict[str, Metric]:
    """Means over rows, where BERTScore was measured."""
    if "bertscore_rows" not in counts:
        return {}
    return {f"bertscore_{part}": _mean(part) for part in PARTS}


def bertscore_meaning(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the metrics mean, with what they were made, and how many texts the model saw a part of alone."""
    if not rows:
        return {}
    cuts = [value for row in rows for value in row["cut"].values()]
    cut = sum(cuts) / max(len(cuts), 1)
    told = f"mean over rows, not rescaled: even unlike texts come near 0.8 with many models; {rows[0]['made_with']}"
    if cut:
        told += f"; {cut:.1%} of the answers or their golds are longer than the model reads: their beginning counts"
    return {f"bertscore_{part}": f"{said}; {told}" for part, said in _MEANING.items()}


def _mean(part: str) -> Metric:
    return lambda sums: ratio(sums[f"bertscore_{part}"], sums["bertscore_rows"])
