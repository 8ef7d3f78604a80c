"""Processors: the ready ones on invented and real rows, and what is said of a user's own that goes wrong."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.formats.examples import BadRow, Manner, format_of, read_file, row_examples
from tunesmith.data.processors.doctor_answer import sections
from tunesmith.data.processors.doctor_sentence import ADVISES, DIAGNOSES, POINTER, TESTS, TREATS
from tunesmith.data.processors.ready import TASKS
from tunesmith.data.read.files import read_rows
from tunesmith.errors import RecipeError, RowError
from tunesmith.example import Example, Message

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


def test_rows_left_out_are_told(own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROW | {"q": q}) + "\n" for q in ("out", "in", "out")))
    manner = Manner(processor=f"{own}:some", labelled=False)
    assert len(read_file(path, manner)) == 1
    assert f"{own}:some left out 2 of 3 rows" in capsys.readouterr().err
    path.write_text(json.dumps(ROW | {"q": "out"}))
    with pytest.raises(RowError, match=r"no rows of rows\.jsonl are left"):
        read_file(path, manner)


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


# ---- the user's own

OWN = """
import json
from tunesmith.example import Example, Message
def good(row): return Example.make(row["q"], row["a"], slices={"kind": "k"}, document="d")
def two(row): return [Example.make(row["q"], row["a"]), Example.make("again " + row["q"], row["a"])]
def some(row): return [] if row["q"] == "out" else Example.make(row["q"], row["a"])
def popping(row): return Example.make(row.pop("q"), row.pop("a"))
def none(row): return None
def text(row): return "text"
def mixed(row): return [Example.make("q", "a"), {"q": "a"}]
def unanswered(row): return Example.make(row["q"], None)
def fails(row): return row["missing"]
def deep(row): return inner(row)
def inner(row): return json.loads("{")
def role(row): return Example("", (Message("human", "q"), Message("assistant", "a", True)))
def plain(row): return Example("", (Message("text", row["q"], True),))
number = 5
def numbered(row): return Example.make(row["q"], row["a"], id=5)
def sliced(row): return Example.make(row["q"], row["a"], slices={"n": None})
def torn(row): return Example.make(row["q"], row["a"], document="\\ud800")
def torn_slice(row): return Example.make(row["q"], row["a"], slices={"kind": "\\ud800"})
"""
ROW = {"q": "ask", "a": "reply", "side": "left"}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_users_processor(own: str) -> None:
    (one,) = made(ROW, f"{own}:good", stratify="side", group="side", system="S")
    assert (one.id, one.source, one.document) == ("f:1", "f:1", "left")
    assert one.slices == {"kind": "k", "side": "left"} and one.messages[0] == Message("system", "S")
    (one,) = made(ROW, f"{own}:good", stratify="kind", group="document")
    assert (one.document, one.slices) == ("d", {"kind": "k"})
    assert [two.id for two in made(ROW, f"{own}:two")] == ["f:1#1", "f:1#2"]
    assert made(ROW | {"q": "out"}, f"{own}:some") == []
    assert made(ROW, f"{own}:popping", group="q")[0].document == "ask"
    assert made(ROW, f"{own}:plain")[0].is_text
    (renamed,) = made({"x": {"y": "ask"}, "a": "b"}, f"{own}:good", columns={"q": "x.y"})
    assert renamed.messages[0].content == "ask"
    (new,) = made(ROW, f"{own}:good", labelled=False)
    assert new.answer is None and len(new.messages) == 1


@pytest.mark.parametrize(
    "function, told",
    [
        ("none", "returned None; it has to return an Example, a list of them, or an empty list"),
        ("text", "returned a str"),
        ("mixed", "returned a list that holds dict"),
        ("unanswered", "made an Example without an answer"),
        ("fails", "KeyError: 'missing'"),
        ("deep", "JSONDecodeError: Expecting"),
        ("role", "made a turn with the role 'human'"),
        ("numbered", "gave an id, document, slice or rejected that is no text"),
        ("sliced", "gave an id, document, slice or rejected that is no text"),
    ],
)
def test_what_a_processor_does_wrong_is_told(own: str, function: str, told: str) -> None:
    with pytest.raises(BadRow) as caught:
        made(ROW, f"{own}:{function}")
    assert told in str(caught.value) and f"{own}:{function}" in str(caught.value)
    hints = {"fails": f"{own}.py:12, in fails", "deep": f"{own}.py:14, in inner"}
    assert caught.value.hint == hints.get(function)


@pytest.mark.parametrize("function", ["torn", "torn_slice"])
def test_names_that_no_file_takes(own: str, function: str) -> None:
    with pytest.raises(BadRow, match="half of a surrogate pair"):
        made(ROW, f"{own}:{function}")
    with pytest.raises(BadRow, match="half of a surrogate pair"):
        made(ROW | {"side": "\ud800"}, f"{own}:good", stratify="side")
    nan = float("nan")
    (one,) = made(ROW | {"side": nan}, f"{own}:good", stratify="side", group="side")
    assert (one.document, one.slices["side"]) == ("d", "(none)")
    (one,) = made({"question": "q", "answer": HEADED[0][0], "id": nan, "doc_id": nan}, "diagnosis_treatment")
    assert (one.id, one.document) == ("f:1", "f:1")


def test_a_processor_that_always_fails_ends_the_reading(own: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROW) + "\n" for _ in range(250)))
    with pytest.raises(RowError) as caught:
        read_file(path, Manner(processor=f"{own}:fails"))
    said = str(caught.value)
    assert "the first 100 rows all fail for one reason" in said and "KeyError: 'missing'" in said
    assert f"where: {own}.py:12, in fails" in said


def test_columns_of_a_processor_have_to_be_there() -> None:
    rows = [("f:1", {"q": "ask", "reply": "x"})]
    manner = Manner(processor="diagnosis_treatment", columns={"question": "q", "answer": "reply"})
    assert format_of(rows, manner) == "auto"
    with pytest.raises(RecipeError, match=r"no column 'replay'; is 'reply' meant"):
        format_of(rows, Manner(processor="diagnosis_treatment", columns={"answer": "replay"}))
    with pytest.raises(BadRow, match=r"data\.processor: annotated_abstract"):
        row_examples(ABSTRACT, "f:1", Manner())


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.sampled_from(["keep", "out", "fail", "two", "none"]), max_size=40))
def test_rows_in_are_kept_left_out_or_bad(rows: list[str]) -> None:
    manner = Manner(processor="test_processors:scripted")
    counts = Counter[str]()
    sources = []
    for number, what in enumerate(rows):
        try:
            some = row_examples({"what": what}, f"f:{number}", manner)
        except BadRow as error:
            travelled = pickle.loads(pickle.dumps(error))  # back from a worker
            counts["bad" if travelled.args == error.args else "changed"] += 1
            continue
        counts["kept" if some else "out"] += 1
        sources += [one.source for one in some]
    assert counts.total() == len(rows) and counts["out"] == rows.count("out")
    assert counts["bad"] == rows.count("fail") + rows.count("none")
    wanted = [f"f:{i}" for i, what in enumerate(rows) for _ in range({"keep": 1, "two": 2}.get(what, 0))]
    assert sources == wanted


def scripted(row: Any) -> Any:
    made = Example.make("q", "a")
    if row["what"] == "fail":
        raise ValueError("as told")
    return {"keep": made, "out": [], "two": (made, made), "none": None}[row["what"]]


def test_processors_that_are_none(own: str) -> None:
    for name, told in (
        ("diagnosis_treatmnt", "did you mean 'diagnosis_treatment'?"),
        (f"{own}:goood", "did you mean 'good'?"),
        (f"{own}:number", "is no function"),
        ("no_such_module:f", "there is no module"),
    ):
        with pytest.raises(RecipeError) as caught:
            made(ROW, name)
        assert told in str(caught.value) and caught.value.where == "data.processor"
