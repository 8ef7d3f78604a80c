"""Processors: the ready ones on invented and real rows, and what is said of a user's own that goes wrong."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.formats.examples import BadRow, Manner, row_examples
from tunesmith.data.processors.doctor_answer import sections
from tunesmith.data.processors.doctor_sentence import ADVISES, DIAGNOSES, POINTER, TESTS, TREATS
from tunesmith.data.processors.ready import TASKS
from tunesmith.data.read.files import read_rows
from tunesmith.example import Example

ABSTRACT: dict[str, Any] = {
    "pmid": "12",
    "title": "Zoral and the rash.",
    "abstract": "Zoral with pindol gave Rash, then fever.",
    "mentions": [
        {"start": 0, "end": 5, "text": "Zoral", "type": "Chemical", "ids": ["D01"]},
        {"start": 14, "end": 18, "text": "rash", "type": "Disease", "ids": ["D02"]},
        {"start": 20, "end": 37, "text": "Zoral with pindol", "type": "Chemical", "ids": ["D01", "D03"]},
        {"start": 43, "end": 47, "text": "Rash", "type": "Disease", "ids": ["D02"]},
        {"start": 54, "end": 59, "text": "fever", "type": "Disease", "ids": []},
    ],
    "relations": [{"type": "CID", "arguments": ["D03", "D02"]}],
}


def made(row: Any, processor: str, **manner: Any) -> list[Example]:
    return row_examples(row, "f:1", Manner(processor=processor, **manner))


# ---- diagnosis_treatment

HEADED = [
    ("Diagnosis: viral cold.\nTreatment: rest.", "viral cold.", "rest."),
    (
        "**Assessment:** viral cold\n**Plan:** rest\n- fluids\nFollow-up: a week",
        "viral cold",
        "rest\n- fluids",
    ),
    ("Hello.\n## Diagnosis\nViral cold.\n\n## Treatment\nRest.\n## Outlook\nGood.", "Viral cold.", "Rest."),
    (
        "It is rare. How is it diagnosed? By a swab. How might it be treated? With rest.",
        "By a swab.",
        "With rest.",
    ),
    ("Treatment: rest.\nDiagnosis: viral cold.", "viral cold.", "rest."),
]
SPOKEN = (
    "Hello, thank you for your query. I have gone through your history. Your symptoms are suggestive of acid reflux. "
    "I would advise you to take omeprazole 20 mg once daily before breakfast. Avoid spicy food. "
    "Get an endoscopy done if it lasts. Does anybody in the family have it? Hope this helps. Regards, Dr. Rao."
)


@pytest.mark.parametrize("answer, diagnosis, treatment", HEADED)
def test_sections_by_heading(answer: str, diagnosis: str, treatment: str) -> None:
    assert sections(answer) == (diagnosis, treatment)


def test_sections_by_sentence() -> None:
    assert sections(SPOKEN) == (
        "Your symptoms are suggestive of acid reflux. Get an endoscopy done if it lasts.",
        "I would advise you to take omeprazole 20 mg once daily before breakfast. Avoid spicy food.",
    )


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Hi, do not worry. It will pass. Take care.",
        "You may have migraine.",
        "Diagnosis: migraine.",
        "Treatment: rest.",
        "Diagnosis:\nTreatment:\n",
        "Most commonly diagnosed in middle age. You can use the dictionary of our website.",
    ],
)
def test_a_part_that_is_not_there_is_never_filled_in(answer: str) -> None:
    assert "" in sections(answer)
    assert made({"question": "q", "answer": answer}, "diagnosis_treatment") == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *re.split(r"(?<=\. )", SPOKEN),
                "Diagnosis: ",
                "Treatment:\n",
                "\n",
                "How is it treated? ",
                "\x85",
            ]
        ),
        max_size=12,
    ).map("".join)
)
def test_every_word_is_the_answers(answer: str) -> None:
    written = Counter(answer.split())
    for part in sections(answer):
        assert not Counter(part.split()) - written


def test_the_answer_has_both_headings_and_the_question_its_order() -> None:
    row = {"id": 7, "input": "q", "output": HEADED[0][0], "instruction": "Answer as a doctor."}
    (one,) = made(row, "diagnosis_treatment", system="S")
    assert one.answer == "Diagnosis: viral cold.\nTreatment: rest."
    assert [turn.role for turn in one.messages] == ["system", "user", "assistant"]
    asked = one.messages[1]
    assert asked.content == "Answer as a doctor.\n\nq" and asked.content[asked.context :] == "q"
    (new,) = made({"question": "q"}, "diagnosis_treatment", labelled=False)
    assert new.answer is None and new.messages[0].content.endswith("\n\nq")
    with pytest.raises(BadRow, match="there is no question"):
        made({"answer": "a"}, "diagnosis_treatment")


@pytest.mark.realdata
def test_words_that_are_looked_for_first_are_in_all_that_the_patterns_find(realdata: Path) -> None:
    """A rule's words only save time: the mutant is a word too many, which would lose sentences."""
    rules = [*TESTS, *DIAGNOSES, *ADVISES, *TREATS, POINTER]
    found = 0
    for _, row in read_rows(realdata / "medquad" / "medquad_qa.jsonl"):
        assert isinstance(row, dict)
        for sentence in re.split(r"(?<=[.!?])\s+", row["answer"].lower())[:20]:
            for rule in rules:
                if rule.pattern.search(sentence):
                    found += 1
                    assert rule.fits(sentence), (rule.words, sentence)
    mutant = TESTS[1]._replace(words=("rule",))
    assert found > 5000 and TESTS[1].fits("to confirm it") and not mutant.fits("to confirm it")


