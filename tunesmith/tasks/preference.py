"""Pairs of a better and a worse answer: which of the two a model finds likelier, and whether length decides it.

The log-probability of a whole answer falls with every token, so a model may prefer whatever is shorter. Three figures
show it: the share by bits per byte beside the share by whole answers, the share in which the longer answer is the
likelier one, and the share of right choices where the better answer is the shorter one. All come from
report/likelihood.jsonl, so only of systems whose likelihoods were measured; what models write of their own accord is
scored beside it as text.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tunesmith.example import Example
from tunesmith.tasks.answered import Answered
from tunesmith.tasks.normalise import words
from tunesmith.tasks.protocol import Fault, Parsed
from tunesmith.tasks.sums import Metric, Share, Sums, ratio
from tunesmith.tasks.text import TextTask

Counts = Mapping[str, NDArray[np.float64]]


class PreferenceTask(TextTask):
    """The gold answer is the better one; Example.rejected the worse."""

    name = "preference"
    headline = "preferred"
    headline_from = "likelihood"
    answers_headline = "word_f1"

    def gold(self, example: Example) -> Parsed:
        """The better answer; a row without a worse one is no pair."""
        if example.rejected is None:
            return Parsed(None, ("unparsable: the row has no rejected answer, so it is no pair",))
        return self.parse(example.answer or "")

    def faults(self, row: Answered) -> list[Fault]:
        """An answer that says the worse one again. That it differs from the better one is no fault."""
        worse = row.example.rejected
        said = words(row.predicted.value or "")
        if worse is None or not said or said != words(worse) or said == words(row.gold.value or ""):
            return []
        return [Fault("wrong", "", row.gold.value, row.predicted.value)]

    def of_likelihood(self, counts: Counts) -> dict[str, NDArray[np.float64]]:
        """[rows] each: from nats and bytes of both answers to what the metrics sum. A tie is half a choice.

        Nothing where the worse answers were not measured."""
        if "rejected_nll" not in counts:
            return {}
        better, worse = counts["nll"], counts["rejected_nll"]
        longer = np.sign(counts["bytes"] - counts["rejected_bytes"])
        per_byte = _bits(worse, counts["rejected_bytes"]) - _bits(better, counts["bytes"])
        chose, chose_by_byte = (1 + np.sign(worse - better)) / 2, (1 + np.sign(per_byte)) / 2
        difference, margin = counts["bytes"] - counts["rejected_bytes"], worse - better
        return {
            "pairs": np.ones(len(better)),
            "preferred": chose,
            "preferred_by_byte": chose_by_byte,
            "margin": margin,
            "margin_bits": per_byte,
            "uneven": np.abs(longer),
            "longer_preferred": np.where(longer > 0, chose, np.where(longer < 0, 1 - chose, 0.0)),
            "shorter": (longer < 0).astype(float),
            "preferred_shorter": np.where(longer < 0, chose, 0.0),
            "preferred_shorter_by_byte": np.where(longer < 0, chose_by_byte, 0.0),
            "longer": (longer > 0).astype(float),
            "preferred_longer": np.where(longer > 0, chose, 0.0),
            "length": difference,
            "length_squared": difference**2,
            "margin_squared": margin**2,
            "margin_length": margin * difference,
        }

    def right_by_likelihood(self, counts: Counts) -> NDArray[np.bool_]:
        """[rows]: the better answer is the likelier one."""
        return np.asarray(counts["nll"] < counts["rejected_nll"])

    def likelihood_metrics(self, counts: Counts) -> dict[str, Metric]:
        """The headline first; none where `counts` have no pairs."""
        if "pairs" not in counts:
            return {}
        return {
            "preferred": _share("preferred", "pairs"),
            "preferred_by_byte": _share("preferred_by_byte", "pairs"),
            "margin": lambda s: ratio(s["margin"], s["pairs"]),
            "margin_bits_per_byte": lambda s: ratio(s["margin_bits"], s["pairs"]),
            "longer_preferred": _share("longer_preferred", "uneven"),
            "gold_longer_preferred": _share("longer", "uneven"),
            "preferred_where_shorter": _share("preferred_shorter", "shorter"),
            "preferred_where_shorter_by_byte": _share("preferred_shorter_by_byte", "shorter"),
            "preferred_where_longer": _share("preferred_longer", "longer"),
            "margin_length_correlation": _correlation,
            "rejected_bits_per_byte": lambda s: ratio(s["rejected_nll"], s["rejected_bytes"] * np.log(2)),
        }

    def explain(self) -> dict[str, str]:
        """What each metric means."""
        text = {name: meaning.replace("; headline", "") for name, meaning in super().explain().items()}
        return _MEANING | text


_MEANING = {
    "preferred": "share of pairs whose better answer is the likelier one as a whole (a tie is half); headline",
    "preferred_by_byte": "the same by bits per byte, which takes length out",
    "margin": "nats by which the better answer is likelier, mean over pairs",
    "margin_bits_per_byte": "the same in bits per byte, mean over pairs",
    "longer_preferred": "share of pairs of unequal length whose longer answer is the likelier one",
    "gold_longer_preferred": "share of those pairs whose better answer is the longer one",
    "preferred_where_shorter": "share of right choices where the better answer is the shorter one",
    "preferred_where_shorter_by_byte": "the same by bits per byte",
    "preferred_where_longer": "share of right choices where the better answer is the longer one; without length bias "
    "it equals the one where it is shorter",
    "margin_length_correlation": "Pearson's r of the margin with how many bytes longer the better answer is; near -1: "
    "length decides",
    "rejected_bits_per_byte": "surprise at the worse answer, per UTF-8 byte of it",
}


def _bits(nats: NDArray[np.float64], bytes_: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bits per byte of each row."""
    return np.asarray(nats / (np.maximum(bytes_, 1.0) * np.log(2)))


def _share(over: str, under: str) -> Metric:
    return Share(lambda sums: ratio(sums[over], sums[under]))


def _correlation(sums: Sums) -> NDArray[np.float64]:
    """Pearson's r from sums of products."""
    n = sums["pairs"]
    together = n * sums["margin_length"] - sums["margin"] * sums["length"]
    margins = n * sums["margin_squared"] - sums["margin"] ** 2
    lengths = n * sums["length_squared"] - sums["length"] ** 2
    return ratio(together, np.sqrt(np.clip(margins, 0, None) * np.clip(lengths, 0, None)))
