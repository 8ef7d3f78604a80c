"""What a sentence of a doctor's answer does: it diagnoses (or says what to examine), advises or treats, or neither.

Rather neither than wrong: a row without one of the two is left out of training.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Rule(NamedTuple):
    """A pattern, tried only where one of the words stands in the sentence: the words are found far quicker."""

    words: tuple[str, ...]
    pattern: re.Pattern[str]

    def fits(self, sentence: str) -> bool:
        """Whether a sentence, in lower case, says it."""
        return any(word in sentence for word in self.words) and self.pattern.search(sentence) is not None


def _rule(words: str, pattern: str) -> Rule:
    return Rule(tuple(words.split("|")), re.compile(pattern))


# what a doctor says around the matter, and where a page points to others
ASIDE = re.compile(
    r"\W*(?:(?:hi|hello|hey|dear|thanks?|thank you|welcome|hope|regards|take care|wish|best|get well)\b|"
    r"good (?:day|morning|evening)|"
    r"(?:please |kindly |do )?(?:let me know|feel free|write back|get back|ask me|do(?: not|n't) hesitate|revert)|"
    r"i (?:have |just )?(?:gone|went|read|reviewed|understood|understand|can understand|will be happy|am)\b)"
)
POINTER = _rule(
    "more information|see also|medlineplus|website|dictionary|http|click|link",
    r"for more information|see also|medlineplus|website|dictionary|https?:|\bclick\b|\blinks?\b",
)
_IT = r"\b(?:it|this|that|these|they|your \w+(?: \w+)?)"
_TEST = (
    r"\b(?:x-?rays?|ultrasound|ultrasonography|ct scans?|mri|scans?|biops(?:y|ies)|blood tests?|cbc|cultures?|"
    r"endoscopy|colonoscopy|ecg|ekg|echocardiogra\w+|lab(?:oratory)? tests?|genetic testing|"
    r"physical exam(?:ination)?)\b"
)
_TESTING = (
    r"\b(?:get|do|go for|need|needs|order(?:ed|s)?|advise|recommend|suggest|should|must|confirm\w*|detect\w*|"
    r"diagnos\w+|(?:is|are|be) (?:done|used|performed|needed|advised|recommended))\b"
)
_MADE = (
    "x-ray|xray|ultraso|scan|mri|biops|blood test|cbc|culture|oscopy|ecg|ekg|echocard|lab|genetic test|"
    "physical exam"
)
TESTS = (
    _rule(_MADE, rf"{_TEST}.*{_TESTING}|{_TESTING}.*{_TEST}"),
    _rule("rule|confirm", r"\bto (?:rule out|confirm)\b|\bbe (?:ruled out|confirmed)\b"),
)
DIAGNOSES = (
    _rule(
        "diagnos",
        r"\bdiagnosed (?:by|with|based|through|on|from|when|if|as|using)\b|"
        r"\b(?:the|clinical|laboratory|a|my|provisional|differential|likely|early|definitive) diagnos[ie]s\b|"
        r"\bdiagnosis (?:is|of|can|may|requires|depends|should)\b|\bto diagnose\b|\bdiagnose (?:it|this|the)\b",
    ),
    _rule(
        " have| be having| be suffering",
        r"\byou (?:may|might|could|probably|likely|most likely|seem to|appear to) "
        r"(?:have(?! no\b)|be (?:having|suffering))\b",
    ),
    _rule("like| to be", rf"{_IT} (?:also )?(?:seems?|looks?|appears?|sounds?) (?:like|to be)\b"),
    _rule(
        "suggest|indicat|consistent with",
        r"\b(?:suggestive|indicative) of\b|\b(?:suggests?|indicates?) (?:that )?(?:you|an?|the)\b|\bconsistent with\b",
    ),
    _rule(
        "due to|caused by|because of",
        rf"{_IT} (?:is|are|was|were|could be|may be|might be|can be) "
        r"(?:(?:probably|most likely|likely|mainly|usually) )?(?:due to|caused by|because of)\b",
    ),
    _rule(" be a", r"\b(?:it|this|that|these) (?:could|may|might) be an?\b"),
    _rule("most likely|most probably", r"\bmost (?:likely|probably)\b"),
    _rule("possibilit|suffering from", r"\bpossibilit(?:y|ies) (?:of|is|are)\b|\bsuffering from\b"),
)
ORDER = re.compile(
    r"\W*(?:(?:please|kindly|also|then|\d[.)])\s+)?(?:take|apply|use|avoid|start|stop|drink|eat|consult|visit|"
    r"see an?|see your|try|go for|keep|continue|maintain|rest|follow|restrict|reduce|increase|wash|do not|don't)\b"
)
ADVISES = (
    _rule(
        "advise|suggest|recommend|prescribe",
        r"\bi(?:'d| would| will| shall| can)? (?:also |strongly |only )?(?:advise|suggest|recommend|prescribe)\b",
    ),
    _rule(
        "you should|you need|you must|you have|you can|you may",
        r"\byou (?:should|need to(?! be)|must|have to(?! be))\b|"
        r"\byou (?:can|may) (?:also )?(?:take|use|try|need|apply|start)\b",
    ),
    _rule(
        "tab|cap|syrup|ointment|cream|mg|mcg|ml",
        r"\b(?:tab(?:let)?s?|cap(?:sule)?s?|syrup|ointment|cream|\d+(?:\.\d+)? ?(?:mg|mcg|ml)(?!/))\b.*"
        r"\b(?:daily|once|twice|thrice|times|a day|hours|hourly|night|meals?|food)\b",
    ),
)
TREATS = (
    _rule(
        "treat",
        r"\btreated (?:with|by|using|successfully|on)\b|\btreat(?:s|ing)? (?:it|this|the|these)\b|"
        r"\btreatments? (?:is|are|may|can|should|includes?|consists?|involves?|of choice|depends|options?|for|with|"
        r"usually)\b",
    ),
    _rule(
        "treat|cure|therap",
        r"\b(?:no|symptomatic|supportive|standard|specific|effective|surgical|medical|initial|immediate) "
        r"(?:\w+ )?(?:treatments?|cures?|therap(?:y|ies))\b",
    ),
    _rule(
        "therap|surger|antibiotic|medic|painkiller|steroid",
        r"\b(?:therap(?:y|ies)|surger(?:y|ies)|antibiotics?|medic(?:ines?|ations?)|painkillers?|steroids?) "
        r"(?:is|are|can|may|should|might|will|to)\b",
    ),
    _rule(
        "prescri|manage",
        r"\bprescri(?:be|bed|ption|ptions)\b|\bmanaged (?:with|by)\b|\bmanagement (?:is|of|includes)\b",
    ),
)


def kind_of_sentence(sentence: str) -> str | None:
    """diagnosis, treatment, or None."""
    said = sentence.strip().lower()
    if not said or said.endswith("?") or ASIDE.match(said) or POINTER.fits(said):
        return None
    if any(rule.fits(said) for rule in TESTS):
        return "diagnosis"  # what to examine belongs to it
    if ORDER.match(said) or any(rule.fits(said) for rule in ADVISES):
        return "treatment"
    if any(rule.fits(said) for rule in DIAGNOSES):
        return "diagnosis"
    return "treatment" if any(rule.fits(said) for rule in TREATS) else None
