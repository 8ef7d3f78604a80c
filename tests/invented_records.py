"""Discharge records of invented people in the shape of real ones: labelled head, sections, boilerplate."""

from __future__ import annotations

import random
from datetime import date, timedelta

from tunesmith.example import Example

_SERVICES = ("MEDICINE", "SURGERY", "CARDIOLOGY", "NEUROLOGY", "ORTHOPAEDICS")
_SYLLABLES = "ba ce di fo gu ha ki lo mu ne pa ri so tu va we".split()
ADVICE = (
    "Please take all medicines as they are listed above and do not stop any of them without asking your doctor first. "
    "Call the ward or go to the nearest emergency department if you have fever, chest pain, trouble breathing or "
    "anything else that worries you. It was a pleasure to take care of you during your stay with us."
)


def _words(draw: random.Random, count: int) -> str:
    return " ".join("".join(draw.choices(_SYLLABLES, k=3)) for _ in range(count))


def record(seed: int) -> Example:
    """One request with its record."""
    draw = random.Random(seed)
    sex, service = draw.choice(("female", "male")), draw.choice(_SERVICES)
    born = date(1930, 1, 1) + timedelta(days=draw.randrange(25_000))
    admitted = date(2020, 1, 1) + timedelta(days=draw.randrange(1500))
    left = admitted + timedelta(days=draw.randrange(0, 20))
    had = (admitted.month, admitted.day) >= (born.month, born.day)
    age = admitted.year - born.year - (not had)
    he, his = ("she", "her") if sex == "female" else ("he", "his")
    title, person = ("Ms.", "woman") if sex == "female" else ("Mr.", "man")
    name = f"{_words(draw, 1).capitalize()} {_words(draw, 1).capitalize()}"
    text = (
        f"Name: {name}   Unit No: {draw.randrange(1000, 9999)}-{draw.randrange(10, 99)}\n\n"
        f"Admission Date: {admitted}   Discharge Date: {left}\n\nDate of Birth: {born}   Sex: {sex[0].upper()}\n\n"
        f"Service: {service}\n\nChief Complaint:\n{_words(draw, 3)}\n\n"
        f"History of Present Illness:\n{title} {name.split()[1]} is a {age}-year-old {person} with {_words(draw, 25)}. "
        f"{he.capitalize()} said that {his} {_words(draw, 8)}, and {he} came by {his} own car.\n\n"
        f"Brief Hospital Course:\n{_words(draw, 60)}.\n\n"
        f"Discharge Instructions:\n{ADVICE}\n"
    )
    asked = f"Write the discharge record of a {sex} patient on the {service} service."
    return Example.make(asked, text, id=f"record-{seed}", slices={"sex": sex, "service": service})


def records(count: int, first: int = 0) -> list[Example]:
    """`count` of them, from seed `first` on."""
    return [record(first + i) for i in range(count)]
