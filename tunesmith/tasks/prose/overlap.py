"""ROUGE, BLEU and chrF as counts of rows: their sums give the very figures of sacrebleu's corpus scores.

BLEU (Papineni 2002) and chrF (Popović 2015, chrF++ 2017) are functions of n-gram counts summed over all rows, never
means of sentence scores; so a bootstrap that sums other rows is exact. Both are 0 to 100, as sacrebleu prints them.
ROUGE is a mean over rows, 0 to 1, as its authors print it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.tasks.prose.rouge import KINDS, rouge
from tunesmith.tasks.prose.script import main_script, script_letters
from tunesmith.tasks.sums import Metric, Share, Sums, ratio

BLEU_ORDER, CHAR_ORDER, WORD_ORDER = 4, 6, 2
_BETA = 2.0  # recall counts twice as much
_UNSPACED = ("Han", "Kana", "Thai", "Lao", "Khmer", "Burmese", "Tibetan")
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_LOG_ZERO = -9999999999.0  # sacrebleu's logarithm of a precision of 0


OF_HUNDRED = frozenset(("bleu", "chrf", "chrf++"))


def cut_by(golds: Sequence[str]) -> str:
    """sacrebleu's tokenizer for BLEU: `char` where the gold answers' script writes no spaces, else `13a`."""
    letters: Counter[str] = Counter()
    for gold in golds:
        letters.update(script_letters(gold))
    return "char" if main_script(letters) in _UNSPACED else "13a"


@cache
def _bleu(tokenize: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenize)


def bleu_counts(gold: str, answer: str, tokenize: str) -> dict[str, float]:
    """Matching and all n-grams of the answer, and both lengths."""
    found = _bleu(tokenize).corpus_score([answer], [[gold]])
    made = {"bleu_given": float(found.sys_len), "bleu_gold": float(found.ref_len)}
    for n in range(BLEU_ORDER):
        made[f"bleu_hits{n + 1}"], made[f"bleu_all{n + 1}"] = float(found.counts[n]), float(found.totals[n])
    return made


def chrf_counts(gold: str, answer: str) -> dict[str, float]:
    """n-grams of letters (1 to 6, spaces left out) and of words (1 and 2): in the gold, in the answer, in both."""
    made: dict[str, float] = {}
    for order, (right, given) in enumerate(zip(_grams(gold), _grams(answer), strict=True), 1):
        made[f"chrf_gold{order}"] = float(right.total())
        # of an order that the gold is too short for, an answer's n-grams count nowhere
        made[f"chrf_given{order}"] = float(given.total()) if right else 0.0
        both = right.keys() & given.keys()
        made[f"chrf_hits{order}"] = float(
            sum(map(min, map(right.__getitem__, both), map(given.__getitem__, both)))
        )
    return made


def overlap_counts(
    gold: str, answer: str, *, tokenize: str = "13a", stem: bool = False, kinds: Sequence[str] = KINDS
) -> dict[str, float]:
    """One row's counts of all three, and `overlap_rows`: 1 where the gold has anything to find. `kinds`: of ROUGE."""
    found = rouge(gold, answer, stem, kinds) if gold else dict.fromkeys(kinds, 0.0)
    return {
        "overlap_rows": float(bool(gold)),
        **found,
        **bleu_counts(gold, answer, tokenize),
        **chrf_counts(gold, answer),
    }


def overlap_metrics(mark: str = "") -> dict[str, Metric]:
    """rouge1 … chrf++ from summed `overlap_counts`, whose names begin with `mark`."""
    made: dict[str, Metric] = {
        "chrf": partial(_chrf, mark, CHAR_ORDER),
        "chrf++": partial(_chrf, mark, CHAR_ORDER + WORD_ORDER),
    }
    for kind in KINDS:
        made[kind] = Share(partial(_mean, mark, kind))
    return made | {"bleu": partial(_bleu_of, mark)}


def overlap_meaning(tokenize: str, stem: bool) -> dict[str, str]:
    """What each metric means, with sacrebleu's signatures."""
    ending = "English endings cut (Porter)" if stem else "no stemming: the gold answers are not English"
    words = f"F, mean over rows; words of any script, {ending}"
    signed = signatures(tokenize)
    return {
        "chrf": f"chrF2: n-grams of 1 to 6 letters shared with the gold, 0 to 100; {signed['chrf']}",
        "chrf++": f"the same with words and pairs of words; {signed['chrf++']}",
        "rouge1": f"words shared with the gold: {words}",
        "rouge2": f"pairs of words shared with the gold: {words}",
        "rougeL": f"longest common sequence of words: {words}",
        "rougeLsum": f"the same sentence by sentence: {words}",
        "bleu": f"BLEU over the whole set, 0 to 100; {signed['bleu']}",
    }


