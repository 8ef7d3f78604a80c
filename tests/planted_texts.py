"""Invented rows of the other families of tasks, and the ways to spoil their answers (planted_faults.py)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from invented_records import record, records
from planted_faults import Family, Spoiled, cut, empty

from tunesmith.example import Example

_SYLLABLES = "ba ce di fo gu ha ki lo mu ne pa ri so tu va we zo py".split()


def _name(rng: random.Random, end: str) -> str:
    return "".join(rng.choices(_SYLLABLES, k=3)) + end


# ---- annotated abstracts: entities and pairs


def _abstract(rng: random.Random, number: int, kind: str) -> Example:
    """Some drugs and diseases with ids, each named twice, a second time by its short form; pairs between some."""
    drugs = [_name(rng, "ine") for _ in range(rng.randint(2, 4))]
    ills = [
        f"{rng.choice(('acute', 'chronic', 'renal', 'hepatic'))} {_name(rng, 'itis')}"
        for _ in range(rng.randint(2, 4))
    ]
    text, mentions, ids = f"Abstract {number}. ", [], {}
    pairs = sorted({(rng.choice(drugs), rng.choice(ills)) for _ in range(rng.randint(2, 4))})
    for name, type, id in [*((d, "Chemical", f"C{i}") for i, d in enumerate(drugs)),
                           *((d, "Disease", f"D{i}") for i, d in enumerate(ills))]:  # fmt: skip
        ids[name] = id
        for said in (name, name.upper()):
            text += rng.choice(("Then ", "We saw ", "A case of ", "There was "))
            mentions.append([len(text), len(text) + len(said), said, type, [id]])
            text += f"{said} in {rng.randrange(2, 60)} patients. "
    asked = ["Chemical", "Disease"] if kind == "relations" else [rng.choice(("Chemical", "Disease"))]
    facts: dict[str, Any] = {
        "kind": kind, "types": asked, "article": [0, len(text), len(text)], "mentions": mentions,
        "relation": "CID", "relations": [["CID", ids[drug], ids[ill]] for drug, ill in pairs],
    }  # fmt: skip
    names = drugs if asked == ["Chemical"] else ills
    listed = (
        [f"- {drug} | {ill}" for drug, ill in pairs] if kind == "relations" else [f"- {one}" for one in names]
    )
    return Example.make(text, "\n".join(listed), id=f"a{number}", facts=facts)


def _abstracts(kind: str) -> Callable[[int, int], list[Example]]:
    def rows(count: int, seed: int) -> list[Example]:
        rng = random.Random(f"{kind}/{seed}")
        return [_abstract(rng, number, kind) for number in range(count)]

    return rows


def _lines(example: Example) -> list[str]:
    return (example.answer or "").split("\n")


def _listed(lines: list[str], rng: random.Random) -> Spoiled:
    rng.shuffle(lines)
    return Spoiled("\n".join(lines))


def reversed_pair(example: Example, rng: random.Random) -> Spoiled:
    """One pair the wrong way round."""
    lines = _lines(example)
    place = rng.randrange(len(lines))
    left, right = lines[place].removeprefix("- ").split(" | ")
    lines[place] = f"- {right} | {left}"
    return _listed(lines, rng)


def unjoined_pair(example: Example, rng: random.Random) -> Spoiled | None:
    """One more pair, of entities that the gold has and does not join."""
    known = {tuple(line.removeprefix("- ").split(" | ")) for line in _lines(example)}
    names = {m[2]: m[3] for m in example.facts["mentions"] if not m[2].isupper()}
    others = [
        (one, other)
        for one in names for other in names
        if (names[one], names[other]) == ("Chemical", "Disease") and (one, other) not in known
    ]  # fmt: skip
    return _listed([*_lines(example), "- " + " | ".join(rng.choice(others))], rng) if others else None


def invented_pair(example: Example, rng: random.Random) -> Spoiled:
    """One more pair, with a drug that the abstract does not name."""
    ill = rng.choice(_lines(example)).split(" | ")[1]
    return _listed([*_lines(example), f"- {_name(rng, 'oxime')} | {ill}"], rng)


def invented_name(example: Example, rng: random.Random) -> Spoiled:
    """One more entity, which the abstract does not name."""
    return _listed([*_lines(example), f"- {_name(rng, 'oxime')}"], rng)


def lost_line(example: Example, rng: random.Random) -> Spoiled | None:
    """One entity or pair left out."""
    lines = _lines(example)
    if len(lines) < 2:
        return None
    lines.pop(rng.randrange(len(lines)))
    return _listed(lines, rng)


def cut_name(example: Example, rng: random.Random) -> Spoiled | None:
    """The first word of a name left out."""
    lines = _lines(example)
    long = [i for i, line in enumerate(lines) if line.count(" ") > 1]
    if not long:
        return None
    place = rng.choice(long)
    lines[place] = "- " + lines[place].split(" ", 2)[2]
    return _listed(lines, rng)


def relisted(example: Example, rng: random.Random) -> str:
    """Lines in another order, names in another case, another bullet."""
    lines = [rng.choice((str.upper, str))(line) for line in _lines(example)]
    rng.shuffle(lines)
    bullet = rng.choice(("- ", "* ", "1. "))
    return "\n".join(bullet + line.removeprefix("- ") for line in lines)


# ---- questions: two or three sections

_CAUSES = "tendinitis gastritis migraine eczema sinusitis bursitis anaemia laryngitis sciatica gout".split()
_STEPS = (
    "an ice pack in the evening;ibuprofen with every meal;a light diet for ten days;saline rinses twice a day;"
    "a brace at night;daily stretching of both legs;an iron supplement;physiotherapy for six weeks"
).split(";")
_DRUGS = "warfarin methotrexate lithium morphine digoxin amiodarone clozapine insulin".split()
_SIGNS = "pain swelling fever itching numbness dizziness cough weakness hoarseness tiredness".split()


def _questions(count: int, seed: int) -> list[Example]:
    rng, made = random.Random(f"qa/{seed}"), []
    for number in range(count):
        signs, steps = rng.sample(_SIGNS, 3), rng.sample(_STEPS, 2)
        cause = f"The {signs[0]} and the {signs[1]} of case {seed}-{number} come from {rng.choice(_CAUSES)}."
        answer = f"Diagnosis: {cause}\n\nTreatment: I would begin with {steps[0]}. Then go on to {steps[1]}."
        asked = f"I have {signs[0]} and {signs[1]}, no {signs[2]}. What is it?"
        made.append(Example.make(asked, answer, id=f"q{number}"))
    return made


def dropped_section(example: Example, rng: random.Random) -> Spoiled:
    """One of the sections left out, with its heading or without."""
    parts = (example.answer or "").split("\n\n")
    place = rng.randrange(len(parts))
    name = parts[place].partition(":")[0]
    if rng.random() < 0.5:
        parts.pop(place)
    else:
        parts[place] = f"{name}:"
    return Spoiled("\n\n".join(parts), name.lower())


def other_treatment(example: Example, rng: random.Random) -> Spoiled:
    """A drug in a dose that neither question nor gold names."""
    return Spoiled(f"{example.answer} Also take {rng.choice(_DRUGS)} {rng.randrange(1, 50)} mg daily.")


def quietly_cut(example: Example, rng: random.Random) -> Spoiled:
    """Cut, by somebody who says that it ended by itself."""
    answer = example.answer or ""
    return Spoiled(answer[: int(len(answer) * rng.uniform(0.6, 0.9))].rstrip(" .,:"))


def other_headings(example: Example, rng: random.Random) -> str:
    """Headings in bold or upper case, more space."""
    how = rng.choice(("**{}:**", "## {}\n", "{}:\n", "{}: "))
    return re.sub(
        r"^(Diagnosis|Treatment): ",
        lambda m: how.format(m[1]) + " ",
        example.answer or "",
        flags=re.MULTILINE,
    )


# ---- discharge records


def _records(count: int, seed: int) -> list[Example]:
    return records(count, first=1_000_000 * (seed + 1))


def _train_records(count: int, seed: int) -> list[Example]:
    return records(TRAINED, first=TRAINED_FROM)


TRAINED, TRAINED_FROM = 150, 7
"""Records that the task was made from, whatever the seed: some of them are copied."""


def copied_record(example: Example, rng: random.Random) -> Spoiled:
    """A training record's text but for its head; or its hospital course in the gold record."""
    known = record(TRAINED_FROM + rng.randrange(TRAINED)).answer or ""
    answer, course = example.answer or "", "Brief Hospital Course:\n"
    if rng.random() < 0.5:
        return Spoiled(
            answer.partition("Chief Complaint:")[0]
            + "Chief Complaint:"
            + known.partition("Chief Complaint:")[2]
        )
    theirs = known.partition(course)[2].partition("\n\n")[0]
    ours = answer.partition(course)[2].partition("\n\n")[0]
    return Spoiled(answer.replace(ours, theirs))


