"""Sections of an answer: a heading and what stands under it.

A heading is `Name:` at the beginning of a line (list marks and Markdown before it), or behind the end of a sentence
with a capital letter, where `Name` heads a section in a tenth of the training answers or is a diagnosis or a treatment;
and any Markdown heading (`## Name`, a line `**Name**`). The bare word inside a sentence is none: "no treatment plan is
known" has no section. A section counts where something stands under it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import regex

OFTEN = 0.1  # share of training answers that hold a heading
MOST = 24  # headings that are known by name
_LONGEST = 5  # words of a name
KINDS = {
    "diagnosis": ("diagnosis", "diagnoses", "likely diagnosis", "differential diagnosis", "assessment", "impression"),
    "treatment": ("treatment", "treatments", "treatment plan", "recommended treatment", "plan", "therapy",
                  "management", "recommendations"),
}  # fmt: skip
_KIND = {name: kind for kind, names in KINDS.items() for name in names}
_MARK = r"[ \t]*(?:>[ \t]*)?(?:(?:[-*•]|\d{1,2}[.)])[ \t]+)?"
_NAME = r"[\p{L}][\p{L}\p{M}\p{N} \t/&'’-]{0,59}?"
_PLAIN = regex.compile(rf"^{_MARK}(?P<name>{_NAME})[ \t]*[::]", regex.M)
_BOLD = regex.compile(
    rf"^{_MARK}(?:\*\*|__)(?P<name>{_NAME})[ \t]*(?:[::][ \t]*(?:\*\*|__)|(?:\*\*|__)[ \t]*(?:[::]|$))",
    regex.M,
)
_HASHES = regex.compile(
    rf"^[ \t]*#{{1,6}}[ \t]+[*_]*(?P<name>{_NAME})[ \t*_]*(?:[::][*_]*|[ \t#]*$)", regex.M
)
_INSIDE = regex.compile(rf"(?<=[.!?;।॥][ \t]{{1,2}})(?P<name>\p{{Lu}}{_NAME})[ \t]*[::]")


class Section(NamedTuple):
    """One heading with the places of what stands under it."""

    name: str
    begin: int
    end: int


@dataclass(frozen=True)
class Headings:
    """The headings that the training answers have."""

    known: tuple[str, ...] = ()
    """Commonest first."""

    @classmethod
    def learn(cls, golds: Sequence[str]) -> Headings:
        """From training answers."""
        counts: Counter[str] = Counter()
        for gold in golds:
            forms = (_PLAIN, _BOLD, _HASHES, _INSIDE)
            places = sorted((begin, name) for form in forms for name, begin, _ in _found(form, gold))
            counts.update(
                [*dict.fromkeys(name for _, name in places)]
            )  # in order: ties are as in the answers
        often = [name for name, times in counts.most_common() if times >= max(1, OFTEN * len(golds))]
        return cls(tuple(often[:MOST]))

    def sections(self, text: str) -> list[Section]:
        """In their order. Two of one name are both there."""
        marks: dict[
            int, tuple[int, str]
        ] = {}  # by the end: "1. Plan:" is one heading, whichever form finds it
        for form in (_HASHES, _BOLD, _PLAIN, _INSIDE):
            for name, begin, end in _found(form, text):
                if form in (_HASHES, _BOLD) or name in self.known or name in _KIND:
                    marks.setdefault(end, (begin, self._shown(name)))
        ends = sorted(marks)
        return [
            Section(marks[end][1], end, marks[after][0] if after in marks else len(text))
            for end, after in pairwise([*ends, -1])
        ]

    def _shown(self, name: str) -> str:
        """Another word for a section that the training answers head otherwise is that section."""
        kind = _KIND.get(name)
        if kind is None or name in self.known:
            return name
        return next((known for known in self.known if _KIND.get(known) == kind), kind)


def kind_of(name: str) -> str | None:
    """diagnosis, treatment or None."""
    return _KIND.get(name)


def _found(form: regex.Pattern[str], text: str) -> list[tuple[str, int, int]]:
    made = []
    for found in form.finditer(text):
        name = " ".join(found["name"].lower().split())
        if len(name.split()) <= _LONGEST:
            made.append((name, found.start(), found.end()))
    return made
