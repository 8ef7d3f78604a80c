"""How a report says its figures and calls its systems: the same words and digits in report.md and report.html."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_NAMES = {"majority": "majority", "nearest": "nearest row"}
NOISE = 1e-12  # what sums of floats leave of a difference that is none
_ORDER = ("tuned", "base", "prompt", "constrained", "quantised", "exported", "other", "floor")


def shown_name(content: Mapping[str, Any], system: str) -> str:
    """A system as a column's head."""
    told = content.get("systems", {}).get(system, {}).get("shown", system)
    return _NAMES.get(system, system) if told == system else str(told)


def kind_of(content: Mapping[str, Any], system: str) -> str:
    """What a system is: tuned, base, prompt, constrained, quantised, exported, other, floor."""
    told = content.get("systems", {}).get(system, {}).get("kind")
    return str(told or (system if system in ("tuned", "base") else "floor" if system in _NAMES else "other"))


def ordered(content: Mapping[str, Any]) -> list[str]:
    """Systems as a reader wants them: tuned and base, other ways to ask and to hold the model, floors."""
    kinds = {name: kind_of(content, name) for name in content["scores"]}
    return sorted(kinds, key=lambda name: _ORDER.index(kinds[name]) if kinds[name] in _ORDER else len(_ORDER))


def main_of(content: Mapping[str, Any]) -> str:
    """The system that the report is about: tuned where there is one."""
    return next(
        (name for name in ("tuned", "base") if name in content["scores"]), next(iter(content["scores"]))
    )


def less_is_better(content: Mapping[str, Any], metric: str) -> bool:
    """Whether a metric gets better as it falls."""
    if metric == content["headline"]["metric"]:
        return bool(content["headline"].get("better", "higher") == "lower")
    return "lower is better" in content["meaning"].get(metric, "")


def read_share(content: Mapping[str, Any], system: str) -> float | None:
    """Share of a system's answers that could be read; None where the task reads any text."""
    scores = content["scores"][system]
    found = next((scores[name]["value"] for name in ("parse_rate", "answered") if name in scores), None)
    return None if found is None else float(found)


def number(value: float | int | str | None) -> str:
    """Three decimals for shares, four digits otherwise; – for nothing."""
    if value is None or value != value:
        return "–"
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) < NOISE or 0.001 <= abs(value) < 100:
        return f"{value:.3f}"
    return f"{value:.4g}"


def signed(value: float | None) -> str:
    """A difference with its sign."""
    if value is None or value != value:
        return "–"
    return ("+" if value > -NOISE else "−") + number(abs(value))


def range_of(score: Mapping[str, Any], sign: bool = False) -> str:
    """The interval under a value: both ends with the same number of decimals; – where there is none."""
    low, high = score["low"], score["high"]
    if low is None or high is None:
        return "–"
    digits = _digits(max(abs(low), abs(high)))
    return f"{_end(low, digits, sign)} to {_end(high, digits, sign)}"


def _digits(largest: float) -> str:
    """The format of both ends: three decimals for shares, three digits of the larger end below, four above."""
    if largest < NOISE or 0.01 <= largest < 100:
        return ".3f"
    if not 1e-6 <= largest < 1e6:
        return ".2e"
    place = math.floor(math.log10(largest))
    return f".{2 - place if place < 0 else max(0, 3 - place)}f"


def _end(value: float, digits: str, sign: bool) -> str:
    text = format(abs(value), digits)
    if sign:
        return ("+" if value > -NOISE else "−") + text
    return text if value > -NOISE else f"-{text}"


def listed_metrics(content: Mapping[str, Any]) -> list[str]:
    """Metrics of the main table, the headline first: not those of single fields, nor of the gold answers themselves."""
    scores = content["scores"].values()
    names = dict.fromkeys([content["headline"]["metric"], *(metric for one in scores for metric in one)])
    return [name for name in names if ":" not in name and not name.startswith("gold_")]


def of_gold(metric: str, scores: Mapping[str, Mapping[str, Any]]) -> str:
    """What the gold answers reach in a metric that they may not reach wholly."""
    found = [one[f"gold_{metric}"]["value"] for one in scores.values() if f"gold_{metric}" in one]
    return f"; the gold answers: {number(found[0])}" if found else ""