@pytest.mark.realdata
def test_doctors_answers_of_medquad(realdata: Path) -> None:
    """All 462 joined answers come back to the letter; of 5,239 single ones those with both parts, in their words."""
    manner = Manner(processor="diagnosis_treatment")
    for place, row in read_rows(realdata / "medquad" / "medquad_diagnosis_treatment.jsonl"):
        assert isinstance(row, dict)
        (one,) = row_examples(row, place, manner)
        diagnosis, treatment = row["output"].split("\n\nTreatment: ")
        assert one.answer == f"{diagnosis.strip()}\nTreatment: {treatment.strip()}"
    kept = 0
    for place, row in read_rows(realdata / "medquad" / "medquad_qa.jsonl"):
        assert isinstance(row, dict)
        for one in row_examples(row, place, manner):
            kept += 1
            body = re.sub(r"(?m)^(Diagnosis|Treatment): ", "", one.answer or "")
            assert not Counter(body.split()) - Counter(row["answer"].split())
    print(f"medquad_qa: {kept} of 5239 answers hold a diagnosis and a treatment")
    assert 150 < kept < 500


# ---- annotated_abstract


def test_three_tasks_from_one_abstract() -> None:
    rows = made(ABSTRACT, "annotated_abstract", group="document", stratify="task")
    assert [one.slices["task"] for one in rows] == list(TASKS) and {one.document for one in rows} == {"12"}
    assert [one.answer for one in rows] == [
        "- Zoral\n- Zoral with pindol",
        "- rash\n- fever",
        "- Zoral with pindol | rash",
    ]
    for one, (order, cue) in zip(rows, TASKS.values(), strict=True):
        asked = one.messages[0]
        article = f"{ABSTRACT['title']}\n{ABSTRACT['abstract']}"
        assert asked.content == f"{order}\n\n{article}\n\n{cue}" and asked.content[
            asked.context :
        ].startswith("Zoral")
    assert len({one.id for one in rows}) == 3


def test_the_annotations_come_along() -> None:
    """Places of the article and of mentions hold, also where a title is missing."""
    for changes, shift in (
        ({}, 0),
        ({"title": "", "mentions": ABSTRACT["mentions"][4:], "relations": []}, None),
    ):
        if shift is None:  # the offsets count the space behind an empty title
            at = 1 + ABSTRACT["abstract"].index("fever")
            changes["mentions"] = [ABSTRACT["mentions"][4] | {"start": at, "end": at + 5}]
        for one in made(ABSTRACT | changes, "annotated_abstract"):
            begin, end, length = one.facts["article"]
            article = one.asked[begin:end]
            assert length == len(one.asked) and article.endswith("then fever.")
            assert all(article[a:b].replace("\n", " ") == text for a, b, text, _, _ in one.facts["mentions"])
    facts = [one.facts for one in made(ABSTRACT, "annotated_abstract")]
    assert [(one["kind"], one["types"]) for one in facts] == [
        ("entities", ["chemical"]), ("entities", ["disease"]), ("relations", ["chemical", "disease"])
    ]  # fmt: skip
    assert facts[0]["mentions"][2] == [20, 37, "Zoral with pindol", "chemical", ["D01", "D03"]]
    assert facts[2]["relations"] == [["CID", "D03", "D02"]] and facts[2]["relation"] == "CID"


