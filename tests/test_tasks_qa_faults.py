"""Faults planted in answers are found, each by its kind; the gold answer itself has none."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from test_tasks_qa import golds

from tunesmith.example import Example
from tunesmith.tasks import make_task
from tunesmith.tasks.answered import answered, faults_of
from tunesmith.tasks.prose.medical_terms import is_drug, is_term, treatments
from tunesmith.tasks.prose.text_faults import cut_short, made_up
from tunesmith.tasks.protocol import Fault, Task

SEEDS = (11, 12, 13)
_DRUGS = "amiodarone,clozapine,infliximab,doxycycline,bisoprolol,rivaroxaban,lamotrigine,morphine".split(",")
_OTHERS = (
    "dialysis twice a week,a kidney transplant,open surgery on the spine,blood transfusions,electroconvulsive"
)
Plant = Callable[[random.Random, str], str]


def drug(draw: random.Random, gold: str) -> str:
    """A drug that nobody named."""
    return f"{gold} Also take {draw.choice(_DRUGS)} every morning."


def dose(draw: random.Random, gold: str) -> str:
    """A dose that nobody named."""
    return f"{gold} Take {draw.choice((5, 40, 250))} mg."


def procedure(draw: random.Random, gold: str) -> str:
    """A treatment without a drug."""
    return f"{gold} Best of all would be {draw.choice(_OTHERS.split(','))}."


def advice(draw: random.Random, gold: str) -> str:
    """A whole other treatment, in words of every day."""
    other = draw.choice(
        ("Wear woollen socks and swim slowly before breakfast.", "Sleep upright against stacked pillows.")
    )
    return f"{gold.partition('Treatment:')[0]}Treatment: {other}"


def without(name: str) -> Plant:
    """One section left out."""

    def plant(draw: random.Random, gold: str) -> str:
        parts = [part for part in gold.split("\n\n") if not part.startswith(name)]
        return "\n\n".join(parts)

    return plant


def hollow(draw: random.Random, gold: str) -> str:
    """A heading with nothing under it."""
    return f"{gold.partition('Treatment:')[0]}Treatment:\n"


def extra(draw: random.Random, gold: str) -> str:
    """A section that the gold lacks."""
    return f"{gold}\n\n## {draw.choice(('Prognosis', 'Follow-up'))}\nIt heals within some weeks."


def cut(draw: random.Random, gold: str) -> str:
    """Its end is missing."""
    return gold[: draw.randrange(len(gold) // 3, len(gold) - 5)]


def cut_wording(draw: random.Random, gold: str) -> str:
    """Another wording whose end is missing."""
    return f"It is a matter of rest. {gold}"[: draw.randrange(60, len(gold))].rstrip(".")


def nothing(draw: random.Random, gold: str) -> str:
    """Spaces."""
    return " \n"


PLANTED: dict[str, tuple[str, Plant]] = {
    "drug": ("hallucinated", drug),
    "dose": ("hallucinated", dose),
    "procedure": ("hallucinated", procedure),
    "advice": ("hallucinated", advice),
    "extra": ("hallucinated", extra),
    "no diagnosis": ("dropped_section", without("Diagnosis")),
    "no treatment": ("dropped_section", without("Treatment")),
    "hollow": ("dropped_section", hollow),
    "cut": ("truncated", cut),
    "cut wording": ("truncated", cut_wording),
    "nothing": ("empty", nothing),
}


def faults(
    task: Task, gold: str, answer: str, prompt: str = "What is it?", stopped: bool = True
) -> list[Fault]:
    return faults_of(task, answered(task, Example.make(prompt, gold), {"answer": answer, "stopped": stopped}))


@pytest.fixture(scope="module")
def task() -> Task:
    """Made from invented training answers."""
    return make_task("qa", None, golds(0, 120))


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_found(task: Task, name: str) -> None:
    kind, plant = PLANTED[name]
    found = rows = 0
    for seed in SEEDS:
        draw = random.Random(seed)
        for gold in golds(seed, 100):
            rows += 1
            found += kind in {fault.kind for fault in faults(task, gold, plant(draw, gold))}
    print(f"{name}: {found} of {rows}")
    assert found >= 0.95 * rows


def test_gold_itself_has_no_fault(task: Task) -> None:
    rows = [gold for seed in SEEDS for gold in golds(seed, 100)]
    alarms = [fault for gold in rows for fault in faults(task, gold, gold)]
    assert len(alarms) <= 0.01 * len(rows)


def test_blind_and_nervous_mutants() -> None:
    """A rule that a seed-like program has can't fire; one that fires on every drug fires on the gold."""
    gold, said = golds(3, 1)[0], drug(random.Random(0), golds(3, 1)[0])
    capitalised = [
        word for word in said.split() if word[0].isupper() and word.lower() in ("mg", "dose", "tablet")
    ]
    assert len(capitalised) <= 3  # "more than three capitalised terms": never
    assert made_up("", gold, said, {}) and not made_up("", gold, gold, {})
    assert any(
        treatments(one) for one in golds(3, 20)
    )  # a rule that takes every drug for made up: alarms on gold


