"""The report of an inspection (docs/data-checks.md): plain JSON, from the counts of all rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tunesmith.data.inspect.field_values import MOST_FIELDS
from tunesmith.data.inspect.grounding import ANSWER
from tunesmith.data.inspect.norms import Norms
from tunesmith.data.inspect.prompt_shape import CUE_SHARE
from tunesmith.data.inspect.scripts import NAMES
from tunesmith.data.inspect.tally import SEPARATORS, Tally

_TOP = 10
_LIST = 60  # distinct values, at most, of a field that is a list of choices
_LIST_SHARE = 0.95  # of the field's values that stand on the list
_ON_LIST = 0.002  # share of a field's values that a choice has, at least


def parse_report(tally: Tally) -> dict[str, Any]:
    """Gold answers that the task's own parser reads."""
    counts = tally.of("parse")
    rows, parsed = counts.get("rows", 0), counts.get("parsed", 0)
    return {"rows": rows, "parsed": parsed, "share": _share(parsed, rows)}


def schema_report(tally: Tally, inferred: bool) -> dict[str, Any]:
    """JSON answers that fit the schema, or the shape of the others."""
    counts = tally.of("schema")
    rows, valid = counts.get("rows", 0), counts.get("valid", 0)
    return {"rows": rows, "valid": valid, "share": _share(valid, rows), "inferred": inferred}


def grounding_report(tally: Tally) -> dict[str, Any]:
    """Over all answers, or over all values of fields that are not null; coverage is the share of their words."""
    names = {key[1] for key in tally.counts if key[0] == "field"}
    fields = sorted(names - {ANSWER}) or [ANSWER]
    total = {key: sum(_of_field(tally, name, key) for name in fields) for key in _GROUND}
    return {
        "rows": total["values"],
        "verbatim": _share(total["verbatim"], total["values"]),
        "normalised": _share(total["normalised"], total["values"]),
        "coverage": _share(total["found"], total["words"]),
        "nothing": _share(total["nothing"], total["values"]),
    }


_GROUND = ("values", "verbatim", "normalised", "words", "found", "nothing")


def fields_report(tally: Tally) -> list[dict[str, Any]]:
    """Each field of JSON answers: what it holds, how lists are joined, how much of it stands in the prompt."""
    found = []
    for name in sorted({key[1] for key in tally.counts if key[0] == "field"} - {ANSWER})[:MOST_FIELDS]:
        count = {key: _of_field(tally, name, key) for key in ("rows", "null", *_GROUND)}
        values = tally.values.get(name, Counter())
        separators = {mark: tally.counts.get(("separator", name, mark), 0) for mark in SEPARATORS}
        one: dict[str, Any] = {
            "name": name,
            "rows": count["rows"],
            "null": count["null"],
            "distinct": len(values),
            "distinct_is_least": name in tally.forgotten,
            "top": [[text, times] for text, times in values.most_common(_TOP)],
            "separators": {mark: times for mark, times in separators.items() if times},
            "verbatim": _share(count["verbatim"], count["values"]),
            "normalised": _share(count["normalised"], count["values"]),
            "coverage": _share(count["found"], count["words"]),
            "nothing": _share(count["nothing"], count["values"]),
        }
        choices = _choices(values)
        if choices and name not in tally.forgotten:
            off = {text: times for text, times in values.items() if text not in choices}
            one["off_list"] = sum(off.values())
            one["off_list_top"] = [[text, times] for text, times in Counter(off).most_common(_TOP)]
        found.append(one)
    return found


def prompt_report(tally: Tally, norms: Norms) -> dict[str, Any]:
    """The cue (the commonest, where there are several) and how prompts end."""
    counts, cues = tally.of("prompt"), tally.of("cue")
    return {
        "cue": next(iter(cues), None),
        "cues": [[cue, times] for cue, times in cues.items()],
        "with_cue": counts.get("with_cue", 0),
        "of": counts.get("of", 0),
        "asked_for_at": CUE_SHARE,
        "ends": tally.of("ends"),
        "usual_ends": sorted(norms.prompt.usual),
        "cut_lengths": sorted(norms.prompt.spikes),
    }


def boilerplate_report(tally: Tally) -> dict[str, Any]:
    """Characters of free-text answers that stand in a fifth of them, and those phrases."""
    counts = tally.of("boilerplate")
    phrases = list(tally.of("phrase").items())[:_TOP]
    return {
        "share": _share(counts.get("shared", 0), counts.get("characters", 0)),
        "phrases": [[text, times] for text, times in phrases],
    }


def scripts_report(tally: Tally) -> dict[str, Any]:
    """Share of letters of each script; texts with lost, zero-width or decomposed characters."""
    made: dict[str, Any] = {}
    for place in ("prompt", "answer"):
        letters = tally.of("script", place)
        total = sum(letters.values())
        made[place] = {name: letters[name] / total for name in letters if name in NAMES}
    return made | {"strays": tally.of("stray")}


def _choices(values: Counter[str]) -> set[str]:
    """The values that a field chooses from; empty for a field that is no choice."""
    total = values.total()
    often = {text for text, times in values.items() if times >= max(3, _ON_LIST * total)}
    if not often or len(often) > _LIST or sum(values[text] for text in often) < _LIST_SHARE * total:
        return set()
    return often


def _of_field(tally: Tally, name: str, key: str) -> int:
    return tally.counts.get(("field", name, key), 0)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
