"""The page's sections about what rows say: answers, their fields, prompts, and the texts themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tunesmith.data.shown.words import count, counted, one_line, percent, plural, shares
from tunesmith.view.page_parts import bar, facts_list, table

_ENDS = {
    "sentence": "the end of a sentence", "closed": "a bracket or quote", "colon": "a colon", "open": "an open sign",
    "digit": "a digit", "word": "a word", "other": "something else", "empty": "nothing",
}  # fmt: skip
_STRAYS = {
    "replacement": "lost characters (U+FFFD)", "zero_width": "zero-width characters",
    "not_nfc": "texts that are not NFC",
}  # fmt: skip
_PAIRS = {
    "rows": "pairs", "chosen_longer": "the chosen answer is longer",
    "rejected_longer": "the rejected answer is longer",
    "same_length": "both are equally long", "same_answer": "both are the same",
    "empty_rejected": "the rejected is empty",
}  # fmt: skip
_MARKS = {"\n": "line break", " and ": "and"}


def answers_section(inspection: Mapping[str, Any]) -> str:
    """Parse rate, schema, grounding; preference pairs; empty where nothing was measured."""
    parse, schema, ground = (inspection.get(key) or {} for key in ("parse", "schema", "grounding"))
    rows = []
    if parse.get("rows"):
        rows.append(
            (
                "the task's parser reads them",
                parse["share"],
                f"{count(parse['parsed'])} of {count(parse['rows'])}",
            )
        )
    if schema.get("rows"):
        which = "the shape that nearly all share" if schema.get("inferred") else "the schema"
        rows.append(
            (f"they fit {which}", schema["share"], f"{count(schema['valid'])} of {count(schema['rows'])}")
        )
    if ground.get("rows"):
        of = f"of {plural(ground['rows'], 'value')}"
        rows += [
            ("values in the input, to the letter", ground.get("verbatim"), of),
            ("values in the input, but for case and signs", ground.get("normalised"), of),
            ("words of values in the input", ground.get("coverage"), of),
        ]
    made = [
        [escape(said), bar(share, percent(share)), escape(of)]
        for said, share, of in rows
        if share is not None
    ]
    parts = [table(["answers", "share", ""], made, kind="text")] if made else []
    pairs = inspection.get("pairs") or {}
    if pairs.get("rows"):
        listed = [(_PAIRS.get(key, key), count(number)) for key, number in pairs.items()]
        parts.append(f"<h3>Preference pairs</h3>{facts_list(listed)}")
    return "".join(parts)


def fields_section(inspection: Mapping[str, Any]) -> str:
    """What each field of JSON answers holds; empty for other answers."""
    fields = inspection.get("fields") or []
    if not fields:
        return ""
    listed = any("off_list" in one for one in fields)
    rows = []
    for one in fields:
        least = "≥ " if one.get("distinct_is_least") else ""
        cells = [
            f"<b>{escape(one_line(one['name'], 60))}</b>",
            bar(
                one["null"] / one["rows"] if one["rows"] else 0.0,
                percent(_part(one["null"], one["rows"])),
                "grey",
            ),
            f"{least}{count(one['distinct'])}",
            _ground(one),
            escape(percent(one.get("verbatim"))),
            escape(percent(one.get("nothing"))),
        ]
        rows.append(
            cells + ([count(one["off_list"]) if one.get("off_list") is not None else "–"] if listed else [])
        )
    head = [
        "field",
        "null",
        "values",
        "words in the input",
        "whole value in it",
        "no word in it",
        *(["off the list"] if listed else []),
    ]
    folded = "".join(_inventory(one) for one in fields)
    return (
        f"{table(head, rows, kind='bars')}"
        '<p class="note">The bar: the share of the values\' words that stand in the input, its dark part whole values '
        "to the letter. Where many values have no word in it, whoever wrote the answers inferred them"
        f"{'; off the list: values beside the few that nearly all rows use' if listed else ''}.</p>{folded}"
    )


def _part(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _ground(one: Mapping[str, Any]) -> str:
    covered, whole = one.get("coverage"), one.get("verbatim")
    if covered is None:
        return "–"
    inside = 100 * min(whole or 0.0, covered)
    return (
        f'<span class="bar two"><i style="width:{100 * covered:.1f}%"></i><i style="width:{inside:.1f}%"></i></span>'
        f'<span class="of">{escape(percent(covered))}</span>'
    )


def _inventory(one: Mapping[str, Any]) -> str:
    filled = one["rows"] - one["null"]
    parts = [_values("value", one.get("top") or [], filled)]
    if one.get("off_list_top"):
        parts.append(_values("off the list", one["off_list_top"], filled))
    marks = [
        f"<span class=code>{escape(_MARKS.get(mark, one_line(mark, 20)))}</span> in {plural(number, 'value')}"
        for mark, number in shares(one.get("separators") or {})
    ]
    if marks:
        parts.append(f"<p>Lists are joined by {', '.join(marks)}.</p>")
    name = escape(one_line(one["name"], 60))
    return f"<details><summary>{name}: {plural(one['distinct'], 'value')}</summary>{''.join(parts)}</details>"


def _values(head: str, values: Sequence[Sequence[Any]], of: int) -> str:
    rows = [
        [f"<span class=code>{escape(one_line(str(text), 160))}</span>", bar(_part(times, of), count(times))]
        for text, times in values
    ]
    return table([head, "times"], rows, kind="text") if rows else ""


def prompts_section(inspection: Mapping[str, Any]) -> str:
    """The cue and how prompts end."""
    prompt = inspection.get("prompt") or {}
    if not prompt.get("of"):
        return ""
    of = prompt["of"]
    if prompt.get("cue"):
        cues = prompt.get("cues") or [[prompt["cue"], prompt["with_cue"]]]
        which = "the cue" if len(cues) == 1 else f"one of {len(cues)} cues"
        share = escape(percent(prompt["with_cue"] / of))
        said = f"{count(prompt['with_cue'])} of {count(of)} prompts ({share}) end with {which}:"
        first = f"<p>{said}</p>{_values('cue', cues[:10], of)}"
    else:
        first = "<p>Prompts share no ending: nothing tells the model where the answer begins but the template.</p>"
    ends = [
        [
            escape(_ENDS.get(kind, one_line(kind, 60))),
            bar(number / of, counted(number, number / of)),
        ]
        for kind, number in shares(prompt.get("ends") or {})
    ]
    lengths = ", ".join(count(one) for one in prompt.get("cut_lengths") or [])
    cut = f"<p>Conspicuously many prompts have exactly {escape(lengths)} characters.</p>" if lengths else ""
    before = "before the cue, they end with" if prompt.get("cue") else "they end with"
    return first + (table([before, "prompts"], ends, kind="text") if ends else "") + cut


def texts_section(inspection: Mapping[str, Any]) -> str:
    """Scripts, stray characters, boilerplate, and counts of what looks like a person's number."""
    parts = [_scripts(inspection.get("scripts") or {}), _boilerplate(inspection.get("boilerplate") or {})]
    kinds = {kind: number for kind, number in (inspection.get("phi") or {}).items() if number}
    if kinds:
        rows = [
            [escape(one_line(kind.replace("_", " "), 60)), count(int(number))]
            for kind, number in shares(kinds)
        ]
        parts.append(
            f"<h3>Numbers of persons</h3>{table(['what it looks like', 'times'], rows)}"
            '<p class="note">Counts only: what was found stands in the rows, not on this page. '
            "Names of people are not looked for.</p>"
        )
    else:
        parts.append(
            '<p class="note">Nothing looks like a phone, mail, record or social security number.</p>'
        )
    return "".join(parts)


