"""The pass over all rows: each detector looks at each row once, in several processes, and counts as it goes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.alike.shingles import fold
from tunesmith.data.inspect.answer_shape import ShapeChecker
from tunesmith.data.inspect.field_values import SwapFinder
from tunesmith.data.inspect.grounding import Grounder, values_of
from tunesmith.data.inspect.norms import Norms
from tunesmith.data.inspect.phi import personal
from tunesmith.data.inspect.prompt_shape import end_kind
from tunesmith.data.inspect.row_view import RowView
from tunesmith.data.inspect.tally import Tally
from tunesmith.data.pool import Pool, hash_text
from tunesmith.tasks.prose.script import script_letters, strays
from tunesmith.tasks.protocol import Parsed

RANGE = 4096  # rows that a worker takes at a time


class Looked(NamedTuple):
    """What came of one range of rows."""

    tally: Tally
    found: list[tuple[str, int, str]]
    """(check, row, detail)"""
    folded: NDArray[np.uint64]
    """Of each row a hash of its prompt, case and spaces aside."""


@dataclass(frozen=True)
class Job:
    """What every worker needs to know. Picklable."""

    folder: Path
    norms: Norms
    parse: Callable[[str], Parsed]
    schema: Mapping[str, Any] | None
    sampled: NDArray[np.int64]
    """Rows that the norms were learned from, in order."""


class Desk:
    """A worker's tools, with their memories; `tally` is that of the range at hand."""

    def __init__(self, job: Job) -> None:
        self.norms = job.norms
        self.shapes = ShapeChecker(job.norms.shape, job.schema)
        self.swaps = SwapFinder(job.norms.values)
        self.grounder = Grounder()
        self.tally = Tally()


def empty_answer(row: RowView, desk: Desk) -> list[str]:
    """A learned turn that says nothing."""
    for number, turn in enumerate(row.example.messages, 1):
        if (turn.learned or turn.role == "assistant") and not turn.content.strip():
            return ["the answer is empty" if turn is row.example.messages[-1] else f"turn {number} is empty"]
    return []


def unparsable(row: RowView, desk: Desk) -> list[str]:
    """The task's own parser says no."""
    parsed = row.parsed
    if parsed is None:
        return []
    if parsed.value is not None:
        desk.tally.counts["parse", "parsed"] += 1
        return []
    return [
        next((one.removeprefix("unparsable: ") for one in parsed.problems), "the task can't read the answer")
    ]


def schema(row: RowView, desk: Desk) -> list[str]:
    """Keys and types of a JSON answer."""
    parsed = row.parsed
    if parsed is None or not isinstance(parsed.value, dict):
        return []
    problem = desk.shapes.problem(parsed.value)
    if problem is None and parsed.has("schema"):
        problem = next(one for one in parsed.problems if one.startswith("schema:")).removeprefix("schema: ")
    if problem is None:
        desk.tally.count("schema", "valid")
    return [problem] if problem else []


def swapped_field(row: RowView, desk: Desk) -> list[str]:
    """Values that belong to another field."""
    return desk.swaps.find(row.fields, row.sampled) if row.fields else []


def grounding(row: RowView, desk: Desk) -> list[str]:
    """Values, or the answer, beside the prompt."""
    fields = values_of(row)
    if not fields:
        return []
    seen, found = set[str](), list[str]()
    tallies, ground_in, limits, there = (
        desk.tally.fields,
        desk.grounder.ground,
        desk.norms.grounding.limits,
        row.asked_set,
    )
    for name, text in fields:
        count = tallies.get(name) or desk.tally.field(name)
        if count is None:
            continue
        if name not in seen:  # a list has several values
            count.rows += 1
            seen.add(name)
        if text is None:
            count.null += 1
            continue
        ground = ground_in(text, row, there)
        count.values += 1
        count.words += ground.words
        count.found += ground.found
        if ground.found == ground.words:
            count.verbatim += ground.verbatim
            count.normalised += ground.normalised
        elif not ground.found:
            count.nothing += 1
        if name:
            count.take(text)
        if name in limits and ground.found < ground.words:
            detail = desk.norms.grounding.finding(name, text, ground)
            if detail:
                found.append(detail)
    return found


def cut_prompt(row: RowView, desk: Desk) -> list[str]:
    """Prompts that end in the middle."""
    ending = row.ending
    if not ending:
        return []
    desk.tally.count("ends", end_kind(ending))
    detail = desk.norms.prompt.cut(row, desk.norms.prompt.cue(row))
    return [detail] if detail else []


def missing_cue(row: RowView, desk: Desk) -> list[str]:
    """Prompts without the cue of the others."""
    if not row.ending:
        return []
    cue = desk.norms.prompt.cue(row)
    if cue is not None:
        desk.tally.count("prompt", "with_cue")
        desk.tally.count("cue", cue)
    detail = desk.norms.prompt.missing_cue(row) if cue is None else None
    return [detail] if detail else []


