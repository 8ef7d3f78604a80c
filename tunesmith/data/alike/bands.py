"""Rows whose signatures agree in a whole band: what near.py looks at more closely."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.alike.minhash import EMPTY, HASHES, similarity
from tunesmith.data.alike.shingles import mix
from tunesmith.data.alike.stored_rows import StoredRows

DEPTH = 7  # places of a band
BANDS = HASHES // DEPTH
CROWD = 16  # rows that agree in a band, up to which all of them are compared with each other
LEADERS = 32  # of more than CROWD rows: so many are compared with the others
KEPT = 8  # rows that a row of a crowd is compared with beside its leaders: those that look most like it
_WORK = 1 << 21  # comparisons with leaders in one band's group of rows, at most
_AT_ONCE = 2  # bands whose keys are in memory: each needs a pass over the signatures
_PLACES_AT_ONCE = 8  # likewise, of a crowd's single places
_BLOCK = 1 << 13  # rows read in order at a time
_SALT = mix(np.arange(1, HASHES + 1, dtype=np.uint64)) | np.uint64(1)


class Bands:
    """Candidates among the rows of `signatures` [rows, HASHES]."""

    def __init__(self, signatures: StoredRows, threshold: float) -> None:
        self.signatures = signatures
        # three standard errors: one near pair in a thousand looks less alike, one far pair in a thousand more
        margin = 3 * math.sqrt(threshold * (1 - threshold) / HASHES)
        self.floor, self.sure = threshold - margin, threshold + margin
        self.rows: NDArray[np.int32] | None = None  # those that still take part; None: all
        self.wordless = np.zeros(0, np.int32)
        self.bits = np.uint64(max(len(signatures) - 1, 1).bit_length())

    def twins(self) -> NDArray[np.uint64]:
        """Rows of equal signatures, each with the first of them, as packed pairs; only the first takes part then.

        Rows without words are in none of them; `wordless` names them.
        """
        packed = self._keys(slice(0, HASHES), 1)[0]
        packed.sort()
        row = self._row(packed)
        starts = _starts(packed >> self.bits)
        first = np.repeat(row[starts], np.diff(starts, append=len(row)))
        alike = np.flatnonzero(row != first)
        alike = alike[self._similar(first[alike], row[alike], 1.0)]
        taking = np.zeros(len(self.signatures), dtype=bool)
        taking[row] = True
        taking[row[alike]] = False
        self.rows = np.flatnonzero(taking).astype(np.int32)
        taking[row] = True
        self.wordless = np.flatnonzero(~taking).astype(np.int32)
        return pack(first[alike], row[alike])

    def candidates(self, crowded: NDArray[np.bool_]) -> Iterator[NDArray[np.uint64]]:
        """Packed pairs of rows whose signatures are alike, a band at a time.

        Sets `crowded` for rows that agree with so many others that they weren't compared with all of them, and may be
        near one that is not yet their pair.
        """
        for band in range(0, BANDS, _AT_ONCE):
            count = min(_AT_ONCE, BANDS - band)
            keys = self._keys(slice(band * DEPTH, (band + count) * DEPTH), count)
            for packed in keys:
                packed.sort()  # the row in the low bits: equal keys stand in the order of rows
                yield self._of_band(packed, crowded)

    def _of_band(self, packed: NDArray[np.uint64], crowded: NDArray[np.bool_]) -> NDArray[np.uint64]:
        top = packed >> self.bits
        equal = top[1:] == top[:-1]
        member = np.zeros(len(packed), dtype=bool)
        member[1:] = equal
        member[:-1] |= equal
        row, top = self._row(packed[member]), top[member]
        if not len(row):
            return np.zeros(0, np.uint64)
        starts = _starts(top)
        size = np.diff(starts, append=len(row))
        found = [
            self._follow(rows, crowded)
            for rows in (row[starts[i] : starts[i] + size[i]] for i in np.flatnonzero(size > CROWD))
        ]
        small = np.repeat(size <= CROWD, size)
        row, top = row[small], top[small]
        for at, distance in _beside(top):
            near = at[self._similar(row[at], row[at + distance], self.floor)]
            found.append(pack(row[near], row[near + distance]))
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)

    def _follow(self, rows: NDArray[np.int32], crowded: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """The first row with all that are like it, then the first of those left, up to LEADERS."""
        found = []
        left = rows
        work = leaders = 0
        unsure = False
        while len(left) > 1 and leaders < LEADERS and work < _WORK:
            leader, left = left[0], left[1:]
            leaders += 1
            work += len(left)
            alike = self._alike(np.full(len(left), leader), left)
            like = alike >= self.floor
            unsure |= bool((like & (alike < self.sure)).any())
            found.append(pack(np.full(int(like.sum()), leader), left[like]))
            left = left[~like]
        if unsure or len(left) > 1:
            crowded[rows] = True
        return np.concatenate(found)

    def of_crowd(self, crowded: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """Packed pairs among the crowded rows: each row with the KEPT that look most like it.

        Rows that share a form agree in bands because of it. What tells them apart are the values of single places
        that few of the crowd have: rows are looked at together where they have one in common.
        """
        self.rows = np.flatnonzero(crowded).astype(np.int32)
        # a byte says nearly as much as the whole: of places that differ, 1 in 256 looks equal
        low = np.empty((len(self.rows), HASHES), np.uint8)
        for start in range(0, len(low), _BLOCK):
            low[start : start + _BLOCK] = self.signatures.take(self.rows[start : start + _BLOCK])
        alike = np.zeros((len(low), KEPT), np.uint8)
        other = np.full((len(low), KEPT), -1, np.int32)
        few = max(CROWD, len(low) // CROWD)
        for place in range(0, HASHES, _PLACES_AT_ONCE):
            for packed in self._keys(slice(place, place + _PLACES_AT_ONCE), _PLACES_AT_ONCE):
                packed.sort()
                top = packed >> self.bits
                size = np.diff(_starts(top), append=len(top))
                rare = np.repeat(size <= few, size)
                row, top = np.searchsorted(self.rows, self._row(packed[rare])), top[rare]
                for at, distance in _beside(top):
                    a, b = row[at], row[at + distance]
                    equal = _equal_places(low, a, b)
                    near = equal >= self.floor * HASHES
                    a, b, equal = a[near], b[near], equal[near]
                    _keep(alike, other, a, b, equal)
                    _keep(alike, other, b, a, equal)
        row, slot = np.nonzero(other >= 0)
        return pack(self.rows[row], self.rows[other[row, slot]])

    def _similar(self, a: NDArray[np.int32], b: NDArray[np.int32], floor: float) -> NDArray[np.bool_]:
        """Whether rows a[i] and b[i] look at least `floor` alike."""
        return self._alike(a, b) >= floor

    def _alike(self, a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.float32]:
        """How alike rows a[i] and b[i] look."""
        alike = np.empty(len(a), np.float32)
        for start in range(0, len(a), _BLOCK):
            part = slice(start, start + _BLOCK)
            alike[part] = similarity(self.signatures.take(a[part]), self.signatures.take(b[part]))
        return alike

    def _keys(self, places: slice, count: int) -> NDArray[np.uint64]:
        """Of each row with words, for `count` bands in `places`: the band's hash, the row's number in its low bits."""
        total = len(self.signatures) if self.rows is None else len(self.rows)
        keys = np.empty((count, total), np.uint64)
        salt = _SALT[places]
        filled = 0
        row: NDArray[np.integer[Any]]
        for start in range(0, len(self.signatures), _BLOCK):
            block = self.signatures.block(start, start + _BLOCK)
            if self.rows is None:
                row = np.flatnonzero(block[:, 0] != EMPTY)
            else:
                a, b = np.searchsorted(self.rows, [start, start + len(block)])
                row = self.rows[a:b] - start
            hashed = (
                (block[:, places][row].astype(np.uint64) * salt)
                .reshape(len(row), count, len(salt) // count)
                .sum(2)
            )
            hashed = mix(hashed) >> self.bits << self.bits | (row + start).astype(np.uint64)[:, None]
            keys[:, filled : filled + len(row)] = hashed.T
            filled += len(row)
        return keys[:, :filled]

    def _row(self, packed: NDArray[np.uint64]) -> NDArray[np.int32]:
        return (packed & np.uint64((1 << int(self.bits)) - 1)).astype(np.int32)


def _starts(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each run of equal keys begins."""
    return np.flatnonzero(np.concatenate([[len(keys) > 0], keys[1:] != keys[:-1]]))


