"""What looks like a number that leads to a person: phone, mail, social security, record, birth date, address, web, IP.

Patterns with their context, so that doses, years, ranges, references, PMIDs, registry numbers, CAS numbers and gene
names stay quiet. Names of people are not looked for: that takes a model.
"""

from __future__ import annotations

import re

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_DATE = (
    r"(?:\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"
    rf"|{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}|\d{{1,2}} {_MONTH}\.?,? \d{{4}})"
)

_NUMBERS = re.compile(r"\d[\d\-. ()]{6,}\d")  # a long run of digits: nearly all texts have none
_PHONE = re.compile(
    r"""(?<![\w./-])
    (?: (?:\+?1[-. ]?)?(?:\([2-9]\d\d\)\s?|[2-9]\d\d[-. ])[2-9]\d\d[-. ]\d{4}   # North America
      | 1[-. ]?8(?:00|33|44|55|66|77|88)[-. ]\d{3}[-. ]?\d{4}
      | \+[1-9]\d{0,2}[-. ]?(?:\(?\d{1,5}\)?[-. ]?){1,4}\d{3,5}                 # with a country code
      | 0[1-9]\d{1,3}[ -]\d{3,4}[ -]\d{3,4}                                    # 020 7946 0958
      | [6-9]\d{4}[ -]\d{5}                                                     # India
    )(?![\w-]|\.\d)""",
    re.VERBOSE,
)
_CALLED = re.compile(
    r"(?i)\b(?:tele)?(?:phone|tel|call|fax|mobile|cell|whatsapp|contact|pager|ring)\b[^\d\n]{0,25}?"
    r"(\(?\+?\d[\d .()-]{5,14}\d)(?![\d-]|[./]\d)"
)
_VANITY = re.compile(r"(?<![\w-])1[-. ]8(?:00|33|44|55|66|77|88)[-. ](?=[\d-]*[A-Z])[\dA-Z-]{7,14}\b")
_SOCIAL = re.compile(r"(?<![\w./-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_RECORD_WORDS = re.compile(
    r"(?i)\b(?:MRN|(?:medical record|health record|chart|unit|patient|hospital|account|admission|encounter|insurance|"
    r"policy|member|visit)[ -](?:no|num|number|id|identifier|\#)|SSN|social security(?: (?:no|number))?)\b"
    r"[\s.:#*]{0,4}(?:is |was )?([A-Z]{0,3}-?\d[\d-]{3,})"
)
_BORN = re.compile(
    rf"(?i:\b(?:D\.?O\.?B\b\.?|(?:date of birth|birth ?date|born)\b))[\s:*]{{0,4}}(?:on |is )?{_DATE}"
)
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")
_WEB = re.compile(r"(?:https?|ftp)://[^\s<>\"')]+|\bwww\.[\w-]+\.[^\s<>\"')]+")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IP = re.compile(rf"(?<![\d.])(?<!EC )(?<!EC)(?<!EC:)(?:{_OCTET}\.){{3}}{_OCTET}(?![\d]|\.\d)")
_STREET = re.compile(
    r"""\b\d{1,5}[A-Z]?\s(?:[NSEW]\.?\s|North\s|South\s|East\s|West\s)?(?:(?:[A-Z][\w'-]+|\d{1,3}(?:st|nd|rd|th))\s){1,3}
    (?: (?:Street|Avenue|Road|Boulevard|Lane|Highway|Parkway|Terrace|Blvd|Ave|Rd)\b
      | (?:St|Dr|Drive|Ct|Court|Pl|Place|Ln|Way|Sq|Square|Hwy)\b\.?(?=,|\s(?:Apt|Suite|Unit|\#)) )
    | \bP\.?\s?O\.?\sBox\s\d+
    | \b[A-Z][a-z]+,\s[A-Z]{2}\s{1,2}\d{5}(?:-\d{4})?(?!\d)""",
    re.VERBOSE,
)
_STREET_WORDS = re.compile(
    r"(?:Street|Avenue|Road|Boulevard|Lane|Highway|Parkway|Terrace|Blvd|Ave|Rd|St|Dr|Drive|Ct|Court|Pl|Place|Ln|Way|Sq|"
    r"Square|Hwy|Box)\b|, [A-Z]{2}  ?\d{5}"
)
_DIGIT = re.compile(r"\d")
_PUBLIC = ("example.com", "example.org")


def personal(text: str) -> list[tuple[str, int]]:
    """(kind, character) of each hit; kinds: phone, mail, social_security, record, birth_date, address, url, ip."""
    found: list[tuple[str, int]] = []
    if "@" in text:
        found += [("mail", hit.start()) for hit in _MAIL.finditer(text)]
    if "://" in text or "www." in text:
        found += [("url", hit.start()) for hit in _WEB.finditer(text)]
    if not _DIGIT.search(text):
        return found
    if _NUMBERS.search(text):
        found += _numbers(text)
    if "-8" in text or " 8" in text or ".8" in text:
        found += [("phone", hit.start()) for hit in _VANITY.finditer(text)]
    low = text.lower()
    if "birth" in low or "born" in low or "dob" in low or "d.o.b" in low:
        found += [("birth_date", hit.start()) for hit in _BORN.finditer(text)]
    if (
        " no" in low
        or " id" in low
        or "num" in low
        or "mrn" in low
        or "ssn" in low
        or "#" in low
        or "-id" in low
    ):
        found += [("record", hit.start()) for hit in _RECORD_WORDS.finditer(text)]
    if _STREET_WORDS.search(text):
        found += [("address", hit.start()) for hit in _STREET.finditer(text)]
    return found


def _numbers(text: str) -> list[tuple[str, int]]:
    found = [("social_security", hit.start()) for hit in _SOCIAL.finditer(text)]
    found += [("ip", hit.start()) for hit in _IP.finditer(text) if _looks_routed(hit[0])]
    spans = [hit.span() for hit in _PHONE.finditer(text)]
    for hit in _CALLED.finditer(text):
        begin, end = hit.span(1)
        digits = sum(letter.isdigit() for letter in hit[1])
        if 7 <= digits <= 13 and not any(first < end and begin < last for first, last in spans):
            spans.append((begin, end))
    return found + [("phone", begin) for begin, _ in spans]


def _looks_routed(text: str) -> bool:
    """Numbers of versions and sections are small: at least two of an address's parts have two digits or more."""
    return sum(len(part) > 1 for part in text.split(".")) >= 2
