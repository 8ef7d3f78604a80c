"""How different a system's answers are from one another: a generator that writes one record again and again is no use.

distinct-n (arXiv 1510.03055): different n-grams among all n-grams of the answers. Self-BLEU (arXiv 1802.01886): BLEU of
an answer against all others; 100 says that they are one answer. Both depend on how many answers there are, so the gold
answers of the same rows stand beside them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from tunesmith.tasks.generated.record_checks import field, fields
from tunesmith.tasks.normalise import normal, words
from tunesmith.tasks.protocol import Table

COMPARED = 30  # answers that self-BLEU compares with each other, evenly spread: it grows with their square
SIGNATURE = "sacrebleu, tokenize=13a, smooth=exp, effective order"


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Share of n-grams of words that are different ones; None where there are none."""
    grams: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        said = words(text)
        total += max(len(said) - n + 1, 0)
        grams.update(tuple(said[i : i + n]) for i in range(len(said) - n + 1))
    return len(grams) / total if total else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean BLEU (0 to 100) of each of up to COMPARED texts against the others; None where there is only one."""
    from sacrebleu.metrics.bleu import BLEU

    step = max(1, math.ceil(len(texts) / COMPARED))
    chosen = list(texts[::step])
    if len(chosen) < 2:
        return None
    bleu = BLEU(effective_order=True)
    scores = [
        bleu.sentence_score(text, [*chosen[:i], *chosen[i + 1 :]]).score for i, text in enumerate(chosen)
    ]
    return sum(scores) / len(scores)


def repeated(values: Sequence[str]) -> float | None:
    """Share of values that another one equals, case and punctuation aside; None where there are none."""
    times = Counter(map(normal, values))
    return sum(one for one in times.values() if one > 1) / len(values) if values else None


def names(texts: Sequence[str]) -> list[str]:
    """The patients' names, where the records say them under a label."""
    return [found for text in texts if (found := field(fields(text), "name"))]


@lru_cache(maxsize=16)
def _figures(texts: tuple[str, ...]) -> tuple[float | int | None, ...]:
    named = names(texts)
    return (
        len(texts),
        *(distinct(texts, n) for n in (1, 2, 3)),
        self_bleu(texts),
        repeated(texts),
        len(named),
        repeated(named),
    )


def table(answers: Sequence[Sequence[str]], golds: Sequence[str]) -> Table:
    """The answers' figures beside those of the gold answers of the same rows. `answers`: each row's samples; where
    there are several, also how different these are from each other, mean over rows."""
    columns = ("", "texts", "distinct-1", "distinct-2", "distinct-3", "self-BLEU", "repeated texts", "names",
               "repeated names")  # fmt: skip
    rows = [("answers", *_figures(tuple(text for texts in answers for text in texts)))]
    sampled = [texts for texts in answers if len(texts) > 1]
    if sampled:
        rows.append(("samples of one row, mean", *_mean_figures(sampled)))
    rows.append(("gold answers", *_figures(tuple(golds))))
    note = (
        "distinct-n: share of n-grams of words that are different ones; higher is more various. Self-BLEU of up to "
        f"{COMPARED} texts against each other ({SIGNATURE}); lower is more various. Compare with the gold answers "
        "only: all of these depend on how many and how long the texts are."
    )
    return Table("Diversity", columns, tuple(rows), note)


def _mean_figures(groups: Sequence[Sequence[str]]) -> list[float | None]:
    """Each figure's mean over up to COMPARED rows with several samples."""
    step = math.ceil(len(groups) / COMPARED)
    found = [_figures(tuple(texts)) for texts in groups[::step]]
    known = [[value for value in column if value is not None] for column in zip(*found, strict=True)]
    return [sum(column) / len(column) if column else None for column in known]
