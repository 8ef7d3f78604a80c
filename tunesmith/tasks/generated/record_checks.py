"""What a record says of itself: labelled fields, dates, ages, sex. Each with the forms that the training records use.

Nothing here knows what is medically right. It reads what is written ("Date of Birth: 1961-03-02", "a 63-year-old
man") and says whether it can be true.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import NamedTuple

_LABEL = re.compile(
    r"(?:^|(?<=[ \t]{2})|(?<=\t)|(?<=, )|(?<=; ))[*_# •-]*([A-Za-z][A-Za-z .#/]{1,28}?)[ *_]*:[*_]*[ \t]*([^\n]*)",
    re.M,
)
_NEXT = re.compile(r"[ \t]{2,}|\t|[,;] (?=[A-Z][A-Za-z .#/]{1,28}:)")
NAMES: dict[str, frozenset[str]] = {
    "sex": frozenset({"sex", "gender"}),
    "service": frozenset({"service", "medical service", "department"}),
    "birth": frozenset({"date of birth", "dob", "birth date", "birthdate", "born"}),
    "admission": frozenset({"admission date", "date of admission", "admitted", "admit date"}),
    "discharge": frozenset({"discharge date", "date of discharge", "discharged"}),
    "age": frozenset({"age"}),
    "name": frozenset({"name", "patient name", "patient"}),
}  # fmt: skip
_NUMBERED = re.compile(r"\b(?:no|number|num|id|mrn|#)\b\.?$|#$", re.I)
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_MONTH = (
    r"(?P<{}>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DATE = re.compile(
    r"(?<![\w/.-])(?:"
    r"(?P<y1>\d{4})(?P<s1>[-/.])(?P<m1>\d{1,2})(?P=s1)(?P<d1>\d{1,2})"
    r"|(?P<a2>\d{1,2})(?P<s2>[-/.])(?P<b2>\d{1,2})(?P=s2)(?P<y2>\d{4}|(?<=/)\d{2})"
    rf"|{_MONTH.format('m3')} (?P<d3>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y3>\d{{4}})"
    rf"|(?P<d4>\d{{1,2}})(?:st|nd|rd|th)?(?P<s4>[ -]){_MONTH.format('m4')},?[ -](?P<y4>\d{{4}})"
    r")(?![\w/]|[.-]\d)",
    re.I,
)
_AGE = re.compile(r"\b(\d{1,3})[- ]?(?:years?|yrs?|y)[- .]?(?:old|o\b|/o)|\b(\d{1,3})\s?(?:yo|y/o)\b", re.I)
_AGED = re.compile(
    r"\b\d{1,3}[- ]?(?:years?[- ]old|years?[- ]of[- ]age|yrs?[- ]old|y/?o|y\.o\.)[ -](?:[\w-]+[ -]){0,3}?"
    r"(?P<sex>female|male|woman|man|lady|gentleman|girl|boy|[MF](?=[ .,]))\b",
    re.I,
)
_SEXES = {
    "f": "female", "female": "female", "woman": "female", "women": "female", "lady": "female", "girl": "female",
    "m": "male", "male": "male", "man": "male", "men": "male", "gentleman": "male", "boy": "male",
}  # fmt: skip
_PRONOUNS = {"female": {"she", "her", "hers", "herself"}, "male": {"he", "him", "his", "himself"}}
_ASKED_SEX = re.compile(r"\b(female|male|woman|man|girl|boy)\b", re.I)
_ASKED_SERVICE = re.compile(r"\bon the ([^\n.]{2,60}?) service\b", re.I)
FEWEST_PRONOUNS = 3
COMMON, RARE = 0.5, 0.01  # share of the training records' values that one shape has: a rule; still allowed


class Dated(NamedTuple):
    """A date as it is written."""

    text: str
    form: str
    """Its parts in order with what parts them: `Y-M-D`, `a/b/Y` (day or month first), `Mon D, Y` …"""
    parts: tuple[int, int, int]
    """Year, then month and day; for `a/b/Y` the two as they stand."""

    def read(self, day_first: bool) -> date | None:
        """The day; None where the calendar has none like it."""
        year, month, day = self.parts
        if self.form.startswith("a") and day_first:
            month, day = day, month
        try:
            return date(year, month, day)
        except ValueError:
            return None


def fields(text: str) -> dict[str, str]:
    """Labelled values, by label in lower case; the first of each. Several may stand on one line."""
    made: dict[str, str] = {}
    for line in text.split("\n"):
        at = 0
        while (found := _LABEL.search(line, at)) is not None:
            label = " ".join(found[1].lower().split())
            value = _NEXT.split(found[2], maxsplit=1)[0].strip(" *_")
            made.setdefault(label, value)
            at = found.start(2) + len(_NEXT.split(found[2], maxsplit=1)[0])
    return made


def field(found: Mapping[str, str], what: str) -> str | None:
    """The value of a kind of NAMES; None where it has no label or stands empty."""
    return next((value for label, value in found.items() if label in NAMES[what] and value), None)


def is_identifier(label: str, value: str) -> bool:
    """Whether a label names a number of the record: "Unit No", "MRN", "Patient ID"."""
    return bool(_NUMBERED.search(label)) and any(letter.isdigit() for letter in value)


def dates(text: str) -> list[Dated]:
    """All that is written as a date with day, month and year, possible or not."""
    made = []
    for found in _DATE.finditer(text):
        part = found.groupdict()
        if part["y1"]:
            form, parts = f"Y{part['s1']}M{part['s1']}D", (part["y1"], part["m1"], part["d1"])
        elif part["y2"]:
            year = part["y2"] if len(part["y2"]) == 4 else f"20{part['y2']}"
            form = f"a{part['s2']}b{part['s2']}{'Y' if len(part['y2']) == 4 else 'y'}"
            parts = (year, part["a2"], part["b2"])
        elif part["y3"]:
            form = f"Mon D{',' if ',' in found[0] else ''} Y"
            parts = (part["y3"], _month(part["m3"]), part["d3"])
        else:
            form, parts = f"D{part['s4']}Mon{part['s4']}Y", (part["y4"], _month(part["m4"]), part["d4"])
        year_, month, day = (int(one) for one in parts)
        made.append(Dated(found[0], form, (year_, month, day)))
    return made


def _month(name: str) -> str:
    return str(_MONTHS.index(name[:3].lower()) + 1)


def shape(value: str) -> str:
    """Letters as A, digits as 9, each as often as it stands: "MRN-0042" is "AAA-9999"."""
    return re.sub(r"[^\W\d_]", "A", re.sub(r"\d", "9", value.strip()))


class Forms(NamedTuple):
    """What the training records' numbers and dates look like."""

    shapes: Mapping[str, frozenset[str]]
    """Label → shapes of its value; only where one shape has most."""
    dated: frozenset[str]
    """Labels whose value is a date."""
    dates: frozenset[str]
    """Forms of dates under these labels."""
    day_first: bool

    @classmethod
    def of(cls, records: Iterable[str]) -> Forms:
        """As most of `records` write them. A form that 1 % of them use is allowed."""
        values: dict[str, Counter[str]] = {}
        filled: Counter[str] = Counter()
        dated: Counter[str] = Counter()
        forms: Counter[str] = Counter()
        first_over = second_over = 0
        for record in records:
            for one in dates(record):
                if one.form.startswith("a"):
                    first_over += one.parts[1] > 12
                    second_over += one.parts[2] > 12
            for label, value in fields(record).items():
                filled[label] += bool(value)
                whole = whole_date(value)
                if whole is not None:
                    dated[label] += 1
                    forms[whole.form] += 1
                elif is_identifier(label, value):
                    values.setdefault(label, Counter())[shape(value)] += 1
        shapes = {}
        for label, seen in values.items():
            total, most = seen.total(), seen.most_common(1)[0][1]
            if most > 1 and most >= COMMON * filled[label]:
                shapes[label] = frozenset(one for one, times in seen.items() if times >= RARE * total)
        total = forms.total()
        return cls(
            shapes,
            frozenset(
                label for label, times in dated.items() if times > 1 and times >= COMMON * filled[label]
            ),
            frozenset(form for form, times in forms.items() if times >= RARE * total),
            first_over > second_over,
        )


