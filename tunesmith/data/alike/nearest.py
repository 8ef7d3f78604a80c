"""How alike a held-out row and the training row nearest to it are: the figure behind "leaks" in the report.

Up to EXACT training rows are compared one and all, by a sparse product of their shingles. Beyond that the signatures
choose: each held-out row's FINALISTS by estimate are read and compared exactly. What is reported is then the exact
similarity of a training row, and at most a little below the highest one. Of many held-out rows, SAMPLE are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.alike.minhash import EMPTY
from tunesmith.data.alike.shingles import mix, shingle_hashes
from tunesmith.data.alike.stored_rows import StoredRows

SAMPLE = 500  # held-out rows, at most
EXACT = 20_000  # training rows, at most
FINALISTS = 8
_TEXTS = 512  # texts in memory at once
_BLOCK = 1 << 15  # signatures in memory at once


@dataclass(frozen=True)
class Nearest:
    """Each looked-at row with the row nearest to it."""

    rows: NDArray[np.int64]
    """The held-out rows that were looked at."""
    nearest: NDArray[np.int64]
    """The training row that is nearest to each of them; -1 where none shares anything."""
    similarity: NDArray[np.float64]
    """Exact Jaccard similarity of the two texts."""
    of: int
    """Held-out rows there are."""
    exact: bool
    """All training rows were compared; else those that the signatures chose."""

    def at_least(self, similarity: float) -> int:
        """Rows as near as that."""
        return int((self.similarity >= similarity - 1e-9).sum())


def nearest_similarity(
    queries: NDArray[np.integer[Any]],
    corpus: NDArray[np.integer[Any]],
    text_of: Callable[[int], str],
    signatures: NDArray[np.uint32] | None = None,
) -> Nearest:
    """For the rows `queries` (held out) the nearest of the rows `corpus` (train), by the texts that `text_of` gives.

    Without `signatures` (of the same texts, a line for each row number) all of `corpus` are read and compared.
    """
    train: NDArray[np.int64] = corpus.astype(np.int64)
    looked: NDArray[np.int64] = queries.astype(np.int64)
    if len(queries) > SAMPLE:  # always the same ones
        looked = np.sort(looked[np.argsort(mix(looked.astype(np.uint64)), kind="stable")[:SAMPLE]])
    texts = [text_of(int(row)) for row in looked]
    if signatures is None or len(train) <= EXACT:
        similarity, at = nearest_texts(texts, (text_of(int(row)) for row in train))
        nearest = np.where(at >= 0, train[at] if len(train) else -1, -1)
        return Nearest(looked, nearest, similarity, len(queries), exact=True)
    finalists = _finalists(signatures, looked, train)
    similarity = np.zeros(len(looked))
    nearest = np.full(len(looked), -1)
    for i, (text, rows) in enumerate(zip(texts, finalists, strict=True)):
        highest, _ = nearest_texts([text_of(int(row)) for row in rows], [text])
        if len(rows) and highest.max() > 0:
            similarity[i], nearest[i] = highest.max(), rows[highest.argmax()]
    return Nearest(looked, nearest, similarity, len(queries), exact=False)


def nearest_texts(
    queries: Sequence[str], corpus: Iterator[str] | Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For each query the highest exact Jaccard similarity to a text of `corpus`, and its index (-1: none above 0)."""
    rows, hashes, sizes = _sets(queries)
    known = np.unique(hashes)
    asked = _matrix(rows, np.searchsorted(known, hashes), (len(queries), len(known)))
    best = np.zeros(len(queries))
    at = np.full(len(queries), -1)
    start = 0
    for texts in _chunks(corpus):
        rows, hashes, counts = _sets(texts)
        column = np.searchsorted(known, hashes)
        column[column == len(known)] = 0
        hit = known[column] == hashes if len(known) else np.zeros(0, bool)
        both = (asked @ _matrix(column[hit], rows[hit], (len(known), len(texts)))).tocoo()
        alike = both.data / (sizes[both.row] + counts[both.col] - both.data)
        order = np.lexsort((both.col, -alike, both.row))  # the first of equals
        first = order[np.unique(both.row[order], return_index=True)[1]]
        better = first[alike[first] > best[both.row[first]]]
        best[both.row[better]], at[both.row[better]] = alike[better], start + both.col[better]
        start += len(texts)
    return best, at


def _finalists(
    signatures: NDArray[np.uint32], queries: NDArray[np.int64], corpus: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """For each query the rows of `corpus` whose signatures are most like its own, by the low byte of each place.

    A byte says nearly as much as the whole (Li, König 2010): of places that differ, 1 in 256 looks equal.
    """
    kept: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = [
        (np.zeros(0, np.uint8), np.zeros(0, np.int64)) for _ in queries
    ]
    with StoredRows(signatures) as stored:
        asked = stored.take(queries)
        worded = asked[:, 0] != EMPTY
        for start in range(0, len(corpus), _BLOCK):
            rows = corpus[start : start + _BLOCK]
            block = _taken(stored, rows)
            rows, block = rows[block[:, 0] != EMPTY], block[block[:, 0] != EMPTY]
            places = np.ascontiguousarray(block.T.astype(np.uint8))
            equal = np.empty(len(rows), bool)
            for query in np.flatnonzero(worded):
                count = np.zeros(len(rows), np.uint8)  # 128 places: fits
                for place, value in zip(places, asked[query].astype(np.uint8), strict=True):
                    np.equal(place, value, out=equal)
                    count += equal.view(np.uint8)
                old_count, old_rows = kept[query]
                floor = old_count.min() if len(old_count) == FINALISTS else 0
                over = np.flatnonzero(count > floor)
                counts = np.concatenate([old_count, count[over]])
                order = np.argsort(-counts.astype(np.int16), kind="stable")[:FINALISTS]
                kept[query] = counts[order], np.concatenate([old_rows, rows[over]])[order]
    return [rows for _, rows in kept]


def _taken(stored: StoredRows, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Signatures of rows in ascending order, of which most stand beside each other."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first < 4 * len(rows) and (np.diff(rows) > 0).all():
        block: NDArray[np.uint32] = stored.block(first, last + 1)[rows - first]
        return block
    taken: NDArray[np.uint32] = stored.take(rows)
    return taken


def _sets(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]:
    """Each distinct shingle of each text: the text, the shingle; and how many a text has."""
    hashes, begins = shingle_hashes(texts)
    rows = np.repeat(np.arange(len(texts)), np.diff(begins))
    order = np.lexsort((hashes, rows))
    rows, hashes = rows[order], hashes[order]
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:] != rows[:-1]) | (hashes[1:] != hashes[:-1])
    return rows[new], hashes[new], np.bincount(rows[new], minlength=len(texts))


def _matrix(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> Any:
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape=shape)


def _chunks(texts: Iterator[str] | Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == _TEXTS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
