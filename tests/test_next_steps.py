"""Every rule for a next step: it speaks on planted counts, says them, and is silent on clean rows and on few cases."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.evaluate.advice import steps_from_faults as from_faults
from tunesmith.evaluate.advice import steps_from_scores as from_scores
from tunesmith.evaluate.advice.next_steps import RULES, next_steps
from tunesmith.evaluate.advice.step import Seen, Step
from tunesmith.evaluate.shown.wording import many
from tunesmith.example import Example, Message
from tunesmith.tasks.answered import Answered
from tunesmith.tasks.protocol import Fault, Parsed

TOTAL = 100


def score(value, low=None, high=None):
    ends = {"low": value - 0.01 if low is None else low, "high": value + 0.01 if high is None else high}
    return {"value": value, **ends, "n": TOTAL}


def seen(faults=(), sums=(), answer="a" * 10, **content: Any) -> Seen:
    """100 rows: `faults` are those of the first rows, one each (a list for several)."""
    each = [[one] if isinstance(one, Fault) else list(one) for one in faults]
    found = [*each, *[[]] * (TOTAL - len(each))]
    turns = (Message("user", "x"), Message("assistant", "a" * 10, True))
    rows = [
        Answered(Example(f"r{i}", turns), Parsed("x"), Parsed("x"), {"answer": answer}) for i in range(TOTAL)
    ]
    whole = {
        "headline": {"metric": "f1", "better": "higher"}, "rows": TOTAL, "documents": 800,
        "scores": {"tuned": {"f1": score(0.9)}, "nearest": {"f1": score(0.6)}},
    }  # fmt: skip
    scores = content.pop("scores", {})
    whole["scores"] = {
        name: {**whole["scores"].get(name, {}), **scores.get(name, {})}
        for name in {**whole["scores"], **scores}
    }
    return Seen({**whole, **content}, "tuned", rows, found, dict(sums))


NULLS = {
    "hallucinated:drug": 8,
    "null:drug": 32,
    "null:site": 40,
    "given:drug": 50,
    "gold:drug": 60,
    "gold:site": 40,
}
STAGES = (
    [Fault("wrong", "stage", "IIIA", "IIIB")] * 7
    + [Fault("wrong", "stage", "II", "iia")]
    + [Fault("wrong", "stage", "II", "IV")] * 12
)
COLUMNS = ("confidence of", "n", "right", "mean confidence", "ECE", "ECE by chance")
SURE = [
    {
        "title": "Confidence",
        "kind": "",
        "columns": COLUMNS,
        "rows": [("all fields", 700, 0.6, 0.9, 0.3, 0.03)],
    }
]
CURVE = [
    {
        "title": "Confidence",
        "kind": "",
        "columns": COLUMNS,
        "rows": [("all fields", 700, 0.9, 0.92, 0.03, 0.02)],
    },
    {"title": "Risk", "kind": "risk_coverage", "rows": [(0.5, 0.0), (0.9, 0.05), (1.0, 0.1)]},
]
FLOOR = {"scores": {"nearest": {"f1": score(0.88)}}}
SLICE = {"slice": "source", "value": "B", "rows": 40, "small": False, "scores": {"tuned": {"f1": score(0.7)}}}

# rule → (what is planted, words and numbers of its line, count, of)
SPEAKS = {
    "hallucinated": (
        seen([Fault("hallucinated", "drug", None, "x")] * 8, NULLS), "8 of 80 null fields, all in drug", 8, 80),
    "invented_beside": (
        seen([Fault("hallucinated", "drug", "a", "x")] * 5, NULLS), "in 5 of 50 answered values", 5, 50),
    "copied": (seen([Fault("copied", "")] * 6), "6 of 100 answers repeat training rows", 6, 100),
    "reversed_pairs": (seen([[Fault("reversed", "CID")] * 2] * 4), "8 pairs are the wrong way round in 4 of 100",
        4, 100),
    "sub_stage": (seen(STAGES), "40 % of stage errors are in the sub-stage (8 of 20", 8, 20),
    "wrong_place": (
        seen([Fault("wrong", "stage")] * 6 + [Fault("wrong", "drug")] * 4), "6 of 10 wrong values are in stage", 6, 10),
    "contradicted": (seen([Fault("contradicted", "sex")] * 5), "5 of 100 answers contradict", 5, 100),
    "missed": (
        seen([Fault("missed", "site")] * 20, NULLS), "20 of 100 gold values were left out, all in site", 20, 100),
    "upstream": (
        seen([Fault("missed_upstream", "CID")] * 6 + [Fault("missed", "CID")] * 4), "6 of 10 missing pairs", 6, 10),
    "boundaries": (
        seen([Fault("boundary", "disease")] * 6 + [Fault("missed", "disease")] * 14),
        "6 of 20 entity errors are boundaries, all in disease", 6, 20),
    "dropped": (seen([Fault("dropped_section", "PLAN")] * 7), "7 of 100 answers lack a section, all in PLAN",
        7, 100),
    "cut": (seen([Fault("truncated", "")] * 9), "9 of 100 answers were cut: raise evaluate.decoding.max_tokens",
        9, 100),
    "unparsable": (
        seen([Fault("unparsable", "")] * 9 + [[Fault("unparsable", ""), Fault("truncated", "")]]),
        "9 of 100 answers can't be read, and 1 more because they were cut", 9, 100),
    "malformed": (
        seen([Fault("malformed", "")] * 6), "6 of 100 answers are malformed: keys are missing, unknown or of", 6, 100),
    "empty": (seen([Fault("empty", "")] * 4), "4 of 100 answers are empty", 4, 100),
    "other_script": (seen([Fault("wrong_script", "")] * 4), "4 of 100 answers are in another script", 4, 100),
    "inferred": (
        seen(sums={"gold_items:stage": 100, "stated_items:stage": 60, "hits:stage": 70, "stated_hits:stage": 55},
             scores={"tuned": {"recall_stated": score(55 / 60), "recall_inferred": score(15 / 40)}}),
        "(0.38 against 0.92; 25 of 40 not found)", 25, 40),
    "near_floor": (seen(over_floors={"nearest": score(0.02)}, **FLOOR),
        "nearest training row scores 0.880 on these 100 rows, within 0.020", 100, 100),
    "worse_than_base": (
        seen(headline={"metric": "f1", "better": "higher", "difference": {"value": -0.2, "low": -0.3, "high": -0.1}}),
        "Don't use this adapter: f1 is worse than the base's by 0.200 on these 100 rows", 100, 100),
    "unseen": (
        seen(scores={"tuned": {"mention_recall_seen": score(0.9), "mention_recall_unseen": score(0.6)}},
             sums={"mention_gold_unseen": 50.0, "mention_hits_unseen": 30.0}),
        "mention_recall_unseen is 0.60, lower by 0.30", 20, 50),
    "weak_slice": (seen(slices=[SLICE]), "source: B scores lower by 0.20 (40 of 100 rows)", 40, 100),
    "few_documents": (
        seen(documents=50, scores={"tuned": {"f1": score(0.7, 0.6, 0.8)}}),
        "50 documents give f1 an interval of ±0.100: for ±0.05 score about 200", 50, 200),
    "too_sure": (seen(studies={"tuned": SURE}), "0.90 on average, and 0.60 of the values are right", 280, 700),
    "look_at_unsure": (seen(studies={"tuned": CURVE}), "holds 38 of 70 wrong ones", 38, 70),
}  # fmt: skip

OTHERS = (
    "copied reversed wrong contradicted missed missed_upstream boundary dropped_section truncated unparsable empty "
    "wrong_script malformed"
).split()
SILENT = {
    "nothing is wrong": seen(sums=NULLS),
    "two cases of each": seen(
        [Fault("hallucinated", "drug", None, "x")] * 2 + [Fault("hallucinated", "drug", "a", "x")] * 2
        + [Fault(kind, "stage", "IIIA", "IIIB") for kind in OTHERS for _ in range(2)], NULLS),
    "all wrong values in the only field": seen([Fault("wrong", "stage", "II", "IV")] * 9),
    "inferred as good": seen(
        sums={"gold_items:s": 100, "stated_items:s": 60, "hits:s": 90, "stated_hits:s": 54},
        scores={"tuned": {"recall_stated": score(0.9), "recall_inferred": score(0.9)}}),
    "worse by chance": seen(
        headline={"metric": "f1", "better": "higher", "difference": {"value": -0.2, "low": -0.5, "high": 0.1}}),
    "better where less is": seen(
        headline={"metric": "f1", "better": "lower", "difference": {"value": -0.2, "low": -0.3, "high": -0.1}}),
    "worse on too few documents": seen(documents=19,
        headline={"metric": "f1", "better": "higher", "difference": {"value": -0.2, "low": -0.3, "high": -0.1}}),
    "far above the floor": seen(over_floors={"nearest": score(0.3)}),
    "unseen as good": seen(scores={"tuned": {"recall_seen": score(0.9), "recall_unseen": score(0.88)}}),
    "unseen may be as good": seen(
        scores={"tuned": {"recall_seen": score(0.9), "recall_unseen": score(0.8, 0.5, 0.95)}}),
    "small slice": seen(slices=[SLICE | {"small": True}]),
    "slice may be as good": seen(slices=[SLICE | {"scores": {"tuned": {"f1": score(0.7, 0.4, 0.92)}}}]),
    "narrow interval": seen(documents=50, scores={"tuned": {"f1": score(0.7, 0.66, 0.74)}}),
    "no interval": seen(documents=1, scores={"tuned": {"f1": {"value": 0.7, "low": None, "high": None, "n": 1}}}),
    "surer by chance": seen(studies={"tuned": [
        SURE[0] | {"rows": [("all fields", 20, 0.7, 0.82, 0.2, 0.11)]}
    ]}),
    "confidence knows nothing": seen(studies={"tuned": [
        CURVE[0], {"title": "", "kind": "risk_coverage", "rows": [(0.9, 0.1), (1.0, 0.1)]}
    ]}),
}  # fmt: skip


def test_every_rule_has_a_case() -> None:
    assert {rule.__name__ for rule in RULES} == set(SPEAKS)


@pytest.mark.parametrize("name", SPEAKS)
def test_a_rule_speaks_on_planted_counts(name: str) -> None:
    planted, said, count, of = SPEAKS[name]
    rule = next(rule for rule in RULES if rule.__name__ == name)
    step = rule(planted)
    assert step is not None and said in step.say and (step.count, step.of) == (count, of), step
    assert step.say.endswith(".") and "  " not in step.say and len(step.say) < 260
    assert step.say in [one["say"] for one in next_steps(planted)]


@pytest.mark.parametrize("case", SILENT)
def test_rules_are_silent_on_clean_rows(case: str) -> None:
    assert next_steps(SILENT[case]) == []


def test_rules_without_thresholds_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        from_faults, "worth_saying", lambda say, count, of, harm: Step(say, count, of or 1, harm)
    )
    with pytest.raises(AssertionError):
        test_rules_are_silent_on_clean_rows("two cases of each")
    monkeypatch.setattr(from_scores, "lower", lambda one, other: bool(one and other))
    with pytest.raises(AssertionError):
        test_rules_are_silent_on_clean_rows("unseen as good")


def test_rambling_answers_need_more_training_not_more_tokens() -> None:
    step = from_faults.cut(seen([Fault("truncated", "")] * 9, answer="a" * 25))
    assert step is not None and "train longer" in step.say and "max_tokens" not in step.say


def test_missed_entities_are_counted_of_all_entities() -> None:
    step = from_faults.missed(
        seen([Fault("missed", "disease")] * 20, {"string_gold": 150.0, "relation_gold": 10.0})
    )
    assert step is not None and (step.count, step.of) == (20, 160)


def test_malformed_numbers_are_told_with_their_places() -> None:
    step = from_faults.malformed(seen([Fault("malformed", "unit no")] * 4))
    assert step is not None and "all in unit no" in step.say and "constrained" not in step.say


def test_made_up_things_of_tasks_without_fields() -> None:
    found = [[Fault("hallucinated", "Plan")] * 2] * 3 + [[Fault("hallucinated", "Diagnosis")]]
    step = from_faults.hallucinated(seen(found))
    assert step is not None and "in 4 of 100 answers (7 times, 6 of them in Plan)" in step.say


def test_less_is_better() -> None:
    worse = {"metric": "f1", "better": "lower"}
    over = {"nearest": score(-0.3)}
    assert from_scores.near_floor(seen(headline=worse, over_floors=over)) is None
    assert (
        from_scores.near_floor(seen(headline=worse, over_floors={"nearest": score(0.3)}, **FLOOR)) is not None
    )
    assert from_scores.weak_slice(seen(headline=worse, slices=[SLICE])) is None


def test_the_worst_stand_first_and_eight_at_most() -> None:
    found = [[Fault(kind, "x", "II", "IV") for kind in ("hallucinated", *OTHERS)]] * 20
    given = next_steps(seen(found, studies={"tuned": CURVE}))
    assert len(given) == 8
    assert {"repeat", "wrong way round", "made up"} == {
        word for word in ("repeat", "wrong way round", "made up") for one in given[:3] if word in one["say"]
    }
    assert all(set(one) == {"say", "count", "of"} and json.dumps(one) for one in given)


def test_no_schema_no_advice_to_hold_answers_to_one() -> None:
    lost = [Fault("unparsable", "")] * 20
    without = from_faults.unparsable(seen(lost))
    assert without is not None and "constrained" not in without.say
    fields = from_faults.unparsable(seen(lost, scores={"tuned": {"schema_valid": score(0.8)}}))
    assert fields is not None and "evaluate.constrained: true" in fields.say


def test_a_weak_slice_of_a_metric_that_runs_to_100_lies_lower_by_points() -> None:
    part = {"slice": "source", "value": "b", "rows": 50, "small": False}
    for below, said in ((2.0, False), (9.0, True)):
        step = from_scores.weak_slice(
            seen(
                headline={"metric": "chrf", "better": "higher", "scale": 100},
                scores={"tuned": {"chrf": score(50.0)}},
                slices=[
                    {**part, "scores": {"tuned": {"chrf": score(50.0 - below, 49 - below, 49.9 - below)}}}
                ],
            )
        )
        assert (step is not None) is said


def test_a_floor_that_is_better_means_too_little_was_learned() -> None:
    step = from_scores.near_floor(seen(over_floors={"nearest": score(-0.3)}, **FLOOR))
    assert step is not None and "better by 0.300: too little was learned" in step.say
    assert "another source" not in step.say


def test_what_is_held_to_the_schema_already_is_not_advised() -> None:
    fields = {"tuned": {"schema_valid": score(0.8)}, "tuned-constrained": {"f1": score(0.9)}}
    for rule, kind in ((from_faults.unparsable, "unparsable"), (from_faults.malformed, "malformed")):
        held = rule(seen([Fault(kind, "")] * 9, scores=fields))
        assert held is not None and "evaluate.constrained" not in held.say
        assert "see what “tuned, constrained” scores" in held.say


def test_counts_that_a_line_tells_are_not_told_again() -> None:
    wide = {"say": "40 documents give f1 ±0.2: score about 1,154.", "count": 40, "of": 1154}
    assert many(wide) == ""
    assert many({"say": "recall is 0.40 of 1,154.", "count": 40, "of": 1154}) == "40 of 1,154"
