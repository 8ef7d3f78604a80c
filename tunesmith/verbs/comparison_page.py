"""A comparison of runs as tables for the terminal, as Markdown and as one HTML page. No words of rows stand in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tunesmith.evaluate.shown.wording import number, range_of, signed
from tunesmith.view.page_parts import document, facts_list, table

Cells = tuple[str, ...]


def system_table(content: Mapping[str, Any]) -> tuple[Cells, list[Cells]]:
    """Head and rows: each metric in every column of systems, then the differences. Metrics of fields come last."""
    columns = [group["name"] for group in content["groups"]]
    pairs = [_pair(content, one) for one in content["comparisons"]]
    rows = []
    for name in _metrics(content):
        cells = [number(content["scores"][column][name]["value"]) for column in columns]
        for one in content["comparisons"]:
            by = one["differences"][name]
            cells += [signed(by["value"]), range_of(by, True)]
        rows.append((name, *cells))
    return ("metric", *columns, *(head for pair in pairs for head in (pair, "95 %"))), rows


def slice_rows(content: Mapping[str, Any], one: Mapping[str, Any]) -> tuple[Cells, list[Cells]]:
    """Head and rows of the slices of one comparison; * where there is too little to say much."""
    head: Cells = ("slice", "rows", "documents", one["first"], one["second"], _pair(content, one), "95 %")
    rows: list[Cells] = [
        (
            f"{part['slice']}: {part['value']}{' *' if part['small'] else ''}",
            str(part["rows"]),
            str(part["documents"]),
            number(part["first"]["value"]),
            number(part["second"]["value"]),
            signed(part["difference"]["value"]),
            range_of(part["difference"], True),
        )
        for part in one["slices"]
    ]
    return head, rows


def markdown(content: Mapping[str, Any]) -> str:
    """For a pull request or a model card."""
    parts = [f"# {_title(content)}", "\n".join(f"- {said}" for said in content["findings"])]
    parts += ["## Scores", _pipes(*system_table(content))]
    for one in content["comparisons"]:
        if one["slices"]:
            parts += [f"## Slices: {one['second']} against {one['first']}", _pipes(*slice_rows(content, one))]
    parts.append("\n".join(f"- {name}: {said}" for name, said in _facts(content)))
    return "\n\n".join(parts) + "\n"


def html(content: Mapping[str, Any]) -> str:
    """One page that needs no network."""
    sections = [
        f"<h1>{escape(_title(content))}</h1>",
        f"<ul>{''.join(f'<li>{_typed(said)}</li>' for said in content['findings'])}</ul>",
        facts_list(_facts(content)),
        "<h2>Scores</h2>",
        _html_table(*system_table(content)),
    ]
    for one in content["comparisons"]:
        if one["slices"]:
            sections += [
                f"<h2>Slices: {escape(one['second'])} against {escape(one['first'])}</h2>",
                _html_table(*slice_rows(content, one)),
                '<p class="note">* too few rows or documents to say much.</p>',
            ]
    return document(_title(content), sections)


def _typed(said: str) -> str:
    """What stands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(said))


def _title(content: Mapping[str, Any]) -> str:
    return " · ".join(one["run"] for one in content["runs"])


def _pair(content: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    return "difference" if len(content["comparisons"]) == 1 else f"{one['second']} − {one['first']}"


def _metrics(content: Mapping[str, Any]) -> list[str]:
    """The headline first, those of single fields last, none of the gold answers themselves."""
    names = list(next(iter(content["scores"].values())))
    kept = [
        name
        for name in names
        if not name.startswith("gold_")
        and name != content["metric"]
        and any(one[name]["value"] is not None for one in content["scores"].values())
    ]
    return [content["metric"], *sorted(kept, key=lambda name: ":" in name)]


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    runs = ", ".join(f"{one['run']} (seed {one['seed']}, base {one['base']})" for one in content["runs"])
    boot = content["bootstrap"]
    return [
        ("runs", runs),
        ("rows", f"{content['rows']} rows of {content['documents']} documents, the same in all runs"),
        ("rows sha256", content["rows_sha256"]),
        ("task", content["task"]),
        ("intervals", f"95 %, {boot['draws']} bootstrap draws of documents, seed {boot['seed']}, paired"),
    ]


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(head, [[escape(cell) for cell in row] for row in rows], kind="compared")
