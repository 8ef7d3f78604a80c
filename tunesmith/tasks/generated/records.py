"""Generated records: complete, well-formed, at one with the request and with themselves, and no copies.

There are many right records for one request, so none is compared with its gold record word by word. The gold says what
can be judged in its row (which sections there are, whether it has a birth date, an identifier): an answer that leaves
them out fails there; it does not leave the count. Every figure stands beside that of the gold records themselves.
The rules are read from the training records: their sections (sections.py), the forms of their numbers and dates
(record_checks.py), and what is a copy of them (copies.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.tasks.answered import Answered
from tunesmith.tasks.generated import diversity
from tunesmith.tasks.generated.copies import GRAM, CopyIndex, copies_table, index_of
from tunesmith.tasks.generated.record_checks import (
    Forms,
    agrees,
    asked_of,
    days,
    field,
    fields,
    impossible,
    sexes,
    shape,
    whole_date,
)
from tunesmith.tasks.normalise import words
from tunesmith.tasks.prose.sections import Headings
from tunesmith.tasks.protocol import Detail, Fault, Parsed, Table
from tunesmith.tasks.sums import Metric, Share, Sums, mean, ratio

CHECKS = ("identifiers", "dates", "order", "age", "sex", "service")
_COPIES = ("copied", "copied_exact")


class Seen(NamedTuple):
    """One text as it is, whatever was asked."""

    words: int
    sections: Mapping[str, int]
    """Known section → words under it; only where there are some."""
    identifiers: Mapping[str, bool]
    """Label → whether it is of the training records' shapes."""
    dates: Mapping[str, bool]
    """Label of a date → whether it is one, in a form that the training records use."""
    impossible: tuple[str, ...]
    order: bool | None
    age: bool | None
    sexes: frozenset[str]
    service: str | None