def tasks_of(**changes: Any) -> dict[str, str | None]:
    return {one.slices["task"]: one.answer for one in made(ABSTRACT | changes, "annotated_abstract")}


def test_a_task_that_nobody_annotated_has_no_answer() -> None:
    """Nothing is not "none": the mutant answers three tasks of a corpus that has one."""
    chemicals = [one for one in ABSTRACT["mentions"] if one["type"] == "Chemical"]
    assert set(tasks_of(relations=[])) == {"chemical_extraction", "disease_extraction"}
    assert set(tasks_of(mentions=chemicals, relations=[])) == {"chemical_extraction"}
    assert tasks_of(mentions=[], relations=[]) == {}
    ncbi = [
        one | {"type": kind}
        for one, kind in zip(
            ABSTRACT["mentions"],
            ["SpecificDisease", "Modifier", "Gene", "CompositeMention", "DiseaseClass"],
            strict=True,
        )
    ]
    assert tasks_of(mentions=ncbi, relations=[]) == {"disease_extraction": "- Zoral\n- rash\n- fever"}
    with pytest.raises(BadRow, match=r"of unknown types: Gene \(known are Chemical, Disease"):
        tasks_of(mentions=[ncbi[2]], relations=[])


def test_an_answer_that_is_there_changes_nothing_of_what_is_asked() -> None:
    asked: dict[str, Any] = {"labelled": False, "processor": "diagnosis_treatment"}
    for answer in ("", "Rest.", None, 5, "Diagnosis: a.\nTreatment: b."):
        (one,) = row_examples({"question": "q", "answer": answer}, "f:1", Manner(**asked))
        assert one.answer is None and one.prompt[-1].content.endswith("\n\nq")
    mapped = Manner(**asked, columns={"answer": "reply"})
    assert len(row_examples({"question": "q", "reply": "Rest."}, "f:1", mapped)) == 1
    lost = ABSTRACT | {"relations": [{"type": "CID", "arguments": ["D99", "D02"]}]}
    for row in (lost, ABSTRACT | {"mentions": []}, ABSTRACT | {"mentions": [{"type": "Gene"}]}):
        assert [one.slices["task"] for one in made(row, "annotated_abstract", labelled=False)] == list(TASKS)
    (one,) = made({"record": "Sex: M\nService: MEDICINE\n"}, "record_request", labelled=False)
    assert "male patient on the MEDICINE service" in one.prompt[-1].content


def test_relations_of_ids_that_are_not_there_and_abstracts_to_be_answered() -> None:
    lost = ABSTRACT | {"relations": [{"type": "CID", "arguments": ["D99", "D02"]}]}
    with pytest.raises(BadRow, match="the relation's D99 is not annotated"):
        made(lost, "annotated_abstract")
    new = made({"title": "t", "abstract": "a"}, "annotated_abstract", labelled=False)
    assert [one.answer for one in new] == [None] * 3 and len({one.document for one in new}) == 1


def test_rows_that_are_one_task_already() -> None:
    row = {"prompt": "Do.\n\nThe text.", "completion": "- x", "task": "disease_extraction", "doc_id": 5}
    (one,) = made(row, "annotated_abstract")
    assert (one.document, one.slices, one.answer) == ("5", {"task": "disease_extraction"}, "- x")
    assert one.messages[0].content == "Do.\n\nThe text.\n\nList of extracted diseases:"
    seed = {"prompt": "The whole text.\n\nList of extracted chemicals:\n", "completion": "- x"}
    (one,), (two,) = (
        made(seed | {"prompt": seed["prompt"].replace("chemicals", it)}, "annotated_abstract")
        for it in ("chemicals", "diseases")
    )
    assert one.document == two.document and one.slices != two.slices  # rows of one text share their document
    with pytest.raises(BadRow, match="its task is not named"):
        made({"prompt": "Anything", "completion": "x"}, "annotated_abstract")


