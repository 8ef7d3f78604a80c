"""PubTator documents as rows of the package, by the package's own reader, and scored answers as TP, FP, FN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bio_oracle import Counts, Doc

from tunesmith.data.read.pubtator import parse_document
from tunesmith.example import Example
from tunesmith.tasks import make_task
from tunesmith.tasks.score import Scored, score_answers

LEVELS = {"mention": "mention", "id": "concept", "relation": "relation"}


def rows_of(
    gold: dict[str, Doc], said: dict[str, Doc], types: Sequence[str]
) -> tuple[list[Example], list[Any]]:
    """Two rows a document (entities, relations) and the lines of a predictions file, answers as PubTator text."""
    rows, lines = [], []
    for pmid, doc in gold.items():
        read = parse_document(doc.text().encode(), 1)
        assert isinstance(read, dict), read
        asked = f"Annotate.\n\n{doc.whole}"
        facts: dict[str, Any] = {
            "article": [len("Annotate.\n\n"), len(asked), len(asked)],
            "mentions": [[m["start"], m["end"], m["text"], m["type"], m["ids"]] for m in read["mentions"]],
            "relations": [[r["type"], *r["arguments"]] for r in read["relations"]],
        }
        for kind, more in (("entities", {"types": list(types)}), ("relations", {"relation": "CID"})):
            id = f"{pmid}-{kind}"
            rows.append(
                Example.make(asked, doc.text(), id=id, document=pmid, facts={"kind": kind, **more, **facts})
            )
            lines.append({"id": id, "answer": said[pmid].text()})
    return rows, lines


def counted(gold: dict[str, Doc], said: dict[str, Doc], types: Sequence[str]) -> Counts:
    """Ours, as the oracle writes them."""
    rows, lines = rows_of(gold, said, types)
    scored = score_answers(lines, rows, make_task("annotations"))
    sums = {name: int(values.sum()) for name, values in scored.counts.items()}
    made = {}
    for name, level in LEVELS.items():
        hits, given, gold_count = (sums[f"{level}_{part}"] for part in ("hits", "given", "gold"))
        made[name] = (hits, given - hits, gold_count - hits)
    return made


def values(task: Any, scored: Scored) -> dict[str, float]:
    """Every metric over all rows."""
    sums = {name: one.sum(keepdims=True) for name, one in scored.counts.items()}
    return {name: float(np.asarray(metric(sums))[0]) for name, metric in task.metrics().items()}