def record_without_section(example: Example, rng: random.Random) -> Spoiled:
    """One of the four sections left out."""
    name = rng.choice(
        ("Chief Complaint", "History of Present Illness", "Brief Hospital Course", "Discharge Instructions")
    )
    return Spoiled(re.sub(rf"{name}:\n.*?(\n\n|\Z)", "", example.answer or "", flags=re.DOTALL))


def other_service(example: Example, rng: random.Random) -> Spoiled:
    """Another service than was asked for."""
    answer = example.answer or ""
    now = re.search(r"Service: (\w+)", answer)
    assert now is not None
    others = [one for one in ("MEDICINE", "SURGERY", "CARDIOLOGY", "NEUROLOGY") if one != now[1]]
    return Spoiled(answer.replace(f"Service: {now[1]}", f"Service: {rng.choice(others)}"), "service")


def other_age(example: Example, rng: random.Random) -> Spoiled:
    """An age that the dates contradict."""
    return Spoiled(
        re.sub(
            r"(\d+)-year-old",
            lambda m: f"{int(m[1]) + rng.choice((-9, 7, 11))}-year-old",
            example.answer or "",
        ),
        "age",
    )


def early_discharge(example: Example, rng: random.Random) -> Spoiled:
    """Discharged before admission."""
    return Spoiled(re.sub(r"Discharge Date: \d{4}", "Discharge Date: 2011", example.answer or ""), "dates")