def _scripts(scripts: Mapping[str, Any]) -> str:
    prompt, answer = scripts.get("prompt") or {}, scripts.get("answer") or {}
    names = [
        name
        for name, _ in shares(
            {name: max(prompt.get(name, 0), answer.get(name, 0)) for name in prompt | answer}
        )
    ]
    rows = [
        [escape(one_line(name, 40)), *(_letters(part.get(name, 0.0)) for part in (prompt, answer))]
        for name in names[:12]
    ]
    made = f"<h3>Scripts</h3>{table(['letters', 'prompts', 'answers'], rows, kind='bars')}" if rows else ""
    strays = [
        f"{count(number)} {_STRAYS.get(kind, kind)}"
        for kind, number in shares(scripts.get("strays") or {})
        if number
    ]
    return made + (f"<p>Also {escape(', '.join(strays))}.</p>" if strays else "")


def _letters(share: float) -> str:
    return bar(share, percent(share)) if share else "–"


def _boilerplate(found: Mapping[str, Any]) -> str:
    phrases = found.get("phrases") or []
    if not phrases:
        return ""
    rows = [
        [f"<span class=code>{escape(one_line(str(text), 240))}</span>", count(int(times))]
        for text, times in phrases
    ]
    return (
        f"<h3>Boilerplate</h3><p>{escape(percent(found.get('share')))} of what free-text answers say is phrases that "
        f"a fifth of them share.</p>{table(['phrase', 'answers'], rows, kind='text')}"
    )
