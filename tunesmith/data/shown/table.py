"""The inspection in the terminal: fits 80 columns, findings first, the quiet checks in one line."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith import console
from tunesmith.data.shown.words import (
    Report,
    count,
    detail,
    findings,
    ignored,
    next_steps,
    one_line,
    percent,
    plural,
    quiet,
    rows_of,
    verdict,
)

NARROWEST, WIDEST = 60, 110
_LABEL = 20  # the first column


def say_report(report: Report, *, max_length: int | None = None, recipe: str | None = "RECIPE") -> None:
    """Prints the inspection in data/report.json's content, as wide as the terminal is.

    recipe=None: no steps to type.
    """
    width = shutil.get_terminal_size((80, 24)).columns
    console.say("\n".join(report_lines(report, max_length=max_length, recipe=recipe, width=width)))


def report_lines(
    report: Report, *, max_length: int | None = None, recipe: str | None = "RECIPE", width: int = 80
) -> list[str]:
    """The lines of the table, none wider than `width` columns but what is there to be typed."""
    width = min(max(width, NARROWEST), WIDEST)
    inspection = report["inspection"]
    parts = [
        list(_lengths(inspection["lengths"], report.get("splits") or {}, width)),
        list(_limits(inspection["limits"], max_length, width)),
        list(_leaks(inspection["leaks"])),
        list(_answers(inspection, width)),
        list(_findings(inspection, width)),
        [*_wrapped(verdict(report)[1], width), *(_steps(report, recipe, width) if recipe else ())],
    ]
    lines = [line for part in parts if part for line in ["", *part]]
    return lines[1:]


def _lengths(lengths: Mapping[str, Any], splits: Mapping[str, Any], width: int) -> Iterator[str]:
    yield _row("", ["", "", "", "tokens", "", "", "  p50 of", ""], _LENGTH_COLUMNS)
    head = ["rows", "min", "p50", "p90", "p99", "max", "prompt", "answer"]
    yield _row("split", head, _LENGTH_COLUMNS)
    for name, one in lengths.items():
        cells = [rows_of(one), *(one["tokens"][key] for key in ("min", "p50", "p90", "p99", "max"))]
        cells += [one["prompt"]["p50"], one["answer"]["p50"]]
        yield _row(name, [count(cell) for cell in cells], _LENGTH_COLUMNS)
    read = splits.get("train", {}).get("rows")
    if "train" in lengths and read is not None and read != rows_of(lengths["train"]):
        yield from _wrapped(
            f"by the weights of its sources an epoch reads {count(read)} rows of train", width
        )


_LENGTH_COLUMNS = (9, 7, 7, 7, 7, 7, 8, 8)
_LIMIT_COLUMNS = (18, 9, 8, 11, 13)
_LEAK_COLUMNS = (15, 15, 15, 12)
_CHECK_COLUMNS = (5, 9, 9, 8)


def _limits(limits: Sequence[Mapping[str, Any]], max_length: int | None, width: int) -> Iterator[str]:
    over = [one for one in limits if one["over"]]
    if over:
        yield _row("", ["", "answer", "cue", "answer", "answer"], _LIMIT_COLUMNS)
        head = ["rows over", "lost", "cut", "cut short", "tokens lost"]
        yield _row("cutting at", head, _LIMIT_COLUMNS)
    for one in over:
        cells = [f"{count(one['over'])} {percent(one['share']):>8}"]
        cells += [count(one[key]) for key in ("answer_lost", "cue_cut", "answer_cut")]
        own = "  max_length" if one["limit"] == max_length else ""
        yield _row(
            f"{count(one['limit'])}{own}", [*cells, percent(one["answer_tokens_share"])], _LIMIT_COLUMNS
        )
    free = min((one["limit"] for one in limits if not one["over"]), default=None)
    if free is not None:
        own = f"; data.max_length is {count(max_length)}" if max_length else ""
        yield from _wrapped(f"no row is over {count(free)} tokens{own}", width)


def _leaks(leaks: Mapping[str, Any]) -> Iterator[str]:
    alike = {name: (one.get("similarity") or {}).get("max") for name, one in leaks.items()}
    known = any(most is not None for most in alike.values())
    columns = _LEAK_COLUMNS if known else _LEAK_COLUMNS[:-1]
    if leaks:
        yield _row("leaks", ["exact", "near", "group", "most alike"][: len(columns)], columns)
    for name, one in leaks.items():
        cells = [_counted(one.get(kind)) for kind in ("exact", "near", "group")]
        cells += ["–" if alike[name] is None else f"{alike[name]:.2f}"] if known else []
        yield _row(name, cells, columns)


def _counted(one: Mapping[str, Any] | None) -> str:
    return "–" if one is None else f"{count(one['rows'])} {percent(one['share']):>7}"


def _answers(inspection: Mapping[str, Any], width: int) -> Iterator[str]:
    said = []
    parse, schema, grounding = (inspection.get(key) or {} for key in ("parse", "schema", "grounding"))
    if parse.get("rows"):
        said.append(f"{percent(parse['share'])} parse")
    if schema.get("rows"):
        kind = "inferred schema" if schema.get("inferred") else "schema"
        said.append(f"{percent(schema['share'])} fit the {kind}")
    if grounding.get("rows") and grounding.get("coverage") is not None:
        said.append(f"{percent(grounding['coverage'])} of their words in the input")
    if said:
        yield from _wrapped(f"answers: {', '.join(said)}", width)


def _findings(inspection: Mapping[str, Any], width: int) -> Iterator[str]:
    checks, kinds = inspection["checks"], inspection.get("phi") or {}
    found = findings(checks)
    if found:
        yield _row("check", ["level", "rows", "of", "share"], _CHECK_COLUMNS) + "  for example"
    for one in found:
        level = "ERROR" if one["level"] == "error" else one["level"]
        cells = [level, count(one["rows"]), count(one["of"]), percent(one["share"])]
        first: Mapping[str, Any] = next(iter(one["examples"]), {})
        line = _row(one["name"], cells, _CHECK_COLUMNS)
        yield f"{line}  {_place(first, width - len(line) - 2)}".rstrip()
        said = detail(one, first, kinds) if first else ""
        yield _fit(f"  {one_line(said) or one['meaning']}", width)
    calm = quiet(checks)
    if calm and found:
        names = ", ".join(one["name"] for one in calm)
        yield from _wrapped(f"nothing found by {plural(len(calm), 'other')}: {names}", width)
    if off := ignored(checks):
        yield from _wrapped(f"ignored, as the recipe says: {off}", width)


def _place(example: Mapping[str, Any], width: int) -> str:
    """FILE:LINE in so many columns: what is too much is left out of the file's name."""
    from rich.cells import cell_len

    place = one_line(str(example.get("source") or example.get("id") or ""))
    name, colon, line = place.rpartition(":")
    if cell_len(place) <= width or not colon:
        return _fit(place, width)
    return f"{_fit(name, max(width - len(line) - 1, 2))}:{line}"


def _steps(report: Report, recipe: str, width: int) -> Iterator[str]:
    for words, typed in next_steps(report, recipe):
        lines = (
            [typed] if typed.startswith("tunesmith") else _wrapped(typed, width - 24)
        )  # a command stays whole
        yield f"  {words:<20}  {lines[0]}"
        yield from (f"{'':24}{line}" for line in lines[1:])


# ---- lines


def _row(label: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    line = _padded(one_line(label), _LABEL)
    return (line + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))).rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)


def _fit(text: str, width: int) -> str:
    """The text, its end cut where it takes more than `width` columns (a Han character takes two)."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def _padded(text: str, width: int) -> str:
    from rich.cells import cell_len

    text = _fit(text, width)
    return text + " " * (width - cell_len(text))
