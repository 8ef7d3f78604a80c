"""The report of an inspection (docs/data-checks.md): plain JSON, from the counts of all rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tunesmith.data.inspect.grounding import ANSWER
from tunesmith.data.inspect.norms import Norms
from tunesmith.data.inspect.prompt_shape import CUE_SHARE
from tunesmith.data.inspect.tally import SEPARATORS, Tally
from tunesmith.tasks.prose.script import NAMES

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
    names = [name for name in tally.fields if name != ANSWER] or [ANSWER]
    fields = [tally.fields[name] for name in names if name in tally.fields]
    values = sum(one.values for one in fields)
    return {
        "rows": values,
        "verbatim": _share(sum(one.verbatim for one in fields), values),
        "normalised": _share(sum(one.normalised for one in fields), values),
        "coverage": _share(sum(one.found for one in fields), sum(one.words for one in fields)),
        "nothing": _share(sum(one.nothing for one in fields), values),
    }


def fields_report(tally: Tally) -> list[dict[str, Any]]:
    """Each field of JSON answers: what it holds, how lists are joined, how much of it stands in the prompt."""
    found = []
    for name, count in tally.fields.items():
        if name == ANSWER:
            continue
        one: dict[str, Any] = {
            "name": name,
            "rows": count.rows,
            "null": count.null,
            "distinct": len(count.texts),
            "distinct_is_least": count.forgotten,
            "top": [[text, times] for text, times in _most(count.texts)],
            "separators": {mark: count.separators[mark] for mark in SEPARATORS if count.separators[mark]},
            "verbatim": _share(count.verbatim, count.values),
            "normalised": _share(count.normalised, count.values),
            "coverage": _share(count.found, count.words),
            "nothing": _share(count.nothing, count.values),
        }
        choices = _choices(count.texts)
        if choices and not count.forgotten:
            off = Counter({text: times for text, times in count.texts.items() if text not in choices})
            one["off_list"] = off.total()
            one["off_list_top"] = [[text, times] for text, times in _most(off)]
        found.append(one)
    return found


def prompt_report(tally: Tally, norms: Norms) -> dict[str, Any]:
    """The cue (the commonest, where there are several) and how prompts end."""
    counts, cues = tally.of("prompt"), tally.of("cue")
    return {
        "cue": next(iter(cues), ""),
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


def _most(texts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(texts.items(), key=lambda pair: (-pair[1], pair[0]))[:_TOP]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
