"""The proofs of what is made of a merged model: pure, from logits [n, V] and answers measured in this very run.

An exact thing (F32, F16, BF16) has to compute as the merged model does: as near as one more random rounding of all
weights, to the coarsest type that has a part in it, comes to it. A quantised thing can't. It has to be as near as the
plainest way to as many bits comes, and nearer to the merged model than to the base without the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tunesmith.export.proofs import FLOOR, SLACK, greedy_differs, greedy_moved, largest, spread
from tunesmith.export.record import proof_prefix
from tunesmith.proof import Proof
from tunesmith.statistics import Interval, binomial_at_most

SPARE = 3  # positions with another likeliest token that are no sign of anything: near ties
ENDED = 0.9  # of the answers that the live adapter ended, the share that has to end here too
CHANCE = 0.05  # how seldom a model that reaches ENDED may fail on few rows
_HELD = {"nf4": "NF4", "int8": "8 bits"}


def computes_as_merged(name: str, found: Tensor, merged: Tensor, rounded: Tensor, type_name: str) -> Proof:
    """An exact file; noise: the merged model whose weights were rounded once more to `type_name`."""
    return _computes_as("merged", name, found, merged, rounded, type_name)


def computes_as_live(name: str, found: Tensor, live: Tensor, rounded: Tensor, type_name: str) -> Proof:
    """An adapter's file over a GGUF of the base, against the adapter live on the same weights; noise as above."""
    return _computes_as("live", name, found, live, rounded, type_name)


def _computes_as(
    what: str, name: str, found: Tensor, model: Tensor, rounded: Tensor, type_name: str
) -> Proof:
    noise = spread(model, rounded)
    figure, limit = spread(found, model), SLACK * noise + FLOOR
    with_what = "merged" if what == "merged" else "the adapter live on the base's own weights"
    detail = (
        f"root mean square difference of logits, the file run by llama.cpp and {with_what}, {len(model)} positions; "
        f"one random rounding of all weights to {type_name} makes {noise:.2g}"
    )
    return Proof(f"{proof_prefix(name)}computes_as_{what}", figure <= limit, figure, limit, detail)


def is_merged_quantised(name: str, found: Tensor, merged: Tensor, plain: Tensor, bits: int) -> Proof:
    """A quantised file; noise: the merged model in the plainest `bits` (blocks of 32 with a scale)."""
    noise = spread(merged, plain)
    figure, limit = spread(found, merged), SLACK * noise + FLOOR
    detail = (
        f"root mean square difference of logits, the file run by llama.cpp and merged, {len(merged)} positions; "
        f"the plainest rounding to {bits} bits makes {noise:.2g}"
    )
    return Proof(f"{proof_prefix(name)}is_merged_quantised", figure <= limit, figure, limit, detail)


def computes_as_stored(name: str, found: Tensor, stored: Tensor, noisy: Tensor) -> Proof:
    """A quantised file against its own numbers in our model; noise: inputs of linears in 8 bits, as in llama.cpp."""
    noise = spread(stored, noisy)
    figure, limit = spread(found, stored), SLACK * noise + FLOOR
    detail = (
        f"root mean square difference of logits, the file run by llama.cpp and its numbers in our model, "
        f"{len(stored)} positions; inputs rounded to 8 bits, as llama.cpp rounds them, make {noise:.2g}"
    )
    return Proof(f"{proof_prefix(name)}computes_as_stored", figure <= limit, figure, limit, detail)


def equals_quantised_in_memory(name: str, found: Tensor, in_memory: Tensor, singly: Tensor) -> Proof:
    """A quantised folder, reloaded, against the merged weights quantised in memory; noise: two batch shapes."""
    noise = largest(in_memory, singly)
    figure, limit = largest(found, in_memory), SLACK * noise + FLOOR
    detail = (
        f"largest difference of a logit, reloaded folder and merged weights in {_HELD[name]} in memory, "
        f"{len(found)} positions; between two batch shapes {noise:.2g}"
    )
    return Proof(f"{proof_prefix(name)}equals_quantised_in_memory", figure <= limit, figure, limit, detail)


def keeps_adapter(name: str, found: Tensor, merged: Tensor, base: Tensor) -> Proof:
    """Nearer to the merged model than to the base: more than half of the adapter's effect is left.

    Share: the projection of (found − base) on (merged − base), 1 for the merged model itself, 0 for the base.
    """
    effect = (merged - base).double()
    whole = float(effect.square().sum())
    share = float(((found - base).double() * effect).sum()) / whole if whole else 0.0
    figure = share if share == share else 0.0
    detail = (
        f"share of the adapter's effect on the logits that is left, {len(merged)} positions; 1: all, 0: the base. "
        "Over a half: it is nearer to the merged model than to the base without the adapter"
    )
    return Proof(f"{proof_prefix(name)}keeps_adapter", figure > 0.5, figure, "> 0.5", detail)


def same_greedy(name: str, found: Tensor, merged: Tensor, noisy: Tensor) -> Proof:
    """The likeliest token at each position; limit: what the same noise changes, three times, and a few near ties."""
    by_noise = greedy_moved(merged, noisy - merged)
    differs, allowed = greedy_differs(found, merged), int(SLACK * by_noise) + SPARE
    total = len(merged)
    detail = (
        f"{differs} of {total} positions have another likeliest token than the merged model; the noise that its "
        f"distance is held against changes {by_noise:.1f} on average"
    )
    figure, limit = 1 - differs / total, max(0.0, 1 - allowed / total)
    return Proof(f"{proof_prefix(name)}same_greedy", differs <= allowed, figure, round(limit, 4), detail)


def answers_end(name: str, lines: Sequence[Mapping[str, Any]], live: Sequence[Mapping[str, Any]]) -> Proof:
    """Answers end by the stop where the live adapter's do. Lines of two predictions files, in the same order."""
    both = [(bool(a["stopped"]), bool(b["stopped"])) for a, b in zip(lines, live, strict=True)]
    ended = [here for here, there in both if there]
    total, cut = len(ended), ended.count(False)
    allowed = _most_cut(total)
    detail = (
        f"{cut} of the {total} answers that the live adapter ended by a stop did not end here"
        if total
        else "nothing is shown: no answer of the live adapter ended by a stop"
    )
    figure, limit = (1 - cut / total, round(1 - allowed / total, 4)) if total else (1.0, 0.0)
    return Proof(f"{proof_prefix(name)}answers_end", cut <= allowed, figure, limit, detail)


def _most_cut(total: int) -> int:
    """The most of `total` that still agree with ENDED."""
    cut = 0
    while cut < total and 1 - binomial_at_most(cut, total, 1 - ENDED) >= CHANCE:
        cut += 1
    return cut


def keeps_score(name: str, metric: str, difference: Interval, lower: bool, most: float) -> Proof:
    """The loss of score against the live adapter, on the same rows: its value, not its interval, has to keep `most`.

    `difference`: artifact less live adapter; `lower`: less of this metric is better.
    """
    sign = 1 if lower else -1
    loss = sign * difference.value
    ends = sorted(sign * end for end in difference.ends)
    detail = (
        f"loss of {metric} against the live adapter, n = {difference.n} rows; 95 % interval {ends[0]:+.3f} to "
        f"{ends[1]:+.3f}; limit: export.max_loss. The loss itself is judged, not its interval"
    )
    return Proof(f"{proof_prefix(name)}keeps_score", loss <= most, loss, most, detail)
