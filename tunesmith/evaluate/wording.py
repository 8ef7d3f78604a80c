"""How a report says its figures: the same words and digits in report.md and report.html."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {"majority": "majority", "nearest": "nearest row"}


def shown_name(system: str) -> str:
    """A system as a column's head."""
    return _NAMES.get(system, system)


def number(value: float | int | str | None) -> str:
    """Three decimals for shares, four digits otherwise; – for nothing."""
    if value is None or value != value:
        return "–"
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or 0.001 <= abs(value) < 100:
        return f"{value:.3f}"
    return f"{value:.4g}"


def signed(value: float | None) -> str:
    """A difference with its sign."""
    if value is None or value != value:
        return "–"
    return ("+" if value >= 0 else "−") + number(abs(value))


def range_of(score: Mapping[str, Any], sign: bool = False) -> str:
    """The interval under a value."""
    if score["low"] is None:
        return ""
    show = signed if sign else number
    return f"{show(score['low'])} to {show(score['high'])}"


def first_line(content: Mapping[str, Any]) -> str:
    """What every report says first: whether the scored rows chose anything."""
    if content["selected_on_scored_rows"]:
        return (
            "The scored rows also chose the checkpoint (validation rows, no test rows in the recipe): "
            "these scores flatter the tuned model and are no test result."
        )
    return f"Scored on {content['split']} rows, which chose nothing."


def sentences(content: Mapping[str, Any]) -> list[str]:
    """The findings in words."""
    made, headline, scores = [], content["headline"], content["scores"]
    difference = headline.get("difference")
    if difference:
        metric = headline["metric"]
        if difference["low"] is not None and difference["low"] > 0:
            made.append(f"The tuned model has a higher {metric} than its base; the interval excludes 0.")
        elif difference["high"] is not None and difference["high"] < 0:
            made.append(f"The tuned model has a lower {metric} than its base; the interval excludes 0.")
        else:
            made.append(f"No difference in {metric} is shown: the interval holds 0.")
    for floor, over in content.get("over_floors", {}).items():
        if over["low"] is not None and over["low"] <= 0:
            made.append(f"It is not shown to beat the {shown_name(floor)} floor, which needs no model.")
    for system, change in content.get("exported", {}).items():
        value, change_by = number(scores[system][headline["metric"]]["value"]), signed(change["value"])
        made.append(
            f"{system} scores {value}: {change_by} ({range_of(change, True)}) against the live adapter."
        )
    if "mcnemar" in content:
        test = content["mcnemar"]
        made.append(
            f"Rows all right only with tuning: {test['only_tuned']}; only without: {test['only_base']} "
            f"(McNemar, exact p = {test['p']:.2g})."
        )
    if "schema_valid" in scores.get("tuned", {}):
        made.append(
            f"Tuned answers that fit the schema: {_percent(scores['tuned']['schema_valid']['value'])}."
        )
    parsed = scores.get("tuned", {}).get("parse_rate")
    if parsed and parsed["value"] < 0.9:
        lost = _percent(1 - parsed["value"])
        made.append(f"{lost} of the tuned answers can't be parsed and count as all missed: see the examples.")
    stops = content.get("answers_stop", {})
    if "tuned" in stops:
        made.append(f"Tuned answers that end by the terminator: {_percent(stops['tuned'])}.")
    return made


def listed_metrics(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Metrics of the main table: all but those of single fields, and those of the gold answers themselves."""
    names = dict.fromkeys(metric for one in scores.values() for metric in one)
    return [name for name in names if ":" not in name and not name.startswith("gold_")]


def of_gold(metric: str, scores: Mapping[str, Mapping[str, Any]]) -> str:
    """What the gold answers reach in a metric that they may not reach wholly."""
    found = [one[f"gold_{metric}"]["value"] for one in scores.values() if f"gold_{metric}" in one]
    return f"; the gold answers: {number(found[0])}" if found else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was scored, how, and the hashes that say it was exactly this."""
    base, data, decoding = content["base"], content["data"], content["decoding"]
    how = "greedy" if decoding["temperature"] == 0 else (
        f"temperature {decoding['temperature']}, top-p {decoding['top_p']}, "
        f"{decoding['samples']} samples a row, seed {decoding['seed']}"
    )  # fmt: skip
    contract, boot = content["contract"], content["bootstrap"]
    listed = [
        (
            "rows",
            f"{content['rows']} of {data['rows']} {content['split']} rows, {content['documents']} documents",
        ),
        (
            "tuned and base",
            f"as trained ({base['dtype']}, quantize: {base['quantize']}): with the adapter live, and without it",
        ),
        ("decoding", f"{how}, at most {decoding['max_tokens']} tokens"),
        ("intervals", f"95 %, {boot['draws']} bootstrap draws of documents, seed {boot['seed']}"),
        ("task", content["task"]),
        ("base", f"{base['name']}{' @ ' + base['revision'] if base['revision'] else ''}"),
        ("base sha256", str(base["sha256"])),
        ("adapter sha256", str(content["adapter_sha256"])),
        (f"{content['split']} rows sha256", str(data["sha256"])),
        ("training rows sha256", str(data["train_sha256"])),
        ("contract", f"template {contract['template']}, terminator {contract['terminator']}"),
        ("contract sha256", str(contract["sha256"])),
        ("recipe sha256", str(content["recipe_sha256"])),
        ("versions", ", ".join(f"{name} {one}" for name, one in content["versions"].items())),
    ]
    return [(name, said) for name, said in listed if said not in ("", "None")]
