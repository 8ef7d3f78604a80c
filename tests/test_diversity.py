"""How different answers are: distinct n-grams by plain counting, self-BLEU by sacrebleu pair by pair, repetitions."""

import random

import pytest
from sacrebleu import sentence_bleu

from tunesmith.tasks.generated.diversity import COMPARED, distinct, repeated, self_bleu, table


def texts(count, vocabulary, seed=0):
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(vocabulary)}" for _ in range(30)) for _ in range(count)]


def test_distinct_n():
    said = ["The cat sat on the cat.", "the cat sat"]
    assert distinct(said, 1) == pytest.approx(4 / 9)
    assert distinct(said, 2) == pytest.approx(4 / 7)  # the cat, cat sat, sat on, on the
    assert distinct(["one"], 2) is None and distinct([], 1) is None
    assert distinct(["ನೀರು ಮರ", "ನೀರು ಮನೆ"], 1) == pytest.approx(3 / 4)


def test_self_bleu_is_each_against_all_others():
    said = texts(6, 12)
    expected = [
        sentence_bleu(one, [*said[:i], *said[i + 1 :]], use_effective_order=True).score
        for i, one in enumerate(said)
    ]
    assert self_bleu(said) == pytest.approx(sum(expected) / 6)
    assert self_bleu(["a b c d e"] * 4) == pytest.approx(100) and self_bleu(["alone"]) is None
    assert self_bleu(texts(10, 12)) > self_bleu(texts(10, 2000)) + 10


def test_the_mutant_that_compares_a_text_with_itself_would_always_say_100():
    said = texts(5, 2000)
    mutant = [sentence_bleu(one, said, use_effective_order=True).score for one in said]
    assert min(mutant) > 99.9 and self_bleu(said) < 20


def test_many_texts_are_compared_evenly():
    assert self_bleu(["same words here now again"] * 1000) == pytest.approx(100)
    half = [
        one
        for pair in zip(texts(200, 5000), ["same words here now again"] * 200, strict=True)
        for one in pair
    ]
    assert 1 < self_bleu(half) < 99 and COMPARED < 400


def test_repeated_values():
    assert repeated(["Alva Brem", "alva  brem.", "Corin", "Dessa"]) == 0.5
    assert repeated(["a", "b"]) == 0 and repeated([]) is None


def test_the_table_has_the_gold_answers_beside():
    made = table([["Name: Alva"], ["Name: Alva"]], ["Name: Brem", "Name: Corin"])
    assert [row[0] for row in made.rows] == ["answers", "gold answers"] and len(made.columns) == len(
        made.rows[0]
    )
    assert made.rows[0][-1] == 1.0 and made.rows[1][-1] == 0.0