class RecordsTask:
    """Made from the training records."""

    name = "records"
    headline = "sound"
    lower_is_better = frozenset(
        {"copied", "copied_exact", "copied_grams", "longest_copy", "impossible_dates"}
    )
    needs_training_answers = True
    every_sample = True

    def __init__(self, golds: Sequence[str], copies: bool = True) -> None:
        self.golds = golds
        self.headings = Headings.learn(golds)
        self.forms = Forms.of(golds)
        self.copies = copies and bool(golds)
        self._seen = lru_cache(maxsize=8192)(self._look)

    def without_training_answers(self) -> RecordsTask:
        """The same without the search for copies, for golds that are not the training rows'."""
        return RecordsTask(self.golds, copies=False)

    @cached_property
    def index(self) -> CopyIndex:
        """Made when it is first asked: 4 seconds for 1,000 records of 1,000 words."""
        return index_of(self.golds)

    def parse(self, answer: str) -> Parsed:
        """The text without surrounding space; an empty one can't be scored."""
        text = answer.strip()
        return Parsed(text) if text else Parsed(None, ("unparsable: the answer is empty",))

    def counts(self, prompt: str, gold: Parsed, predicted: Parsed) -> dict[str, float]:
        """Per row: what can be judged by its gold, and what of it is right, in the answer and in the gold itself."""
        made: dict[str, float] = {"rows": 1.0, "answered": float(predicted.value is not None)}
        right, given = gold.value or "", predicted.value or ""
        for name in self.headings.known:
            made[f"expected:{name}"] = float(name in self._seen(right).sections)
            made[f"kept:{name}"] = float(
                name in self._seen(right).sections and name in self._seen(given).sections
            )
        made["words"], made["gold_words"] = float(self._seen(given).words), float(self._seen(right).words)
        judged = self._judged(prompt, right)
        for name in CHECKS:
            made[f"{name}_judged"] = float(judged[name])
        for prefix, text in (("", given), ("gold_", right)):
            passed = self._passed(prompt, right, text)
            made |= {f"{prefix}{name}": float(passed[name]) for name in CHECKS}
            made[f"{prefix}impossible"] = float(bool(self._seen(text).impossible))
            made[f"{prefix}sound"] = float(self._is_sound(right, text) and passed == judged)
            if self.copies:
                found = self.index.measure(text)
                made[f"{prefix}copied"] = float(self.index.is_copy(found))
                made[f"{prefix}copied_exact"] = float(found.exact)
                made[f"{prefix}grams"], made[f"{prefix}known_grams"] = float(found.grams), float(found.known)
                made[f"{prefix}run"] = float(found.run)
        return made

    def correct(self, gold: Parsed, predicted: Parsed) -> bool:
        """Sound by itself; whether it agrees with the request is in the metrics."""
        return self._is_sound(gold.value or "", predicted.value or "")

    def metrics(self) -> dict[str, Metric]:
        """The headline, then each check; those of copies only where there are training records to look in."""
        made: dict[str, Metric] = {
            "sound": mean("sound"),
            "sections_kept": Share(lambda s: ratio(self._sum(s, "kept"), self._sum(s, "expected"))),
            "answered": mean("answered"),
            "length_ratio": lambda s: ratio(s["words"], s["gold_words"]),
        }
        for prefix in ("", "gold_"):
            for name in CHECKS:
                made[prefix + name] = Share(partial(_share, f"{prefix}{name}", f"{name}_judged"))
            made[f"{prefix}impossible_dates"] = mean(f"{prefix}impossible")
            if self.copies:
                made |= {prefix + name: mean(prefix + name) for name in _COPIES}
                made[f"{prefix}copied_grams"] = Share(
                    partial(_share, f"{prefix}known_grams", f"{prefix}grams")
                )
                made[f"{prefix}longest_copy"] = partial(_share, f"{prefix}run", "rows")
        made["gold_sound"] = mean("gold_sound")
        for name in self.headings.known:
            made[f"kept:{name}"] = Share(partial(_share, f"kept:{name}", f"expected:{name}"))
        return made

    def explain(self) -> dict[str, str]:
        """What each metric means."""
        return _MEANING

    def tables(self, sums: Mapping[str, float]) -> list[Table]:
        """The checks with their denominators, and each section."""
        rows = [
            (
                name,
                int(sums[f"{name}_judged"]),
                *(_part(sums[p + name], sums[f"{name}_judged"]) for p in ("", "gold_")),
            )
            for name in CHECKS
        ]
        note = (
            "Judged: what the row's gold record has (labels for identifiers and dates, rows for the rest). An answer "
            "that says nothing where its gold does is not right."
        )
        made = [Table("Checks", ("check", "judged", "right", "right in the gold records"), tuple(rows), note)]
        known = [
            (name, int(sums[f"expected:{name}"]), int(sums[f"kept:{name}"]),
             _part(sums[f"kept:{name}"], sums[f"expected:{name}"]))
            for name in self.headings.known
        ]  # fmt: skip
        if known:
            columns = ("section", "gold records with it", "kept", "share")
            made.append(Table("Sections", columns, tuple(known), "Kept: something stands under it."))
        return made

    def study(self, rows: Sequence[Answered]) -> list[Table]:
        """Diversity of the answers, and what of them stands in the training records."""
        by_row: dict[str, list[str]] = {}
        for row in rows:
            if row.predicted.value is not None:
                by_row.setdefault(row.example.id, []).append(str(row.predicted.value))
        answers = [text for texts in by_row.values() for text in texts]
        golds = [str(row.gold.value) for row in {row.example.id: row for row in rows}.values()]
        made = [diversity.table(list(by_row.values()), golds)] if answers else []
        if self.copies and answers:
            made.append(copies_table(self.index, answers, golds))
        return made

    def faults(self, row: Answered) -> list[Fault]:
        """Dropped sections, malformed numbers and dates, contradictions, copies."""
        if row.predicted.value is None:
            return []
        right, given = str(row.gold.value or ""), str(row.predicted.value)
        gold, said = self._seen(right), self._seen(given)
        made = [Fault("dropped_section", name, f"{count} words") for name, count in gold.sections.items()
                if name not in said.sections]  # fmt: skip
        labelled = fields(given)
        for found in (said.identifiers, said.dates):
            made += [
                Fault("malformed", label, None, labelled[label]) for label, fine in found.items() if not fine
            ]
        made += [Fault("malformed", "date", None, one) for one in said.impossible]
        sex, service = asked_of(row.example.asked)
        if sex and said.sexes - {sex}:
            made.append(Fault("contradicted", "sex", sex, ", ".join(sorted(said.sexes - {sex}))))
        if service and agrees(service, said.service) is False:
            made.append(Fault("contradicted", "service", service, said.service))
        if said.order is False:
            made.append(
                Fault("contradicted", "dates", "birth < admission <= discharge", _shown_days(labelled))
            )
        if said.age is False:
            made.append(
                Fault(
                    "contradicted", "age", "admission minus birth", str(days(given, self.forms.day_first).age)
                )
            )
        if self.copies:
            copied = self.index.measure(given)
            if self.index.is_copy(copied):
                made.append(Fault("copied", "", None, self.index.quote(given, copied)))
        return made

    def details(self, gold: Parsed, predicted: Parsed) -> list[Detail]:
        """Section by section: how many words stand under it."""
        right, given = self._seen(gold.value or "").sections, self._seen(predicted.value or "").sections
        return [
            Detail(name, _words(count), _words(given.get(name)), "match" if name in given else "missed")
            for name, count in right.items()
        ]

    def unscored(self, gold: Parsed) -> list[str]:
        """Nothing."""
        return []

    def common_answer(self, golds: Sequence[Parsed]) -> str:
        """The first training record, whatever is asked."""
        return str(golds[0].value) if golds else ""

    # ---- one text

    def _look(self, text: str) -> Seen:
        sections: dict[str, int] = {}
        for one in self.headings.sections(text):
            count = len(words(text[one.begin : one.end]))
            if count and one.name in self.headings.known:
                sections[one.name] = sections.get(one.name, 0) + count
        labelled = fields(text)
        found = days(text, self.forms.day_first)
        return Seen(
            len(words(text)),
            sections,
            {
                label: shape(labelled[label]) in kept
                for label, kept in self.forms.shapes.items()
                if labelled.get(label)
            },
            {label: self._is_date(labelled[label]) for label in self.forms.dated if labelled.get(label)},
            tuple(impossible(text, self.forms.day_first)),
            found.in_order(),
            found.age_fits(),
            frozenset(sexes(text)),
            field(labelled, "service"),
        )

    def _is_date(self, value: str) -> bool:
        found = whole_date(value)
        return (
            found is not None
            and found.form in self.forms.dates
            and found.read(self.forms.day_first) is not None
        )

    def _judged(self, prompt: str, right: str) -> dict[str, int]:
        """How many things of each check the gold record gives to judge."""
        gold, (sex, service) = self._seen(right), asked_of(prompt)
        return {
            "identifiers": len(gold.identifiers),
            "dates": len(gold.dates),
            "order": int(gold.order is not None),
            "age": int(gold.age is not None),
            "sex": int(bool(sex and gold.sexes)),
            "service": int(bool(service and gold.service)),
        }

    def _passed(self, prompt: str, right: str, text: str) -> dict[str, int]:
        """How many of them `text` has right."""
        gold, said, (sex, service) = self._seen(right), self._seen(text), asked_of(prompt)
        judged = self._judged(prompt, right)
        return {
            "identifiers": sum(said.identifiers.get(label, False) for label in gold.identifiers),
            "dates": sum(said.dates.get(label, False) for label in gold.dates),
            "order": int(bool(judged["order"]) and said.order is True),
            "age": int(bool(judged["age"]) and said.age is True),
            "sex": int(bool(judged["sex"]) and said.sexes == {sex}),
            "service": int(bool(judged["service"]) and agrees(service or "", said.service) is True),
        }

    def _is_sound(self, right: str, text: str) -> bool:
        """All sections of its gold, nothing malformed, dates that can be, no copy."""
        gold, said = self._seen(right), self._seen(text)
        fine = all(said.identifiers.values()) and all(said.dates.values()) and not said.impossible
        whole = bool(text) and set(gold.sections) <= set(said.sections)
        return (
            whole and fine and said.order is not False and said.age is not False
            and not (self.copies and self.index.is_copy(self.index.measure(text)))
        )  # fmt: skip

    def _sum(self, sums: Sums, what: str) -> NDArray[np.float64]:
        return np.asarray(sum((sums[f"{what}:{name}"] for name in self.headings.known), 0 * sums["rows"]))