def whole_date(value: str) -> Dated | None:
    """A value that is a date and nothing else."""
    found = dates(value)
    return found[0] if len(found) == 1 and found[0].text == value.strip().rstrip(".") else None


def impossible(text: str, day_first: bool) -> list[str]:
    """Dates that no calendar has, whichever of day and month stands first."""
    return [
        one.text for one in dates(text) if one.read(day_first) is None and one.read(not day_first) is None
    ]


class Days(NamedTuple):
    """Birth, admission and discharge, where a record says them; its patient's age in years."""

    birth: date | None
    admission: date | None
    discharge: date | None
    age: int | None

    def in_order(self) -> bool | None:
        """Birth < admission <= discharge; None where fewer than two are said."""
        known = [(self.birth, self.admission, True), (self.admission, self.discharge, False)]
        known.append((self.birth, self.discharge, True))
        judged = [a < b if strict else a <= b for a, b, strict in known if a is not None and b is not None]
        return all(judged) if judged else None

    def age_fits(self) -> bool | None:
        """The stated age is that on the day of admission, within a year; None where one of the three isn't said."""
        if self.birth is None or self.admission is None or self.age is None:
            return None
        had = (self.admission.month, self.admission.day) >= (self.birth.month, self.birth.day)
        return abs(self.admission.year - self.birth.year - (not had) - self.age) <= 1


