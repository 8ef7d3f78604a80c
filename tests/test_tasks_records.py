"""Generated records: planted faults are found by name, sound records raise none, what can't be judged isn't."""

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from invented_records import records

from tunesmith.example import Example
from tunesmith.tasks import make_task
from tunesmith.tasks.answered import answered, faults_of, study_of, wants_every_sample
from tunesmith.tasks.generated.record_checks import Forms, asked_of, dates, days, fields, impossible, sexes
from tunesmith.tasks.generated.records import RecordsTask
from tunesmith.tasks.score import check_golds, score_answers

TRAIN, TEST = records(300), records(200, first=9000)


@pytest.fixture(scope="module")
def task() -> RecordsTask:
    made = make_task("records", None, [row.answer for row in TRAIN])
    assert isinstance(made, RecordsTask)
    return made


def kinds(task: RecordsTask, row: Example, said: str) -> set[tuple[str, str]]:
    return {(one.kind, one.where) for one in faults_of(task, answered(task, row, {"answer": said}))}


def shifted(text: str, label: str, years: int) -> str:
    return re.sub(rf"({label}: )(\d+)", lambda found: f"{found[1]}{int(found[2]) + years}", text)


def swapped_sex(text: str) -> str:
    other = {"Sex: F": "Sex: M", "Sex: M": "Sex: F", "woman": "man", "man": "woman"}
    other |= {
        "he": "she",
        "she": "he",
        "He": "She",
        "She": "He",
        "his": "her",
        "her": "his",
        "Ms": "Mr",
        "Mr": "Ms",
    }
    return re.sub(
        r"Sex: [FM]|\b(?:woman|man|[Ss]?he|He|his|her|M[rs])\b", lambda found: other[found[0]], text
    )


PLANTED: dict[str, tuple[tuple[str, str], Callable[[str], str]]] = {
    "dropped": (("dropped_section", "brief hospital course"), lambda t: re.sub(r"Brief.*\n.*\n\n", "", t)),
    "emptied": (("dropped_section", "chief complaint"), lambda t: re.sub(r"(Complaint:\n).*", r"\1", t)),
    "number": (("malformed", "unit no"), lambda t: re.sub(r"(Unit No: )\S+", r"\g<1>12A", t)),
    "form": (("malformed", "admission date"), lambda t: re.sub(r"(Admission Date: )\S+", r"\1March 4, 2021", t)),
    "no date": (("malformed", "discharge date"), lambda t: re.sub(r"(Discharge Date: )\S+", r"\1soon", t)),
    "31 February": (("malformed", "date"), lambda t: f"{t}\nSeen again on 2021-02-31."),
    "left before": (("contradicted", "dates"), lambda t: shifted(t, "Discharge Date", -1)),
    "born late": (("contradicted", "dates"), lambda t: shifted(t, "Date of Birth", 120)),
    "age": (("contradicted", "age"), lambda t: shifted(t, "Date of Birth", -4)),
    "sex": (("contradicted", "sex"), swapped_sex),
    "pronouns": (("contradicted", "sex"), lambda t: swapped_pronouns(t)),
    "service": (("contradicted", "service"), lambda t: re.sub(r"Service: \w+", "Service: UROLOGY", t)),
    "copied": (("copied", ""), lambda t: t.partition("Hist")[0] + "Hist" + TRAIN[11].answer.partition("Hist")[2]),
}  # fmt: skip


def swapped_pronouns(text: str) -> str:
    head, history, rest = text.partition("History")
    return head + history + swapped_sex(rest)


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_found_by_name(task, name):
    wanted, plant = PLANTED[name]
    found = [wanted in kinds(task, row, plant(row.answer)) for row in TEST]
    assert sum(found) >= 0.95 * len(found)


def test_gold_records_raise_no_alarm(task):
    assert Counter(kind for row in TEST for kind, _ in kinds(task, row, row.answer)) == {}
    shuffled = [
        replace(row, messages=other.messages) for row, other in zip(TEST, reversed(TEST), strict=True)
    ]
    assert sum(bool(kinds(task, row, row.answer)) for row in shuffled) == 0  # with their own requests


def test_another_rows_record_contradicts_the_request(task):
    """The mutant of the request: right records for somebody else."""
    pairs = list(zip(TEST, [*TEST[7:], *TEST[:7]], strict=True))
    differ = [(a, b) for a, b in pairs if a.slices != b.slices]
    found = [{"sex", "service"} & {where for kind, where in kinds(task, a, b.answer) if kind == "contradicted"}
             for a, b in differ]  # fmt: skip
    assert all(found) and len(differ) > 100
    for (a, b), said in zip(differ, found, strict=True):
        assert said == {name for name in ("sex", "service") if a.slices[name] != b.slices[name]}


