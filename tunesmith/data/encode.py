"""One batch of raw rows to token ids, facts and signatures: what a worker process does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.contract import Contract, Encoded
from tunesmith.data.alike.near import signatures
from tunesmith.data.compared import NO_AFFIXES, Affixes, compared_text
from tunesmith.data.fit import pieces, trimmed
from tunesmith.data.formats.examples import BadRow, Manner, row_examples
from tunesmith.data.overlong import Overlong, answer_begins
from tunesmith.data.pool import DIRECT, FACTS, PLAIN, SEVERAL, facts_of
from tunesmith.data.proofs import EVERY, Rules
from tunesmith.data.read.batch import RawBatch
from tunesmith.errors import RowError
from tunesmith.example import Example
from tunesmith.rows import row_line


class Reading(NamedTuple):
    """How the rows of one source are read."""

    number: int
    given: int
    """0 train, 1 validation, 2 test: the split that the recipe names them for."""
    manner: Manner
    affixes: Affixes = NO_AFFIXES
    """What is no part of what makes two rows alike: the same for all sources."""
    part: str = ""
    """A slice `source` of every row, where its split has several sources."""


@dataclass
class Taken:
    """What became of a batch."""

    seen: int = 0
    left_out: int = 0
    """Rows of which a processor made nothing."""
    bad: list[tuple[str, BadRow]] = field(default_factory=list)
    overlong: list[Overlong] = field(default_factory=list)
    """Rows over the limit."""
    trimmed: list[int] = field(default_factory=list)
    """Tokens cut from each shortened row."""
    text: bytes = b""
    lines: list[int] = field(default_factory=list)
    ids: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    learned: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    facts: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, FACTS))
    signatures: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    broken: list[tuple[str, int, str]] = field(default_factory=list)
    """Rule, place in this batch and id of rows that break a rule of the contract."""


class Encoder:
    """Takes batches; one in each worker."""

    def __init__(self, contract: Contract, max_length: int, trim: bool) -> None:
        self._contract, self._most, self._trim = contract, max_length, trim
        self._rules = Rules(contract)

    def take(self, batch: RawBatch, reading: Reading, direct: bool) -> Taken:
        """Parses, encodes and looks at the rows of `batch`. `direct`: every prompt is encoded by itself too."""
        taken = Taken()
        examples = list(self._examples(batch, reading, taken))
        kept: list[tuple[Example, Encoded]] = []
        for example, encoded in zip(examples, self._contract.encode_batch(examples), strict=True):
            if isinstance(encoded, RowError):
                taken.bad.append(
                    (
                        example.source,
                        BadRow(f"{encoded.what} ({encoded.fix})" if encoded.fix else encoded.what),
                    )
                )
            elif example.is_text:
                kept += pieces(self._contract, example, encoded, self._most)
            elif len(encoded.ids) <= self._most:
                kept.append((example, encoded))
            elif self._trim and (fitting := trimmed(self._contract, example, encoded, self._most)):
                taken.trimmed.append(len(encoded.ids) - len(fitting[1].ids))
                kept.append(fitting)
            else:
                taken.overlong.append(Overlong.of(example, encoded, self._most))
        self._keep(kept, reading, direct, taken)
        return taken

    def _examples(self, batch: RawBatch, reading: Reading, taken: Taken) -> Iterator[Example]:
        for place, row in batch.rows():
            taken.seen += 1
            try:
                if isinstance(row, str):
                    raise BadRow(row)
                made = row_examples(row, place, reading.manner)
            except BadRow as error:
                taken.bad.append((place, error))
                continue
            taken.left_out += not made
            for one in made:
                yield replace(one, slices={"source": reading.part, **one.slices}) if reading.part else one

    def _keep(
        self, kept: list[tuple[Example, Encoded]], reading: Reading, direct: bool, taken: Taken
    ) -> None:
        lines: list[bytes] = []
        facts: list[tuple[int, ...]] = []
        texts: list[str] = []
        for number, (example, encoded) in enumerate(kept):
            by_itself = direct or number % EVERY == 0
            for rule in self._rules.broken(example, encoded, by_itself):
                taken.broken.append((rule, number, example.id))
            lines.append(row_line(example))
            texts.append(compared_text(example, reading.affixes))
            learned = sum(encoded.learned)
            begin = answer_begins(encoded.learned)
            marks = PLAIN * example.is_text | DIRECT * by_itself | SEVERAL * (True in encoded.learned[:begin])
            facts.append(
                facts_of(
                    example, texts[-1], reading.manner.stratify, reading.given, reading.number,
                    len(encoded.ids), begin, learned, marks,
                )
            )  # fmt: skip
        taken.text, taken.lines = b"".join(lines), [len(line) for line in lines]
        taken.facts = np.array(facts, dtype=FACTS)
        if kept:
            taken.ids = np.concatenate([np.array(encoded.ids, dtype=np.int32) for _, encoded in kept])
            taken.learned = np.concatenate([np.array(encoded.learned, dtype=np.bool_) for _, encoded in kept])
            taken.signatures = signatures(texts).ravel()
