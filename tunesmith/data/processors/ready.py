"""Ready processors: from one raw row to examples. An empty list leaves the row out.

Your own is a function of the same shape, named module:function in data.processor; `Example.make` builds what it
returns.
A row comes under the names of data.columns; `system` is data.system where the row brings none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.processors.doctor_answer import sections
from tunesmith.data.processors.visit_note import visit_note
from tunesmith.data.row import BadRow, first_text, name_of
from tunesmith.example import Example, Message

Row = Mapping[str, Any]

SECTIONS = 'Answer the question about a health condition in two sections, "Diagnosis:" and "Treatment:".'
RECORD = "You write complete discharge records of invented patients for training and testing."

# per task: the order, and the cue that the prompt ends with
TASKS = {
    "chemical_extraction": (
        'List every chemical or drug mentioned in the article, one per line, each line starting with "- ".',
        "List of extracted chemicals:",
    ),
    "disease_extraction": (
        "List every disease or adverse condition mentioned in the article, one per line, "
        'each line starting with "- ".',
        "List of extracted diseases:",
    ),
    "cid_relation": (
        "List every pair in which the article says a chemical induces a disease, one per line, "
        'as "- chemical | disease".',
        "List of extracted pairs:",
    ),
}
# per task: what a scorer needs to know of it
ASKED: dict[str, dict[str, Any]] = {
    "chemical_extraction": {"kind": "entities", "types": ["chemical"]},
    "disease_extraction": {"kind": "entities", "types": ["disease"]},
    "cid_relation": {"kind": "relations", "relation": "CID", "types": ["chemical", "disease"]},
}
KINDS = {
    "Chemical": "chemical",
    "Disease": "disease",
    # the NCBI disease corpus
    "SpecificDisease": "disease",
    "DiseaseClass": "disease",
    "Modifier": "disease",
    "CompositeMention": "disease",
}


def diagnosis_treatment(row: Row) -> list[Example]:
    """A doctor's answer in two sections, each in the answer's own words; left out where one of them is not there.

    Columns: question (or input, prompt), answer (or output, completion, response); instruction and system may be there.
    """
    question = first_text(row, "question", "input", "prompt")
    if question is None:
        raise BadRow("there is no question (a column question, input or prompt; map yours in data.columns)")
    order = first_text(row, "instruction") or SECTIONS
    written = first_text(row, "answer", "output", "completion", "response", blank=True)
    answer = None
    if written is not None:
        diagnosis, treatment = sections(written)
        if not (diagnosis and treatment):
            return []
        answer = f"Diagnosis: {diagnosis}\nTreatment: {treatment}"
    return [_example(row, order, question, answer)]


def annotated_abstract(row: Row) -> list[Example]:
    """An annotated abstract as up to three rows, one a task: its chemicals, diseases, chemical-induced diseases.

    Columns: pmid, title, abstract, mentions, relations (a PubTator file); or prompt, completion, task, doc_id: then
    one row, whose prompt gets its cue. The document is the abstract, the task a slice. A task of which the abstract
    has no annotation gives no row: nothing says that anybody looked for it. To be answered, all three do.
    Rows from a PubTator file carry spans, ids and id pairs as facts (tasks/annotated/mentions.py).
    """
    if "prompt" in row:
        return [_one_task(row)]
    title, abstract = row.get("title"), row.get("abstract")
    if not isinstance(title, str) or not isinstance(abstract, str):
        raise BadRow("there is no title and abstract (a PubTator file), and no prompt and completion")
    pmid = str(row.get("pmid") or "") or _name_of(f"{title}\n{abstract}")
    article = f"{title}\n{abstract}".strip()
    if not isinstance(row.get("mentions"), list):
        return [_task_example(f"{pmid}-{task}", pmid, task, article, None) for task in TASKS]
    kinds = {one["type"] for one in row["mentions"]}
    if kinds and kinds.isdisjoint(KINDS):
        known = ", ".join(KINDS)
        raise BadRow(f"its mentions are of unknown types: {', '.join(sorted(kinds))} (known are {known})")
    whole = f"{title}\n{abstract}"
    told = _annotated(row, len(whole) - len(whole.lstrip()))
    return [
        replace(one, facts=ASKED[task] | {"article": _place(one.messages[0])} | told)
        for task in TASKS
        if (listed := _listed(row, task))
        for one in [
            _task_example(f"{pmid}-{task}", pmid, task, article, "\n".join(f"- {item}" for item in listed))
        ]
    ]


def record_request(row: Row) -> list[Example]:
    """A system prompt, a request built from sex and service, the record as the answer.

    Columns: record (or output, text, note), sex (or gender) and service (or department, specialty); where sex and
    service have no columns they are read in the record's own head ("Sex: F", "Service: MEDICINE").
    """
    record = first_text(row, "record", "output", "text", "note", blank=True)
    head = (record or "")[:3000]
    sex = first_text(row, "sex", "gender") or _headed(head, "Sex|Gender")
    service = first_text(row, "service", "department", "specialty") or _headed(head, "Service|Department")
    for name, value in (("sex", sex), ("service", service)):
        if not value:
            raise BadRow(f"there is no {name}: no column of that name, and none in the record's head")
    who = {"f": "female", "m": "male"}.get(str(sex).strip().lower(), str(sex).strip().lower())
    service = " ".join(str(service).split())
    request = f"Write the discharge record of a {who} patient on the {service} service."
    system = first_text(row, "system") or first_text(row, "instruction") or RECORD
    slices = {"sex": who, "service": service}
    return [Example.make(request, record, system=system, id=_text_of(row, "id"), slices=slices)]


PROCESSORS: dict[str, Callable[[Row], list[Example]]] = {
    "diagnosis_treatment": diagnosis_treatment,
    "annotated_abstract": annotated_abstract,
    "record_request": record_request,
    "visit_note": visit_note,
}


# columns that hold the answer: rows that are to be answered are read without them. A record also tells what is asked
ANSWERS = {
    "diagnosis_treatment": ("answer", "output", "completion", "response"),
    "annotated_abstract": ("completion", "mentions", "relations"),
    "visit_note": ("note", "output", "section_text"),
}


# ---- diagnosis_treatment


def _example(row: Row, order: str, question: str, answer: str | None) -> Example:
    asked = Message.asking(f"{order}\n\n", question)
    system = first_text(row, "system")
    turns = [Message("system", system)] if system else []
    turns.append(asked)
    if answer is not None:
        turns.append(Message("assistant", answer, learned=True))
    return Example(_text_of(row, "id"), tuple(turns), _text_of(row, "document") or _text_of(row, "doc_id"))


# ---- annotated_abstract


def _one_task(row: Row) -> Example:
    prompt, answer = first_text(row, "prompt"), first_text(row, "completion", blank=True)
    if prompt is None:
        raise BadRow("prompt is empty, or no text")
    task = _text_of(row, "task") or _task_of(prompt)
    if task not in TASKS:
        raise BadRow(f"its task is {task or 'not named'}; known are {', '.join(TASKS)}")
    body = prompt.strip()
    if not body.endswith(":"):
        body = f"{body}\n\n{TASKS[task][1]}"
    above = body.rpartition("\n")[0].rstrip()  # without the cue
    order, _, article = above.partition("\n\n")
    document = _text_of(row, "doc_id") or _text_of(row, "document") or _name_of(_longest(body))
    asked = Message("user", body)  # with no order apart from it, nothing may be cut
    if article:
        asked = Message.asking(f"{order}\n\n", article, body[len(above) :])
    turns = [asked]
    if answer is not None:
        turns.append(Message("assistant", answer, learned=True))
    identity = _text_of(row, "id") or f"{document}-{task}"
    facts = ASKED[task] | ({"article": _place(asked)} if article else {})
    return Example(identity, tuple(turns), document, {"task": task}, facts=facts)


def _task_example(identity: str, document: str, task: str, article: str, answer: str | None) -> Example:
    order, cue = TASKS[task]
    turns = [Message.asking(f"{order}\n\n", article, f"\n\n{cue}")]
    if answer is not None:
        turns.append(Message("assistant", answer, learned=True))
    return Example(identity, tuple(turns), document, {"task": task})


def _place(asked: Message) -> list[int]:
    """Where the article stands in what the user said, and how long that is."""
    return [asked.context, asked.context_end, len(asked.content)]


def _annotated(row: Row, before: int) -> dict[str, Any]:
    """Mentions and relations as facts, mentions counted in an article of which `before` characters were stripped."""
    return {
        "mentions": [
            [
                one["start"] - before,
                one["end"] - before,
                one["text"],
                KINDS.get(one["type"], one["type"]),
                one["ids"],
            ]
            for one in row["mentions"]
        ],
        "relations": [[one["type"], *one["arguments"]] for one in row.get("relations") or ()],
    }


def _listed(row: Row, task: str) -> list[str]:
    """Surface forms in the order of their first mention, each once whatever its case."""
    mentions = sorted(row["mentions"], key=lambda one: (one["start"], one["end"]))
    if task == "cid_relation":
        return _pairs(mentions, row.get("relations") or ())
    wanted = "chemical" if task == "chemical_extraction" else "disease"
    return _once(one["text"] for one in mentions if KINDS.get(one["type"]) == wanted)


def _pairs(mentions: Sequence[Row], relations: Sequence[Row]) -> list[str]:
    """Each related pair of ids by the first text of either; a related id that no mention has is a bad row."""
    first: dict[str, str] = {}
    for one in mentions:
        for identity in one["ids"]:
            first.setdefault(identity, one["text"])
    pairs = []
    for relation in relations:
        if relation["type"] != "CID":
            continue
        lost = [one for one in relation["arguments"] if one not in first]
        if lost:
            raise BadRow(f"the relation's {lost[0]} is not annotated in the text")
        chemical, disease = relation["arguments"]
        pairs.append(f"{first[chemical]} | {first[disease]}")
    return _once(pairs)


def _once(texts: Iterable[str]) -> list[str]:
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(text.lower(), text)
    return list(first.values())


def _task_of(prompt: str) -> str:
    end = prompt[-200:].lower()
    if "influence" in end or "pairs" in end or "relation" in end:
        return "cid_relation"
    named = [
        task
        for task, word in (("chemical_extraction", "chemical"), ("disease_extraction", "disease"))
        if word in end
    ]
    return named[0] if len(named) == 1 else ""


def _longest(prompt: str) -> str:
    """The article of a prompt: its longest line that is no cue."""
    return max((line for line in prompt.split("\n") if not line.endswith(":")), key=len, default=prompt)


def _name_of(text: str) -> str:
    """A name for a document that has none: rows of one text share it."""
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "replace"), digest_size=8).hexdigest()


# ---- cells


def _text_of(row: Row, name: str) -> str:
    value = row.get(name)
    return name_of(value)


def _headed(head: str, names: str) -> str | None:
    found = re.search(
        rf"^[ \t]*(?:{names})[ \t]*:[ \t]*([^\s:][^\n:]*?)[ \t]*(?:$|[ \t]{{2}})", head, re.M | re.I
    )
    return found[1] if found else None