def scores(task, rows, answers) -> dict[str, float]:
    lines = [{"id": row.id, "answer": said} for row, said in zip(rows, answers, strict=True)]
    counts = score_answers(lines, rows, task).counts
    sums = {name: each.sum(keepdims=True) for name, each in counts.items()}
    return {name: float(metric(sums)[0]) for name, metric in task.metrics().items()}


def test_what_is_left_out_counts_as_not_right(task):
    """An answer of nothing but its head, and no answer at all: denominators stay those of the gold."""
    bare = scores(task, TEST, ["Chief Complaint:\nnothing" for _ in TEST])
    for name in ("identifiers", "dates", "order", "age", "sex", "service", "sound"):
        assert bare[name] == 0 and bare.get(f"gold_{name}", 1) == 1
    assert bare["sections_kept"] == pytest.approx(1 / 8)
    empty = scores(task, TEST, ["" for _ in TEST])
    assert empty["answered"] == empty["sections_kept"] == empty["sound"] == 0 and empty["copied"] == 0


def test_shares_are_those_that_were_planted(task):
    answers = [row.answer for row in TEST]
    for number, name in enumerate(("dropped", "age", "service", "copied")):
        for i in range(20):
            at = 20 * number + i
            answers[at] = PLANTED[name][1](answers[at])
    found = scores(task, TEST, answers)
    assert found["sections_kept"] == pytest.approx(1 - 20 / (8 * 200))
    assert found["service"] == pytest.approx(0.9) and found["copied"] == pytest.approx(0.1)
    assert found["sound"] <= 0.6 + 1e-9 and found["gold_sound"] == 1
    assert found["copied_grams"] > found["gold_copied_grams"]


def test_copying_the_nearest_record_is_not_sound(task):
    found = scores(task, TEST[:50], [row.answer for row in TRAIN[:50]])
    assert (
        found["sound"] == 0 and found["copied"] == found["copied_exact"] == 1 and found["longest_copy"] > 150
    )


def test_without_training_records_copies_are_left_out(task):
    apart = task.without_training_answers()
    assert not [name for name in apart.metrics() if "cop" in name] and task.needs_training_answers
    assert scores(apart, TEST, [row.answer for row in TEST])["sound"] == 1
    assert kinds(apart, TEST[0], TRAIN[11].answer).isdisjoint({("copied", "")})


def test_a_record_without_head_is_judged_by_what_it_has(task):
    """Notes without dates, sex or service: nothing to judge, nothing to fail."""
    plain = [Example.make(f"Write note {i}.", f"Plan:\nrest and tea {i}", id=f"n{i}") for i in range(40)]
    own = make_task("records", None, [row.answer for row in plain[:20]])
    found = scores(own, plain[20:], [row.answer for row in plain[20:]])
    assert found["sound"] == found["sections_kept"] == 1
    assert all(
        found[name] != found[name] for name in ("identifiers", "dates", "order", "age", "sex", "service")
    )
    assert len(check_golds(own, plain[20:])) == 20


def test_study_shows_diversity_and_copies_beside_the_gold(task):
    rows = [answered(task, row, {"answer": TRAIN[i % 2].answer}) for i, row in enumerate(TEST[:20])]
    diverse, copied = study_of(task, rows)
    one, gold = (dict(zip(diverse.columns, row, strict=True)) for row in diverse.rows)
    assert one["self-BLEU"] > 99 > gold["self-BLEU"] and one["distinct-3"] < gold["distinct-3"]
    assert (one["repeated texts"], one["repeated names"], gold["repeated names"]) == (1.0, 1.0, 0.0)
    assert [row[-1] for row in copied.rows] == [20, 0] and not (diverse.quotes or copied.quotes)