_MEANING = {
    "sound": "share of records with every section of their gold, well-formed, at one with the request and themselves, "
    "and no copy of a training record; headline",
    "gold_sound": "the same for the gold records",
    "sections_kept": "share of the gold records' sections under which the answer writes something",
    "answered": "share of answers that are not empty",
    "length_ratio": "words written for each word of the gold records",
    "identifiers": "share of the gold records' numbers (unit no, MRN) that are there in the shape training records use",
    "dates": "share of the gold records' labelled dates that are there, possible, and in a form training records use",
    "order": "share of records with birth < admission <= discharge, where the gold says two of them",
    "age": "share of records whose stated age is admission minus birth within a year, where the gold says all three",
    "sex": "share of records of the sex that was asked for, by label, title and pronouns",
    "service": "share of records of the service that was asked for, by their label",
    "impossible_dates": "share of answers with a date that no calendar has; lower is better",
    "copied": "share of answers with a longer run from one training record than chance and boilerplate explain; lower "
    "is better",
    "copied_exact": "share of answers that are a training record as a whole; lower is better",
    "copied_grams": f"share of the answers' {GRAM}-grams of words that stand in training records; lower is better",
    "longest_copy": "words of the longest run from one training record, mean over rows; lower is better",
    "kept": "share of gold records with this section whose answer has it too",
}
_MEANING |= {f"gold_{name}": "the same for the gold records" for name in (*CHECKS, "impossible_dates", *_COPIES,
             "copied_grams", "longest_copy")}  # fmt: skip


def _share(over: str, under: str, sums: Sums) -> NDArray[np.float64]:
    return ratio(sums[over], sums[under])


def _part(over: float, under: float) -> float | None:
    return over / under if under else None


def _words(count: int | None) -> str | None:
    return None if count is None else f"{count} words"


def _shown_days(labelled: Mapping[str, str]) -> str:
    said = {what: field(labelled, what) for what in ("birth", "admission", "discharge")}
    return ", ".join(f"{what} {value}" for what, value in said.items() if value)
