"""How the inspection says its figures: the same words in the terminal and on the page."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

Check = Mapping[str, Any]
Number = TypeVar("Number", int, float)
Report = Mapping[str, Any]  # data/report.json
_PICTURES = 0x2400  # U+2400 …: a picture for each control character
MOST_QUOTED = 400  # characters of a detail or value


def count(number: int) -> str:
    """12,345."""
    return f"{number:,}"


def percent(share: float | None) -> str:
    """One decimal; never 0 % for something, never 100 % for not everything."""
    if share is None or share != share:
        return "–"
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def counted(number: int, share: float) -> str:
    """12 · 2.4 %; 0 needs no share."""
    return f"{count(number)} · {percent(share)}" if number else "0"


def rows_of(lengths: Mapping[str, Any]) -> int:
    """Rows of one split, from its histogram."""
    return int(sum(lengths["histogram"]["counts"]))


def plural(number: int, one: str, many: str = "") -> str:
    """`1 row`, `2 rows`."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def findings(checks: Sequence[Check]) -> list[Check]:
    """Checks that found rows and whose level says something: errors first, in the order of the recipe's section."""
    found = [one for one in checks if one["rows"] and one["level"] != "ignore"]
    return sorted(found, key=lambda one: one["level"] != "error")


def of_level(checks: Sequence[Check], level: str) -> list[Check]:
    """Checks of a level that found rows."""
    return [one for one in checks if one["rows"] and one["level"] == level]


def quiet(checks: Sequence[Check]) -> list[Check]:
    """Checks that looked and found nothing."""
    return [one for one in checks if not one["rows"] and one["level"] != "ignore" and one["of"]]


def ignored(checks: Sequence[Check]) -> str:
    """The checks that the recipe turned off, with what was counted all the same; empty for none."""
    off = [one for one in checks if one["level"] == "ignore"]
    return ", ".join(
        f"{one['name']} ({plural(one['rows'], 'row')})" if one["rows"] else one["name"] for one in off
    )


def refused(report: Report) -> int:
    """Rows that can't be read or used."""
    return sum(one.get("refused", 0) for one in report.get("sources", ()))


def verdict(report: Report) -> tuple[str, str]:
    """(stop, warn or calm; one or two sentences)."""
    inspection = report["inspection"]
    checks, unread = inspection["checks"], refused(report)
    errors, warnings = of_level(checks, "error"), of_level(checks, "warn")
    rows = plural(sum(rows_of(one) for one in inspection["lengths"].values()), "row")
    warn = f"{plural(len(warnings), 'check')} {'warns' if len(warnings) == 1 else 'warn'}"
    long = report.get("overlong") or {}
    said = [f"{plural(unread, 'row')} can't be used."] if unread else []
    said += [f"{plural(long['rows'], 'row')} are over data.max_length."] if long.get("stops") else []
    said += ["Rows that are to be scored can't be scored."] if report.get("unscorable") else []
    if errors:
        names = ", ".join(one["name"] for one in errors)
        said.append(
            f"{plural(len(errors), 'check')} {'stops' if len(errors) == 1 else 'stop'} the run: {names}."
        )
    if said:
        return "stop", " ".join([*said, f"{warn}."] if warnings else said)
    if warnings:
        return "warn", f"Nothing stops the run. {warn}: {', '.join(one['name'] for one in warnings)}."
    return "calm", f"0 findings in {rows}: {plural(len(quiet(checks)), 'check')} found nothing to say."


def next_steps(report: Report, recipe: str) -> list[tuple[str, str]]:
    """What to do about errors: (in words, what to type); empty where nothing stops the run."""
    if verdict(report)[0] != "stop":
        return []
    errors = [one["name"] for one in of_level(report["inspection"]["checks"], "error")]
    typed = f"tunesmith check {recipe}"
    steps = [("mend the rows, then", typed), ("or set them aside", f"{typed} --reject-to rejected.jsonl")]
    if errors and not refused(report) and not (report.get("overlong") or {}).get("stops"):
        levels = ", ".join(f"{name}: warn" for name in errors)
        steps.append(("or let them pass", f"data: {{checks: {{{levels}}}}}"))
    return steps


def detail(check: Check, example: Mapping[str, Any], kinds: Mapping[str, Any]) -> str:
    """What is wrong with one row. Of `phi` no more than the kinds: the report is shown to more people than the rows."""
    said = str(example.get("detail") or "")
    if check["name"] != "phi":
        return said
    words = [name.replace("_", " ") for name in kinds]
    return ", ".join(name for name in words if name in said)


def shares(counts: Mapping[str, Number]) -> Iterator[tuple[str, Number]]:
    """Names by falling share, then by name: the same order every time."""
    yield from sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def one_line(text: str, most: int = MOST_QUOTED) -> str:
    """A row's text so that it can be shown anywhere: no control, direction or line character acts on what shows it."""
    shown = "".join(map(_visible, text[: most + 1]))
    return shown if len(text) <= most else f"{shown[:most].rstrip()} … ({count(len(text))} characters)"


def _visible(character: str) -> str:
    if character.isprintable() or character in "\u200c\u200d":  # joiners that Indic scripts need
        return character
    code = ord(character)
    if code < 0x20:
        return chr(_PICTURES + code)
    kind = unicodedata.category(character)
    return " " if kind == "Zs" else "\N{REPLACEMENT CHARACTER}"
