"""The inspection of rows: learns what is usual, looks at each row, sets rows beside each other, reports.

Nothing is judged by a fixed idea of what data look like: apart from leaks, repeats, broken answers and numbers of
persons, a row is only ever compared with the habits of the training rows around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.alike.nearest import nearest_similarity
from tunesmith.data.inspect.each_row import Job, look_at_all
from tunesmith.data.inspect.finding import CHAT, CHECKS, Findings, levels
from tunesmith.data.inspect.lengths import lengths, limits
from tunesmith.data.inspect.norms import learn, read_sample, sample
from tunesmith.data.inspect.relations import LEAKS, REPEATS, SIDES, Facts, leaks, repeats, shared_answers
from tunesmith.data.inspect.report import (
    boilerplate_report,
    fields_report,
    grounding_report,
    parse_report,
    prompt_report,
    schema_report,
    scripts_report,
)
from tunesmith.data.inspect.tally import Tally
from tunesmith.data.overlong import Overlong
from tunesmith.data.pool import Pool
from tunesmith.recipe import Data
from tunesmith.tasks.extraction import ExtractionTask
from tunesmith.tasks.json_answer import read_object
from tunesmith.tasks.protocol import Task

SHOWN = 20  # rows that the report names for each check


@dataclass(frozen=True)
class Inspection:
    """`report`: plain JSON, the shape of docs/data-checks.md; `findings`: each check that fired, with its row."""

    report: dict[str, Any]
    findings: Findings


def inspect(
    pool: Pool,
    side: NDArray[np.int8],
    pairs: NDArray[np.int32],
    similarity: NDArray[np.float32],
    *,
    data: Data,
    task: Task,
    schema: Mapping[str, Any] | None,
    workers: int = 1,
    row_format: str | None = None,
    longer: Sequence[Overlong] = (),
) -> Inspection:
    """Looks at every row of the pool.

    side: 0 train, 1 validation, 2 test [rows]; pairs: near-duplicate rows [m, 2], Jaccard ≥ 0.8; similarity:
    theirs [m].
    schema: data.schema, or None to infer the shape. row_format: the rows' format where data.format is auto.
    longer: rows over data.max_length, which are not in the pool.
    A check whose level is ignore is counted nowhere. Twice the same rows give the same report, whatever `workers` is.
    """
    found = Findings(pool)
    chat = (row_format or data.format) in CHAT
    checks = levels(data.checks, chat)
    # the same reading as the extraction task's, without its schema: ShapeChecker remembers shapes
    parse = read_object if type(task) is ExtractionTask else task.parse
    rows = sample(side)
    norms = learn(read_sample(pool, rows, parse))
    tally = Tally()
    job = Job(pool.folder, norms, parse, schema, rows)
    folded = np.zeros((2, len(pool)), np.uint64)
    done = 0
    for looked in look_at_all(pool, job, workers):
        tally.add(looked.tally)
        found.add(one for one in looked.found if checks[one[0]] != "ignore")
        folded[:, done : done + looked.folded.shape[1]] = looked.folded
        done += looked.folded.shape[1]
    chat = chat or bool(tally.counts["pair", "rows"])
    checks = levels(data.checks, chat)
    given = Facts(pool.facts, side, pairs, similarity, *folded)
    leaked = _leaks(pool, given, found, checks)
    repeated = repeats(given)
    for check, finder in REPEATS.items():
        related = finder(given)
        if check == "near_duplicate":
            repeated["near"] = len(related.rows)
        if checks[check] != "ignore":
            found.relate(check, related)
    report = {
        "chat": chat,
        "checks": _checks(pool, side, found, checks, tally),
        "lengths": lengths(pool.facts, side),
        "limits": limits(pool, longer, data.max_length),
        "leaks": leaked,
        "parse": parse_report(tally),
        "schema": schema_report(tally, schema is None),
        "grounding": grounding_report(tally),
        "fields": fields_report(tally),
        "prompt": prompt_report(tally, norms),
        "boilerplate": boilerplate_report(tally),
        "phi": tally.of("phi"),
        "scripts": scripts_report(tally),
        "duplicates": repeated,
        "pairs": tally.of("pair"),
    }
    return Inspection(report, found)


def _leaks(pool: Pool, given: Facts, found: Findings, checks: Mapping[str, str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for check, name, leak, held in leaks(given):
        if checks[check] != "ignore":
            found.relate(check, leak.related)
        rows = len(leak.held)
        one = {"rows": rows, "share": rows / held, "named": len(leak.related.rows)}
        made.setdefault(name, {"of": held})[check.removesuffix("_leak")] = one
    for name, leak_report in made.items():
        held_out, _, other = name.partition(" in ")
        numbers = SIDES.index(held_out), SIDES.index(other)
        shared = shared_answers(given, *numbers)
        leak_report["answer"] = {"rows": shared, "share": shared / leak_report["of"]}
        leak_report["similarity"] = _similarity(pool, given.side, *numbers)
    return made


def _similarity(pool: Pool, side: NDArray[np.int8], held: int, other: int) -> dict[str, Any]:
    """How alike held-out rows and the rows nearest to them are: what a split without leaks looks like, too."""
    rows, others = np.flatnonzero(side == held), np.flatnonzero(side == other)
    near = nearest_similarity(rows, others, pool.compared, pool.signatures)
    p50, p90, top = np.percentile(near.similarity, (50, 90, 100)) if len(near.similarity) else (0.0, 0.0, 0.0)
    return {
        "p50": float(p50),
        "p90": float(p90),
        "max": float(top),
        "at_least": {str(step): near.at_least(step) for step in (0.3, 0.5, 0.8)},
        "of": len(near.rows),
        "exact": near.exact,
    }


def _checks(
    pool: Pool, side: NDArray[np.int8], found: Findings, levels: Mapping[str, str], tally: Tally
) -> list[dict[str, Any]]:
    made = []
    of = _looked_at(side, tally)
    for check, meaning in CHECKS.items():
        rows, examples = found.rows(check), []
        for finding in found.first(check, SHOWN):
            example = pool.example(finding.row)
            examples.append(
                {
                    "id": example.id,
                    "source": example.source,
                    "split": SIDES[side[finding.row]],
                    "detail": finding.detail,
                }
            )
        made.append(
            {
                "name": check,
                "level": levels[check],
                "rows": rows,
                "of": of.get(check, len(pool)),
                "share": rows / of.get(check, len(pool)) if rows else 0.0,
                "meaning": meaning,
                "examples": examples,
            }
        )
    return made


def _looked_at(side: NDArray[np.int8], tally: Tally) -> dict[str, int]:
    """Rows that a check could have named, where that is not all of them."""
    below = int((side < side.max(initial=0)).sum())  # leaks name the row on the lower side
    objects = tally.counts["schema", "rows"]
    return {
        **dict.fromkeys(LEAKS, below),
        **dict.fromkeys(("schema", "swapped_field"), objects),
        **dict.fromkeys(("unparsable", "grounding"), tally.counts["parse", "rows"]),
        **dict.fromkeys(("cut_prompt", "missing_cue"), tally.counts["prompt", "of"]),
    }