@cache
def signatures(tokenize: str = "13a") -> Mapping[str, str]:
    """sacrebleu's signatures: what to print beside a figure so that it can be made again."""
    from sacrebleu.metrics.chrf import CHRF

    scorers = {"bleu": _bleu(tokenize), "chrf": CHRF(), "chrf++": CHRF(word_order=WORD_ORDER)}
    for scorer in scorers.values():
        scorer.corpus_score(["a"], [["a"]])  # a signature knows its number of references only then
    return {name: str(scorer.get_signature()) for name, scorer in scorers.items()}


@lru_cache(maxsize=4)  # a gold answer is read once for all that a row is compared with
def _grams(text: str) -> list[Counter[str]]:
    letters, words = "".join(text.split()), _chrf_words(text)
    of_letters = (Counter(_runs(letters, n, "")) for n in range(1, CHAR_ORDER + 1))
    of_words = (Counter(_runs(words, n, " ")) for n in range(1, WORD_ORDER + 1))
    return [*of_letters, *of_words]


def _runs(of: Sequence[str], n: int, between: str) -> Iterator[str]:
    """Every `n` neighbours as one text."""
    return map(between.join, zip(*(of[i:] for i in range(n)), strict=False))


def _chrf_words(text: str) -> list[str]:
    """Words as chrF++ cuts them: one sign of punctuation is split off, from the end or else from the front."""
    made: list[str] = []
    for word in text.split():
        if len(word) > 1 and word[-1] in _PUNCTUATION:
            made += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in _PUNCTUATION:
            made += [word[0], word[1:]]
        else:
            made.append(word)
    return made


def _mean(mark: str, kind: str, sums: Sums) -> NDArray[np.float64]:
    return ratio(sums[f"{mark}{kind}"], sums[f"{mark}overlap_rows"])


def _chrf(mark: str, orders: int, sums: Sums) -> NDArray[np.float64]:
    """Means of precision and of recall over the orders that both sides have, then F2; NaN without gold."""
    precision = recall = effective = np.zeros(())
    for order in range(1, orders + 1):
        gold, given, hits = (
            np.asarray(sums[f"{mark}chrf_{name}{order}"]) for name in ("gold", "given", "hits")
        )
        both = (gold > 0) & (given > 0)
        precision = precision + np.where(both, hits / np.where(both, given, 1), 0.0)
        recall = recall + np.where(both, hits / np.where(both, gold, 1), 0.0)
        effective = effective + both
    some = np.maximum(effective, 1)
    precision, recall = precision / some, recall / some
    under = _BETA**2 * precision + recall
    score = (1 + _BETA**2) * precision * recall / np.where(under > 0, under, 1)
    return np.where(np.asarray(sums[f"{mark}chrf_gold1"]) > 0, 100 * score, np.nan)


def _bleu_of(mark: str, sums: Sums) -> NDArray[np.float64]:
    """sacrebleu's corpus BLEU with its smoothing `exp`; NaN without gold."""
    given, gold = (np.asarray(sums[f"{mark}bleu_{name}"], float) for name in ("given", "gold"))
    penalty = np.where(given > 0, np.exp(np.minimum(0.0, 1 - gold / np.where(given > 0, given, 1))), 0.0)
    smooth, ended, logs, any_hit = np.ones(given.shape), given < 0, np.zeros(given.shape), given < 0
    for n in range(1, BLEU_ORDER + 1):
        hits, total = (np.asarray(sums[f"{mark}bleu_{name}{n}"], float) for name in ("hits", "all"))
        ended = ended | (total == 0)
        any_hit = any_hit | (hits > 0)
        smooth = np.where((hits == 0) & ~ended, 2 * smooth, smooth)
        under = np.where(ended, 1.0, np.where(hits == 0, smooth * total, total))
        precision = 100.0 * np.where(hits == 0, 1.0, hits) / under
        logs = logs + np.where(ended, _LOG_ZERO, np.log(precision))
    score = np.where(any_hit, penalty * np.exp(logs / BLEU_ORDER), 0.0)
    return np.where(gold > 0, score, np.nan)
