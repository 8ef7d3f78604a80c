"""The Diagnosis and the Treatment in a doctor's answer: by its headings, else by the sentences that diagnose or advise.

Every word is the answer's own. A part that can't be found is empty, never filled in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunesmith.data.processors.doctor_sentence import kind_of_sentence

_END = re.compile(r"[.!?]\s+(?=[\"'(\[]?[A-Z0-9])|\n+")
_SHORT = re.compile(r"\b(?:Dr|Mrs?|Ms|e\.g|i\.e)\.")
_DIAGNOSIS = r"diagnos[ie]s|assessment|impression|exams? and tests?|tests? and diagnosis|diagnostic tests?"
_TREATMENT = (
    r"treatments?(?: plan)?|plan|management|therapy|treatment and management|recommendations?|advice|"
    r"medications?|rx"
)
_OTHER = (
    r"symptoms?|signs and symptoms|causes?|risk factors|prevention|prognosis|outlook|follow[- ]?up|history|"
    r"summary|overview|complications?|disclaimer|references?|related questions?"
)
_MARKS = r"[ \t>*_#\-•]*(?:\d{1,2}[.)][ \t]*)?"  # list marks and markdown before a heading
_NAMES = rf"(?:(?P<diagnosis>{_DIAGNOSIS})|(?P<treatment>{_TREATMENT})|(?P<other>{_OTHER}))"
_COLON = re.compile(rf"^{_MARKS}{_NAMES}[ \t*_]*:[*_]*", re.IGNORECASE | re.MULTILINE)
_ALONE = re.compile(rf"^{_MARKS}{_NAMES}[ \t*_]*:?[ \t*_]*$", re.IGNORECASE | re.MULTILINE)
_ASKS_DIAGNOSIS = r"diagnosed|diagnosis of|tests? (?:are|is) "
_QUESTION = re.compile(
    r"(?:^|(?<=[.!?:] )|(?<=\n))(?:(?:How|What|Which|Is there|Are there)\b[^.?!\n]{0,160}?"
    rf"(?:(?P<diagnosis>{_ASKS_DIAGNOSIS})|(?P<treatment>treated|treatments?\b))[^.?!\n]{{0,120}}\?"
    r"|(?P<other>(?:How|What|Who|Why|When|Is|Are|Can|Does|Do)\b[^.?!\n]{2,160}\?))",
    re.MULTILINE,
)


def sections(answer: str) -> tuple[str, str]:
    """Diagnosis and Treatment of an answer, in its own words; an empty string for a part that is not there."""
    for headings in ((_COLON,), (_COLON, _ALONE, _QUESTION)):
        diagnosis, treatment, rest = _by_headings(answer, headings)
        if diagnosis and treatment:
            return diagnosis, treatment
    said_diagnosis, said_treatment = _by_sentences(rest)
    return diagnosis or said_diagnosis, treatment or said_treatment


def _by_headings(answer: str, headings: tuple[re.Pattern[str], ...]) -> tuple[str, str, str]:
    """What stands under headings of each kind, and what stands under none of them."""
    marks = sorted(
        (
            (found.start(), found.end(), str(found.lastgroup))
            for one in headings
            if one is not _QUESTION or "?" in answer
            for found in one.finditer(answer)
        ),
        key=lambda mark: (mark[0], -mark[1]),
    )
    parts: dict[str, list[str]] = {"diagnosis": [], "treatment": [], "other": []}
    kind, at = "other", 0
    for start, end, name in marks:
        if start < at:  # the same heading, found twice
            continue
        parts[kind].append(answer[at:start].strip())
        kind, at = name, end
    parts[kind].append(answer[at:].strip())
    diagnosis, treatment, rest = ("\n".join(filter(None, parts[name])) for name in parts)
    return diagnosis, treatment, rest


def _by_sentences(text: str) -> tuple[str, str]:
    said: dict[str, list[str]] = {"diagnosis": [], "treatment": []}
    for sentence in _sentences(text):
        kind = kind_of_sentence(sentence)
        if kind:
            said[kind].append(sentence.strip())
    return " ".join(said["diagnosis"]), " ".join(said["treatment"])


def _sentences(text: str) -> Iterator[str]:
    begin = 0
    for found in _END.finditer(text):
        stop = found.start() + 1
        if not _SHORT.search(text, max(begin, stop - 5), stop):
            yield text[begin:stop]
            begin = found.end()
    yield text[begin:]
