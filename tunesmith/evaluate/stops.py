"""Proof after training: tuned answers end by the terminator. A model that never learned its end rambles until cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.proof import Proof
from tunesmith.statistics import binomial_at_most

SHARE = 0.5  # of answers that have to end by themselves: a terminator that was never learned ends hardly any
WISHED = 0.95  # below this the proof says what to look at: a cut JSON answer is lost, and the score shows it
CHANCE = 0.05  # how seldom a model that reaches SHARE may fail on few rows


def answers_stop(
    lines: Sequence[Sequence[Mapping[str, Any]]], gold_tokens: Sequence[int], max_tokens: int
) -> Proof:
    """`lines`: predictions of each row; `gold_tokens`: length of its gold answer with the terminator.

    Rows whose own gold answer does not fit into `max_tokens` can't stop in time and don't count.
    """
    fit = [row for row, tokens in zip(lines, gold_tokens, strict=True) if tokens <= max_tokens]
    ended = [bool(line.get("stopped")) for row in fit for line in row]
    total, cut = len(ended), ended.count(False)
    allowed = most_cut(total)
    detail = (
        f"{cut} of {total} tuned answers were cut at {max_tokens} tokens instead of ending by the terminator"
    )
    if total < sum(len(row) for row in lines):
        detail += f"; {len(lines) - len(fit)} rows with a longer gold answer are left out"
    if cut > (1 - WISHED) * total:
        detail += ": train longer; see whether data.max_length or an earlier step cut the ends off the training answers"
    if not total:
        detail = f"nothing is shown: every gold answer is longer than the {max_tokens} tokens allowed"
    share = 1 - cut / total if total else 1.0
    return Proof(
        "answers_stop", cut <= allowed, share, round(1 - allowed / total, 4) if total else 0.0, detail
    )


def most_cut(total: int) -> int:
    """The most cut answers of `total` that still agree with SHARE: more have a chance below CHANCE."""
    cut = 0
    while cut < total and 1 - binomial_at_most(cut, total, 1 - SHARE) >= CHANCE:
        cut += 1
    return cut
