"""The page's tables of fields and classes, its studies (confusion, calibration) and its slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tunesmith.evaluate.score import SMALL, interval
from tunesmith.evaluate.shown.page_systems import value
from tunesmith.evaluate.shown.wording import main_of, number, ordered, shown_name
from tunesmith.view import answer_figures, figures
from tunesmith.view.page_parts import bar, body_row, folded, grid, table, text

_NULL = "null"
_GRID = 14  # names on a side of a grid that still fits a page; else the commonest pairs are listed
_PAIRS = 15
_OPEN = 3  # figures of a kind that are unfolded
_SHOWN_SMALL = 6  # small slices that are shown unfolded


def fields_section(content: Mapping[str, Any]) -> str:
    """The task's own tables: of the main system in sight, of the others folded."""
    tables, first = content["tables"], main_of(content)
    if not any(tables.values()):
        return ""
    first = first if tables.get(first) else next(name for name in tables if tables[name])
    parts = [
        f"<p>What became of each field's or class's gold values: {escape(shown_name(content, first))}.</p>"
    ]
    for one in tables[first]:
        if "hallucinated" in one["columns"] and "gold nulls" in one["columns"]:
            parts.append(
                f"<figure>{figures.svg(figures.outcomes(_verdicts(one)), 'outcomes by field')}</figure>"
            )
        parts.append(_titled(one, len(tables[first]) > 1) + _counts(one) + _note(one))
    for system in tables:
        if system != first and tables[system]:
            inside = "".join(_titled(one, len(tables[system]) > 1) + _counts(one) for one in tables[system])
            parts.append(folded(f"The same for {shown_name(content, system)}", inside))
    return "".join(parts)


def _titled(one: Mapping[str, Any], several: bool) -> str:
    return f"<h3>{escape(one['title'])}</h3>" if several else ""


def _note(one: Mapping[str, Any]) -> str:
    return f'<p class="note">{escape(one["note"])}</p>' if one.get("note") else ""


