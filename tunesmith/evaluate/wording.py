"""How a report says its figures: the same words and digits in report.md and report.html."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NOTHING = 0.05  # headline score below which a base has found as good as nothing
FEW = 20  # documents below which no sentence claims that two systems differ
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
    """The interval under a value: both ends with the same number of decimals; – where there is none."""
    low, high = score["low"], score["high"]
    if low is None or high is None:
        return "–"
    digits = _digits(max(abs(low), abs(high)))
    return f"{_end(low, digits, sign)} to {_end(high, digits, sign)}"


def _digits(largest: float) -> str:
    """The format of both ends: three decimals for shares, three digits of the larger end below, four above."""
    if largest == 0 or 0.01 <= largest < 100:
        return ".3f"
    if not 1e-6 <= largest < 1e6:
        return ".2e"
    place = math.floor(math.log10(largest))
    return f".{2 - place if place < 0 else max(0, 3 - place)}f"


def _end(value: float, digits: str, sign: bool) -> str:
    text = format(abs(value), digits)
    if sign:
        return ("+" if value >= 0 else "−") + text
    return text if value >= 0 else f"-{text}"


def first_line(content: Mapping[str, Any]) -> str:
    """What every report says first: whether the scored rows were trained on, or chose anything."""
    rows, split = content["rows"], content["split"]
    trained, chose = (content["overlap"][name] for name in ("train", "validation"))
    said = []
    if trained:
        said.append(f"{trained} of {rows} scored rows stand in the training rows too: scores are too high.")
    if split == "validation":
        said.append(
            "The scored rows also chose the checkpoint (validation rows, no test rows in the recipe): "
            "these scores flatter the tuned model and are no test result."
        )
    elif chose:
        said.append(
            f"{chose} of {rows} scored rows stand in the validation rows too, which chose the checkpoint: "
            "scores are too high."
        )
    return " ".join(said) or f"Scored on {split} rows, which chose nothing."


def is_warning(content: Mapping[str, Any]) -> bool:
    """Whether the first line says that the scores can't be trusted."""
    return bool(content["selected_on_scored_rows"] or any(content["overlap"].values()))


def sentences(content: Mapping[str, Any]) -> list[str]:
    """The findings in words."""
    made, headline, scores = [], content["headline"], content["scores"]
    difference = headline.get("difference")
    if difference:
        metric = headline["metric"]
        if content["documents"] < FEW or difference["low"] is None:
            made.append(
                f"Too few documents to tell whether {metric} differs from the base's: {content['documents']}, "
                f"and at least {FEW} are wanted."
            )
        elif difference["low"] > 0:
            made.append(f"The tuned model has a higher {metric} than its base; the interval excludes 0.")
        elif difference["high"] < 0:
            made.append(f"The tuned model has a lower {metric} than its base; the interval excludes 0.")
        else:
            made.append(f"No difference in {metric} is shown: the interval holds 0.")
    for floor, over in content.get("over_floors", {}).items():
        if over["low"] is None or over["low"] <= 0:
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
    if "sign_test" in content:
        test = content["sign_test"]
        made.append(
            f"Documents with more rows all right with tuning: {test['tuned_better']}; with fewer: "
            f"{test['base_better']} (sign test over documents, exact p = {test['p']:.2g})."
        )
    made += _format_sentences(content)
    parsed = scores.get("tuned", {}).get("parse_rate")
    if parsed and parsed["value"] < 0.9:
        lost = _percent(1 - parsed["value"])
        made.append(f"{lost} of the tuned answers can't be parsed and count as all missed: see the examples.")
    stops = content.get("answers_stop", {})
    if "tuned" in stops:
        made.append(f"Tuned answers that end by the terminator: {_percent(stops['tuned'])}.")
    return made


def _format_sentences(content: Mapping[str, Any]) -> list[str]:
    """How many answers fit the schema, and whether that alone explains what the base scores."""
    scores, metric = content["scores"], content["headline"]["metric"]
    fit = {
        name: scores[name]["schema_valid"]["value"]
        for name in ("tuned", "base")
        if "schema_valid" in scores.get(name, {})
    }
    if set(fit) != {"tuned", "base"}:
        return [f"{name.capitalize()} answers that fit the schema: {_percent(fit[name])}." for name in fit]
    shares = f"answers that fit the schema: tuned {_percent(fit['tuned'])}, base {_percent(fit['base'])}."
    if fit["base"] >= min(0.5, fit["tuned"]):
        return [shares[0].upper() + shares[1:]]
    reached = scores["base"][metric]["value"] or 0.0
    if reached >= NOTHING:
        return [f"Part of the difference may be one of format alone: {shares}"]
    return [
        f"The base's {metric} of {number(reached)} is one of format, and says little of what it knows: {shares}"
    ]


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
