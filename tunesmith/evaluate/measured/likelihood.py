"""How surprised a model is at the gold answers, and at the worse answers of pairs: nats per row.

Only the answer's own tokens count. The terminator is left out: a tuned model knows the template's end and its base
does not, which alone would look like a large gain. Sums are over rows; the division happens once, in score.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
    return [
        _gold_row(number, rows.ids(number).tolist(), rows.learned(number).tolist(), contract)
        for number in numbers
    ]


def _gold_row(number: int, ids: list[int], learned: list[bool], contract: Contract) -> GoldRow:
    # a learned stop id is the template's terminator: control tokens within an answer are refused in prepare
    scored = [
        is_learned and one not in contract.stop_ids for one, is_learned in zip(ids, learned, strict=True)
    ]
    text = "".join(contract.decode(run) for run in _runs(ids, scored))
    return GoldRow(number, ids, scored, len(text.encode("utf-8", "surrogatepass")))


def rejected_rows(rows: Rows, numbers: Sequence[int], contract: Contract) -> list[GoldRow]:
    """The same rows with the worse answer of each pair behind the same prompt; rows without one are left out."""
    made = []
    for number in numbers:
        example = rows.example(number)
        if example.rejected is None:
            continue
        last = replace(example.messages[-1], content=example.rejected)
        encoded = contract.encode(replace(example, messages=(*example.messages[:-1], last)))
        ids, learned = list(encoded.ids), list(encoded.learned)
        made.append(_gold_row(number, ids, learned, contract))
    return made


@dataclass(frozen=True)
class Measured:
    """What is measured of every model: the rows to score, and their nats by system."""

    gold: Sequence[GoldRow]
    rejected: Sequence[GoldRow]
    nats: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    """System → nats of each gold and of each rejected row."""

    @classmethod
    def of(cls, rows: Rows, numbers: Sequence[int], contract: Contract) -> Measured:
        """Nothing measured yet."""
        return cls(gold_rows(rows, numbers, contract), rejected_rows(rows, numbers, contract))

    def measure(self, system: str, engine: Engine) -> None:
        """Scores all rows."""
        self.nats[system] = nats(engine, self.gold), nats(engine, self.rejected)

    def lines(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Lines of report/likelihood.jsonl: {id, bytes, tokens, nll: {system: nats}}; of a pair the three also as
        rejected_bytes, rejected_tokens, rejected_nll."""
        worse = {row.number: place for place, row in enumerate(self.rejected)}
        made = []
        for i, (identity, row) in enumerate(zip(ids, self.gold, strict=True)):
            line = {"id": identity, **_line(row, {name: each[0][i] for name, each in self.nats.items()})}
            if row.number in worse:
                j = worse[row.number]
                found = _line(self.rejected[j], {name: each[1][j] for name, each in self.nats.items()})
                line |= {f"rejected_{key}": value for key, value in found.items()}
            made.append(line)
        return made


def _line(row: GoldRow, nll: Mapping[str, float]) -> dict[str, Any]:
    return {"bytes": row.bytes, "tokens": row.tokens, "nll": dict(nll)}


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
