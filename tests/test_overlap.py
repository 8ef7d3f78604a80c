"""ROUGE, BLEU and chrF are those of the field's own programs, for any script, and sums over rows are exact."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from tunesmith.tasks.prose.overlap import (
    bleu_counts,
    chrf_counts,
    cut_by,
    overlap_counts,
    overlap_meaning,
    overlap_metrics,
    signatures,
)
from tunesmith.tasks.prose.rouge import KINDS, is_english, rouge, sentences, tokens

KANNADA = "ಪ್ರತಿದಿನ ನೀರು ಕುಡಿಯಿರಿ, ವಿಶ್ರಾಂತಿ ತೆಗೆದುಕೊಳ್ಳಿ."
WORDS = "the a pain fever rest take drug twice daily tests running runs (well) 3.5 mg; ನೀರು ಮರ ärzte 水を飲む".split()


def text(draw: random.Random, most: int = 40) -> str:
    """Words with stops and line breaks between them; now and then nothing at all."""
    ends = ["", "", "", "", ".", ".\n", "!"]
    return " ".join(draw.choice(WORDS) + draw.choice(ends) for _ in range(draw.randrange(most)))


def pairs(seed: int, count: int) -> list[tuple[str, str]]:
    """Gold answers and answers that share some of their words."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        gold = text(draw)
        kept = " ".join(word for word in gold.split(" ") if draw.random() < 0.7)
        made.append((gold, draw.choice([text(draw), kept, gold])))
    return made


def values(rows: Sequence[tuple[str, str]], **how: object) -> dict[str, float]:
    """All metrics from counts summed over rows."""
    counts = [overlap_counts(gold, answer, **how) for gold, answer in rows]  # type: ignore[arg-type]
    sums = {name: np.array([sum(row[name] for row in counts)]) for name in counts[0]}
    return {name: float(metric(sums)[0]) for name, metric in overlap_metrics().items()}


class Cut:
    """Our words, for the package's scorer."""

    def __init__(self, stem: bool) -> None:
        self.stem = stem

    def tokenize(self, given: str) -> list[str]:
        """rouge-score's protocol."""
        return tokens(given, self.stem)


@pytest.mark.parametrize("stem", [False, True])
def test_rouge_is_the_packages_bit_for_bit(stem: bool) -> None:
    referee = RougeScorer(list(KINDS), tokenizer=Cut(stem))
    for gold, answer in pairs(1, 150):
        split = ["\n".join(sentences(one)) for one in (gold, answer)]
        wanted = {kind: score.fmeasure for kind, score in referee.score(*split).items()}
        assert rouge(gold, answer, stem) == wanted


def test_words_of_ascii_are_the_packages() -> None:
    """So English figures are those that others print with use_stemmer=True."""
    package = RougeScorer(["rouge1"], use_stemmer=True)._tokenizer
    draw = random.Random(2)
    for _ in range(200):
        line = "".join(draw.choice("abcDE runningTESTS_-'.,;\n0123  ") for _ in range(60))
        assert tokens(line, stem=True) == package.tokenize(line)


def test_equal_texts_of_any_script_score_one() -> None:
    assert rouge(KANNADA, KANNADA) == dict.fromkeys(KINDS, 1.0)
    for one in ("水を飲んでください。", "ดื่มน้ำทุกวัน", "Größe 3,5 cm", "اشرب الماء كل يوم"):
        assert rouge(one, one) == dict.fromkeys(KINDS, 1.0)
    # the mutant: the package's own tokenizer keeps a-z alone and finds no word in it
    mutant = RougeScorer(list(KINDS), use_stemmer=True).score(KANNADA, KANNADA)
    assert {kind: score.fmeasure for kind, score in mutant.items()} == dict.fromkeys(KINDS, 0.0)


