"""Extraction beyond its scores: stated and inferred values, confusions, faults, confidences of fields."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from tunesmith.example import Example, Message
from tunesmith.starter import reports
from tunesmith.tasks import extraction_study, make_task
from tunesmith.tasks.answered import answered, faults_of, study_of
from tunesmith.tasks.score import score_answers

SCHEMA = {"type": "object", "properties": {"stage": {}, "drug": {}}, "required": ["stage", "drug"]}
TASK = make_task("extraction", SCHEMA)


def row(gold, answer, text="nothing", number=0, **line):
    turns = (Message("user", text), Message("assistant", json.dumps(gold), True))
    said = answer if isinstance(answer, str) else json.dumps(answer)
    return answered(TASK, Example(f"r{number}", turns), {"id": f"r{number}", "answer": said, **line})


def values(rows):
    scored = score_answers([one.line for one in rows], [one.example for one in rows], TASK)
    sums = {name: count.sum(keepdims=True) for name, count in scored.counts.items()}
    return {name: float(metric(sums)[0]) for name, metric in TASK.metrics().items()}, scored.counts


# ---- stated and inferred


def habits():
    """A model that copies stages well and concludes them badly: 8 of 10 stated, 1 of 10 inferred are right."""
    rows = []
    for i in range(20):
        stated = i < 10
        right = i < 8 or i == 10
        gold = {"stage": "IV", "drug": "carboplatin; paclitaxel"}
        text = f"{'Stage IV' if stated else 'Metastatic'} disease, paclitaxel given."
        rows.append(
            row(gold, {"stage": "IV" if right else "II", "drug": "carboplatin"}, text, i, stopped=True)
        )
    return rows


def stated_and_inferred_apart():
    made, counts = values(habits())
    assert (made["recall_stated:stage"], made["recall_inferred:stage"]) == (0.8, 0.1)
    assert (made["recall_stated:drug"], made["recall_inferred:drug"]) == (0.0, 1.0)
    assert made["recall_stated"] == 8 / 30 and made["recall_inferred"] == 21 / 30
    # a value of two items is stated where both are: no drug value is
    assert (made["exact_stated"], made["exact_inferred"]) == (0.8, 1 / 30)
    return counts


def test_stated_and_inferred_values_are_scored_apart():
    counts = stated_and_inferred_apart()
    fields, stated = TASK.tables({name: float(found.sum()) for name, found in counts.items()})
    assert fields.title == "Fields"
    assert stated.rows == (
        ("stage", 10, 0.8, 10, 0.1),
        ("drug", 20, 0.0, 20, 1.0),
        ("all fields", 30, 8 / 30, 30, 21 / 30),
    )
    assert {"recall_stated", "recall_inferred", "exact_stated", "exact_inferred"} <= set(TASK.explain())


@pytest.mark.parametrize(
    "mutant",
    [
        lambda item: [],  # everything is stated
        lambda item: [item + "!"],  # nothing is
        lambda item: [item[0]],  # a letter of it is enough
    ],
)
def test_wrong_rules_for_stated_are_refused(mutant, monkeypatch):
    monkeypatch.setattr(extraction_study, "_words", mutant)
    with pytest.raises(AssertionError):
        stated_and_inferred_apart()


def test_reports_of_the_starter_state_all_their_values():
    rows = reports.rows("test", 60)
    task = make_task("extraction", None, [json.dumps(one["output"]) for one in rows])
    found = [task.counts(one["input"], *[task.parse(json.dumps(one["output"]))] * 2) for one in rows]
    items, stated = (
        sum(one[f"{name}:{field}"] for one in found for field in task.fields)
        for name in ("gold_items", "stated_items")
    )
    assert stated / items > 0.97


def test_parts_of_objects_are_looked_for_without_their_keys():
    counts = extraction_study.stated_counts(
        frozenset({"dose=5 mg name=a"}), frozenset(), False, {"a", "5", "mg"}
    )
    assert counts == {"stated": 1, "stated_exact": 0, "stated_items": 1, "stated_hits": 0}


# ---- confusions


def test_confusions_count_pairs_and_hold_words_of_rows():
    pairs = [("II", "IV")] * 3 + [("II", "II")] * 5 + [("iv", "IV ")] * 2 + [("IV", None), (None, "III")]
    rows = [
        row({"stage": gold, "drug": None}, {"stage": said, "drug": None}, number=i)
        for i, (gold, said) in enumerate(pairs)
    ]
    (table,) = [one for one in study_of(TASK, rows) if one.kind == "confusion"]
    assert (
        table.title == "Confusions: stage" and table.quotes and table.columns == ("gold", "answered", "times")
    )
    assert table.rows == (
        ("II", "II", 5), ("II", "IV", 3), ("IV", "IV", 2), ("IV", "null", 1), ("null", "III", 1),
    )  # fmt: skip
    assert "right answers too" in table.note


def test_many_values_show_wrong_pairs_alone_and_the_order_of_items_is_no_confusion():
    rows = [row({"stage": f"T{i}", "drug": "a; b"}, {"stage": f"T{i}" if i % 3 else "X", "drug": "B and a"}, number=i)
            for i in range(30)]  # fmt: skip
    (table,) = [one for one in study_of(TASK, rows) if one.kind == "confusion"]
    assert len(table.rows) == 10 and all(said == "X" for _, said, _ in table.rows)
    assert "10 wrong answers (30 gold values" in table.note


def test_right_answers_have_no_confusions():
    rows = [row({"stage": "II", "drug": None}, {"stage": "II", "drug": None}, number=i) for i in range(5)]
    assert study_of(TASK, rows) == []


def test_answers_that_cannot_be_parsed_confuse_nothing_with_null():
    rows = [row({"stage": "II", "drug": None}, "no idea"), row({"stage": "II", "drug": None}, "no idea")]
    (table,) = study_of(TASK, rows)
    assert table.rows == (("II", "null", 2),)


# ---- faults


@pytest.mark.parametrize(
    "answer, kinds",
    [
        ({"stage": "II", "drug": "carboplatin and paclitaxel"}, []),
        ({"stage": "III", "drug": "paclitaxel; carboplatin"}, [("wrong", "stage", "III")]),
        ({"stage": None, "drug": "carboplatin"}, [("missed", "stage", None), ("partly", "drug", "carboplatin")]),
        ({"stage": "II", "drug": "carboplatin; paclitaxel; aspirin"}, [("hallucinated", "drug", "aspirin")]),
        ({"stage": "II", "drug": "carboplatin; paclitaxel weekly"},
         [("partly", "drug", "carboplatin; paclitaxel weekly")]),
        ({"stage": "II", "drug": "carboplatin; aspirin"},
         [("hallucinated", "drug", "aspirin"), ("partly", "drug", "carboplatin; aspirin")]),
        ("", [("empty", "", None)]),
        ("stage two", [("unparsable", "", "unparsable: no JSON object")]),
    ],
)  # fmt: skip
def test_faults_by_field(answer, kinds):
    one = row({"stage": "II", "drug": "carboplatin; paclitaxel"}, answer, stopped=True)
    assert [(fault.kind, fault.where, fault.predicted) for fault in faults_of(TASK, one)] == kinds


def test_a_value_for_null_is_hallucinated():
    one = row({"stage": "II", "drug": None}, {"stage": "II", "drug": "aspirin"})
    assert [(fault.kind, fault.where) for fault in faults_of(TASK, one)] == [("hallucinated", "drug")]


def test_a_cut_answer_of_a_file_that_does_not_say_so():
    cut = '{"stage": "II", "drug": "carb'
    for line, kinds in (
        ({}, ["unparsable", "truncated"]), ({"stopped": True}, ["unparsable"]),
        ({"stopped": False}, ["truncated", "unparsable"]),
    ):  # fmt: skip
        one = row({"stage": "II", "drug": None}, cut, **line)
        assert [fault.kind for fault in faults_of(TASK, one)] == kinds


# ---- confidences


def written(gold, answer, sureness, number=0):
    """A row whose answer's tokens are single characters; `sureness`: field → probability of each of its characters."""
    text = json.dumps(answer)
    spans = extraction_study.value_spans(text, answer)
    logprobs = [0.0] * len(text)
    for field, probability in sureness.items():
        begin, end = spans[field]
        logprobs[begin:end] = [float(np.log(probability))] * (end - begin)
    return row(
        gold, text, number=number, token_logprobs=[*logprobs, 0.0], token_ends=list(range(1, len(text) + 1))
    )


