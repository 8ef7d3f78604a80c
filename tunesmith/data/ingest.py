"""All sources of a recipe into one Pool: read once, in blocks, by several processes; the same Pool however many."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith import console
from tunesmith.contract import Contract
from tunesmith.data.compared import Affixes
from tunesmith.data.encode import Encoder, Reading, Taken
from tunesmith.data.formats.examples import BadRow, Manner, format_of, row_examples
from tunesmith.data.formats.refusals import Refusals
from tunesmith.data.overlong import Overlong
from tunesmith.data.pool import Pool, PoolWriter
from tunesmith.data.proofs import DIRECT
from tunesmith.data.read.batch import ParsedBatch, RawBatch
from tunesmith.data.read.files import BATCH, read_batches
from tunesmith.data.sources import SPLITS, SourceFile
from tunesmith.example import Example
from tunesmith.recipe import Data

SMALL = 4 << 20  # bytes of rows that one process reads sooner than others start


@dataclass
class Ingested:
    """What the sources held, beside the rows that are in the Pool."""

    pool: Pool
    readings: list[Reading]
    seen: list[int]
    """Raw rows of each source."""
    refused: list[Refusals]
    left_out: int = 0
    overlong: list[Overlong] = field(default_factory=list)
    trimmed: list[int] = field(default_factory=list)
    broken: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """Rule of the contract → rows of the Pool that break it, with their ids."""

    def renumber(self, kept: NDArray[np.int64]) -> None:
        """The Pool goes on with these rows only."""
        number = {int(row): new for new, row in enumerate(kept)} if self.broken else {}
        self.broken = {
            rule: [(number[row], identity) for row, identity in found if row in number]
            for rule, found in self.broken.items()
        }


def ingest(
    data: Data, sources: Sequence[SourceFile], contract: Contract, folder: Path, workers: int
) -> Ingested:
    """Reads every source into a Pool in `folder`. Rows that can't be used are in `unread.jsonl` there.

    RowError where the first rows of a source all fail for one reason, or a source holds none at all.
    """
    begun = [_reading(data, number, source) for number, source in enumerate(sources)]
    affixes = Affixes.of(first for _, first in begun)
    readings = [reading._replace(affixes=affixes) for reading, _ in begun]
    writer = PoolWriter(folder, affixes)
    into = Ingested(None, readings, [0] * len(sources), [Refusals() for _ in sources])  # type: ignore[arg-type]
    size = sum(source.path.stat().st_size for source in sources if source.path is not None)
    with (folder / "unread.jsonl").open("w", encoding="utf-8") as unread:
        at = 0
        batches = ((batch, reading) for reading in readings for batch in raw_batches(sources[reading.number]))
        encoder = (contract, data.max_length, data.overlong == "trim_context")
        with console.progress("rows", total=0, unit="rows") as bar:
            for reading, taken in _all_taken(batches, encoder, workers if size > SMALL else 1):
                _add(taken, reading, at, writer, into)
                for place, error in taken.bad:
                    into.refused[reading.number].add(place, error)
                    _tell(unread, place, "unreadable", str(error))
                into.refused[reading.number].end_if_alike(into.seen[reading.number])
                for place, _, tokens, *_ in taken.overlong:
                    _tell(unread, place, "overlong", f"{tokens} tokens, data.max_length is {data.max_length}")
                at += len(taken.lines)
                bar.update(taken.seen)
    writer.close()
    into.pool = Pool(folder)
    return into


def raw_batches(source: SourceFile, size: int = BATCH) -> Iterator[RawBatch]:
    """The rows of a source, `size` at a time; those of the starter are generated."""
    if source.path is not None:
        yield from read_batches(source.path, size, name=source.name)
        return
    from tunesmith.starter import reports

    rows = enumerate(reports.rows(source.split))
    while block := list(islice(rows, size)):
        yield ParsedBatch("starter", [(row["id"], row) for _, row in block])


def _reading(data: Data, number: int, source: SourceFile) -> tuple[Reading, list[Example]]:
    """How a source is read, which its first rows tell; and these."""
    manner = Manner.of(data)
    if source.path is None:
        manner = Manner(
            "instruction",
            data.system,
            data.instruction_role,
            group=data.split.group,
            stratify=data.split.stratify,
        )
    first = list(next(raw_batches(source)).rows())
    manner = replace(manner, format=format_of(first, manner))
    reading = Reading(number, SPLITS.index(source.split), manner, part=source.part)
    return reading, list(_sound(first, manner))


def _sound(rows: Sequence[tuple[str, object]], manner: Manner) -> Iterator[Example]:
    for place, row in rows:
        if isinstance(row, dict):
            try:
                yield from row_examples(row, place, manner)
            except BadRow:
                continue


def _add(taken: Taken, reading: Reading, at: int, writer: PoolWriter, into: Ingested) -> None:
    writer.rows.append(taken.text, taken.lines, taken.ids, taken.learned, taken.facts["tokens"])
    writer.facts.append(taken.facts)
    writer.signatures.append(taken.signatures)
    into.seen[reading.number] += taken.seen
    into.left_out += taken.left_out
    into.overlong += taken.overlong
    into.trimmed += taken.trimmed
    for rule, number, identity in taken.broken:
        into.broken.setdefault(rule, []).append((at + number, identity))


def _tell(unread: object, place: str, check: str, detail: str) -> None:
    line = json.dumps({"check": check, "source": place, "detail": detail}, ensure_ascii=False)
    unread.write(line + "\n")  # type: ignore[attr-defined]


# ---- workers


def _all_taken(
    batches: Iterator[tuple[RawBatch, Reading]], encoder: tuple[Contract, int, bool], workers: int
) -> Iterator[tuple[Reading, Taken]]:
    """Every batch's outcome, in order."""
    numbered = ((batch, reading, number * BATCH < DIRECT) for number, (batch, reading) in enumerate(batches))
    if workers == 1:
        alone = Encoder(*encoder)
        for batch, reading, direct in numbered:
            yield reading, alone.take(batch, reading, direct)
        return
    # spawned, not forked: this process may have threads of a tokenizer or of torch
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=encoder
    ) as pool:
        waiting: deque[tuple[Reading, Future[Taken]]] = deque()
        for batch, reading, direct in numbered:
            waiting.append((reading, pool.submit(_take, batch, reading, direct)))
            if len(waiting) > 3 * workers:
                reading, future = waiting.popleft()
                yield reading, future.result()
        for reading, future in waiting:
            yield reading, future.result()


_encoder: Encoder | None = None


def _start(contract: Contract, max_length: int, trim: bool) -> None:
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = (
        "false"  # a worker a core; threads would only get into each other's way
    )
    _encoder = Encoder(contract, max_length, trim)


def _take(batch: RawBatch, reading: Reading, direct: bool) -> Taken:
    assert _encoder is not None
    return _encoder.take(batch, reading, direct)


def default_workers() -> int:
    """As many processes as the machine gives this one cores, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores))
