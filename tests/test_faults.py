"""Error analysis from predictions alone: kinds by harm, places, slices; nothing of rows' words."""

from __future__ import annotations

import json

import pytest

from tunesmith.evaluate.advice import faults
from tunesmith.evaluate.advice.faults import find_faults, summary
from tunesmith.evaluate.build import build
from tunesmith.evaluate.file_report import systems_of
from tunesmith.example import Example, Message
from tunesmith.tasks import make_task
from tunesmith.tasks.answered import answered
from tunesmith.tasks.protocol import FAULTS, Fault

GOLD = {"site": "liver", "drug": None}
TASK = make_task("extraction", None, [json.dumps(GOLD), json.dumps({"site": None, "drug": "aspirin"})])


def rows(*answers, slices=()):
    made = []
    for i, answer in enumerate(answers):
        turns = (Message("user", f"row {i}"), Message("assistant", json.dumps(GOLD), True))
        part = {"source": slices[i]} if slices else {}
        said = answer if isinstance(answer, str) else json.dumps(answer)
        made.append(answered(TASK, Example(f"r{i}", turns, "", part), {"answer": said, "stopped": True}))
    return made


MIXED = (
    GOLD, GOLD | {"drug": "aspirin"}, {"site": "bone", "drug": "aspirin"}, {"site": None, "drug": None}, "", "no",
)  # fmt: skip


def test_kinds_stand_worst_harm_first_with_their_places():
    read = rows(*MIXED)
    made = summary(read, find_faults(TASK, read))
    assert (made["rows"], made["faulty_rows"]) == (6, 5)
    assert [(one["kind"], one["harm"], one["times"], one["rows"]) for one in made["by_kind"]] == [
        ("hallucinated", 4, 2, 2), ("wrong", 3, 1, 1), ("empty", 2, 1, 1), ("missed", 2, 1, 1), ("unparsable", 1, 1, 1),
    ]  # fmt: skip
    assert made["by_kind"][0]["where"] == {"drug": 2} and made["by_kind"][0]["share"] == pytest.approx(1 / 3)
    assert all(one["meaning"] == FAULTS[one["kind"]][1] for one in made["by_kind"])
    assert made["by_slice"] == []
    assert "aspirin" not in json.dumps(made) and "bone" not in json.dumps(made)


def test_slices_have_the_most_faulty_first():
    read = rows(*MIXED, slices=("a", "b", "b", "b", "a", "a"))
    made = summary(read, find_faults(TASK, read))["by_slice"]
    assert [(one["slice"], one["value"], one["rows"], one["faulty_rows"]) for one in made] == [
        ("source", "b", 3, 3), ("source", "a", 3, 2)
    ]  # fmt: skip
    assert {one["kind"]: one["times"] for one in made[0]["by_kind"]} == {
        "hallucinated": 2,
        "wrong": 1,
        "missed": 1,
    }
    assert sum(part["faulty_rows"] for part in made) == 5


def test_slices_of_many_values_are_cut_to_the_commonest(monkeypatch):
    monkeypatch.setattr(faults, "MOST_VALUES", 2)
    read = rows(*[GOLD] * 6, slices=("a", "b", "b", "c", "c", "c"))
    made = summary(read, find_faults(TASK, read))["by_slice"]
    assert {part["value"] for part in made} == {"b", "c"}


def test_remarks_make_no_row_faulty(monkeypatch):
    monkeypatch.setitem(FAULTS, "remark", (0, "a remark"))
    made = summary(rows(GOLD), [[Fault("remark", "x")]])
    assert made["faulty_rows"] == 0 and made["by_kind"][0]["rows"] == 1


def test_a_kind_that_nobody_named_is_a_bug(monkeypatch):
    monkeypatch.setattr(TASK, "faults", lambda row: [Fault("odd", "")], raising=False)
    with pytest.raises(KeyError, match="FAULTS lacks: odd"):
        find_faults(TASK, rows(GOLD))


def test_gold_answers_have_no_faults():
    read = rows(*[GOLD] * 20)
    assert summary(read, find_faults(TASK, read)) == {
        "rows": 20,
        "faulty_rows": 0,
        "by_kind": [],
        "by_slice": [],
    }


def test_a_predictions_file_alone_gets_its_analysis(tmp_path):
    path = tmp_path / "theirs.jsonl"
    lines = [
        {"id": one.example.id, "prompt": one.example.asked, "gold": one.example.answer, "answer": one.line["answer"],
         "slices": {"source": "x"}}
        for one in rows(*MIXED)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = build(systems_of(path, lambda rows: TASK))
    assert content["faults"]["theirs"]["faulty_rows"] == 5
    assert content["faults"]["theirs"]["by_slice"][0]["rows"] == 6
    assert {table["kind"] for table in content["studies"]["theirs"]} == {"confusion"}
    assert isinstance(content["next"], list)


def test_every_model_is_analysed_and_no_floor(tmp_path):
    from tunesmith.evaluate.build import build
    from tunesmith.evaluate.score import load_systems

    read = rows(*MIXED)
    for name in ("tuned", "base", "majority", "nearest"):
        lines = [
            {"id": one.example.id, "answer": one.line["answer"] if name != "tuned" else one.example.answer}
            for one in read
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = build(load_systems(tmp_path, [one.example for one in read], TASK), draws=50)
    assert {name: one["faulty_rows"] for name, one in content["faults"].items()} == {"tuned": 0, "base": 5}
