"""Time and memory of near-duplicate search, and of the split that keeps near-duplicates together.

    python benchmarks/near_duplicates.py [--rows 390000] [--near 0.02] [--folder FOLDER]

Signatures of made-up rows lie in a memory-mapped file, 512 bytes a row; a share `near` of the rows is a copy of another
row with 2 of 150 words changed. Prints microseconds of one core per text of 1 KB for `signatures`; seconds, seconds of
one core and memory of `near_pairs`, `nearest_similarity` and `split`; and the share of planted pairs found. Memory is
what the largest moment held above what was held before, mapped pages included.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse.csgraph  # noqa: F401 (its own memory is no part of what is measured)
from numpy.typing import NDArray

from tunesmith.data.alike.minhash import HASHES, signatures
from tunesmith.data.alike.near import near_pairs, recall
from tunesmith.data.alike.nearest import nearest_similarity
from tunesmith.data.pool import FACTS
from tunesmith.data.split import split

WORDS = 150
BLOCK = 4096


class Rows:
    """Texts made from a row's number; every `step`-th row is its neighbour with some words changed."""

    def __init__(self, near: float) -> None:
        self.step = round(1 / near)

    def text(self, row: int) -> str:
        copy = row % self.step == 1
        words = np.random.default_rng(row - copy).integers(0, 30_000, WORDS).tolist()
        if copy:
            for at in np.random.default_rng(row).integers(0, WORDS, 2).tolist():
                words[at] = 30_001
        return " ".join(f"word{word}" for word in words)


def write_signatures(path: Path, count: int, rows: Rows) -> None:
    """Real signatures for the rows that have a copy and the copies; random ones for the rest."""
    noise = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, count, BLOCK):
            block = noise.integers(0, 1 << 32, (min(BLOCK, count - start), HASHES), np.uint32)
            twins = [i for i in range(len(block)) if (start + i) % rows.step < 2]
            block[twins] = signatures([rows.text(start + i) for i in twins])
            block.tofile(file)


def peak() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def facts_of(count: int) -> NDArray[np.void]:
    """Rows of documents of three, in five strata."""
    facts = np.zeros(count, dtype=FACTS)
    noise = np.random.default_rng(1)
    facts["prompt"] = noise.integers(0, 1 << 63, count)
    facts["document"] = np.arange(count) // 3 + 1
    facts["stratum"] = noise.integers(1, 6, count)
    return facts


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=390_000)
    parser.add_argument("--near", type=float, default=0.02)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    rows = Rows(options.near)

    texts = [rows.text(row * rows.step)[:1024] for row in range(2048)]
    cpu = time.process_time()
    signatures(texts)
    print(f"signatures: {(time.process_time() - cpu) / len(texts) * 1e6:.1f} us a row of 1 KB")

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "signatures"
        write_signatures(path, options.rows, rows)
        stored = np.memmap(path, dtype=np.uint32, mode="r").reshape(-1, HASHES)
        held, began, cpu = peak(), time.perf_counter(), time.process_time()
        pairs, similarity = near_pairs(stored, rows.text)
        took, core = time.perf_counter() - began, time.process_time() - cpu
        print(
            f"near_pairs: {options.rows:,} rows in {took:.1f} s ({core:.1f} of one core), {peak() - held:.0f} MB more "
            f"({(peak() - held) / options.rows * 2**20:.0f} bytes a row)"
        )
        first = np.arange(0, options.rows - 1, rows.step)
        hit = np.isin(first, pairs[pairs[:, 1] == pairs[:, 0] + 1][:, 0])
        middle = float(np.median(similarity))
        print(
            f"            {len(pairs):,} pairs, similarity {similarity.min():.2f} to {similarity.max():.2f}; "
            f"{hit.mean():.2%} of {len(first):,} planted (banding at {middle:.2f}: {recall(middle):.2%})"
        )
        held, began, cpu = peak(), time.perf_counter(), time.process_time()
        cut = options.rows // 10
        found = nearest_similarity(np.arange(cut), np.arange(cut, options.rows), rows.text, stored)
        print(
            f"nearest:    {len(found.rows)} of {found.of:,} rows beside {options.rows - cut:,} in "
            f"{time.perf_counter() - began:.1f} s ({time.process_time() - cpu:.1f} of one core), "
            f"{peak() - held:.0f} MB more; median {np.median(found.similarity):.2f}"
        )
    facts = facts_of(options.rows)
    held, began, cpu = peak(), time.perf_counter(), time.process_time()
    sides = split(facts, pairs, {"validation": 0.1, "test": 0.1}, seed=1)
    took, core = time.perf_counter() - began, time.process_time() - cpu
    print(
        f"split:      {options.rows:,} rows in {took:.1f} s ({core:.1f} of one core), {peak() - held:.0f} MB more; "
        f"shares {np.bincount(sides, minlength=3) / len(sides)}"
    )


if __name__ == "__main__":
    main()
