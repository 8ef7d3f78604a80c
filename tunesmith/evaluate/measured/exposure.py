"""How likely a model finds the secrets that tasks/generated/canaries.py plants, among random ones of their kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from tunesmith import console
from tunesmith.contract import Contract
from tunesmith.engine.protocol import Engine
from tunesmith.evaluate.measured.likelihood import GoldRow, nats
from tunesmith.example import Example
from tunesmith.tasks.generated.canaries import CANDIDATES, Canary, canaries_in, candidates, rank_of

MOST = 48  # canaries that are measured, evenly over them


@dataclass(frozen=True)
class Exposures:
    """The canaries of a run and their ranks."""

    canaries: Sequence[Canary]
    contract: Contract
    seed: int
    ranks: dict[str, list[float]] = field(default_factory=dict)
    """System → rank of each secret, 1 the likeliest."""

    @classmethod
    def of(cls, train: Iterable[Example], contract: Contract, seed: int) -> Exposures:
        """Those among the training rows; none is the common case."""
        found = canaries_in(train)
        return cls(found[:: -(-len(found) // MOST) or 1], contract, seed)

    def measure(self, system: str, engine: Engine) -> None:
        """Ranks every secret; a pass over 256 short rows each."""
        if not self.canaries:
            return
        with console.progress(f"canaries {system}", total=len(self.canaries), unit="secrets") as bar:
            self.ranks[system] = []
            for canary in self.canaries:
                mine, *others = nats(engine, self._rows(canary))
                self.ranks[system].append(rank_of(mine, others))
                bar.update(1)

    def lines(self) -> list[dict[str, Any]]:
        """Lines of report/canaries.jsonl, without the secrets."""
        return [
            {
                "row": canary.example.id,
                "times": canary.times,
                "among": len(self._secrets(canary)),
                "rank": {system: ranks[i] for system, ranks in self.ranks.items()},
            }
            for i, canary in enumerate(self.canaries)
        ]

    def _secrets(self, canary: Canary) -> list[str]:
        return [canary.secret, *candidates(canary.secret, canary.pattern, CANDIDATES, self.seed)]

    def _rows(self, canary: Canary) -> list[GoldRow]:
        """The row with each secret, cut behind it; scored from the first token in which they differ."""
        *asked, last = canary.example.messages
        encoded = [
            self.contract.encode(
                replace(canary.example, messages=(*asked, replace(last, content=canary.before + secret)))
            )
            for secret in self._secrets(canary)
        ]
        ids = [list(one.ids) for one in encoded]
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False)))
        made = []
        for row, one in zip(ids, encoded, strict=True):
            scored = [
                learned and place >= shared and token not in self.contract.stop_ids
                for place, (token, learned) in enumerate(zip(row, one.learned, strict=True))
            ]
            made.append(GoldRow(0, row, scored, 0))
        return made
