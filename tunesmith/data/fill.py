"""From the sources to a folder with every split, its proofs and the report of what was found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from tunesmith import console
from tunesmith.contract import Contract
from tunesmith.data.alike.near import near_pairs
from tunesmith.data.draw import drawn, times
from tunesmith.data.ingest import Ingested, default_workers, ingest
from tunesmith.data.inspect import Inspection, inspect
from tunesmith.data.inspect.finding import CHAT
from tunesmith.data.levels import verdict
from tunesmith.data.pool import DIRECT, PLAIN, Pool, tell_apart
from tunesmith.data.proofs import Rules, split_proofs
from tunesmith.data.sources import SPLITS, SourceFile
from tunesmith.data.split import split
from tunesmith.errors import RowCheckFailed, RowError
from tunesmith.proof import Proof
from tunesmith.recipe import Checks, Recipe
from tunesmith.rows import copy_rows
from tunesmith.tasks import Task, make_task
from tunesmith.tasks.schema import load_schema
from tunesmith.tasks.score import check_golds

GOLDS = 20_000  # answers that are looked at together: a task infers its fields from so many
_SHOWN = 20


def fill(recipe: Recipe, contract: Contract, sources: Sequence[SourceFile], place: Path) -> None:
    """Writes everything of a preparation into `place`; report.json, which says that it is whole, comes last."""
    data, workers = recipe.data, default_workers()
    ingested = ingest(data, sources, contract, place / "pool", workers)
    pool, formats = ingested.pool, [reading.manner.format for reading in ingested.readings]
    if not len(pool):
        _nothing_left(recipe, ingested, sources)
    if repeated := tell_apart(pool):
        console.warn(f"{repeated} rows have the id of another row: they go on as ID~2, ID~3 …")
    pool, kept = drawn(pool, sources, recipe.seed, pool.folder / "drawn")
    ingested.renumber(kept)
    pairs, similarity = near_pairs(pool.signatures, pool.compared, same=pool.facts["text"])
    shares = {name: share for name in SPLITS[1:] if (share := getattr(data.split, name))}
    schema = load_schema(data.json_schema) if data.json_schema else None
    side = split(pool.facts, pairs, shares, recipe.seed)
    task = make_task(recipe.evaluate.task, schema, _golds(pool, side))
    inspection = inspect(
        pool,
        side,
        pairs,
        similarity,
        data=data.model_copy(update={"checks": Checks()}),  # levels come later: none may hide a finding here
        task=task,
        schema=schema,
        workers=workers,
        row_format=next((one for one in formats if one in CHAT), formats[0]),
        longer=ingested.overlong,
    )
    proofs: list[Proof] = []
    splits: dict[str, Any] = {}
    named = {source.split for source in sources} | set(shares)
    for number, name in enumerate(SPLITS):
        if name not in named:
            continue
        rows = np.flatnonzero(side == number)
        numbers = np.repeat(rows, times(pool, rows, sources, recipe.seed)) if number == 0 else rows
        copy_rows(pool.rows, numbers, place, name)
        splits[name] = _counts(pool.facts[numbers])
        proofs += _proofs(contract, name, rows, pool, ingested)
    _write_json(place / "proofs.json", {"proofs": [proof.to_json() for proof in proofs]})
    (place / "pool" / "unread.jsonl").rename(place / "unread.jsonl")
    _write_findings(place / "findings.jsonl", pool, side, inspection)
    report = {
        "schema_version": 1,
        "splits": splits,
        **_reading(ingested, sources),
        "unscorable": _unscorable(task, pool, side),
        "inspection": inspection.report,
    }
    _write_json(place / "report.json", report)


def _reading(ingested: Ingested, sources: Sequence[SourceFile]) -> dict[str, Any]:
    """What became of the rows on their way in."""
    return {
        "sources": [_source(source, number, ingested) for number, source in enumerate(sources)],
        "left_out": ingested.left_out,
        "refused": _refused(ingested),
        "overlong": _overlong(ingested),
        "trimmed": {"rows": len(ingested.trimmed), "tokens": sum(ingested.trimmed)},
    }


def _nothing_left(recipe: Recipe, ingested: Ingested, sources: Sequence[SourceFile]) -> NoReturn:
    """Raises what is wrong with the rows: there is none to look at."""
    told = _reading(ingested, sources) | {"inspection": {"checks": []}, "splits": {}}
    verdict(recipe, told, ingested.pool.folder)
    fix = "mend the processor" if ingested.left_out else "raise data.max_length"
    raise RowError("no rows are left", where="data.train", fix=fix)


def _golds(pool: Pool, side: NDArray[np.int8]) -> list[str]:
    """Training answers, evenly spread over the rows."""
    rows = np.flatnonzero(side == 0)
    some = rows if len(rows) <= GOLDS else rows[np.arange(GOLDS) * len(rows) // GOLDS]
    return [answer for row in some if (answer := pool.example(int(row)).answer)]


def _counts(facts: NDArray[np.void]) -> dict[str, Any]:
    lengths = facts["tokens"] if len(facts) else np.zeros(1, np.int32)
    quantiles = {f"p{q}": int(np.percentile(lengths, q, method="inverted_cdf")) for q in (50, 90, 99)}
    return {
        "rows": len(facts),
        "documents": len(np.unique(facts["document"])),
        "tokens": int(facts["tokens"].sum(dtype=np.int64)),
        "learned_tokens": int(facts["learned"].sum(dtype=np.int64)),
        "length": {"min": int(lengths.min()), **quantiles, "max": int(lengths.max())},
        "longest_answer": int(facts["learned"].max(initial=0)),
    }


def _proofs(
    contract: Contract, name: str, rows: NDArray[np.int64], pool: Pool, ingested: Ingested
) -> Iterator[Proof]:
    here = {
        rule: [identity for row, identity in found if _holds(rows, row)]
        for rule, found in ingested.broken.items()
    }
    marks = pool.facts["marks"][rows]
    plain, direct = marks & PLAIN > 0, marks & DIRECT > 0
    return split_proofs(
        Rules(contract), name, len(rows), int(plain.sum()), int((direct & ~plain).sum()), here
    )


def _holds(rows: NDArray[np.int64], row: int) -> bool:
    at = int(np.searchsorted(rows, row))
    return at < len(rows) and int(rows[at]) == row


def _source(source: SourceFile, number: int, ingested: Ingested) -> dict[str, Any]:
    return {
        "split": source.split,
        "name": source.name,
        "rows": ingested.seen[number],
        "refused": ingested.refused[number].count,
        "weight": source.weight,
    }


def _refused(ingested: Ingested) -> list[dict[str, Any]]:
    errors = [
        refused.error(seen)
        for refused, seen in zip(ingested.refused, ingested.seen, strict=True)
        if refused.count
    ]
    return [{"what": error.what, "where": error.where, "fix": error.fix} for error in errors]


def _overlong(ingested: Ingested) -> dict[str, Any]:
    long = ingested.overlong
    return {
        "rows": len(long),
        "of": len(ingested.pool) + len(long),
        "longest": max((one.tokens for one in long), default=0),
        "first": [(one.place, one.tokens) for one in long[:_SHOWN]],
    }


def _unscorable(task: Task, pool: Pool, side: NDArray[np.int8]) -> dict[str, Any] | None:
    """Why evaluate could not score the rows that it will score: known before training, not after it."""
    scored = np.flatnonzero(side == 2)
    scored = scored if len(scored) else np.flatnonzero(side == 1)
    scored = scored[pool.facts["marks"][scored] & PLAIN == 0]
    for start in range(0, len(scored), GOLDS):  # never all of them in memory
        try:
            check_golds(task, [pool.example(int(row)) for row in scored[start : start + GOLDS]])
        except RowCheckFailed as error:
            return {"what": error.what, "where": error.where, "fix": error.fix}
    return None


def _write_findings(path: Path, pool: Pool, side: NDArray[np.int8], inspection: Inspection) -> None:
    with path.open("w", encoding="utf-8") as file:
        for finding in inspection.findings:
            example = pool.example(finding.row)
            line = {
                "check": finding.check,
                "source": example.source,
                "id": example.id,
                "split": SPLITS[side[finding.row]],
                "detail": finding.detail,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