def _verdicts(fields: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    at = {name: i for i, name in enumerate(fields["columns"])}
    made = {}
    for row in fields["rows"][:-1]:
        count = {name: int(row[at[name]]) for name in ("match", "partly", "wrong", "missed", "hallucinated")}
        made[str(row[0])] = count | {
            "null": int(row[at["gold nulls"]]) - count["hallucinated"] - int(row[at["unparsed"]])
        }
    return made


def _counts(one: Mapping[str, Any]) -> str:
    body = []
    for row in one["rows"]:
        cells = [escape(cell if isinstance(cell, str) else _figure(cell)) for cell in row]
        body.append(body_row(cells, "total" if str(row[0]).startswith("all ") else ""))
    return table(one["columns"], body, kind="sortable", name=one["title"])


def _figure(cell: float | None) -> str:
    """A cell of a table; what is too small for three decimals is said to be small."""
    return "<0.001" if isinstance(cell, float) and 0 < cell < 0.0005 else number(cell)


# ---- studies


def studies_section(content: Mapping[str, Any]) -> str:
    """Confusions and how far confidence can be trusted, of the main system; of the others folded."""
    studies = content.get("studies", {})
    first = main_of(content)
    names = [name for name in ordered(content) if studies.get(name)]
    if not names:
        return ""
    names.sort(key=lambda name: name != first)
    made = f"<p>Answers of {escape(shown_name(content, names[0]))}.</p>{_study(studies[names[0]], names[0])}"
    for name in names[1:]:
        inside = _study(studies[name], name)
        if inside:
            made += folded(f"The same for {shown_name(content, name)}", inside)
    return made


def _study(tables: Sequence[Mapping[str, Any]], system: str) -> str:
    sure = [one for one in tables if one.get("kind") in ("calibration", "risk_coverage") and one["rows"]]
    plain = [one for one in tables if not one.get("kind") and one["rows"]]
    mixed = [one for one in tables if one.get("kind") == "confusion" and one["rows"]]
    parts = [f'<div class="halves">{"".join(_sureness(one, system) for one in sure)}</div>'] if sure else []
    parts += [f"<h3>{escape(one['title'])}</h3>{_counts(one)}{_note(one)}" for one in plain]
    parts += [_confusion(one) for one in mixed[:_OPEN]]
    if mixed[_OPEN:]:
        inside = "".join(_confusion(one) for one in mixed[_OPEN:])
        parts.append(
            folded(f"{len(mixed) - _OPEN} more: {', '.join(one['title'] for one in mixed[_OPEN:])}", inside)
        )
    return "".join(parts)


def _sureness(one: Mapping[str, Any], system: str) -> str:
    if one["kind"] == "calibration":
        drawn = answer_figures.reliability([(float(a), float(b), int(n)) for a, b, n, *_ in one["rows"]])
    else:
        drawn = answer_figures.risk_coverage([(float(kept), float(wrong)) for kept, wrong, *_ in one["rows"]])
    picture = figures.svg(drawn, f"{one['title']}: {system}")
    return (
        f"<div><h3>{escape(one['title'])}</h3><figure>{picture}</figure>{_note(one)}"
        f"{folded('The figures', _counts(one))}</div>"
    )


def _confusion(one: Mapping[str, Any]) -> str:
    """A grid where all names fit on it, else the commonest pairs, each with a bar."""
    pairs: Counter[tuple[str, str]] = Counter()
    for gold, answered, times, *_ in one["rows"]:
        pairs[_name(gold), _name(answered)] += int(times)
    golds = _by_count(pairs, 0)
    answers = [*(name for name in golds if any(given == name for _, given in pairs))]
    answers += [name for name in _by_count(pairs, 1) if name not in answers]
    listed = table(
        ["gold", "answered", "times"],
        [[text(_value(gold)), text(_value(given)), f"{times:,}"] for (gold, given), times in pairs.most_common()],
        kind="text sortable", name=one["title"],
    )  # fmt: skip
    whole = any(gold == given for gold, given in pairs)  # not only wrong pairs: a matrix, and not a list
    if whole and 2 <= len(golds) <= _GRID and len(answers) <= _GRID:
        counts = [[pairs[gold, given] for given in answers] for gold in golds]
        drawn = (
            f"<figure>{grid(golds, answers, counts, 'gold ↓ answered →', one['title'], right=True)}</figure>"
        )
    else:
        most = max(pairs.values())
        rows = [
            [
                text(_value(gold)),
                text(_value(given)),
                bar(times / most, f"{times:,}", "bad" if gold != given else ""),
            ]
            for (gold, given), times in pairs.most_common(_PAIRS)
        ]
        drawn = table(["gold", "answered", "times"], rows, kind="text", name=one["title"])
    figures_too = drawn.startswith("<figure>") or len(pairs) > _PAIRS
    below = folded("The figures", listed) if figures_too else ""
    return f"<h3>{escape(one['title'])}</h3>{drawn}{_note(one)}{below}"


def _by_count(pairs: Counter[tuple[str, str]], side: int) -> list[str]:
    total: Counter[str] = Counter()
    for pair, times in pairs.items():
        total[pair[side]] += times
    return [name for name, _ in total.most_common()]


def _name(cell: str | float | None) -> str:
    return _NULL if cell is None else str(cell)


def _value(name: str) -> str | None:
    return None if name == _NULL else name


# ---- slices


def slices_section(content: Mapping[str, Any]) -> str:
    """The headline metric on parts of the rows; parts that are too small grey, many of them folded."""
    if not content["slices"]:
        return ""
    metric, systems = content["headline"]["metric"], ordered(content)
    small = sum(one["small"] for one in content["slices"])
    apart = small > _SHOWN_SMALL
    rows: list[str] = []
    few: list[str] = []
    for one in content["slices"]:
        cells = [
            f"{escape(one['slice'])}: {escape(one['value'])}",
            f"{one['rows']:,}",
            f"{one['documents']:,}",
        ]
        cells += [value(one["scores"].get(system, {}).get(metric)) for system in systems]
        cells.append(value(one.get("difference"), sign=True))
        (few if one["small"] and apart else rows).append(body_row(cells, "small" if one["small"] else ""))
    head = ["slice", "rows", "documents", *(shown_name(content, name) for name in systems), "tuned − base"]
    made = f"<p>{escape(metric)} on parts of the rows.</p>"
    made += table(head, rows, kind="sortable", name="Slices") if rows else ""
    why = f"Grey: fewer than {SMALL} rows or too few documents to say much."
    if few:
        return made + folded(f"{len(few)} small parts", table(head, few, kind="sortable", name="Small slices")) + (
            f'<p class="note">{why}</p>'
        )  # fmt: skip
    return made + (f'<p class="note">{why}</p>' if small else "")


def lengths_section(content: Mapping[str, Any]) -> str:
    """The headline metric against the length of the input."""
    found = content.get("lengths") or {}
    if not found:
        return ""
    parts = found["parts"]
    metric = content["headline"]["metric"]
    known = {
        name: [(part["mean"], interval(part["scores"][name])) for part in parts]
        for name in parts[0]["scores"]
    }
    picture = figures.svg(
        answer_figures.by_length(known, found["unit"], metric), f"{metric} by {found['unit']}"
    )
    head = [found["unit"], "rows", "documents", *(shown_name(content, name) for name in known)]
    rows = [
        [f"{part['low']:,} to {part['high']:,}", f"{part['rows']:,}", f"{part['documents']:,}",
         *(value(part["scores"][name]) for name in known)]
        for part in parts
    ]  # fmt: skip
    return f"<h3>By length</h3><figure>{picture}</figure>{folded('The figures', table(head, rows, name='By length'))}"
