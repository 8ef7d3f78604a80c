"""Lengths in tokens, and what a limit would cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.inspect.relations import SIDES
from tunesmith.data.overlong import LIMITS, Overlong
from tunesmith.data.pool import SEVERAL, Pool

_BINS = 40


def lengths(facts: NDArray[np.void], side: NDArray[np.int8]) -> dict[str, Any]:
    """Quantiles of each split in tokens: all, before the answer, learned; a histogram of all, equal edges."""
    longest = int(facts["tokens"].max(initial=1))
    edges = np.unique(np.linspace(0, longest + 1, _BINS + 1).round().astype(np.int64))
    found: dict[str, Any] = {}
    for number, name in enumerate(SIDES):
        rows = facts[side == number]
        if len(rows):
            found[name] = {
                "tokens": _quantiles(rows["tokens"]),
                "prompt": _quantiles(rows["prompt_tokens"]),
                "answer": _quantiles(rows["learned"]),
                "histogram": {
                    "edges": edges.tolist(),
                    "counts": np.histogram(rows["tokens"], edges)[0].tolist(),
                },
            }
    return found


def limits(pool: Pool, longer: Sequence[Overlong], max_length: int) -> list[dict[str, Any]]:
    """What cutting at the right would lose, for powers of two from 512 and for the recipe's own limit.

    `longer`: rows over the recipe's limit, which are not in the pool.

    over: rows that are longer. cue_cut: the prompt itself loses its end. answer_lost: nothing of the answer is left.
    answer_cut: the answer loses its end, and the model never learns to stop. answer_tokens_share: learned tokens lost.
    """
    facts = pool.facts
    if not len(facts) and not longer:
        return []
    tokens, before, learned = (
        np.concatenate([facts[name], np.array([getattr(one, name) for one in longer], np.int64)]).astype(
            np.int64
        )
        for name in ("tokens", "prompt_tokens", "learned")
    )
    known = (*LIMITS, max_length)
    sizes = [limit for limit in LIMITS if limit <= LIMITS[0] or limit < 2 * tokens.max()]
    several = np.flatnonzero(facts["marks"] & SEVERAL)
    found = []
    for limit in sorted({*sizes, max_length}):
        over = tokens > limit
        gone = np.clip(before + learned - limit, 0, learned)[: len(facts)]
        for row in several[over[several]]:  # what is learned before the last answer is not behind the limit
            gone[row] = pool.rows.learned(int(row))[limit:].sum()
        lost = int(gone.sum()) + sum(one.beyond[known.index(limit)] for one in longer)
        found.append(
            {
                "limit": limit,
                "over": int(over.sum()),
                "share": float(over.mean()),
                "answer_lost": int((over & (before >= limit)).sum()),
                "cue_cut": int((before > limit).sum()),
                "answer_cut": int((over & (before < limit)).sum()),
                "answer_tokens_share": lost / int(learned.sum()) if learned.sum() else 0.0,
            }
        )
    return found


def _quantiles(values: NDArray[np.int32]) -> dict[str, int]:
    points = np.percentile(values, (0, 50, 90, 99, 100), method="inverted_cdf")
    return dict(zip(("min", "p50", "p90", "p99", "max"), map(int, points), strict=True))
