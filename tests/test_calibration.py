"""Calibration on simulated answers whose truth is known, and wrong ways to compute it, which the same tests refuse."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tunesmith.tasks.calibration import BINS, measure, risk_coverage, span_confidence, tables
from tunesmith.tasks.json_places import value_spans


def simulated(seed, n=2000, shift=0.0, sure=8.0):
    """Confidences as models have them (most near 1), each right with chance confidence - shift."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(sure, 1, n)
    right = rng.random(n) < np.clip(confidence - shift, 0, 1)
    return confidence.tolist(), right.tolist()


def near_its_bias(measuring):
    for n in (200, 1000, 5000):
        found = [measuring(*simulated(seed, n)) for seed in range(60)]
        mean = np.mean([one.ece for one in found])
        foretold = np.mean([one.ece_by_chance for one in found])
        assert mean == pytest.approx(foretold, rel=0.12), n
        assert max(one.ece for one in found) < 3 * foretold


def finds_a_shift(measuring, shift):
    for seed in range(20):
        found = measuring(*simulated(seed, shift=shift))
        assert found.ece == pytest.approx(found.confidence - found.right, abs=0.03)
        assert found.ece == pytest.approx(shift, abs=0.05) and found.ece > 3 * found.ece_by_chance


def weighs_bins_by_answers(measuring):
    """990 answers right nine times in ten at 0.9, and ten at 0.1 that are all right: an ECE of 0.009."""
    confidence = [0.9] * 990 + [0.1] * 10
    right = [i % 10 != 0 for i in range(990)] + [True] * 10
    assert measuring(confidence, right).ece == pytest.approx(0.01 * 0.9, abs=0.003)


def test_calibrated_confidences_have_the_ece_that_chance_gives():
    near_its_bias(measure)


@pytest.mark.parametrize("shift", [0.1, 0.2, 0.3])
def test_a_shift_of_confidences_is_found(shift):
    finds_a_shift(measure, shift)


def test_bins_are_weighed_by_their_answers():
    weighs_bins_by_answers(measure)


def wide(confidence, right, empty):
    """ECE of ten bins of equal width, weighed alike; an empty one counts as never right, or is left out."""
    sure, good = np.asarray(confidence), np.asarray(right, float)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    distance = []
    for i in range(BINS):
        kept = place == i
        if kept.any():
            distance.append(abs(sure[kept].mean() - good[kept].mean()))
        elif empty:
            distance.append((i + 0.5) / BINS)
    return measure(confidence, right)._replace(ece=float(np.mean(distance)))


@pytest.mark.parametrize("check", [near_its_bias, weighs_bins_by_answers])
@pytest.mark.parametrize("empty", [True, False])
def test_bins_of_equal_width_weighed_alike_are_refused(check, empty):
    with pytest.raises(AssertionError):
        check(lambda confidence, right: wide(confidence, right, empty))


@pytest.mark.parametrize("shift", [0.1, 0.2])
def test_an_ece_without_distances_is_refused(shift):
    with pytest.raises(AssertionError):
        finds_a_shift(lambda *given: measure(*given)._replace(ece=measure(*given).ece_by_chance), shift)


def test_figures_by_hand():
    found = measure([0.9, 0.6, 0.8, 0.5], [True, False, False, True])
    assert found.n == 4 and found.right == 0.5
    assert found.brier == pytest.approx((0.01 + 0.36 + 0.64 + 0.25) / 4)
    assert found.ece == pytest.approx((0.1 + 0.6 + 0.8 + 0.5) / 4)  # four bins of one answer
    assert found.aurc == pytest.approx((0 + 1 / 2 + 2 / 3 + 2 / 4) / 4)
    assert risk_coverage([0.9, 0.6, 0.8, 0.5], [True, False, False, True])[-1] == (1.0, 0.5)


def test_risk_falls_with_coverage_where_confidence_knows_something():
    curve = risk_coverage(*simulated(3, sure=2.0))
    assert [share for share, _ in curve] == pytest.approx([0.05, *(i / 10 for i in range(1, 11))])
    assert curve[0][1] < curve[-1][1] / 2
    rng = np.random.default_rng(0)
    blind = measure(rng.random(4000).tolist(), (rng.random(4000) < 0.7).tolist())
    assert blind.aurc == pytest.approx(0.3, abs=0.03)


def test_equal_confidences_do_not_hang_on_the_order_of_rows():
    right = [True] * 50 + [False] * 50
    one, other = measure([0.7] * 100, right), measure([0.7] * 100, right[::-1])
    assert one == other and one.ece == pytest.approx(0.2) and one.aurc == pytest.approx(0.5)


def test_few_answers_are_said():
    few, many = tables("x", [0.5, 0.9], [True, False]), tables("x", *simulated(0))
    assert all("read nothing into it" in table.note for table in few) and "n = 2." in few[0].note
    assert not any("read nothing" in table.note for table in many)
    assert [table.kind for table in many] == ["calibration", "risk_coverage"]
    assert sum(row[2] for row in many[0].rows) == 2000 and len(many[0].rows) == BINS
    assert tables("x", [], []) == []


# ---- which tokens wrote a value


def test_tokens_of_a_span():
    #       {"a": "xy", …     tokens: {  "a  ":  ' "'  xy   ",
    ends = [1, 3, 5, 7, 9, 11]
    logprobs = [-1.0, -2.0, -3.0, -0.5, -0.7, -0.3, -9.0]  # the last one ended the answer
    assert span_confidence(logprobs, ends, 6, 10) == pytest.approx(math.exp(-1.5 / 3))
    assert span_confidence(logprobs, ends, 7, 9) == pytest.approx(math.exp(-0.7))
    assert span_confidence(logprobs, ends, 11, 11) is None
    assert span_confidence([], [], 0, 1) is None


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("wrap", ["{}", "```json\n{}\n```", "Here {{ you }} are: {} done"])
def test_values_are_found_where_they_stand(indent, wrap):
    value = {"a": 'x "q" {y}', "b": None, "n": {"c": [1, {"a": 2}], "d": -1.5e3}, "e": {}, "ಕ": "ನ್ನಡ"}
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    answer = text if wrap == "{}" else wrap.replace("{{", "{").replace("}}", "}").replace("{}", text)
    spans = value_spans(answer, value)
    assert set(spans) == {"a", "b", "n", "n.c", "n.d", "e", "ಕ"}
    for field, wanted in [
        ("a", value["a"]),
        ("b", None),
        ("n.c", [1, {"a": 2}]),
        ("n.d", -1500.0),
        ("ಕ", "ನ್ನಡ"),
    ]:
        begin, end = spans[field]
        assert json.loads(answer[begin:end]) == wanted and not answer[begin].isspace()


def test_values_of_no_object_are_nowhere():
    assert value_spans("no idea", None) == {} and value_spans('{"a": 1', None) == {}
    assert value_spans("{" * 3000, None) == {}
    assert value_spans('{"a": 1, "a": 2}', {"a": 2}) == {"a": (14, 15)}  # the last one counts
