"""The side of every row: train, validation or test.

Rows of one document, of one prompt and near-duplicates stand on one side (units.py). Units are drawn in an order that
their rows' hashes and the seed decide: validation takes from its front, test from its end, train keeps the rest. The
order of rows in their files changes nothing, and a row more or less moves few others.

Each set of strata that units have gets its share of its own where its units are small enough for that; the rest are
drawn together, each where it brings the strata nearer to their shares.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tunesmith.console import warn
from tunesmith.data.units import Units, link, units_of
from tunesmith.errors import RowError

SIDES = ("train", "validation", "test")
TOLERANCE = 0.1  # of what a side should get; further off is said


def split(
    facts: NDArray[np.void], pairs: NDArray[np.int32], shares: Mapping[str, float], seed: int
) -> NDArray[np.int8]:
    """The side of each row of `facts` (pool.FACTS): 0 train, 1 validation, 2 test.

    Rows that the recipe names for validation or test keep their side; `shares` ({"validation": 0.1, "test": 0.1}) of
    the rest are set aside. `pairs` [m, 2] are near-duplicates. A unit larger than a side's share stays in train.
    RowError where a side would be empty; a warning where one misses its share by more than TOLERANCE.
    """
    side: NDArray[np.int8] = facts["given"].astype(np.int8)
    free = np.flatnonzero(side == 0)
    wanted = {name: shares.get(name, 0.0) * len(free) for name in SIDES[1:]}
    if not any(wanted.values()):
        return _checked(side, shares)
    units = units_of(facts[free], link(facts, pairs)[free], seed)
    drawn = np.zeros(len(units.size), np.int8)
    for number, name in enumerate(SIDES[1:], 1):
        if wanted[name]:
            place = units.place if name == "validation" else ~units.place
            drawn[_draw(units, place, drawn == 0, shares[name])] = number
    side[free] = drawn[units.of_row]
    for number, name in enumerate(SIDES[1:], 1):
        _say_if_far(name, int(units.size[drawn == number].sum()), wanted[name], units)
    return _checked(side, shares, units)


def _draw(
    units: Units, place: NDArray[np.uint64], open_units: NDArray[np.bool_], share: float
) -> NDArray[np.int64]:
    """The units that a side of this share takes: of those open, in the order of `place`."""
    wanted = share * int(units.size.sum())
    order = np.lexsort((place, units.kind))
    order = order[open_units[order]]
    bounds = np.searchsorted(units.kind[order], np.arange(len(units.kind_hash) + 1))
    rows = np.bincount(units.kind, weights=units.size, minlength=len(units.kind_hash))
    taken: list[NDArray[np.int64]] = []
    rest: list[NDArray[np.int64]] = []
    exact = np.zeros(len(units.kind_hash))  # what the kinds drawn by themselves should get
    for kind in range(len(units.kind_hash)):
        mine = order[bounds[kind] : bounds[kind + 1]]
        exact[kind] = share * rows[kind]
        # rounded up or down by chance, so that many small kinds don't all lose the same half row
        quota = int(exact[kind] + units.kind_hash[kind] / 2**64)
        fitting = mine[units.size[mine] <= quota]
        if exact[kind] >= 1 and units.size[fitting].sum() >= 2 * quota:
            taken.append(fitting[_fill(units.size[fitting], quota)])
        else:
            rest.append(mine)
            exact[kind] = 0
    if rest:
        mixed = np.concatenate(rest)
        mixed = mixed[np.argsort(place[mixed], kind="stable")]
        taken.append(_balance(units, mixed, share, wanted - exact.sum(), wanted))
    drawn = np.concatenate(taken)
    if not len(drawn):  # every unit is larger than the side: the one that misses it least, if any comes near
        near = order[units.size[order] < 2 * wanted]
        drawn = near[np.lexsort((place[near], units.size[near]))][:1]
    return drawn


def _fill(sizes: NDArray[np.int64], quota: int) -> NDArray[np.int64]:
    """Units in their order as long as they fit; those that don't are passed over, unless the last brings it nearer."""
    left = np.arange(len(sizes))
    taken = [left[:0]]
    while quota > 0 and len(left):
        left = left[sizes[left] <= quota]
        upto = np.cumsum(sizes[left])
        count = int(np.searchsorted(upto, quota, side="right"))
        taken.append(left[:count])
        quota -= int(upto[count - 1]) if count else 0
        left = left[count + 1 :]
    # what is still free is larger than the gap, or there is no gap
    nearer = sizes < 2 * quota
    nearer[np.concatenate(taken)] = False
    return np.concatenate([*taken, np.flatnonzero(nearer)[:1]])


def _balance(
    units: Units, order: NDArray[np.int64], share: float, wanted: float, largest: float
) -> NDArray[np.int64]:
    """Units in their order, each if it brings the side's strata and its rows in all nearer to their shares."""
    number = np.full(len(units.size), -1)
    number[order] = np.arange(len(order))
    mine = number[units.of_row]
    strata = int(units.strata.max(initial=0)) + 1
    cells, counts = np.unique(mine[mine >= 0] * strata + units.strata[mine >= 0], return_counts=True)
    begins = np.searchsorted(cells, np.arange(len(order) + 1) * strata)
    missing = (share * np.bincount(cells % strata, weights=counts, minlength=strata)).tolist()
    stratum, rows = (cells % strata).tolist(), counts.tolist()
    taken: dict[int, None] = {}
    sizes = units.size[order].tolist()
    for strict in (
        True,
        False,
    ):  # first units of which every row is missing, then whatever does more good than harm
        for unit, size in enumerate(sizes):
            if wanted <= 0:
                break
            if size > largest or unit in taken:
                continue
            part = range(begins[unit], begins[unit + 1])
            gain = 0.0
            for at in part:
                gain += abs(missing[stratum[at]]) - abs(missing[stratum[at]] - rows[at])
            if gain > size - 1e-9 if strict else gain + abs(wanted) - abs(wanted - size) > 1e-9:
                taken[unit] = None
                wanted -= size
                for at in part:
                    missing[stratum[at]] -= rows[at]
    return order[np.array(list(taken), np.int64)]


def _say_if_far(name: str, rows: int, wanted: float, units: Units) -> None:
    if rows and abs(rows - wanted) > max(TOLERANCE * wanted, 2):
        large = int((units.size > wanted).sum())
        why = f"{large:,} of them larger than the side" if large else "none of them fits what is left"
        warn(
            f"split: {name} gets {rows:,} rows, {wanted:,.0f} were asked for. Rows that belong together (same "
            f"document, same prompt, near-duplicates) form {len(units.size):,} groups, the largest of "
            f"{int(units.size.max()):,} rows; {why}"
        )


def _checked(
    side: NDArray[np.int8], shares: Mapping[str, float], units: Units | None = None
) -> NDArray[np.int8]:
    """The sides, if none of those asked for is empty."""
    counts = np.bincount(side, minlength=3)
    for number, name in enumerate(SIDES):
        if counts[number] or not len(side) or (number and not shares.get(name)):
            continue
        groups = ""
        if units is not None:
            groups = (
                f": {int(units.size.sum()):,} rows to share out form {len(units.size):,} groups that stay together "
                f"(same document, same prompt, near-duplicates), the largest of {int(units.size.max(initial=0)):,} rows"
            )
        raise RowError(
            f"the split leaves no {name} rows" + groups,
            where="data.split",
            fix=f"give more rows, other shares, a file of its own (data.{name}), or a finer data.split.group",
        )
    return side
