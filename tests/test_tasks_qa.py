"""Questions and answers: sections over all rows, phrases that count nothing, and the ways to score too high."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu

from tunesmith.evaluate.build import build
from tunesmith.evaluate.score import Systems
from tunesmith.example import Example
from tunesmith.tasks import make_task
from tunesmith.tasks.prose.question_answering import QuestionTask
from tunesmith.tasks.prose.sections import Headings
from tunesmith.tasks.prose.standing import Standing
from tunesmith.tasks.score import score_answers

PLAN = (
    "\n\nTreatment: Please take the prescribed tablets on time every day.\nDrink plenty of fluids and rest well.\n"
    "Avoid cold and oily food until the symptoms are gone.\nCome back for a visit in one week."
)
_CAUSES = "tendinitis gastritis migraine eczema sinusitis bursitis anaemia laryngitis sciatica gout".split()
_STEPS = (
    "an ice pack in the evening;ibuprofen with every meal;a light diet for ten days;saline rinses twice a day;"
    "a brace at night;daily stretching of both legs;an iron supplement;physiotherapy for six weeks"
).split(";")
_SIGNS = "pain swelling fever itching numbness dizziness cough weakness hoarseness tiredness".split()


def golds(seed: int, count: int, plain: bool = False) -> list[str]:
    """Invented answers, most of them in two sections."""
    draw, made = random.Random(seed), []
    for number in range(count):
        signs, steps = draw.sample(_SIGNS, 3), draw.sample(_STEPS, 2)
        cause = f"The {signs[0]} and the {signs[1]} of case {number} come from {draw.choice(_CAUSES)}, not {signs[2]}."
        advice = f"I would begin with {steps[0]} and go on to {steps[1]}."
        made.append(f"{cause} {advice}" if plain else f"Diagnosis: {cause}\n\nTreatment: {advice}")
    return made


def free(seed: int, count: int) -> list[str]:
    """Answers that share words and no phrases."""
    draw = random.Random(seed)
    known = [*_SIGNS, *_CAUSES, *" ".join(_STEPS).split()]
    return [" ".join(draw.choices(known, k=30)) + "." for _ in range(count)]


def scores(task: Any, right: Sequence[str], answers: Sequence[str], **of_row: Any) -> dict[str, float]:
    """Metrics of a system that answers so."""
    rows = [Example.make("What is it?", gold, id=str(i), **of_row) for i, gold in enumerate(right)]
    lines = [{"id": str(i), "answer": answer} for i, answer in enumerate(answers)]
    counts = score_answers(lines, rows, task).counts
    sums = {name: values.sum(keepdims=True) for name, values in counts.items()}
    return {name: float(metric(sums)[0]) for name, metric in task.metrics().items()}


@pytest.fixture(scope="module")
def task() -> QuestionTask:
    """Made from invented training answers."""
    made = make_task("qa", None, golds(0, 120))
    assert isinstance(made, QuestionTask)
    return made


def test_gold_itself_is_right_in_everything(task: QuestionTask) -> None:
    right = golds(1, 40)
    found = scores(task, right, right)
    assert task.headings.known == ("diagnosis", "treatment") and task.english
    best = {"chrf", "chrf++", "bleu", "chrf_whole", "bleu_whole"}
    for name, value in found.items():
        if name in best:
            assert value == pytest.approx(100), name
        elif name.startswith(("rouge", "structure", "section")) or name.endswith("presence"):
            assert value == 1, name
    assert found["treatments_made_up"] == 0 and found["terminology"] == found["gold_terminology"] > 0


def test_figures_are_sacrebleus_where_nothing_stands_in_all_answers() -> None:
    task = make_task("qa", None, free(0, 60))
    right, answers = free(1, 60), free(2, 60)
    found = scores(task, right, answers)
    assert found["boilerplate"] == found["gold_boilerplate"] == 0
    assert found["chrf"] == found["chrf_whole"] == sacrebleu.corpus_chrf(answers, [right]).score
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, [right]).score, rel=1e-12)
    assert "tok:13a" in task.explain()["bleu"] and set(task.metrics()) <= set(task.explain())


def test_presence_is_over_all_rows_that_have_it(task: QuestionTask) -> None:
    right = golds(1, 40)
    cut = [one if i < 10 else one.partition("\n\n")[2] for i, one in enumerate(right)]
    assert scores(task, right, cut)["diagnosis_presence"] == 0.25

    def both_alone() -> float:
        """The mutant: only rows in which both texts have the heading, so that leaving it out costs nothing."""
        shared = [
            one for gold, one in zip(right, cut, strict=True) if "Diagnosis:" in gold and "Diagnosis:" in one
        ]
        return sum("Diagnosis:" in one for one in shared) / len(shared)

    assert both_alone() == 1.0


def test_a_word_in_a_sentence_is_no_section(task: QuestionTask) -> None:
    right = golds(1, 40)
    talk = ["No treatment plan is known to me. Therapy and management are for your doctor to choose."] * 40
    empty = ["Diagnosis:\n\nTreatment: \n- "] * 40
    for answers in (talk, empty):
        found = scores(task, right, answers)
        assert found["treatment_presence"] == found["structure_f1"] == found["structure_kept"] == 0

    mutant = re.compile(r"treatment|plan|therapy|management", re.IGNORECASE)  # anywhere in the answer
    assert all(mutant.search(one) for one in talk)


@pytest.mark.parametrize("answered", ["half", "other", "nothing"])
def test_the_same_plan_under_every_answer_raises_nothing(task: QuestionTask, answered: str) -> None:
    right = golds(1, 40)
    answers = {
        "half": [one.partition("\n\n")[0] for one in right],
        "other": [one.partition("\n\n")[0] for one in golds(2, 40)],
        "nothing": [f"I can't say much about case {i}." for i in range(40)],
    }[answered]
    before, after = scores(task, right, answers), scores(task, right, [f"{one}{PLAN}" for one in answers])
    lower = task.lower_is_better
    raised = {
        name: (before[name], after[name])
        for name in after
        if not name.endswith("_whole") and name not in (*lower, "boilerplate", "length_ratio", "terminology")
        and after[name] > before[name] + 0.05
    }  # fmt: skip
    assert raised == {} and after["treatment_presence"] == 0 and after["boilerplate"] > 0.3
    # the mutants: the plan counted as words, and as a section
    assert after["rougeL_whole"] != after["rougeL"]
    whole = QuestionTask(golds(0, 120))
    whole.for_answers = lambda answers: whole  # type: ignore[method-assign]
    assert scores(whole, right, [f"{one}{PLAN}" for one in answers])["treatment_presence"] == 1


def test_a_plan_under_every_gold_counts_nothing_either() -> None:
    """As one public data builder writes it: a model that learned the plan alone has learned nothing."""
    train, right = ([f"{one}{PLAN}" for one in golds(seed, 60, plain=True)] for seed in (0, 1))
    task = make_task("qa", None, train)
    found = scores(task, right, [f"I can't say much about case {i}.{PLAN}" for i in range(60)])
    assert found["rougeL"] < 0.25 < found["rougeL_whole"] and found["gold_boilerplate"] > 0.4
    assert np.isnan(found["treatment_presence"])  # no gold has a treatment of its own
    (phrases,) = [table for table in task.tables(_sums(task, right)) if table.title == "Standing phrases"]
    assert phrases.quotes and "plenty of fluids" in str(phrases.rows)


def _sums(task: Any, right: Sequence[str]) -> dict[str, float]:
    rows = [Example.make("?", gold, id=str(i)) for i, gold in enumerate(right)]
    lines = [{"id": str(i), "answer": gold} for i, gold in enumerate(right)]
    return {name: float(values.sum()) for name, values in score_answers(lines, rows, task).counts.items()}


def test_set_answers_are_scored_whole() -> None:
    """A choice among few long answers is a task too: nothing would be left of them without their phrases."""
    choice = [f"It is safe to go on with the medicine as before, {w}." for w in ("says the doctor", "say I")]
    train = choice * 30
    task = make_task("qa", None, train)
    assert scores(task, choice * 5, choice * 5)["chrf"] == 100
    assert scores(task, choice * 5, choice[::-1] * 5)["chrf"] < 95


def test_what_runs_to_a_hundred_says_so(task: QuestionTask) -> None:
    right = golds(1, 30)
    rows = [Example.make("?", gold, id=str(i)) for i, gold in enumerate(right)]
    lines = [{"id": str(i), "answer": answer} for i, answer in enumerate(golds(2, 30))]
    content = build(Systems(task, rows, {"tuned": score_answers(lines, rows, task)}), draws=100)
    assert content["headline"]["metric"] == "chrf" and content["headline"]["scale"] == 100
    beyond = {name for name, one in content["scores"]["tuned"].items() if (one["value"] or 0) > 1.5}
    assert beyond <= set(task.of_hundred) | {"length_ratio"} and beyond
    half = (content["scores"]["tuned"]["chrf"]["high"] - content["scores"]["tuned"]["chrf"]["low"]) / 2
    assert 0.05 < half < 5 and "give chrf an interval" not in str(content)  # ± 5 of 100 is no wide one


def test_structure_is_a_set_and_an_order(task: QuestionTask) -> None:
    right = golds(1, 20)
    turned = ["\n\n".join(reversed(one.split("\n\n"))) for one in right]
    found = scores(task, right, turned)
    assert (found["structure_f1"], found["structure_order"], found["structure_kept"]) == (1, 0, 0)
    more = [f"{one}\n\n## Prognosis\nIt is good for case {i}." for i, one in enumerate(right)]
    found = scores(task, right, more)
    assert found["structure_f1"] == pytest.approx(2 * 2 / 5) or found["structure_f1"] == pytest.approx(0.8)
    assert (found["structure_order"], found["structure_kept"]) == (1, 0)


@pytest.mark.parametrize(
    "text, names",
    [
        ("Diagnosis: flu\nTreatment: rest", ["diagnosis", "treatment"]),
        ("**Diagnosis:** flu\n\n**Plan**\nrest", ["diagnosis", "treatment"]),
        ("## Diagnosis\nflu\n## Treatment ##\nrest", ["diagnosis", "treatment"]),
        ("1. DIAGNOSIS: flu\n2. TREATMENT: rest", ["diagnosis", "treatment"]),
        ("It is flu. Treatment: rest.", ["treatment"]),
        ("The treatment: rest. He said the plan: none", []),
        ("Treatment of flu is rest\nBrand names: many", []),
        ("", []),
    ],
)
def test_headings(text: str, names: list[str]) -> None:
    headings = Headings.learn(golds(0, 20))
    assert [one.name for one in headings.sections(text)] == names


def test_headings_of_any_script_are_learned() -> None:
    kannada = [f"ರೋಗ: ಜ್ವರ {i}\nಚಿಕಿತ್ಸೆ: ವಿಶ್ರಾಂತಿ {i}" for i in range(10)]
    assert set(Headings.learn(kannada).known) == {"ರೋಗ", "ಚಿಕಿತ್ಸೆ"}


def test_phrases_need_a_fifth_of_many_answers() -> None:
    phrase = "ask your own doctor before you change a dose"
    often = [f"{one} {phrase}" if i < 12 else one for i, one in enumerate(free(0, 60))]
    rare = [f"{one} {phrase}" if i < 11 else one for i, one in enumerate(free(0, 60))]
    assert phrase in dict(Standing.learn(often).shown) and not Standing.learn(rare).grams
    assert not Standing.learn([phrase] * 3).grams


def test_terms_are_english_alone() -> None:
    task = make_task("qa", None, [f"ನೀರು ಕುಡಿಯಿರಿ {i}" for i in range(20)])
    found = scores(task, ["ನೀರು ಕುಡಿಯಿರಿ ಬೇಗ"], ["ನೀರು ಕುಡಿಯಿರಿ ಬೇಗ"])
    assert found["rouge1"] == 1 and np.isnan(found["terminology"]) and np.isnan(found["treatments_made_up"])


def test_an_empty_answer_counts_as_all_missed(task: QuestionTask) -> None:
    right = golds(1, 10)
    half = scores(task, right, [*right[:5], *[""] * 5])
    assert half["answered"] == half["treatment_presence"] == half["rouge1"] == 0.5


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name, answer", [("medquad_diagnosis_treatment", "output"), ("medquad_qa", "answer")]
)
def test_gold_and_plan_on_real_answers(realdata: Path, name: str, answer: str) -> None:
    lines = (realdata / "medquad" / f"{name}.jsonl").read_text().split("\n")
    rows = [json.loads(line)[answer] for line in lines if line]
    random.Random(0).shuffle(rows)
    rows = [row for row in rows if len(row) < 2500]
    right, train = rows[:60], rows[60:]
    task = make_task("qa", None, train)
    assert scores(task, right, right)["chrf"] == 100
    before, after = (
        scores(task, right, train[:60]),
        scores(task, right, [f"{one}{PLAN}" for one in train[:60]]),
    )
    assert after["chrf"] <= before["chrf"] + 0.05 and after["rougeL"] <= before["rougeL"] + 0.001
