"""Rows that a split never parts: those of one document, of one prompt, and near-duplicates, and all that these link."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.alike.shingles import mix
from tunesmith.data.pool import hash_text

_NO_DOCUMENT = np.array([0, hash_text("")], np.uint64)


@dataclass(frozen=True)
class Units:
    """The rows to be shared out, as units."""

    of_row: NDArray[np.int64]
    """The unit of each row."""
    place: NDArray[np.uint64]
    """Of each unit: its place in the draw, by its rows' prompts and the seed alone."""
    size: NDArray[np.int64]
    """Rows of each unit."""
    kind: NDArray[np.int64]
    """Of each unit: which set of strata its rows have, numbered."""
    kind_hash: NDArray[np.uint64]
    """Of each such set: a number that doesn't hang on the order of rows."""
    strata: NDArray[np.int64]
    """Of each row: its stratum, numbered."""


def link(facts: NDArray[np.void], pairs: NDArray[np.int32]) -> NDArray[np.int32]:
    """For each row a number that rows have in common which may not be parted."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    named = np.flatnonzero(~np.isin(facts["document"], _NO_DOCUMENT)).astype(np.int32)
    edges = [
        _chain(facts["document"][named], named),
        _chain(facts["prompt"], np.arange(len(facts), dtype=np.int32)),
        pairs.reshape(-1, 2).T.astype(np.int32),
    ]
    a, b = np.concatenate(edges, axis=1)
    del edges
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(len(facts), len(facts)))
    labels: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return labels


def units_of(facts: NDArray[np.void], labels: NDArray[np.int32], seed: int) -> Units:
    """Rows of equal label as units. The seed and the rows' contents decide their places, not the rows' order."""
    of_row = np.unique(labels, return_inverse=True)[1].reshape(-1)
    count = int(of_row.max(initial=-1)) + 1
    salt = mix(np.array([seed % (1 << 64)], np.uint64))
    place = np.full(count, np.iinfo(np.uint64).max)
    np.minimum.at(place, of_row, mix(facts["prompt"] ^ salt))
    kind_of, kind, strata = _kinds(of_row, facts["stratum"], count)
    return Units(of_row, place, np.bincount(of_row, minlength=count), kind, mix(kind_of ^ salt), strata)


def _kinds(
    of_row: NDArray[np.int64], stratum: NDArray[np.uint64], count: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Hashes of the sets of strata that units have; each unit's set, numbered; each row's stratum, numbered."""
    names, strata = np.unique(stratum, return_inverse=True)
    strata = strata.reshape(-1)
    distinct = np.unique(of_row * len(names) + strata)
    sums = np.zeros(count, np.uint64)
    np.add.at(sums, distinct // max(len(names), 1), mix(names + np.uint64(1))[distinct % max(len(names), 1)])
    kind_of, kind = np.unique(sums, return_inverse=True)
    return kind_of, kind.reshape(-1), strata


def _chain(keys: NDArray[np.uint64], rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """Edges [2, n] that string rows of equal key together."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    equal = np.flatnonzero(ordered[1:] == ordered[:-1])
    return np.stack([rows[order[equal]], rows[order[equal + 1]]])
