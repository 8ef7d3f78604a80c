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

_NOT_DIGITS = bytes(sorted(set(range(256)) - set(b"0123456789")))
# begins with a set of characters, which `re` looks for fast; a number, or several with nothing but signs between
_RUN = re.compile(r"\d(?:[\d\-. ()]*\d)?")
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
_RECORD_HINTS = ("mrn", "no", "num", "id", "ssn", "security", "#")
_RECORD_BEFORE = re.compile(
    r"(?i)\b(?:MRN|(?:medical record|health record|chart|unit|patient|hospital|account|admission|encounter|insurance|"
    r"policy|member|visit)[ -](?:no|num|number|id|identifier|\#)|SSN|social security(?: (?:no|number))?)"
    r"[\s.:#*]{0,4}(?:is |was )?[A-Z]{0,3}-?$"
)
_BORN = re.compile(
    rf"(?i:\b(?:D\.?O\.?B\b\.?|(?:date of birth|birth ?date|born)\b))[\s:*]{{0,4}}(?:on |is )?{_DATE}"
)
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")
_WEB = re.compile(r"(?:https?|ftp)://[^\s<>\"')]+|\bwww\.[\w-]+\.[^\s<>\"')]+")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IP = re.compile(rf"(?<![\d.])(?<!EC )(?<!EC)(?<!EC:)(?:{_OCTET}\.){{3}}{_OCTET}(?![\d]|\.\d)")
_STREET = re.compile(
    r"""\d{1,5}[A-Z]?\s(?:[NSEW]\.?\s|North\s|South\s|East\s|West\s)?(?:(?:[A-Z][\w'-]*|\d{1,3}(?:st|nd|rd|th))\s){1,3}
    (?: (?:Street|Avenue|Road|Boulevard|Lane|Highway|Parkway|Terrace|Blvd|Ave|Rd)\b
      | (?:St|Dr|Drive|Ct|Court|Pl|Place|Ln|Way|Sq|Square|Hwy)\b\.?(?=,|\s(?:Apt|Suite|Unit|\#)) )""",
    re.VERBOSE,
)
_BOX = re.compile(r"\bP\.?\s?O\.?\sBox\s\d+")
_CITY = re.compile(
    r", (?:A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[AT]|"
    r"W[AIVY]) {1,2}\d{5}(?:-\d{4})?(?!\d)"
)
_WINDOW = 32  # characters before and after a number that tell what it is


def personal(text: str) -> list[tuple[str, int]]:
    """(kind, character) of each hit; kinds: phone, mail, social_security, record, birth_date, address, url, ip."""
    found: list[tuple[str, int]] = []
    if "@" in text:
        found += [("mail", hit.start()) for hit in _MAIL.finditer(text)]
    if "://" in text or "www." in text:
        found += [("url", hit.start()) for hit in _WEB.finditer(text)]
    if not text.encode("utf-8", "replace").translate(None, _NOT_DIGITS):
        return found
    streets: list[int] = []
    for run in _RUN.finditer(text):
        begin, end = run.span()
        kind = _number(text, begin, end) if end - begin > 3 else None
        if kind:
            found.append((kind, begin))
        elif (
            text[end : end + 2].istitle() and (street := _street(text, begin, end)) is not None
        ):  # a space, a capital
            streets.append(street)
    if "1-8" in text or "1 8" in text or "1.8" in text:
        found += [("phone", hit.start()) for hit in _VANITY.finditer(text)]
    low = text.lower()
    if "birth" in low or "born" in low or "dob" in low or "d.o.b" in low:
        found += [("birth_date", hit.start()) for hit in _BORN.finditer(text)]
    if "Box " in text:
        found += [("address", hit.start()) for hit in _BOX.finditer(text)]
    cities = [hit.start() for hit in _CITY.finditer(text)]
    found += [("address", begin) for begin in streets]
    # a street with its city is one address
    return found + [("address", at) for at in cities if not any(0 <= at - begin < 80 for begin in streets)]


def _street(text: str, begin: int, end: int) -> int | None:
    """Where a house number with its street begins, its last digit being before `end`."""
    while end > begin and text[end - 1].isdigit():
        end -= 1
    return end if _STREET.match(text, end) else None


def _number(text: str, begin: int, end: int) -> str | None:
    """What a run of digits is, from itself and what stands around it."""
    before = text[max(0, begin - _WINDOW) : begin].lower()
    if any(hint in before for hint in _RECORD_HINTS) and _RECORD_BEFORE.search(before):
        return "record"
    run = text[begin:end]
    digits = sum(map(run.count, "0123456789"))
    if digits < 6:
        return None
    start = max(0, begin - _WINDOW)
    around = text[start : end + _WINDOW]
    for kind, pattern in _NUMBERS:
        for hit in pattern.finditer(around):
            inside = begin <= start + hit.end() <= end + 1 and (kind != "ip" or _looks_routed(hit[0]))
            if inside and (pattern is not _CALLED or digits >= 7):
                return kind
    return None


_NUMBERS = (("social_security", _SOCIAL), ("ip", _IP), ("phone", _PHONE), ("phone", _CALLED))


def _looks_routed(text: str) -> bool:
    """Numbers of versions and sections are small: at least two of an address's parts have two digits or more."""
    return sum(len(part) > 1 for part in text.split(".")) >= 2
