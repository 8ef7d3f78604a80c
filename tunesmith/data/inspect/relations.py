"""Rows beside other rows: leaks across the split, duplicates and contradictions, by sorting hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.pool import hash_text

SIDES = ("train", "validation", "test")
ACROSS = ((1, 0), (2, 0), (2, 1))  # (held out, where it must not stand)
_NO_DOCUMENT = np.uint64(hash_text(""))
Rows = NDArray[np.int64]


class Related(NamedTuple):
    """Rows that a check names, the row that each is like, and what is said before that row's name."""

    rows: Rows
    others: Rows
    detail: str
    alike: NDArray[np.float64] | None = None
    """Similarity of the two, for the detail's {alike}; NaN where they hang together by way of rows between."""


class Leak(NamedTuple):
    """Rows of a lower side (train) that must go, and the held-out rows that they give away."""

    related: Related
    held: Rows


class Facts(NamedTuple):
    """What the relations are made of."""

    facts: NDArray[np.void]
    side: NDArray[np.int8]
    pairs: NDArray[np.int32]
    """Near-duplicates [m, 2], Jaccard ≥ 0.8."""
    similarity: NDArray[np.float32]
    """Of each pair."""
    folded: NDArray[np.uint64]
    """Of each row a hash of its prompt, case and spaces aside."""
    meanings: NDArray[np.uint64]
    """Of each row a hash of its answer, spaces and the writing of JSON aside."""


def exact_leak(given: Facts, held: int, other: int) -> Leak:
    """The same prompt on both sides, case and spaces aside."""
    return _shared(given, given.folded, held, other, "its prompt stands in {side} too:")


def group_leak(given: Facts, held: int, other: int) -> Leak:
    """The same document on both sides."""
    return _shared(
        given, given.facts["document"], held, other, "its document stands in {side} too:", _NO_DOCUMENT
    )


def near_leak(given: Facts, held: int, other: int) -> Leak:
    """Almost the same text on both sides, directly or by way of rows between; the same prompt is an exact leak."""
    prompts, side = given.folded, given.side
    first, second = given.pairs[:, 0].astype(np.int64), given.pairs[:, 1].astype(np.int64)
    rows, cluster = _clusters(first, second)
    low, high = side[rows] == other, side[rows] == held
    # a held-out row of each cluster; -1: it has none
    out = np.full(cluster.max(initial=-1) + 1, -1, np.int64)
    out[cluster[high][::-1]] = rows[high][::-1]
    inside = np.zeros(len(out), bool)
    inside[cluster[low]] = True
    named = rows[low & (out[cluster] >= 0)]
    like = out[cluster][low & (out[cluster] >= 0)]
    gone = rows[high & inside[cluster]]
    alike = np.full(len(named), np.nan)
    for one, two in ((first, second), (second, first)):  # better a direct pair than one by way of others
        direct = (side[one] == other) & (side[two] == held)
        at = np.searchsorted(named, one[direct])
        like[at], alike[at] = two[direct], given.similarity[direct]
    exact = exact_leak(given, held, other)
    kept = ~np.isin(named, exact.related.rows)
    detail = f"almost the same{{alike}} stands in {SIDES[held]}:"
    return Leak(
        Related(named[kept], like[kept], detail, alike[kept]),
        gone[~np.isin(prompts[gone], prompts[exact.held])],
    )


def duplicate(given: Facts) -> Related:
    """The same prompt and answer on one side, again."""
    key = given.facts["prompt"] * np.uint64(0x9E3779B97F4A7C15) + given.facts["answer"]
    key = key * np.uint64(4) + given.side.astype(np.uint64)
    order = np.argsort(key, kind="stable")
    again = np.zeros(len(order), bool)
    again[1:] = key[order][1:] == key[order][:-1]
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
    return Related(order[again], order[first[again]], "the same prompt and answer as")


def near_duplicate(given: Facts) -> Related:
    """Almost the same on one side, again; rows of one document and rows with one prompt are alike by design."""
    first, second = given.pairs[:, 0].astype(np.int64), given.pairs[:, 1].astype(np.int64)
    documents, prompts, side = given.facts["document"], given.folded, given.side
    other_document = (documents[first] != documents[second]) | (documents[first] == _NO_DOCUMENT)
    same = (side[first] == side[second]) & (prompts[first] != prompts[second]) & other_document
    first, second = first[same], second[same]
    rows, cluster = _clusters(first, second)
    leaders = np.full(cluster.max(initial=-1) + 1, -1, np.int64)
    leaders[cluster[::-1]] = rows[::-1]
    others = leaders[cluster]
    alike = np.full(len(rows), np.nan)
    at = np.searchsorted(rows, second)
    direct = others[at] == first
    alike[at[direct]] = given.similarity[same][direct]
    again = rows != others
    return Related(rows[again], others[again], "almost the same{alike} as", alike[again])