def test_samples_of_one_row_are_compared_with_each_other(task):
    """Two rows, three samples each: the first row's are one record, the second's are three."""
    said = [TRAIN[0].answer] * 3 + [row.answer for row in TRAIN[1:4]]
    rows = [answered(task, TEST[i // 3], {"answer": one}) for i, one in enumerate(said)]
    diverse, copied = study_of(task, rows)
    assert wants_every_sample(task) and [row[0] for row in diverse.rows] == [
        "answers",
        "samples of one row, mean",
        "gold answers",
    ]
    of_all, of_one, gold = (dict(zip(diverse.columns, row, strict=True)) for row in diverse.rows)
    assert (of_all["texts"], of_one["texts"], gold["texts"]) == (6, 3.0, 2)
    assert (of_all["repeated texts"], of_one["repeated texts"], of_one["repeated names"]) == (0.5, 0.5, 0.5)
    assert copied.rows[1][1] == 2


# ---- reading


def test_dates_in_many_forms():
    text = "2024-03-01, 1/2/2023, 3.4.2022, March 5, 2021, 6 Apr 2020, 7-May-2019, 12/31/99; not 1.2.3, 10/20 or 120/80"
    assert [one.text for one in dates(text)] == ["2024-03-01", "1/2/2023", "3.4.2022", "March 5, 2021", "6 Apr 2020",
                                                 "7-May-2019", "12/31/99"]  # fmt: skip
    assert len({one.form for one in dates(text)}) == 7
    assert impossible("30.02.2021 and 02/30/2021, 31 April 2020; 29 Feb 2020 and 13/12/2020 are days", False) == [
        "30.02.2021", "02/30/2021", "31 April 2020"]  # fmt: skip


def test_whether_the_day_stands_first_is_read_from_the_training_records():
    lines = ["Admission Date: {}/{}/2021\nDischarge Date: {}/{}/2021"]
    days_first = Forms.of([lines[0].format(d, 3, d + 5, 3) for d in range(1, 20)])
    months_first = Forms.of([lines[0].format(3, d, 3, d + 5) for d in range(1, 20)])
    assert days_first.day_first and not months_first.day_first
    text = "Admission Date: 03/04/2021\nDischarge Date: 02/05/2021"
    assert days(text, True).in_order() is True and days(text, False).in_order() is False


def test_labels_side_by_side_and_in_markdown():
    found = fields(
        "Name:  Alva Brem    Unit No:   71-2\n**Sex:** F, Service: NEUROLOGY\n- MRN: 007; Age: 61\nPlan:\n"
    )
    assert found["name"] == "Alva Brem" and found["unit no"] == "71-2" and found["plan"] == ""
    assert (found["sex"], found["service"], found["mrn"], found["age"]) == ("F", "NEUROLOGY", "007", "61")


@pytest.mark.parametrize(
    ("said", "sex"),
    [
        ("Sex: M", {"male"}),
        ("A 45 yo F with pain.", {"female"}),
        ("This 45-year-old left-handed gentleman fell.", {"male"}),
        ("She came. She went. Her husband drove; he waited.", set()),  # three of four is no clear majority
        ("She came. She went. Her own car. Her dog.", {"female"}),
        ("Sex: F. He came, he saw, his dog.", {"female", "male"}),
        ("Nothing said.", set()),
    ],
)
def test_the_sex_that_a_record_gives(said, sex):
    assert sexes(said) == sex


@pytest.mark.parametrize(
    ("request_text", "asked"),
    [
        ("Write the discharge record of a female patient on the SURGERY service.", ("female", "SURGERY")),
        ("Generate discharge record for: Sex: Male, Medical Service: CARDIOLOGY", ("male", "CARDIOLOGY")),
        ("Sex: F, Service: NEUROLOGY", ("female", "NEUROLOGY")),
        ("Write a record.", (None, None)),
        ("A woman and her husband, a man of 40.", (None, None)),
    ],
)
def test_what_a_request_asks(request_text, asked):
    assert asked_of(request_text) == asked


@pytest.mark.realdata
def test_real_notes_raise_hardly_an_alarm(realdata):
    """67 full visit notes with the sex and age of their patients known."""
    import csv

    folder = realdata / "aci_bench"
    with (
        (folder / "train.csv").open(newline="") as notes,
        (folder / "train_metadata.csv").open(newline="") as about,
    ):
        known = {row["encounter_id"]: row for row in csv.DictReader(about)}
        rows = [(row["note"], known[row["encounter_id"]]) for row in csv.DictReader(notes)]
    told = [(sexes(note), about["patient_gender"].strip().lower()) for note, about in rows]
    told = [(found, sex) for found, sex in told if sex]
    assert sum(found == {sex} for found, sex in told) >= 0.95 * len(told)
    assert not [found for found, sex in told if found - {sex}]
    ages = [(days(note, False).age, float(about["patient_age"] or 0)) for note, about in rows]
    assert sum(age is not None for age, _ in ages) >= 40
    assert all(age == right for age, right in ages if age is not None and right)
    assert not [one for note, _ in rows for one in impossible(note, False)]


def test_random_text_never_raises(task):
    draw = random.Random(3)
    signs = "0123456789/-.: \n\tAgeDatenbSxoMr,;*#()February31"
    for _ in range(300):
        text = "".join(draw.choices(signs, k=draw.randint(0, 80)))
        row = Example.make(text, text or "x", id="r")
        task.counts(text, task.parse(text), task.parse(text[::-1]))
        faults_of(task, answered(task, row, {"answer": text[::-1]}))
