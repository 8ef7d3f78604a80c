"""Planted faults are found: at least 95 of 100 by class and seed, at most one false alarm in 100 right answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import cache

import planted_faults
import pytest
from planted_faults import EXTRACTION, Family, Planted, plant
from planted_texts import TEXTS

from tunesmith.evaluate.advice.faults import find_faults, summary
from tunesmith.tasks import Task, extraction, make_task
from tunesmith.tasks import answered as answered_module
from tunesmith.tasks.answered import answered, faults_of
from tunesmith.tasks.protocol import FAULTS, Fault

FAMILIES = {"extraction": EXTRACTION, **TEXTS}
RECALL, FALSE_ALARMS = 0.95, 0.01
SEEDS = (1, 2, 3, 4)

Detector = Callable[[Task, Planted], list[Fault]]


def real(task: Task, one: Planted) -> list[Fault]:
    """What the report finds."""
    return faults_of(task, answered(task, one.example, one.line))


def task_of(family: Family, seed: int) -> Task:
    """Made from training rows of another seed."""
    golds = tuple(row.answer or "" for row in family.train(200, seed + 1000))
    return _made(family.task, golds)


@cache
def _made(name: str, golds: tuple[str, ...]) -> Task:
    return make_task(name, None, golds)


def check(family: Family, seed: int, detector: Detector = real, per_plant: int = 60) -> None:
    """AssertionError where a class has too few hits, or right answers too many alarms."""
    task, alarms = task_of(family, seed), 0
    planted, hits = Counter[str](), Counter[str]()
    clean = 0
    for one in plant(family, seed, per_plant):
        found = detector(task, one)
        if one.plant is None:
            clean += 1
            alarms += any(FAULTS[fault.kind][0] for fault in found)
            continue
        kinds = family.plants[one.plant][0].split("|")
        planted[one.plant] += 1
        hits[one.plant] += any(
            fault.kind in kinds and (not one.where or fault.where in ("", one.where)) for fault in found
        )
    assert set(planted) == set(family.plants)
    recall = {name: hits[name] / planted[name] for name in planted}
    assert min(recall.values()) >= RECALL, recall
    assert alarms / clean <= FALSE_ALARMS, f"{alarms} false alarms in {clean} right answers"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_planted_faults_are_found_and_right_answers_are_let_be(name: str, seed: int) -> None:
    check(FAMILIES[name], seed)


@pytest.mark.parametrize(
    "name, kind",
    [
        (name, kind)
        for name, family in FAMILIES.items()
        for kind in sorted({plant[0] for plant in family.plants.values()})
    ],
)
def test_a_detector_that_is_switched_off_is_noticed(name: str, kind: str) -> None:
    def blind(task: Task, one: Planted) -> list[Fault]:
        return [fault for fault in real(task, one) if fault.kind not in kind.split("|")]

    with pytest.raises(AssertionError, match=r"0\.0"):
        check(FAMILIES[name], SEEDS[0], blind, 20)


@pytest.mark.parametrize("name", FAMILIES)
def test_alarms_on_right_answers_are_noticed(name: str) -> None:
    rng = random.Random(0)

    def nervous(task: Task, one: Planted) -> list[Fault]:
        return real(task, one) or [Fault("wrong", "")] * (rng.random() < 0.05)

    with pytest.raises(AssertionError, match="false alarms"):
        check(FAMILIES[name], SEEDS[0], nervous)


@pytest.mark.parametrize("name", FAMILIES)
def test_blind_seeds_plant_other_rows(name: str) -> None:
    one, other = ([p.line["answer"] for p in plant(FAMILIES[name], seed, 10)] for seed in (7, 8))
    assert len(set(one) & set(other)) < len(one) / 3


MUTANTS = {
    "extra items are a part": (extraction, "field_faults", lambda details, gold, given: [
        Fault(one.verdict, one.field) for one in details if one.verdict in ("hallucinated", "wrong", "missed", "partly")
    ]),
    "items are compared by letters": (extraction, "items", lambda value: frozenset([value] if value else [])),
    "cut answers are not told": (answered_module, "_form", lambda row: []),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_of_the_extraction_task_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, function, mutant = MUTANTS[name]
    monkeypatch.setattr(module, function, mutant)
    with pytest.raises(AssertionError):
        check(planted_faults.EXTRACTION, SEEDS[0])


def test_the_summary_counts_what_was_planted() -> None:
    family = planted_faults.EXTRACTION
    task, rows = task_of(family, 5), plant(family, 5, 40)
    read = [answered(task, one.example, one.line) for one in rows]
    made = summary(read, find_faults(task, read))
    kinds = {one["kind"]: one for one in made["by_kind"]}
    assert made["rows"] == len(rows) == 360 and made["faulty_rows"] == 280
    assert kinds["hallucinated"]["where"] == {"treatment": 40} and kinds["wrong"]["where"] == {"stage": 40}
    assert kinds["empty"]["rows"] == 40 and kinds["truncated"]["share"] == pytest.approx(80 / 360)
    assert [one["harm"] for one in made["by_kind"]] == sorted(
        (one["harm"] for one in made["by_kind"]), reverse=True
    )
