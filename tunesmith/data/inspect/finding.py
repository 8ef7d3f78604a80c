"""What the inspection says about single rows, and what each check and its level are."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from tunesmith.data.inspect.relations import Related
from tunesmith.data.pool import Pool
from tunesmith.recipe import Checks

CHAT = ("messages", "sharegpt", "preference")  # people's own words: numbers of people are an error there
_REMEMBERED = 100_000  # details that are looked up to be kept once


class Finding(NamedTuple):
    """One check that fires on one row. `detail` tells a person what to look at."""

    check: str
    row: int
    detail: str


CHECKS: dict[str, str] = {
    field.alias or name: (field.description or "").replace("\n", " ")
    for name, field in Checks.model_fields.items()
}
"""Every check in the recipe's spelling, with what it means."""


def levels(checks: Checks, chat: bool) -> dict[str, str]:
    """error, warn or ignore for every check; `phi: auto` is an error for `chat` (and preference) rows."""
    found = {field.alias or name: getattr(checks, name) for name, field in Checks.model_fields.items()}
    if found["phi"] == "auto":
        found["phi"] = "error" if chat else "warn"
    return found


class Findings:
    """All findings by check: some ten bytes each, for equal details are kept once and names of other rows are looked
    up when somebody reads them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._rows: dict[str, array[int]] = {check: array("i") for check in CHECKS}
        self._others: dict[str, array[int]] = {check: array("i") for check in CHECKS}  # -1: none
        self._details: dict[str, array[int]] = {check: array("i") for check in CHECKS}
        self._texts: dict[str, int] = {}
        self._by_number: list[str] = []

    def add(self, found: Iterable[tuple[str, int, str]]) -> None:
        """Takes (check, row, detail)."""
        for check, row, detail in found:
            self._rows[check].append(row)
            self._others[check].append(-1)
            self._details[check].append(self._number(detail))

    def relate(self, check: str, related: Related) -> None:
        """Rows that are like other rows, whose names end the detail."""
        alike = np.zeros(len(related.rows)) if related.alike is None else np.floor(related.alike * 100) / 100
        values, which = np.unique(alike, return_inverse=True)
        told = [related.detail.format(alike="" if np.isnan(one) else f" ({one:.2f})") for one in values]
        numbers = np.asarray([self._number(detail) for detail in told], np.int64)
        details = numbers[which] if len(told) else np.zeros(0, np.int64)
        for mine, new in (
            (self._rows, related.rows),
            (self._others, related.others),
            (self._details, details),
        ):
            mine[check].frombytes(new.astype(np.intc).tobytes())

    def rows(self, check: str) -> int:
        """Rows that the check names, each counted once."""
        return len(np.unique(np.asarray(self._rows[check])))

    def first(self, check: str, most: int | None = None) -> Iterator[Finding]:
        """Findings of one check in the order of rows, at most so many."""
        order = np.argsort(np.asarray(self._rows[check]), kind="stable")[:most]
        for place in map(int, order):
            detail = self._by_number[self._details[check][place]]
            other = self._others[check][place]
            if other >= 0:
                example = self._pool.example(other)
                detail = f"{detail} {example.source or example.id}"
            yield Finding(check, self._rows[check][place], detail)

    def __iter__(self) -> Iterator[Finding]:
        for check in CHECKS:
            yield from self.first(check)

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def _number(self, detail: str) -> int:
        number = self._texts.get(detail)
        if number is None:
            number = len(self._by_number)
            self._by_number.append(detail)
            if number < _REMEMBERED:
                self._texts[detail] = number
        return number
