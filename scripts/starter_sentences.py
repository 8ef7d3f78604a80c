"""Sentences and questions of the base model's training text, with slots: none from the cancer reports.

{v} value, {k} {K} key as phrase, {n} {m} {o} nouns, {a} {b} adjectives, {x} {y} verbs, {p} preposition, {z} number,
{c} {d} words of a clinic, {P} name, {S} subject; capitals begin a sentence.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tunesmith.starter.reports import TEMPLATES

# sentences of the cancer reports, which chance must not make again
REPORT_SENTENCES = frozenset(
    t.format("{v}", who=who)
    for group in TEMPLATES.values()
    for t in group
    for who in ("She", "He", "The patient")
)

CLAUSES = (
    "{K}: {v}.", "The {k} is {v}.", "{K} {v}.", "{v} was recorded as the {k}.", "For the {k} we have {v}.",
    "{k} = {v}", "The {k}, as far as known, is {v}.", "Its {k} was given as {v} by the {n}.", "{K} - {v}",
    "With {v} as {k}, the {n} {x}.", "The {n} {x} {v} for {k}.", "{K} ({v}) was {x} by the {n}.",
    "They set the {k} to {v} after the {n}.", "{K} remains {v}, {a} as ever.", "We {x} {v} under {k}.",
    "On {k}, the {n} says {v}.", "{K} according to the {n}: {v}, then {a} {m}.", "The {n} has {v} ({k}).",
    "{K} changed and is now {v}.", "The {k} that {x} was {v}, not the {a} {m}.",
)  # fmt: skip
FILLERS = (
    "The {a} {n} {x} the {m}.", "{N} and {m} {x} {p} the {o}.", "It was a {a} {n}.", "Nobody {x} the {n} that day.",
    "The {n} {x} {p} {v}.", "{P} {x} a {a} {n} {p} the {m}.", "After the {n}, {P} {x}.", "All {m} were {a}.",
    "The {n} has {z} {m} and no {o}.", "{A} {n} was {x} {p} a {m}.", "There is no {n} here.", "{v} is not meant.",
    "She {x} the {n} before {z} {m} had {x}.", "He {x} and {y}.", "{N}, {m} and {o} were {x}.", "So it {x}.",
    "The {n} of {P} was {a}, the {m} {b}.", "No {n} was {x}.", "Then the {n} {x} again, {a} and {b}.",
    "A {c} was {x} {p} the {d}.", "{C} and {d} were {a}.", "The {c} showed no {d}.", "{z} {c} in all.",
)  # fmt: skip
ASK_NAMED = (
    "Extract {keys} as JSON.", "Return a JSON object with the keys {keys}.", "Give {keys} as a JSON object.",
    "Fill in these keys: {keys}.", "Read the text and write JSON with {keys}.", "JSON keys: {keys}.",
    "Which {keys} does the text give? Answer in JSON.",
)  # fmt: skip
ASK_DOMAIN = (
    "Extract the {d} entries.", "Fill the {d} form from this text.", "Write the {d} record as JSON.",
    "Read this {d} text and list what it says.", "{d}: extract.", "Turn this {d} note into JSON.",
)  # fmt: skip
ASK_SPAN = (
    "What is the {k}?", "Which {k} is given?", "Name the {k}.", "{K}?", "Tell me the {k} that the text gives.",
)  # fmt: skip
JOINTS = (" and ", ", ", "; ", " plus ", " with ", " then ", " or ", " / ", " as well as ", ", then ")
# sentences of a domain's field, {v} being the value; words are put in once, when the domains are made
FRAMES = (
    "{S} {x} {p} {v}.", "{S} {x} {v}.", "{N}: {v}.", "{A} {n}: {v}.", "{N} {x} {v}.", "{S} was {x} {p} {v}.",
    "The {n} {x} {v} {p} the {m}.", "{A} {n} was {v}.", "We {x} {v} without {n}.", "{S} {x} {v} {p} {z} {m}.",
    "{A} {n} of {v} was {x}.", "{A} {n} {v} was {x}.", "{S} has a {n} of {v} and {x} the {m}.", "{N} was {v}.",
    "At the {n}, {v} was {x}.", "The {n} was {a}: {v}, {x} {z} times.", "{N} {x} as {v}.", "{v} {x} {p} the {n}.",
    "After {z} {n} there was {v}.", "There was {a} {n} of the {v}.", "{A} {m} {x} the {v}.", "{N} of {v} {x}.",
    "It was {n} {v} when {x}.", "The {n} was {x} {p} {v}.", "{N} {x} {p} {n} {v} at {m}.", "The {n} {x} {p} {n} {v}.",
)  # fmt: skip
CLINIC = {
    "pulse": ("Pulse {v}.", "Heart rate of {v} at the bedside.", "The pulse was counted at {v}.", "HR {v}, regular."),
    "blood_pressure": ("BP {v}.", "The cuff read {v}.", "Pressure: {v} sitting."),
    "temperature": ("Temp {v}.", "The thermometer gave {v}.", "Running a temperature of {v} overnight."),
    "ward": ("Admitted to {v}.", "Bed on {v}.", "Moved over to {v} by the porter."),
    "clinician": ("Examined by Dr {v}.", "Dr {v} wrote this note.", "Under the care of {v}."),
    "allergy": ("Allergic to {v}.", "Allergies: {v}.", "A rash appeared after {v} was taken.", "Avoid {v}."),
    "complaint": ("Complains of {v}.", "Came in because of {v}.", "{v} for two days.", "Main trouble is {v}."),
    "dose": ("Dose {v}.", "Takes {v} with meals.", "Dosing was set to {v} daily."),
    "next_visit": ("Come back on {v}.", "Appointment booked for {v}.", "To be seen again {v}."),
    "device": ("Has a {v} in place.", "A {v} was fitted.", "Walks with a {v}."),
    "medicine": ("On {v} at home.", "Prescribed {v}.", "Drug chart: {v}.", "Was switched to {v} yesterday."),
    "finding": ("Examination: {v}.", "The scan of the knee showed {v}.", "There is {v} on both sides."),
    "operation": ("Had {v} as a child.", "Surgery: {v}.", "Scheduled for {v}.", "Recovering from {v}."),
    "laboratory": ("Lab: {v}.", "Bloods came back with {v}.", "Serum {v}."),
}  # fmt: skip
CLINIC_KINDS = {
    "pulse": ["number"], "blood_pressure": ["number"], "temperature": ["number"], "ward": ["name", "staged", "words"],
    "clinician": ["name"], "dose": ["number"], "next_visit": ["number", "phrase"], "laboratory": ["marked", "coded"],
}  # fmt: skip