def percent(share: float | None) -> str:
    """A share as a per cent with one decimal; – for nothing."""
    return "–" if share is None else f"{100 * share:.1f} %"


def subject(content: Mapping[str, Any]) -> str:
    """What was scored: a base and how it was tuned, or a file."""
    if "alone" in content:
        return f"answers of {content['alone']['file']}"
    return f"{content['base']['name']}, {content['method']}"


def facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was scored and how."""
    if "alone" in content:
        return _facts_alone(content)
    data, decoding, boot = content["data"], content["decoding"], content["bootstrap"]
    how = "greedy" if decoding["temperature"] == 0 else (
        f"temperature {decoding['temperature']}, top-p {decoding['top_p']}, "
        f"{decoding['samples']} samples a row, seed {decoding['seed']}"
    )  # fmt: skip
    named = [name for name in ordered(content) if kind_of(content, name) != "floor"]
    read = [(name, read_share(content, name)) for name in named]
    stops = content.get("answers_stop", {})
    base = content["base"]
    listed = [
        (
            "rows",
            f"{content['rows']:,} of {data['rows']:,} {content['split']} rows, {content['documents']:,} documents; "
            f"{data['train_rows']:,} training rows",
        ),
        ("split", content.get("split_rule", "")),
        ("leaks", _leaks(content)),
        (
            "tuned and base",
            f"as trained ({base['dtype']}, quantize: {base['quantize']}): with the adapter live, and without it",
        ),
        ("decoding", f"{how}, at most {decoding['max_tokens']} tokens"),
        (
            "answers that can be read",
            ", ".join(f"{shown_name(content, name)} {percent(one)}" for name, one in read if one is not None),
        ),
        (
            "ended by the terminator",
            ", ".join(
                f"{shown_name(content, name)} {percent(stops[name])}" for name in named if name in stops
            ),
        ),
        ("intervals", f"95 %, {boot['draws']} bootstrap draws of documents, seed {boot['seed']}"),
        ("task", content["task"]),
    ]
    return [(name, said) for name, said in listed if said]


def _facts_alone(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a predictions file tells of itself."""
    name, boot = main_of(content), content["bootstrap"]
    read, stops = read_share(content, name), content.get("answers_stop", {})
    listed = [
        (
            "rows",
            f"{content['rows']:,} rows of {content['documents']:,} documents, as the file tells of them",
        ),
        ("file", content["alone"]["file"]),
        ("answers that can be read", "" if read is None else percent(read)),
        ("ended by the terminator", percent(stops[name]) if name in stops else ""),
        ("intervals", f"95 %, {boot['draws']} bootstrap draws of documents, seed {boot['seed']}"),
        ("task", content["task"]),
    ]
    return [(key, said) for key, said in listed if said]


def _leaks(content: Mapping[str, Any]) -> str:
    """Scored rows that training or validation rows give away."""
    rows, same = content["rows"], content["overlap"]
    said = [
        f"{same[name]} of {rows:,} scored prompts stand in the {name} rows"
        for name in ("train", "validation")
    ]
    if content["split"] == "validation":
        said = said[:1]
    for pair, found in content.get("leaks", {}).items():
        parts = ((kind, found.get(kind, {}).get("rows")) for kind in ("exact", "near", "group"))
        counted = ", ".join(f"{kind} {count}" for kind, count in parts if count is not None)
        said.append(f"{pair}, of {found.get('of', '?')} rows: {counted}")
    return "; ".join(said)


def hashes(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What says that it was exactly this."""
    if "alone" in content:
        return [("file sha256", content["alone"]["sha256"]), ("recipe sha256", content["recipe_sha256"])]
    base, data, contract = content["base"], content["data"], content["contract"]
    listed = [
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


def many(step: Mapping[str, Any]) -> str:
    """The counts that a next step comes from, where its words don't tell them already."""
    if not step.get("of"):
        return ""
    told = set(re.findall(r"\d(?:[\d,.]*\d)?", step["say"]))
    return "" if {f"{step['count']:,}", f"{step['of']:,}"} <= told else f"{step['count']:,} of {step['of']:,}"
