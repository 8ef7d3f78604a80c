"""Intervals hold what they promise: against scipy, a slow loop, and by counting how often they cover the truth."""

import math
import random

import numpy as np
import pytest
from scipy.stats import binomtest

from tunesmith import statistics
from tunesmith.statistics import binomial_at_most, bootstrap, mcnemar, paired_difference, sign_test
from tunesmith.tasks.sums import Share, ratio


def mean(sums):
    return ratio(sums["hits"], sums["rows"])


def f1(sums):
    return ratio(2 * sums["hits"], sums["gold"] + sums["given"])


def counts_of(values):
    return {"hits": np.array(values, float), "rows": np.ones(len(values))}


def test_value_is_pooled_and_interval_like_a_slow_loop():
    rng = random.Random(1)
    rows = []
    for document in range(60):
        for _ in range(rng.randrange(1, 5)):
            gold, given = rng.randrange(1, 6), rng.randrange(0, 6)
            rows.append((f"d{document}", gold, given, rng.randrange(0, min(gold, given) + 1)))
    documents = [row[0] for row in rows]
    columns = {
        name: np.array([row[i] for row in rows], float)
        for i, name in ((1, "gold"), (2, "given"), (3, "hits"))
    }
    made = bootstrap(columns, documents, {"f1": f1}, draws=4000, seed=3)["f1"]

    def pooled(chosen):
        return 2 * sum(r[3] for r in chosen) / (sum(r[1] for r in chosen) + sum(r[2] for r in chosen))

    by_document = {d: [row for row in rows if row[0] == d] for d in documents}
    names = list(by_document)
    drawn = sorted(
        pooled([row for d in rng.choices(names, k=len(names)) for row in by_document[d]]) for _ in range(4000)
    )
    assert made.value == pytest.approx(pooled(rows), abs=1e-12)
    assert made.low == pytest.approx(drawn[100], abs=0.008)
    assert made.high == pytest.approx(drawn[3899], abs=0.008)
    assert made.n == len(rows)


def coverage(trials=200):
    """How often the interval holds the true mean 0.6 when the rows of a document share their luck."""
    rng, inside = np.random.default_rng(0), 0
    for trial in range(trials):
        luck = rng.beta(1.2, 0.8, size=60)
        values = (rng.random((60, 8)) < luck[:, None]).ravel()
        documents = [f"d{i // 8}" for i in range(480)]
        made = bootstrap(counts_of(values), documents, {"mean": mean}, draws=400, seed=trial)["mean"]
        inside += made.low <= 0.6 <= made.high
    return inside / trials


def test_interval_covers_the_truth_when_documents_have_many_rows():
    assert 0.90 <= coverage() <= 0.98


def test_drawing_rows_instead_of_documents_would_be_caught(monkeypatch):
    places = statistics._places
    monkeypatch.setattr(
        statistics,
        "_places",
        lambda documents: places([str(i) for i in range(480)]),
    )
    assert coverage() < 0.8


def test_same_seed_same_draws_whatever_the_documents_are_called():
    values = np.random.default_rng(0).random(50)
    one = bootstrap(counts_of(values), [f"a{i}" for i in range(50)], {"mean": mean}, seed=5)
    assert one == bootstrap(counts_of(values), [f"z{50 - i}" for i in range(50)], {"mean": mean}, seed=5)
    assert one != bootstrap(counts_of(values), [f"a{i}" for i in range(50)], {"mean": mean}, seed=6)


def test_blocks_of_draws_change_nothing(monkeypatch):
    values, documents = np.random.default_rng(0).random(40), [str(i) for i in range(40)]
    whole = bootstrap(counts_of(values), documents, {"mean": mean}, draws=300)
    monkeypatch.setattr(statistics, "_BLOCK", 40 * 7)
    assert bootstrap(counts_of(values), documents, {"mean": mean}, draws=300) == whole


