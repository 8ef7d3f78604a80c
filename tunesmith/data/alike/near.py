"""Near-duplicate rows: texts that share most of their word 3-grams, found without comparing all with all.

Banding (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, ch. 3): the signature is cut into BANDS of DEPTH
places, rows that agree in a whole band are candidates, a look at both signatures drops most that are not alike, and
the rest are read and compared exactly. A pair of Jaccard similarity s is a candidate with 1 - (1 - s^DEPTH)^BANDS:
0.985 at 0.8, 0.999 at 0.85, 0.99999 at 0.9. Memory: about 50 bytes a row, however long the texts are.

Rows that share a form agree in bands by the hundred. They are looked at once more, by what few of them have
(`Bands.of_crowd`): about 300 bytes more for each such row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tunesmith.console import warn
from tunesmith.data.alike.bands import BANDS, DEPTH, Bands, pack
from tunesmith.data.alike.minhash import HASHES, signatures, similarity
from tunesmith.data.alike.shingles import jaccard, shingle_hashes, shingles
from tunesmith.data.alike.stored_rows import StoredRows

__all__ = ["HASHES", "jaccard", "near_pairs", "recall", "shingles", "signatures", "similarity"]

_PAIRS = 256  # pairs whose texts are in memory at once


def near_pairs(
    signatures: NDArray[np.uint32],
    text_of: Callable[[int], str],
    threshold: float = 0.8,
    *,
    same: NDArray[np.uint64] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Pairs of rows whose texts' Jaccard similarity is at least `threshold`: int32 [m, 2], lower row first, in order.

    `signatures` [rows, HASHES] of the texts that `text_of` gives, read in blocks. `same`: hashes of the texts; rows of
    equal hash are a pair of 1.0 and aren't read. Texts without words are pairs by it alone, unless it is 0 (nothing in
    them). Of many rows that are alike, each is paired with one at least and not with all of them: rows that hang
    together are the connected components of the pairs.
    """
    crowded = np.zeros(len(signatures), dtype=bool)
    with StoredRows(signatures) as stored:
        bands = Bands(stored, threshold)
        found = [bands.twins()]
        if same is not None:
            found.append(_chain(bands.wordless, same))
        found += bands.candidates(crowded)
        found.append(bands.of_crowd(crowded))
    packed = np.unique(np.concatenate(found))
    pairs = np.stack([packed >> np.uint64(32), packed & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int32)
    exact = _compare(pairs, text_of, same)
    near = exact >= threshold - 1e-9
    crowded[pairs[near]] = False
    if crowded.any():
        warn(
            f"near-duplicates: {crowded.sum():,} of {len(signatures):,} rows look like very many others (a text that "
            "all rows share?) and were compared only with the few that look most like them"
        )
    return pairs[near], exact[near].astype(np.float32)


def recall(similarity: float) -> float:
    """Share of the pairs of this Jaccard similarity that come to be compared."""
    return 1.0 - (1.0 - similarity**DEPTH) ** BANDS


def _chain(rows: NDArray[np.int32], same: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Packed pairs of `rows`: each of a hash other than 0 with the next of equal hash."""
    rows = rows[same[rows] != 0]
    rows = rows[np.argsort(same[rows], kind="stable")]
    equal = same[rows[1:]] == same[rows[:-1]]
    return pack(rows[:-1][equal], rows[1:][equal])


def _compare(
    pairs: NDArray[np.int32], text_of: Callable[[int], str], same: NDArray[np.uint64] | None
) -> NDArray[np.float64]:
    """Exact Jaccard similarity of each pair."""
    exact = np.ones(len(pairs))
    unknown = (
        np.arange(len(pairs)) if same is None else np.flatnonzero(same[pairs[:, 0]] != same[pairs[:, 1]])
    )
    for some in _by_cluster(pairs, unknown):
        rows, at = np.unique(pairs[some], return_inverse=True)
        hashes, begins = shingle_hashes([text_of(int(row)) for row in rows])
        sets = [frozenset(hashes[a:b].tolist()) for a, b in pairwise(begins)]
        for pair, (a, b) in zip(some, at.reshape(-1, 2), strict=True):
            both = len(sets[a] & sets[b])
            exact[pair] = both / max(len(sets[a]) + len(sets[b]) - both, 1)
    return exact


def _by_cluster(pairs: NDArray[np.int32], which: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """`which`, rows that hang together behind one another, so that a text is rarely read twice."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, at = np.unique(pairs[which], return_inverse=True)
    a, b = at.reshape(-1, 2).T
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(len(rows), len(rows)))
    cluster = connected_components(graph, directed=False)[1] if len(rows) else np.zeros(0, np.int32)
    order = np.lexsort((which, cluster[a]))
    for start in range(0, len(order), _PAIRS):
        yield which[order[start : start + _PAIRS]]
