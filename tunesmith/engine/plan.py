"""The stored decision how a step's rows go through the model. No torch: `check` plans without it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Step(NamedTuple):
    """Tokens, and learned tokens, of the rows that a device works on in one optimiser step."""

    lengths: Sequence[int]
    learned: Sequence[int]


class Most(NamedTuple):
    """What no micro-batch of a run exceeds: tokens (cells, where rows are padded), learned tokens, rows."""

    tokens: int
    learned: int
    rows: int


def evenly(lengths: Sequence[int], bins: int) -> list[list[int]]:
    """The indices of rows by bin: the longest first into the emptiest, the first of several. A pure function.

    Every index is in exactly one bin, in ascending order; a bin is empty where there are more bins than rows.
    """
    if bins == 1:
        return [list(range(len(lengths)))]
    loads = [(0, n) for n in range(bins)]
    found: list[list[int]] = [[] for _ in range(bins)]
    for i in _longest_first(lengths):
        load, emptiest = loads[0]
        found[emptiest].append(i)
        heapq.heapreplace(loads, (load + lengths[i], emptiest))
    return [sorted(one) for one in found]


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


@dataclass(frozen=True, slots=True)
class MicroBatchPlan:
    """Which rows travel together and which layers recompute: decided once, stored in the Run, reused on resume.

    Either `tokens` (a budget per micro-batch) or `rows` (a count). `padded`: a micro-batch costs rows × longest.
    `recompute` says per layer "none" or "full" (the fused engine knows more levels); `note` says why; `gib` is the
    predicted peak (None: not known). For the fused engine, `images` layers keep dense images of quantised weights,
    micro-batches whose rows are all of `dense` tokens go through attention as a rectangle, and embedding and head may
    lie in host memory.
    """

    tokens: int | None
    rows: int | None
    recompute: tuple[str, ...]
    padded: bool = False
    gib: float | None = None
    note: str = ""
    images: int = 0
    dense: int | None = None
    outer_on_host: bool = False

    def split(self, lengths: Sequence[int]) -> list[list[int]]:
        """The indices of one step's rows, by micro-batch. A pure function of `lengths` and the plan."""
        if self.rows is not None:
            return [
                list(range(i, min(i + self.rows, len(lengths)))) for i in range(0, len(lengths), self.rows)
            ]
        assert self.tokens is not None
        if lengths and not self.padded and sum(lengths) <= self.tokens:
            return [list(range(len(lengths)))]
        if self.padded:
            return self._rectangles(_longest_first(lengths), lengths, self.tokens)
        fewest = min(-(-sum(lengths) // self.tokens), len(lengths))
        for count in range(max(1, fewest), len(lengths)):
            bins = evenly(lengths, count)
            if max(sum(lengths[i] for i in b) for b in bins) <= self.tokens:
                return bins
        return [[i] for i in _longest_first(lengths)]  # each alone: a row longer than the budget, too

    def most(self, steps: Iterable[Step]) -> Most:
        """The most that micro-batches of these steps hold, each of the three by itself."""
        most = Most(0, 0, 0)
        for lengths, learned in steps:
            for part in self.split(lengths):
                longest, total = max(lengths[i] for i in part), sum(lengths[i] for i in part)
                cells = longest * len(part) if self.padded else total
                own = (cells, sum(learned[i] for i in part), len(part))
                most = Most(*map(max, most, own))
        return most

    @staticmethod
    def _rectangles(longest_first: list[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
        """Neighbours in length share a rectangle of at most `tokens` cells (a longer row stands alone)."""
        bins: list[list[int]] = []
        for i in longest_first:
            if bins and lengths[bins[-1][0]] * (len(bins[-1]) + 1) <= tokens:
                bins[-1].append(i)
            else:
                bins.append([i])
        return bins

    def to_json(self) -> dict[str, Any]:
        """For the Run folder."""
        return {
            "tokens": self.tokens,
            "rows": self.rows,
            "recompute": list(self.recompute),
            "padded": self.padded,
            "gib": self.gib,
            "note": self.note,
            "images": self.images,
            "dense": self.dense,
            "outer_on_host": self.outer_on_host,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> MicroBatchPlan:
        """What `to_json` wrote."""
        return cls(**{**stored, "recompute": tuple(stored["recompute"])})
