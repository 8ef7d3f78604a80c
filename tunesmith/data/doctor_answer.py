"""The Diagnosis and the Treatment in a doctor's answer: by its headings, else by the sentences that diagnose or advise.

Every word is the answer's own. A part that can't be found is empty, never filled in.
"""

from __future__ import annotations

import re

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


def _any_of(*words: str) -> re.Pattern[str]:
    return re.compile("|".join(words), re.IGNORECASE)


_SENTENCE = re.compile(
    r"(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!e\.g\.)(?<!i\.e\.)(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])|\n+"
)
# what a doctor says around the matter, and where a page points to others
_ASIDE = _any_of(
    r"^\W*(?:hi|hello|hey|dear|thanks?|thank you|welcome|hope|regards|take care|wish|best|get well)\b",
    r"^\W*good (?:day|morning|evening)",
    r"^\W*(?:please |kindly |do )?(?:let me know|feel free|write back|get back|ask me|do(?: not|n't) hesitate|revert)",
    r"^\W*i (?:have |just )?(?:gone|went|read|reviewed|understood|understand|can understand|will be happy|am)\b",
    r"for more information|see also|medlineplus|website|dictionary|https?:|\bclick\b|\blinks?\b",
)
_TEST = (
    r"\b(?:x-?rays?|ultrasound|ultrasonography|ct scans?|mri|scans?|biops(?:y|ies)|blood tests?|cbc|cultures?|"
    r"endoscopy|colonoscopy|ecg|ekg|echocardiogra\w+|lab(?:oratory)? tests?|genetic testing|"
    r"physical exam(?:ination)?)\b"
)
_TESTING = (
    r"\b(?:get|do|go for|need|needs|order(?:ed|s)?|advise|recommend|suggest|should|must|confirm\w*|detect\w*|"
    r"diagnos\w+|(?:is|are|be) (?:done|used|performed|needed|advised|recommended))\b"
)
_TESTS = _any_of(
    rf"{_TEST}.*{_TESTING}",
    rf"{_TESTING}.*{_TEST}",
    r"\bto (?:rule out|confirm)\b|\bbe (?:ruled out|confirmed)\b",
)
_DIAGNOSES = _any_of(
    r"\bdiagnosed (?:by|with|based|through|on|from|when|if|as|using)\b",
    r"\b(?:the|clinical|laboratory|a|my|provisional|differential|likely|early|definitive) diagnos[ie]s\b",
    r"\bdiagnosis (?:is|of|can|may|requires|depends|should)\b|\bto diagnose\b|\bdiagnose (?:it|this|the)\b",
    r"\byou (?:may|might|could|probably|likely|most likely|seem to|appear to) "
    r"(?:have(?! no\b)|be (?:having|suffering))\b",
    r"\b(?:it|this|that|these|they|your \w+(?: \w+)?) (?:also )?(?:seems?|looks?|appears?|sounds?) (?:like|to be)\b",
    r"\b(?:suggestive|indicative) of\b|\b(?:suggests?|indicates?) (?:that )?(?:you|an?|the)\b|\bconsistent with\b",
    r"\b(?:it|this|that|these|they|your \w+(?: \w+)?) (?:is|are|was|were|could be|may be|might be|can be) "
    r"(?:(?:probably|most likely|likely|mainly|usually) )?(?:due to|caused by|because of)\b",
    r"\b(?:it|this|that|these) (?:could|may|might) be an?\b",
    r"\bmost (?:likely|probably)\b|\bpossibilit(?:y|ies) (?:of|is|are)\b|\bsuffering from\b",
)
_ADVISES = _any_of(
    r"\bI(?:'d| would| will| shall| can)? (?:also |strongly |only )?(?:advise|suggest|recommend|prescribe)\b",
    r"\byou (?:should|need to(?! be)|must|have to(?! be))\b",
    r"\byou (?:can|may) (?:also )?(?:take|use|try|need|apply|start)\b",
    r"^\W*(?:(?:please|kindly|also|then|\d[.)])\s+)?(?:take|apply|use|avoid|start|stop|drink|eat|consult|visit|"
    r"see an?|see your|try|go for|keep|continue|maintain|rest|follow|restrict|reduce|increase|wash|do not|don't)\b",
    r"\b(?:tab(?:let)?s?|cap(?:sule)?s?|syrup|ointment|cream|\d+(?:\.\d+)? ?(?:mg|mcg|ml)(?!/))\b.*"
    r"\b(?:daily|once|twice|thrice|times|a day|hours|hourly|night|meals?|food)\b",
)
_TREATS = _any_of(
    r"\btreated (?:with|by|using|successfully|on)\b|\btreat(?:s|ing)? (?:it|this|the|these)\b",
    r"\btreatments? (?:is|are|may|can|should|includes?|consists?|involves?|of choice|depends|options?|for|with|"
    r"usually)\b",
    r"\b(?:no|symptomatic|supportive|standard|specific|effective|surgical|medical|initial|immediate) "
    r"(?:\w+ )?(?:treatments?|cures?|therap(?:y|ies))\b",
    r"\b(?:therap(?:y|ies)|surger(?:y|ies)|antibiotics?|medic(?:ines?|ations?)|painkillers?|steroids?) "
    r"(?:is|are|can|may|should|might|will|to)\b",
    r"\bprescri(?:be|bed|ption|ptions)\b|\bmanaged (?:with|by)\b|\bmanagement (?:is|of|includes)\b",
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
    diagnosing: list[str] = []
    advising: list[str] = []
    for sentence in _SENTENCE.split(text):
        sentence = sentence.strip()
        if not sentence or sentence.endswith("?") or _ASIDE.search(sentence):
            continue
        if _TESTS.search(sentence):
            diagnosing.append(sentence)  # what to examine belongs to the diagnosis
        elif _ADVISES.search(sentence):
            advising.append(sentence)
        elif _DIAGNOSES.search(sentence):
            diagnosing.append(sentence)
        elif _TREATS.search(sentence):
            advising.append(sentence)
    return " ".join(diagnosing), " ".join(advising)