def test_what_the_prompt_names_is_not_made_up(task: Task) -> None:
    gold = golds(3, 1)[0]
    said = f"{gold} Go on with amiodarone 200 mg."
    prompt = "I take amiodarone, 200 mg a day. What is it?"
    assert any(fault.kind == "hallucinated" for fault in faults(task, gold, said))
    assert not any(fault.kind == "hallucinated" for fault in faults(task, gold, said, prompt))


def test_a_treatment_where_the_gold_has_none(task: Task) -> None:
    gold = golds(3, 1)[0].partition("\n\n")[0]
    (found,) = faults(task, gold, f"{gold}\n\nTreatment: not {gold[11:30]}.")
    assert (found.kind, found.where) == ("hallucinated", "treatment")


def test_an_end_is_no_cut() -> None:
    gold = "Rest for a week. Drink water."
    assert not cut_short(gold, gold) and not cut_short(gold, "")
    assert not cut_short(gold, "Stay in bed")  # short, and no sentence of it has an end: a manner of writing
    assert not cut_short(
        "Rest and water", "Sleep well. Drink a lot"
    )  # the gold has no stop at its end either
    assert cut_short(gold, "Rest for a week. Dri") and cut_short(gold, "Stay in bed. Drink as much wat")


def test_an_answer_cut_by_its_limit_is_told_once(task: Task) -> None:
    gold = golds(3, 1)[0]
    kinds = [fault.kind for fault in faults(task, gold, gold[:-20], stopped=False)]
    assert kinds.count("truncated") == 1


@pytest.mark.parametrize(
    "word", "amoxicillin bisoprolol rivaroxaban aspirin sulfamethoxazole omeprazole".split()
)
def test_drugs_are_known_by_their_stems(word: str) -> None:
    assert is_drug(word) and is_term(word)


@pytest.mark.parametrize(
    "word", "april concept cholesterol person sulfates water table interval analysis".split()
)
def test_other_words_are_no_drugs(word: str) -> None:
    assert not is_drug(word)


@pytest.mark.realdata
def test_real_golds_have_no_fault(realdata: Path) -> None:
    for name, ask, answer in (
        ("medquad_diagnosis_treatment", "input", "output"),
        ("medquad_qa", "question", "answer"),
    ):
        lines = (realdata / "medquad" / f"{name}.jsonl").read_text().split("\n")
        rows = [json.loads(line) for line in lines if line]
        random.Random(0).shuffle(rows)
        task = make_task("qa", None, [row[answer] for row in rows[300:]])
        alarms = sum(bool(faults(task, row[answer], row[answer], row[ask])) for row in rows[:300])
        print(f"{name}: {alarms} of 300")
        assert alarms <= 3