def test_each_field_has_the_confidence_of_its_own_tokens():
    one = written({"stage": "II", "drug": None}, {"stage": "IV", "drug": None}, {"stage": 0.3, "drug": 0.8})
    (found,) = extraction_study.sureness([one], [TASK.details(one.gold, one.predicted)])
    assert [s.confidence for s in found] == pytest.approx([0.3, 0.8])
    assert [(s.field, s.right) for s in found] == [("stage", False), ("drug", True)]


def test_fields_without_tokens_have_that_of_the_answer():
    one = row({"stage": "II", "drug": None}, "no", token_logprobs=[-0.5, -1.5], token_ends=[1, 2])
    (found,) = extraction_study.sureness([one], [TASK.details(one.gold, one.predicted)])
    assert [(s.confidence, s.right) for s in found] == [(pytest.approx(np.exp(-1)), False)] * 2


def calibrated_rows(shift, seed=0, count=400):
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        sure = {field: rng.betavariate(5, 1) for field in ("stage", "drug")}
        gold = {"stage": "II", "drug": "aspirin"}
        answer = {field: gold[field] if rng.random() < sure[field] - shift else "other" for field in gold}
        rows.append(written(gold, answer, sure, i))
    return rows


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_calibration_of_fields_and_rows(shift):
    tables = study_of(TASK, calibrated_rows(shift))
    (figures,) = [table for table in tables if table.title == "Confidence"]
    by_name = {found[0]: dict(zip(figures.columns[1:], found[1:], strict=True)) for found in figures.rows}
    assert set(by_name) == {"stage", "drug", "all fields", "whole rows"}
    assert by_name["all fields"]["n"] == 800 and by_name["whole rows"]["n"] == 400
    for name in ("all fields", "whole rows"):
        found = by_name[name]
        if shift:
            assert found["ECE"] > 4 * found["ECE by chance"] and found["ECE"] > 0.15
        else:  # fields are sure on their own here, so their product is a row's chance
            assert found["ECE"] < 2 * found["ECE by chance"]
    kinds = [table.kind for table in tables if table.kind != "confusion"]
    assert kinds == ["", "calibration", "risk_coverage", "calibration", "risk_coverage"]
    assert not any(table.quotes for table in tables if table.kind != "confusion")


def test_confidence_by_the_whole_answer_would_be_refused(monkeypatch):
    monkeypatch.setattr(extraction_study.calibration, "span_confidence", lambda *given: None)
    with pytest.raises(AssertionError):
        test_each_field_has_the_confidence_of_its_own_tokens()


def test_predictions_without_tokens_have_no_calibration():
    assert {table.kind for table in study_of(TASK, habits())} == {"confusion"}
    assert TASK.by_token