def contradiction(given: Facts) -> Related:
    """The same prompt, case and spaces aside, with another answer; on whatever side."""
    prompts, answers = given.folded, given.meanings
    order = np.lexsort((answers, prompts))
    sorted_prompts, sorted_answers = prompts[order], answers[order]
    new = np.ones(len(order), bool)
    new[1:] = sorted_prompts[1:] != sorted_prompts[:-1]
    starts = np.flatnonzero(new)
    group = np.cumsum(new) - 1
    last = np.append(starts[1:], len(order))[: len(starts)] - 1
    differ = sorted_answers[starts] != sorted_answers[last]
    named = differ[group]
    # sorted by answer: the first of a prompt's rows and the last have different ones
    like_first = sorted_answers == sorted_answers[starts][group]
    others = order[np.where(like_first, last[group], starts[group])]
    rows = order[named]
    return Related(rows, others[named], "the same prompt has another answer in")


LEAKS: dict[str, Callable[[Facts, int, int], Leak]] = {
    "exact_leak": exact_leak,
    "near_leak": near_leak,
    "group_leak": group_leak,
}
REPEATS: dict[str, Callable[[Facts], Related]] = {
    "duplicate": duplicate,
    "near_duplicate": near_duplicate,
    "contradiction": contradiction,
}


def leaks(given: Facts) -> Iterator[tuple[str, str, Leak, int]]:
    """(check, "validation in train", leak, held-out rows) of each check and pair of sides that has rows."""
    counts = np.bincount(given.side, minlength=3)
    for held, other in ACROSS:
        if counts[held] and counts[other]:
            for check, finder in LEAKS.items():
                yield check, f"{SIDES[held]} in {SIDES[other]}", finder(given, held, other), int(counts[held])


def shared_answers(given: Facts, held: int, other: int) -> int:
    """Held-out rows whose answer stands on the other side to the letter: counted, for labels may be few."""
    return len(_shared(given, given.facts["answer"], held, other, "", _NO_DOCUMENT).held)


def repeats(given: Facts) -> dict[str, Any]:
    """How often prompts come again, all sides together: to the letter, and `folded`: case and spaces aside."""
    answers = given.facts["answer"]
    exact, folded = _repeats(given.facts["prompt"], answers), _repeats(given.folded, given.meanings)
    return {**exact, "folded": folded}


def _repeats(prompts: NDArray[np.uint64], answers: NDArray[np.uint64]) -> dict[str, int]:
    order = np.lexsort((answers, prompts))
    prompts, answers = prompts[order], answers[order]
    again = prompts[1:] == prompts[:-1]
    same = again & (answers[1:] == answers[:-1])
    return {
        "prompts": len(prompts) - int(again.sum()),
        "repeats": int(again.sum()),
        "prompts_repeated": len(np.unique(prompts[1:][again])),
        "prompts_with_different_answers": len(np.unique(prompts[1:][again & ~same])),
        "exact": int(same.sum()),
    }


def _clusters(first: Rows, second: Rows) -> tuple[Rows, NDArray[np.int32]]:
    """Rows that have a pair, in order, and the number of the cluster that each hangs together with: of many rows that
    are alike, not every two are a pair."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = np.union1d(first, second)
    at = np.searchsorted(rows, first), np.searchsorted(rows, second)
    graph = coo_array((np.ones(len(first), np.int8), at), shape=(len(rows), len(rows)))
    return rows, connected_components(graph, directed=False)[1] if len(rows) else np.zeros(0, np.int32)


def _shared(
    given: Facts, keys: NDArray[np.uint64], held: int, other: int, detail: str, none: np.uint64 | None = None
) -> Leak:
    out = np.flatnonzero(given.side == held)
    low = np.flatnonzero(given.side == other)
    if none is not None:
        out, low = out[keys[out] != none], low[keys[low] != none]
    known, places = np.unique(keys[out], return_index=True)
    if not len(known):
        nothing = np.zeros(0, np.int64)
        return Leak(Related(nothing, nothing, ""), nothing)
    at = np.minimum(np.searchsorted(known, keys[low]), len(known) - 1)
    hit = known[at] == keys[low]
    related = Related(low[hit], out[places[at[hit]]], detail.format(side=SIDES[held]))
    return Leak(related, out[np.isin(keys[out], keys[low])])
