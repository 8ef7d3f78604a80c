"""Copies of training answers: runs against a plain search, planted copies found, none seen in answers held out."""

import random

import numpy as np
import pytest
from invented_records import ADVICE, records

from tunesmith.tasks.generated import copies
from tunesmith.tasks.generated.copies import GRAM, CopyIndex, copies_table
from tunesmith.tasks.normalise import words

TRAIN = [row.answer for row in records(300)]
HELD_OUT = [row.answer for row in records(200, first=5000)]


@pytest.fixture(scope="module")
def index() -> CopyIndex:
    return CopyIndex(TRAIN)


def longest_by_search(text: str, golds: list[str]) -> int:
    """The longest run of words that stands in one of `golds`, by dynamic programming."""
    said, best = words(text), 0
    for gold in golds:
        before = np.zeros(len(said) + 1, int)
        for word in words(gold):
            now = np.zeros_like(before)
            same = np.array([one == word for one in said])
            now[1:][same] = before[:-1][same] + 1
            best, before = max(best, int(now.max())), now
    return best


def test_runs_and_grams_equal_a_plain_search():
    draw = random.Random(4)
    letters = [f"w{i}" for i in range(12)]  # few words: runs meet by chance, and grams stand in many answers
    golds = [" ".join(draw.choices(letters[:3], k=draw.randint(5, 120))) for _ in range(25)]
    golds += [" ".join(draw.choices(letters, k=60)) for _ in range(25)]
    found = CopyIndex(golds)
    known = {tuple(words(g)[i : i + GRAM]) for g in golds for i in range(len(words(g)) - GRAM + 1)}
    seen = set()
    for number in range(40):
        gold = words(golds[number])
        a, b = sorted(draw.choices(range(len(gold) + 1), k=2))
        text = " ".join([*draw.choices(letters[:4], k=30), *gold[a:b], "new", *gold[: draw.randint(0, 40)]])
        said = words(text)
        one, best = found.measure(text), longest_by_search(text, golds)
        assert one.run == (best if best >= GRAM else 0)
        assert one.known == sum(tuple(said[i : i + GRAM]) in known for i in range(len(said) - GRAM + 1))
        assert one.grams == max(len(said) - GRAM + 1, 0)
        seen.add(one.run)
    assert len(seen) > 10 and max(seen) > 30


def test_planted_copies_are_found_and_answers_held_out_are_not(index):
    draw = random.Random(0)
    whole = draw.sample(TRAIN, 50)
    half = [
        f"{held[: len(held) // 2]} {train[len(train) // 3 :]}"
        for train, held in zip(whole, HELD_OUT, strict=False)
    ]
    paragraph = [held + " ".join(words(train)[60:115]) for train, held in zip(whole, HELD_OUT, strict=False)]
    shouted = [text.upper().replace(".", " ;") for text in whole]
    for planted in (whole, half, paragraph, shouted):
        assert sum(index.is_copy(index.measure(text)) for text in planted) >= 0.95 * len(planted)
    alarms = sum(index.is_copy(index.measure(text)) for text in HELD_OUT)
    assert alarms <= 0.01 * len(HELD_OUT)
    assert all(index.measure(text).exact for text in (*whole, *shouted))
    assert not any(index.measure(text).exact for text in (*half, *paragraph, *HELD_OUT))


def test_without_the_rule_of_boilerplate_every_answer_would_be_a_copy(index, monkeypatch):
    """The mutant: standing advice that all records end with counts as own words."""
    assert len(words(ADVICE)) > copies.MOST_OWN
    mutant = CopyIndex(TRAIN)
    mutant._shared = 10**9
    mutant.limit = index.limit
    assert sum(mutant.is_copy(mutant.measure(text)) for text in HELD_OUT) == len(HELD_OUT)


def test_the_run_can_be_quoted(index):
    row = records(1, first=7000)[0].answer
    said = words(TRAIN[3])[70:140]
    found = index.measure(f"{row} {' '.join(said)}")
    assert index.is_copy(found) and " ".join(said[:20]) in index.quote(f"{row} {' '.join(said)}", found)


def test_records_that_are_nearly_one_record_set_their_own_limit():
    """Where any two training answers share sixty own words, sixty are no sign of a copy."""
    draw = random.Random(1)
    pool = [" ".join(f"s{draw.randrange(999)}" for _ in range(60)) for _ in range(90)]
    golds = [" ".join([f"n{i}", *draw.sample(pool, 3), f"m{i} end"]) for i in range(150)]
    index = CopyIndex(golds)
    held = [" ".join([f"x{i}", *draw.sample(pool, 3), f"y{i} end"]) for i in range(200)]
    assert index.limit > 60 and sum(index.is_copy(index.measure(text)) for text in held) <= 2


@pytest.mark.parametrize("golds", [[], ["short"], ["", "…"], ["a b c"] * 40])
def test_few_or_empty_training_answers(golds):
    index = CopyIndex(golds)
    one = index.measure("a b c")
    assert (one.run, one.grams, one.words) == (0, 0, 3)
    assert not index.is_copy(one) and index.measure("").words == 0  # "a b c" is what everybody says
    assert copies_table(index, ["a b c"], ["d"]).rows[0][0] == "answers"


def test_a_short_answer_said_again_is_a_copy_where_answers_differ():
    index = CopyIndex([f"no pain since day {i} at home" for i in range(400)])
    assert index.is_copy(index.measure("No pain since day 7 at home."))
    assert not index.is_copy(index.measure("No pain since day 700 at home."))
