"""The page's error analysis: what goes wrong, how harmful it is, where, and on which parts of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from tunesmith.evaluate.score import SMALL
from tunesmith.evaluate.shown.wording import main_of, ordered, percent, shown_name
from tunesmith.view.page_parts import bar, body_row, folded, grid, table

_HARM = {4: "may hurt somebody unseen", 3: "wrong", 2: "left out", 1: "form", 0: "a remark"}
_PLACES = 4  # of a kind that are named
_KINDS, _PARTS = 10, 12  # columns and rows of the grid of slices


def faults_section(content: Mapping[str, Any]) -> str:
    """By kind, the most harmful first, then by slice; empty where nobody looked."""
    found = content.get("faults", {})
    names = [name for name in ordered(content) if name in found]
    if not names:
        return ""
    first = main_of(content)
    names.sort(key=lambda name: name != first)
    one = found[names[0]]
    harms = ", ".join(f"{harm} {said}" for harm, said in _HARM.items())
    made = (
        f"<p>Kinds of faults in the answers of {escape(shown_name(content, names[0]))}, the most harmful first. "
        f"Harm: {escape(harms)}.</p>{_kinds(one)}{_slices(one)}"
    )
    for name in names[1:]:
        made += folded(
            f"The same for {shown_name(content, name)}", _kinds(found[name]) + _slices(found[name])
        )
    return made


def _kinds(one: Mapping[str, Any]) -> str:
    kinds = one["by_kind"]
    if not kinds:
        return (
            f"<p>None of the kinds of faults that this task knows in {one['rows']:,} rows. Whether the answers are "
            "right is told by the scores, not here.</p>"
        )
    rows = []
    for kind in kinds:
        places = sorted(kind["where"].items(), key=lambda item: -item[1])
        named = ", ".join(f"{name} {times:,}" for name, times in places[:_PLACES] if name)
        more = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
        rows.append(
            [
                f"{escape(kind['kind'].replace('_', ' '))}<span class=what>{escape(kind['meaning'])}</span>",
                f'<span class="harm harm{int(kind["harm"])}">{int(kind["harm"])}</span>',
                bar(
                    kind["share"],
                    f"{kind['rows']:,} · {percent(kind['share'])}",
                    "bad" if kind["harm"] >= 3 else "grey",
                ),
                f"{kind['times']:,}",
                f"<span class=what>{escape(named + more)}</span>" if named else "",
            ]
        )
    return table(
        ["kind of fault", "harm", "rows", "times", "where"], rows, kind="text faults", name="Faults by kind"
    )


def _slices(one: Mapping[str, Any]) -> str:
    """Slices against kinds: per 100 rows, as slices are of different sizes. Small ones stand in the table only."""
    parts = one["by_slice"]
    kinds = [kind["kind"] for kind in one["by_kind"]]
    if not parts or not kinds:
        return ""
    large = [part for part in parts if part["rows"] >= SMALL][:_PARTS]
    drawn = ""
    if large:
        counts = [[_rate(part, kind) for kind in kinds[:_KINDS]] for part in large]
        names = [f"{part['slice']}: {part['value']} ({part['rows']:,})" for part in large]
        columns = [kind.replace("_", " ") for kind in kinds[:_KINDS]]
        drawn = f"<figure>{grid(names, columns, counts, 'rows of 100 with', 'Faults by slice')}</figure>"
    rows = []
    for part in parts:
        faulty = part["faulty_rows"] / part["rows"] if part["rows"] else 0.0
        cells = [f"{escape(part['slice'])}: {escape(part['value'])}", f"{part['rows']:,}",
                 f"{part['faulty_rows']:,} · {percent(faulty)}", *(_cell(part, kind) for kind in kinds)]  # fmt: skip
        rows.append(body_row(cells, "small" if part["rows"] < SMALL else ""))
    head = ["slice", "rows", "rows with a fault", *(kind.replace("_", " ") for kind in kinds)]
    listed = table(head, rows, kind="sortable", name="Rows with a fault by slice")
    return f"<h3>By slice</h3>{drawn}{folded('The figures: rows with each kind', listed)}"


def _found(part: Mapping[str, Any], kind: str) -> int:
    return int(next((one["rows"] for one in part["by_kind"] if one["kind"] == kind), 0))


def _rate(part: Mapping[str, Any], kind: str) -> float:
    return round(100 * _found(part, kind) / int(part["rows"]), 1)


def _cell(part: Mapping[str, Any], kind: str) -> str:
    rows = _found(part, kind)
    return f"{rows:,}" if rows else "–"