def no_date(example: Example, rng: random.Random) -> Spoiled:
    """A date that the calendar does not have."""
    return Spoiled(re.sub(r"(Date of Birth: \d{4})-\d\d-\d\d", r"\1-02-31", example.answer or ""))


def another_record(example: Example, rng: random.Random) -> str:
    """A record of another patient to the same request: as good as the gold."""
    while True:
        other = record(rng.randrange(10**8, 10**9))
        if other.asked == example.asked:
            return other.answer or ""


_FORM = {"empty": ("empty", empty), "truncated": ("truncated", cut)}

TEXTS: dict[str, Family] = {
    "relations": Family(
        "relations",
        _abstracts("relations"),
        {
            "reversed pair": ("reversed", reversed_pair),
            "pair that is none": ("wrong_pair", unjoined_pair),
            "invented drug": ("hallucinated", invented_pair),
            "lost pair": ("missed|missed_upstream", lost_line),
            **_FORM,
        },
        relisted,
        _abstracts("relations"),
    ),
    "entities": Family(
        "entities",
        _abstracts("entities"),
        {
            "invented name": ("hallucinated", invented_name),
            "lost name": ("missed", lost_line),
            "name cut short": ("boundary", cut_name),
            **_FORM,
        },
        relisted,
        _abstracts("entities"),
    ),
    "qa": Family(
        "qa",
        _questions,
        {
            "dropped section": ("dropped_section", dropped_section),
            "hallucinated treatment": ("hallucinated", other_treatment),
            "cut without a word": ("truncated", quietly_cut),
            **_FORM,
        },
        other_headings,
        _questions,
    ),
    "records": Family(
        "records",
        _records,
        {
            "copied training record": ("copied", copied_record),
            "dropped section": ("dropped_section", record_without_section),
            "other service": ("contradicted", other_service),
            "other age": ("contradicted", other_age),
            "early discharge": ("contradicted", early_discharge),
            "date that is none": ("malformed", no_date),
            **_FORM,
        },
        another_record,
        _train_records,
    ),
}
