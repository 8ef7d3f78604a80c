"""report.md: the report for a terminal, a pull request or a model card. It quotes no row, but for tables of values that
the task says hold words of rows (`quotes`), which redaction leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.evaluate.score import SMALL
from tunesmith.evaluate.shown.findings import first_line, sentences
from tunesmith.evaluate.shown.wording import (
    facts,
    hashes,
    less_is_better,
    listed_metrics,
    main_of,
    many,
    number,
    of_gold,
    ordered,
    percent,
    range_of,
    read_share,
    shown_name,
    signed,
    subject,
)

_ROWS = 15  # of a table of confusions


def render(content: Mapping[str, Any]) -> str:
    """report.json as Markdown."""
    headline = content["headline"]
    parts = [
        first_line(content),
        f"# {_said(content['run'])}",
        _said(subject(content)),
    ]
    if "difference" in headline:
        less = " (lower is better)" if less_is_better(content, headline["metric"]) else ""
        parts.append(
            f"**{headline['metric']}**{less}: base {number(headline['base'])}, tuned {number(headline['tuned'])}, "
            f"difference **{signed(headline['difference']['value'])}** ({range_of(headline['difference'], True)}), "
            f"n = {headline['n']} rows"
        )
    parts.append("\n".join(f"- {_said(sentence)}" for sentence in sentences(content)))
    if content.get("next"):
        parts += ["## What to do next", "\n".join(map(_step, content["next"]))]
    parts += [
        "## What was measured",
        "\n".join(f"- {name}: {_said(value)}" for name, value in facts(content)),
    ]
    parts += ["## Systems", _systems(content), _published(content)]
    parts += ["## Scores", _scores(content), "n counts rows, also where a metric divides by something else."]
    parts += _faults(content)
    for kind in ("tables", "studies"):
        parts += _tables(content, content.get(kind, {}))
    if content["slices"]:
        parts += ["## Slices", _slices(content)]
    if content.get("lengths"):
        parts += ["## By length", _lengths(content)]
    if content["proofs"]:
        rows = [
            [one["name"], "proved" if one["passed"] else "FAILED", _plain(one["figure"]), _plain(one["limit"]),
             one["detail"]]
            for one in content["proofs"]
        ]  # fmt: skip
        parts += ["## Proofs", _table(["proof", "", "figure", "limit", "what was compared"], rows)]
    parts += ["## Hashes", "\n".join(f"- {name}: {_said(value)}" for name, value in hashes(content))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _step(one: Mapping[str, Any]) -> str:
    counts = f" ({many(one)})" if many(one) else ""
    return f"- {_said(one['say'])}{counts}"


def _systems(content: Mapping[str, Any]) -> str:
    metric, scores = content["headline"]["metric"], content["scores"]
    differences = content.get("differences", {})
    rows = []
    for name in ordered(content):
        note = content.get("systems", {}).get(name, {}).get("note", "")
        row = [shown_name(content, name), note, _value(scores[name].get(metric))]
        if differences:
            row.append(_value(differences.get(name, {}).get(metric), sign=True))
        rows.append([*row, percent(read_share(content, name))])
    return _table(
        ["system", "what it is", metric, *(["− base"] if differences else []), "answers read"], rows
    )


def _published(content: Mapping[str, Any]) -> str:
    rows = [[one["system"], number(one["value"]), one["source"]] for one in content.get("published", [])]
    return _table(["published, on other rows", content["headline"]["metric"], "source"], rows) if rows else ""


def _scores(content: Mapping[str, Any]) -> str:
    scores, systems = content["scores"], ordered(content)
    rows = []
    for metric in listed_metrics(content):
        less = " ↓" if less_is_better(content, metric) else ""
        row = [
            metric + less + of_gold(metric, scores),
            *(_value(scores[name].get(metric)) for name in systems),
        ]
        if "differences" in content:
            row.append(_value(content["differences"].get("tuned", {}).get(metric), sign=True))
        rows.append(row)
    head = ["metric", *(shown_name(content, name) for name in systems)]
    return _table(head + (["tuned − base"] if "differences" in content else []), rows)


def _faults(content: Mapping[str, Any]) -> list[str]:
    found = content.get("faults", {}).get(main_of(content))
    if not found or not found["by_kind"]:
        return []
    rows = [
        [
            one["kind"],
            str(one["harm"]),
            f"{one['rows']:,} ({percent(one['share'])})",
            f"{one['times']:,}",
            one["meaning"],
        ]
        for one in found["by_kind"]
    ]
    title = f"## Faults: {shown_name(content, main_of(content))}"
    harms = "Harm: 4 may hurt somebody unseen, 3 wrong, 2 left out, 1 form."
    return [title, _table(["kind", "harm", "rows", "times", "what it means"], rows), harms]


def _tables(content: Mapping[str, Any], of_systems: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    parts = []
    for name, tables in of_systems.items():
        for one in tables:
            kept = one["rows"][:_ROWS] if one.get("kind") == "confusion" else one["rows"]
            if kept:
                parts += [
                    f"## {_said(one['title'])}: {shown_name(content, name)}",
                    _table(one["columns"], [[_plain(cell) for cell in row] for row in kept]),
                    _said(one["note"]),
                ]
    return parts


def _slices(content: Mapping[str, Any]) -> str:
    metric, systems = content["headline"]["metric"], ordered(content)
    rows = [
        [
            f"{one['slice']}: {one['value']}"
            + (f" (fewer than {SMALL} rows)" if one["rows"] < SMALL else ""),
            str(one["rows"]),
            *(_value(one["scores"].get(system, {}).get(metric)) for system in systems),
            _value(one.get("difference"), sign=True),
        ]
        for one in content["slices"]
    ]
    head = [f"{metric} on", "rows", *(shown_name(content, name) for name in systems), "tuned − base"]
    return _table(head, rows)


def _lengths(content: Mapping[str, Any]) -> str:
    found = content["lengths"]
    names = list(found["parts"][0]["scores"])
    rows = [
        [
            f"{part['low']} to {part['high']}",
            str(part["rows"]),
            *(_value(part["scores"][name]) for name in names),
        ]
        for part in found["parts"]
    ]
    return _table([found["unit"], "rows", *(shown_name(content, name) for name in names)], rows)


def _value(score: Mapping[str, Any] | None, sign: bool = False) -> str:
    if score is None or score["value"] is None:
        return "–"
    return f"{(signed if sign else number)(score['value'])} ({range_of(score, sign)})"


def _plain(cell: str | float | int | None) -> str:
    return cell if isinstance(cell, str) else number(cell)


def _said(words: str) -> str:
    """Words on one line, in which no HTML stands: Markdown would take it as it is."""
    return " ".join(words.split()).replace("<", "&lt;")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_said(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + " --- |" * len(head), *map(line, rows)])
