"""The proofs of a merged model: pure, from logits [n, V] and scores that were measured in this very run."""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.proof import Proof
from tunesmith.statistics import Interval

SLACK = 3.0  # times the noise
_ROWS = 32
FLOOR = 1e-5  # a limit for models whose noise is 0


def merged_equals_fp32_merge(reloaded: Tensor, in_memory: Tensor, singly: Tensor) -> Proof:
    """The folder, reloaded, against the merge in memory; noise: the same rows as one stream and one by one."""
    noise = largest(in_memory, singly)
    figure, limit = largest(reloaded, in_memory), SLACK * noise + FLOOR
    detail = (
        f"largest difference of a logit, reloaded folder and fp32 merge in memory, {len(reloaded)} positions; "
        f"between two batch shapes {noise:.2g}"
    )
    return Proof("merged_equals_fp32_merge", figure <= limit, figure, limit, detail)


def merged_keeps_adapter(share: float, type_name: str) -> Proof:
    """What is left of the adapter in the stored weights (`model.merge.Kept`); more than half is asked for.

    Logits can't show it: an adapter that is lost weight by weight moves them by less than rounding does.
    """
    detail = (
        f"share of the adapter's change of the weights that is left once they are rounded to {type_name}; 1: all. "
        "Much less than 1 comes of steps below the type's own: train longer or at a higher rate, or serve the adapter"
    )
    return Proof("merged_keeps_adapter", share > 0.5, share, "> 0.5", detail)


def merged_close_to_adapter(reloaded: Tensor, live: Tensor, rerounded: Tensor) -> Proof:
    """The folder against the live adapter; noise: the adapter on a base whose weights were rounded once more."""
    noise = spread(live, rerounded)
    figure, limit = spread(reloaded, live), SLACK * noise
    detail = (
        f"root mean square difference of logits, merged and live adapter, {len(live)} positions; "
        f"one random rounding of the base's weights makes {noise:.2g}"
    )
    return Proof("merged_close_to_adapter", figure <= limit, figure, limit, detail)


def merged_has_effect(reloaded: Tensor, base: Tensor, again: Tensor, rerounded_by: float) -> Proof:
    """The folder against a merge of nothing (`base`, and the same measured `again`)."""
    noise = spread(base, again)
    figure, limit = spread(reloaded, base), SLACK * noise
    detail = (
        f"root mean square difference of logits, merged and base, {len(base)} positions; "
        f"one random rounding of the base's weights makes {rerounded_by:.2g}"
    )
    return Proof("merged_has_effect", figure > limit, figure, f"> {limit:.2g}", detail)


def merged_scores_as_adapter(metric: str, difference: Interval, source: str) -> Proof:
    """The score of the merge into the `source` weights against the live adapter's, on the same rows."""
    low, high = difference.ends
    passed = low <= 0 <= high
    detail = (
        f"{metric}, merged into the {source} base less live adapter, n = {difference.n} rows: the 95 % interval "
        f"{low:+.3f} to {high:+.3f} has to hold 0"
    )
    limit = "interval holds 0"
    return Proof("merged_scores_as_adapter", passed, difference.value, limit, detail)


def largest(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite where a number is not finite."""
    return _finite(float((a - b).abs().max()))


def spread(a: Tensor, b: Tensor) -> float:
    """Root mean square difference; infinite where a number is not finite."""
    return _finite(float((a - b).double().square().mean().sqrt()))


def greedy_differs(a: Tensor, b: Tensor) -> int:
    """Positions at which the likeliest token is another one."""
    return int((a.argmax(-1) != b.argmax(-1)).sum())


def greedy_moved(logits: Tensor, noise: Tensor, draws: int = 8) -> float:
    """Positions whose likeliest token a noise [n, V] moves: the mean over `draws` pairings of noise and positions.

    One pairing alone decides by a handful of near ties, and a limit drawn from it would now and then be far too low.
    """
    steps = sorted({number * len(noise) // draws for number in range(draws)})
    return sum(greedy_differs(logits + noise.roll(step, 0), logits) for step in steps) / len(steps)


def mean_kl(true: Tensor, other: Tensor) -> float:
    """Mean over positions of KL(true || other), in nats; infinite where a number is not finite."""
    total = 0.0
    for p, q in zip(torch.split(true, _ROWS), torch.split(other, _ROWS), strict=True):  # a vocabulary is wide
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return _finite(total / len(true))


def _finite(value: float) -> float:
    return value if value == value else float("inf")
