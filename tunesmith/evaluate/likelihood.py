"""How surprised a model is at the gold answers: nats per row, for bits per byte and perplexity.

Only the answer's own tokens count. The terminator is left out: a tuned model knows the template's end and its base
does not, which alone would look like a large gain. Sums are over rows; the division happens once, in score.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.contract import Contract
from tunesmith.engine.protocol import Engine, pack_sequences
from tunesmith.rows import Rows

TOKENS = 4096  # of a batch; a longer row goes alone


@dataclass(frozen=True, slots=True)
class GoldRow:
    """A row with the mask of what is scored: learned tokens but for the terminators."""

    number: int
    ids: list[int]
    scored: list[bool]
    bytes: int
    """UTF-8 bytes of the scored text."""

    @property
    def tokens(self) -> int:
        """Tokens scored."""
        return sum(self.scored)


def gold_rows(rows: Rows, numbers: Sequence[int], contract: Contract) -> list[GoldRow]:
    """The rows `numbers` of a split."""
    made = []
    for number in numbers:
        ids, learned = rows.ids(number).tolist(), rows.learned(number).tolist()
        # a learned stop id is the template's terminator: control tokens within an answer are refused in prepare
        scored = [
            is_learned and one not in contract.stop_ids for one, is_learned in zip(ids, learned, strict=True)
        ]
        text = "".join(contract.decode(run) for run in _runs(ids, scored))
        made.append(GoldRow(number, ids, scored, len(text.encode("utf-8", "surrogatepass"))))
    return made


def nats(engine: Engine, gold: Sequence[GoldRow]) -> list[float]:
    """Sum of -ln p over the scored tokens of each row."""
    made = np.zeros(len(gold))
    for batch in _batches([len(row.ids) for row in gold]):
        packed = pack_sequences(
            [gold[i].ids for i in batch],
            [gold[i].scored for i in batch],
            [gold[i].number for i in batch],
            step=0,
        )
        nll_R, _ = engine.row_losses(packed)
        made[batch] = nll_R.numpy()
    return [float(value) for value in made]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in range(len(lengths)):
        if batch and sum(lengths[j] for j in batch) + lengths[i] > TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _runs(ids: Sequence[int], scored: Sequence[bool]) -> Iterator[list[int]]:
    """The answers of a row: neighbours among the scored tokens."""
    run: list[int] = []
    for one, keep in zip(ids, scored, strict=True):
        if keep:
            run.append(one)
        elif run:
            yield run
            run = []
    if run:
        yield run