def days(text: str, day_first: bool) -> Days:
    """The days of a record by its labels, the age by its label or the first "NN-year-old"."""
    found = fields(text)
    read: list[date | None] = []
    for what in ("birth", "admission", "discharge"):
        written = dates(field(found, what) or "")
        read.append(written[0].read(day_first) if written else None)
    labelled = re.match(r"\d{1,3}\b", field(found, "age") or "")
    said = _AGE.search(text)
    age = labelled[0] if labelled else next((one for one in said.groups() if one), None) if said else None
    return Days(read[0], read[1], read[2], None if age is None else int(age))


@lru_cache(maxsize=4096)
def asked_of(prompt: str) -> tuple[str | None, str | None]:
    """Sex and service that a request asks for: by their labels, else "of a female patient on the SURGERY service"."""
    found = fields(prompt)
    named = {_SEXES[one.lower()] for one in _ASKED_SEX.findall(prompt)}
    sex = sex_of(field(found, "sex")) or (named.pop() if len(named) == 1 else None)
    said = _ASKED_SERVICE.search(prompt)
    return sex, field(found, "service") or (said[1] if said else None)


def sex_of(value: str | None) -> str | None:
    """`female` or `male` as a field says it."""
    first = re.match(r"[a-z]+", (value or "").strip().lower())
    return _SEXES.get(first[0]) if first else None


def sexes(text: str) -> set[str]:
    """The sexes that a record gives its patient: by label, by "NN-year-old woman", by most of its pronouns."""
    made = {sex for sex in (sex_of(field(fields(text), "sex")),) if sex}
    said = _AGED.search(text)
    if said:
        made.add(_SEXES[said["sex"].lower()])
    spoken = Counter(re.findall(r"[a-z]+", text.lower()))
    times = {sex: sum(spoken[one] for one in forms) for sex, forms in _PRONOUNS.items()}
    total = sum(times.values())
    if total >= FEWEST_PRONOUNS:
        made |= {sex for sex, said_so in times.items() if said_so > 0.75 * total}
    return made


def agrees(asked: str, given: str | None, same: Sequence[str] = ()) -> bool | None:
    """Whether a service is the one asked for, whole or in part; None where the record names none."""
    if given is None:
        return None
    wanted, said = (" ".join(re.findall(r"[^\W_]+", one.lower())) for one in (asked, given))
    return bool(wanted and said) and (
        f" {wanted} " in f" {said} " or f" {said} " in f" {wanted} " or said in same
    )