@pytest.mark.realdata
def test_abstracts_of_the_corpus(realdata: Path) -> None:
    """The completions made by others are reproduced, less the pairs that they repeat word for word."""
    gold = {}
    for name in ("train", "dev"):
        for line in (realdata / "bc5cdr" / f"cdr_instruct_{name}.jsonl").read_bytes().splitlines():
            row = json.loads(line)
            gold[name, row["doc_id"], row["task"]] = row
    exact = seen = 0
    for name, file in (("train", "CDR_TrainingSet"), ("dev", "CDR_DevelopmentSet")):
        for place, row in read_rows(realdata / "bc5cdr" / f"{file}.PubTator.txt"):
            assert isinstance(row, dict)
            for one in made_at(row, place):
                other = gold.pop((name, one.document, one.slices["task"]))
                lines = other["completion"].split("\n")
                assert one.answer == "\n".join(dict.fromkeys(lines))
                exact += one.answer == other["completion"]
                seen += 1
                asked = one.messages[0].content
                assert asked.startswith(other["prompt"])
                if one.answer != "- none":
                    items = [item for line in lines for item in line[2:].split(" | ")]
                    assert all(item in asked for item in items)
    assert not gold and (seen, exact) == (3000, 2956)  # 44 of theirs repeat a pair of equal names


def made_at(row: Any, place: str) -> list[Example]:
    return row_examples(row, place, Manner(processor="annotated_abstract"))


# ---- record_request


def test_record_requests() -> None:
    (one,) = made({"gender": "F", "department": "Cardiology", "note": "Name: …"}, "record_request")
    assert [turn.role for turn in one.messages] == ["system", "user", "assistant"] and one.answer == "Name: …"
    assert (
        one.messages[1].content == "Write the discharge record of a female patient on the Cardiology service."
    )
    assert one.slices == {"sex": "female", "service": "Cardiology"}
    note = "Name: A B    Unit No: 1\nSex:   M\nService: MEDICINE\n\nChief Complaint: x"
    (one,) = made({"text": note}, "record_request", system="S")
    assert (
        one.messages[0].content == "S" and "male patient on the MEDICINE service" in one.messages[1].content
    )
    (new,) = made({"sex": "M", "service": "Surgery"}, "record_request", labelled=False)
    assert new.answer is None
    with pytest.raises(BadRow, match="there is no service"):
        made({"sex": "M", "record": "x"}, "record_request")


# ---- visit_note


def test_visit_notes_and_their_sections() -> None:
    (one,) = made(
        {
            "ID": 3,
            "section_header": "FAM/SOCHX",
            "section_text": " None. ",
            "dialogue": "Doctor: Hm?\nPatient: No.\n",
        },
        "visit_note",
    )
    assert one.answer == "Family and social history:\nNone." and one.slices == {
        "section": "Family and social history"
    }
    order, _, talk = one.messages[0].content.partition("\n\n")
    assert order.startswith("Write the section") and talk == "Doctor: Hm?\nPatient: No."
    assert one.messages[0].context == len(order) + 2 and one.messages[0].context_end == len(
        one.messages[0].content
    )
    (whole,) = made(
        {"dialogue": "A: b", "note": "PLAN\nrest", "encounter_id": "e7"}, "visit_note", system="S"
    )
    assert whole.answer == "PLAN\nrest" and whole.document == "e7" and whole.messages[0].content == "S"
    assert whole.asked.startswith("Write the visit note") and whole.slices == {}


def test_visit_notes_to_be_answered_and_refused() -> None:
    row = {"section_header": "CC", "section_text": "Cough.", "dialogue": "A: b"}
    (asked,) = made(row, "visit_note", labelled=False)
    assert asked.answer is None and asked.slices == {"section": "Chief complaint"}
    (plain,) = made(
        {"conversation": "A: b", "section_header": "Own heading", "section_text": "x"}, "visit_note"
    )
    assert plain.answer == "Own heading:\nx"
    for broken, told in (
        ({"note": "x"}, "no conversation"),
        ({"dialogue": "A: b", "section_text": "x"}, "no section_header"),
        ({"dialogue": 4}, "has to be text"),
    ):
        with pytest.raises(BadRow, match=told):
            made(broken, "visit_note")