def test_paired_difference_is_second_minus_first_and_narrower_than_unpaired():
    rng = np.random.default_rng(2)
    hard = rng.random(400)
    first, second = (hard < 0.5).astype(float), (hard < 0.55).astype(float)
    documents = [str(i) for i in range(400)]
    made = paired_difference(counts_of(first), counts_of(second), documents, mean)
    assert made.value == pytest.approx(second.mean() - first.mean())
    assert 0 < made.low < made.value < made.high < 0.1
    unpaired = paired_difference(counts_of(first), counts_of(rng.permutation(second)), documents, mean)
    assert made.high - made.low < (unpaired.high - unpaired.low) / 2
    same = paired_difference(counts_of(first), counts_of(first), documents, mean)
    assert same[:3] == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("only_first, only_second", [(0, 0), (0, 1), (3, 9), (40, 61), (700, 612)])
def test_mcnemar_is_the_exact_binomial_test(only_first, only_second):
    first = np.array([True] * only_first + [False] * only_second + [True] * 5 + [False] * 5)
    second = np.array([False] * only_first + [True] * only_second + [True] * 5 + [False] * 5)
    made = mcnemar(first, second)
    assert (made.only_first, made.only_second) == (only_first, only_second)
    total = only_first + only_second
    assert made.p == pytest.approx(binomtest(only_first, total, 0.5).pvalue if total else 1.0, rel=1e-9)


def test_binomial_at_most():
    assert binomial_at_most(2, 10, 0.05) == pytest.approx(0.9884964)
    assert binomial_at_most(10, 10, 0.05) == 1.0


def test_nothing_to_divide_is_nan_and_json_null():
    counts = {"hits": np.zeros(3), "rows": np.zeros(3)}
    made = bootstrap(counts, ["a", "b", "c"], {"mean": mean})["mean"]
    assert math.isnan(made.value)
    assert made.to_json() == {"value": None, "low": None, "high": None, "n": 3}


def test_counts_of_another_length_are_a_bug():
    with pytest.raises(ValueError, match="3 rows"):
        bootstrap({"hits": np.zeros(2)}, ["a", "b", "c"], {"mean": mean})


# ---- few documents, and shares at their ends


@pytest.mark.parametrize("rows", [1, 40])
def test_one_document_has_no_interval(rows):
    values, documents = np.random.default_rng(0).random(rows), ["only"] * rows
    made = bootstrap(counts_of(values), documents, {"mean": mean, "share": Share(mean)})
    for one in (*made.values(), paired_difference(counts_of(values), counts_of(1 - values), documents, mean)):
        assert not math.isnan(one.value)
        assert one.to_json()["low"] is None and one.to_json()["high"] is None
        assert one.ends == (one.value, one.value)  # what export holds a merge against


@pytest.mark.parametrize("documents", [2, 20, 300])
@pytest.mark.parametrize("value", [0, 1])
def test_a_share_at_its_end_has_the_exact_bound_over_documents(documents, value):
    rows = 3 * documents
    names = [f"d{i % documents}" for i in range(rows)]
    made = bootstrap(counts_of([value] * rows), names, {"share": Share(mean), "other": mean}, draws=50)
    expected = binomtest(value * documents, documents).proportion_ci(0.95, method="exact")
    assert made["share"][:3] == pytest.approx((value, expected.low, expected.high), abs=1e-12)
    assert made["other"][:3] == (value, value, value)  # not known to lie between 0 and 1


def test_documents_without_a_denominator_do_not_narrow_the_bound():
    counts = {"hits": np.zeros(50), "rows": np.array([1.0] * 5 + [0.0] * 45)}
    made = bootstrap(counts, [str(i) for i in range(50)], {"share": Share(mean)})["share"]
    assert made.high == pytest.approx(binomtest(0, 5).proportion_ci(0.95, method="exact").high)


def test_sign_test_counts_documents_not_rows():
    # 6 documents of 10 rows: tuned is better by all rows in 5, worse by one row in 1; 1 document is equal
    first = np.array([False] * 50 + [True] * 5 + [False] * 5 + [True] * 10)
    second = np.array([True] * 50 + [True] * 4 + [False] * 6 + [True] * 10)
    documents = [f"d{i // 10}" for i in range(70)]
    made = sign_test(first, second, documents)
    assert (made.first_better, made.second_better, made.equal) == (1, 5, 1)
    assert made.p == pytest.approx(binomtest(1, 6, 0.5).pvalue)
    assert mcnemar(first, second).p < 1e-10  # what rows would have claimed
    alone = sign_test(first, second, [str(i) for i in range(70)])
    assert alone.p == pytest.approx(mcnemar(first, second).p)