def boilerplate(row: RowView, desk: Desk) -> list[str]:
    """Free-text answers that are mostly shared phrases."""
    if not row.answer or row.fields is not None:
        return []
    desk.tally.count("boilerplate", "characters", times=len(row.answer))
    characters, held = desk.norms.boilerplate.shares(row.answer)
    if not held:
        return []
    desk.tally.count("boilerplate", "shared", times=characters)
    for phrase in held:
        desk.tally.count("phrase", phrase)
    detail = desk.norms.boilerplate.finding(row.answer, characters)
    return [detail] if detail else []


def phi(row: RowView, desk: Desk) -> list[str]:
    """Kinds and places; never the text itself: findings are shown and stored."""
    hits: Counter[tuple[str, str]] = Counter()
    answer = row.answer or ""
    for kind, begin in personal(f"{row.prompt}\n{answer}"):
        place = "text" if row.is_text else "prompt" if begin <= len(row.prompt) else "answer"
        hits[kind, place] += 1
    for kind, _ in personal(row.example.rejected) if row.example.rejected else ():
        hits[kind, "rejected answer"] += 1
    if not hits:
        return []
    for kind in {kind for kind, _ in hits}:
        desk.tally.count("phi", kind)
    told = [
        f"{times} × {kind} in the {place}" if times > 1 else f"{kind} in the {place}"
        for (kind, place), times in hits.items()
    ]
    return ["; ".join(told).replace("_", " ")]


def script(row: RowView, desk: Desk) -> list[str]:
    """The answer's letters by script; those of the prompt are only counted."""
    tally, said = desk.tally, row.said
    letters, found = script_letters(said), strays(said)
    for name, times in letters.items():
        tally.counts["script", "answer", name] += times
    for name, times in found.items():
        tally.count("stray", name, times=times if name == "not_nfc" else 1)
    asked = {} if row.is_text else script_letters(row.asked)
    for name, times in asked.items():
        tally.counts["script", "prompt", name] += times
    detail = desk.norms.scripts.finding(letters, asked, found) if said else None
    return [detail] if detail else []


DETECTORS: dict[str, Callable[[RowView, Desk], list[str]]] = {
    "empty_answer": empty_answer,
    "unparsable": unparsable,
    "schema": schema,
    "swapped_field": swapped_field,
    "grounding": grounding,
    "cut_prompt": cut_prompt,
    "missing_cue": missing_cue,
    "boilerplate": boilerplate,
    "phi": phi,
    "script": script,
}
"""Check → what looks at one row: lines for a person, and counts in the desk's tally."""


def look(pool: Pool, start: int, stop: int, job: Job, desk: Desk) -> Looked:
    """One range of rows."""
    desk.tally = Tally()
    found: list[tuple[str, int, str]] = []
    folded = np.zeros((2, stop - start), np.uint64)
    sampled = set(job.sampled[slice(*np.searchsorted(job.sampled, (start, stop)))].tolist())
    for number, example in enumerate(pool.examples(start, stop), start):
        row = RowView(number, example, job.parse, number in sampled)
        folded[:, number - start] = hash_text(fold(row.prompt)), hash_text(_meaning(row))
        _kinds(row, desk.tally)
        for check, detector in DETECTORS.items():
            found += [(check, number, detail) for detail in detector(row, desk)]
    desk.tally.close()
    return Looked(desk.tally, found, folded)


def _meaning(row: RowView) -> str:
    """The answer, spaces and the writing of JSON aside."""
    if row.fields is not None and row.parsed is not None:
        return json.dumps(row.parsed.value, sort_keys=True)
    return " ".join((row.answer or "").split())


def _kinds(row: RowView, tally: Tally) -> None:
    """What kind of row it is: what the detectors' shares are of."""
    counts = tally.counts
    if row.parsed is not None:
        counts["parse", "rows"] += 1
        if isinstance(row.parsed.value, dict):
            counts["schema", "rows"] += 1
    if row.ending:
        counts["prompt", "of"] += 1
    rejected = row.example.rejected
    if rejected is not None:
        counts["pair", "rows"] += 1
        size = len(row.answer or "") - len(rejected)
        counts["pair", "chosen_longer" if size > 0 else "rejected_longer" if size < 0 else "same_length"] += 1
        counts["pair", "same_answer"] += row.answer == rejected
        counts["pair", "empty_rejected"] += not rejected.strip()


_at_work: tuple[Pool, Job, Desk] | None = None


def _begin(job: Job) -> None:
    global _at_work
    _at_work = Pool(job.folder), job, Desk(job)


def _work(span: tuple[int, int]) -> Looked:
    assert _at_work is not None, "a worker begins with _begin"
    pool, job, desk = _at_work
    return look(pool, *span, job, desk)


def look_at_all(pool: Pool, job: Job, workers: int) -> Iterator[Looked]:
    """All rows, in order, range by range; few rows or one worker stay in this process."""
    spans = [(start, min(start + RANGE, len(pool))) for start in range(0, len(pool), RANGE)]
    if workers < 2 or len(spans) < 2:
        desk = Desk(job)
        for span in spans:
            yield look(pool, *span, job, desk)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(
        min(workers, len(spans)), multiprocessing.get_context("spawn"), _begin, (job,)
    ) as executor:
        yield from executor.map(_work, spans)