def _beside(keys: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Places i and a distance d, up to CROWD, for which keys[i + d], of sorted keys, is keys[i]."""
    at = np.arange(len(keys))
    for distance in range(1, CROWD):
        at = at[at < len(keys) - distance]
        at = at[keys[at] == keys[at + distance]]
        if not len(at):
            return
        yield at, distance


def _equal_places(low: NDArray[np.uint8], a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.uint8]:
    """In how many places rows a[i] and b[i] of `low` agree."""
    equal = np.empty(len(a), np.uint8)  # 128 places: fits
    for start in range(0, len(a), _BLOCK):
        part = slice(start, start + _BLOCK)
        equal[part] = np.count_nonzero(low[a[part]] == low[b[part]], axis=1)
    return equal


def _keep(
    alike: NDArray[np.uint8],
    other: NDArray[np.int32],
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    equal: NDArray[np.uint8],
) -> None:
    """Row b[i] among the KEPT of row a[i], each of which stands in `a` once, if it is more alike than one of them."""
    slot = alike[a].argmin(axis=1)
    new = (equal > alike[a, slot]) & (other[a] != b[:, None]).all(axis=1)
    alike[a[new], slot[new]], other[a[new], slot[new]] = equal[new], b[new]


def pack(a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Both rows in one number, the lower first."""
    low, high = np.minimum(a, b).astype(np.uint64), np.maximum(a, b).astype(np.uint64)
    return low << np.uint64(32) | high