def test_vowel_signs_belong_to_words_and_joiners_do_not() -> None:
    assert tokens("ವಾಕ್\u200cಸ್ವಾತಂತ್ರ್ಯ") == tokens("ವಾಕ್ಸ್ವಾತಂತ್ರ್ಯ")
    assert rouge("ನೀರು", "ನೀರ")["rouge1"] == 0.0  # another vowel is another word


def test_endings_are_cut_in_english_alone() -> None:
    assert is_english(["The patient was told to rest and to drink water."])
    assert not is_english(["Der Patient soll sich ausruhen und Wasser trinken."])
    assert not is_english([KANNADA]) and not is_english([])
    assert rouge("running tests", "run test", stem=True)["rouge1"] == 1.0
    assert rouge("running tests", "run test")["rouge1"] == 0.0


@pytest.mark.parametrize("tokenize", ["13a", "char"])
def test_sums_give_sacrebleus_corpus_figures(tokenize: str) -> None:
    for seed, count in ((3, 1), (4, 2), (5, 60), (6, 200)):
        rows = [(gold, answer) for gold, answer in pairs(seed, count) if gold.strip()]
        golds, answers = [gold for gold, _ in rows], [answer for _, answer in rows]
        found = values(rows, tokenize=tokenize)
        assert found["chrf"] == sacrebleu.corpus_chrf(answers, [golds]).score
        assert found["chrf++"] == sacrebleu.corpus_chrf(answers, [golds], word_order=2).score
        wanted = sacrebleu.corpus_bleu(answers, [golds], tokenize=tokenize).score
        assert found["bleu"] == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_smoothing_and_short_answers_are_sacrebleus() -> None:
    cases = [
        ("take rest today please now", "take rest now and then"),  # no common four words: smoothed
        ("yes", "yes"),  # shorter than four words
        ("take rest", ""),
        ("take rest", "nothing alike"),
        ("a b c d e", "a b c d e f g h"),
    ]
    for case in cases:
        found = values([case])
        assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu([case[1]], [[case[0]]]).score, rel=1e-12)
        assert found["chrf"] == sacrebleu.corpus_chrf([case[1]], [[case[0]]]).score


def test_a_mean_of_sentence_scores_is_another_figure() -> None:
    """The mutant that the sums are there to avoid."""
    rows = [(gold, answer) for gold, answer in pairs(7, 80) if gold.strip()]
    singly = np.nanmean([values([row])["bleu"] for row in rows])
    assert abs(singly - values(rows)["bleu"]) > 1


def test_draws_are_vectorised() -> None:
    rows = pairs(8, 30)
    counts = [overlap_counts(*row) for row in rows]
    draws = np.random.default_rng(0).integers(0, len(rows), (5, len(rows)))
    sums = {name: np.array([sum(counts[i][name] for i in draw) for draw in draws]) for name in counts[0]}
    for name, metric in overlap_metrics().items():
        one_by_one = [values([rows[i] for i in draw])[name] for draw in draws]
        assert metric(sums) == pytest.approx(one_by_one, rel=1e-12), name


def test_what_the_gold_is_too_short_for_counts_nowhere() -> None:
    assert chrf_counts("ab", "abcdefgh")["chrf_given4"] == 0.0
    assert bleu_counts("", "some words here", "13a")["bleu_given"] == 3.0
    assert np.isnan(values([("", "some words")])["chrf"]) and np.isnan(values([("", "some words")])["rouge1"])


def test_signatures_are_printed_and_scripts_without_spaces_are_cut_by_letter() -> None:
    assert "tok:13a|smooth:exp|version:" in signatures()["bleu"]
    assert "nc:6|nw:2" in signatures()["chrf++"]
    assert signatures()["bleu"] in overlap_meaning("13a", True)["bleu"]
    assert "not English" in overlap_meaning("13a", False)["rouge1"]
    assert (
        cut_by(["水を飲んでください"]) == "char"
        and cut_by([KANNADA]) == cut_by(["rest"]) == cut_by([]) == "13a"
    )
