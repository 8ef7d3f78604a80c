"""report.md: the report for a terminal, a pull request or a model card. No texts of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.evaluate.score import SMALL
from tunesmith.evaluate.wording import (
    facts,
    first_line,
    listed_metrics,
    number,
    of_gold,
    range_of,
    sentences,
    shown_name,
    signed,
)


def render(content: Mapping[str, Any]) -> str:
    """report.json as Markdown."""
    headline = content["headline"]
    parts = [first_line(content), f"# {content['run']}", f"{content['base']['name']}, {content['method']}"]
    if "difference" in headline:
        parts.append(
            f"**{headline['metric']}**: base {number(headline['base'])}, tuned {number(headline['tuned'])}, difference "
            f"**{signed(headline['difference']['value'])}** ({range_of(headline['difference'], True)}), "
            f"n = {headline['n']} rows"
        )
    parts.append("\n".join(f"- {sentence}" for sentence in sentences(content)))
    parts += ["## Scores", _scores(content), "n counts rows, also where a metric divides by something else."]
    for name, tables in content["tables"].items():
        for table in tables:
            rows = [[_plain(cell) for cell in row] for row in table["rows"]]
            parts += [
                f"## {table['title']}: {shown_name(name)}",
                _table(table["columns"], rows),
                table["note"],
            ]
    if content["slices"]:
        parts += ["## Slices", _slices(content)]
    if content["proofs"]:
        rows = [
            [
                p["name"],
                "proved" if p["passed"] else "FAILED",
                _plain(p["figure"]),
                _plain(p["limit"]),
                p["detail"],
            ]
            for p in content["proofs"]
        ]
        parts += ["## Proofs", _table(["proof", "", "figure", "limit", "what was compared"], rows)]
    parts += ["## What was measured", "\n".join(f"- {name}: {value}" for name, value in facts(content))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scores(content: Mapping[str, Any]) -> str:
    scores = content["scores"]
    rows = []
    for metric in listed_metrics(scores):
        row = [metric + of_gold(metric, scores), *(_value(one.get(metric)) for one in scores.values())]
        if "differences" in content:
            row.append(_value(content["differences"].get("tuned", {}).get(metric), sign=True))
        rows.append(row)
    head = ["metric", *map(shown_name, scores)] + (["tuned − base"] if "differences" in content else [])
    return _table(head, rows)


def _slices(content: Mapping[str, Any]) -> str:
    metric, systems = content["headline"]["metric"], list(content["scores"])
    rows = [
        [
            f"{one['slice']}: {one['value']}" + (f" (fewer than {SMALL} rows)" if one["small"] else ""),
            str(one["rows"]),
            *(_value(one["scores"].get(system, {}).get(metric)) for system in systems),
            _value(one.get("difference"), sign=True),
        ]
        for one in content["slices"]
    ]
    return _table([f"{metric} on", "rows", *map(shown_name, systems), "tuned − base"], rows)


def _value(score: Mapping[str, Any] | None, sign: bool = False) -> str:
    if score is None or score["value"] is None:
        return "–"
    return f"{(signed if sign else number)(score['value'])} ({range_of(score, sign)})"


def _plain(cell: str | float | int | None) -> str:
    return cell if isinstance(cell, str) else number(cell)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + " --- |" * len(head), *map(line, rows)])
