"""Weights: how often each training row is read in an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.pool import AFFIXES, NAME, Pool
from tunesmith.data.sources import SourceFile
from tunesmith.errors import RowError
from tunesmith.rows import copy_rows

_ODD = np.uint64(0x9E3779B97F4A7C15)


def times(pool: Pool, rows: NDArray[np.int64], sources: Sequence[SourceFile], seed: int) -> NDArray[np.int64]:
    """How often each of these rows is read; a fraction takes the same rows every time."""
    weights = np.array([source.weight for source in sources])[pool.facts["source"][rows]]
    if (weights == 1).all():
        return np.ones(len(rows), np.int64)
    mixed = pool.facts["prompt"][rows] ^ pool.facts["id"][rows] ^ np.uint64(seed)
    mixed = (
        mixed ^ (mixed >> np.uint64(29))
    ) * _ODD  # a multiplicative hash: the order of rows plays no part
    draw = (mixed >> np.uint64(11)).astype(np.float64) / 2**53
    found: NDArray[np.int64] = np.floor(weights).astype(np.int64) + (draw < weights % 1)
    return found


def drawn(
    pool: Pool, sources: Sequence[SourceFile], seed: int, folder: Path
) -> tuple[Pool, NDArray[np.int64]]:
    """The rows that are read at all, and their numbers in `pool`: what a weight leaves out leaks and repeats nothing.

    RowError where a weight leaves no row of its source.
    """
    if all(source.weight >= 1 for source in sources):
        return pool, np.arange(len(pool))
    kept = np.flatnonzero(times(pool, np.arange(len(pool)), sources, seed))
    left = np.bincount(pool.facts["source"][kept], minlength=len(sources))
    for number, rows in enumerate(np.bincount(pool.facts["source"], minlength=len(sources)).tolist()):
        if rows and not left[number]:
            one = sources[number]
            raise RowError(
                f"weight {one.weight} of {one.name} leaves none of its {rows} rows",
                where="data.train",
                fix=f"a weight of {2 / rows:.2g} leaves some two of them; or remove the source",
            )
    folder.mkdir()
    copy_rows(pool.rows, kept, folder, NAME)
    np.save(folder / f"{NAME}.facts.npy", pool.facts[kept])
    np.save(folder / f"{NAME}.signatures.npy", pool.signatures[kept].ravel())
    pool.affixes.write(folder / AFFIXES)
    return Pool(folder), kept
