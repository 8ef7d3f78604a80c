"""The findings in words: what a report says first, when its headline is no good news, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.evaluate.shown.wording import (
    kind_of,
    less_is_better,
    main_of,
    number,
    percent,
    range_of,
    read_share,
    shown_name,
    signed,
)

NOTHING = 0.05  # headline score below which a base has found as good as nothing
FEW = 20  # documents below which no sentence claims that two systems differ
READ = 0.95  # share of answers that can be read below which a score says more of form than of knowledge


def first_line(content: Mapping[str, Any]) -> str:
    """What every report says first: whether tuning made it worse, whether the headline can be trusted at all."""
    said = [_worse(content), *doubts(content)]
    if "alone" in content:
        said.append(
            f"Scored from {content['alone']['file']} alone: what answered, and whether it had seen these rows, "
            "is not known."
        )
    return " ".join(one for one in said if one) or f"Scored on {content['split']} rows, which chose nothing."


def is_warning(content: Mapping[str, Any]) -> bool:
    """Whether the first line is bad news."""
    return bool(_worse(content) or doubts(content))


def doubts(content: Mapping[str, Any]) -> list[str]:
    """Why the headline is no good news, however high it is; empty where nothing speaks against it."""
    return _unread(content) + _seen(content)


def _worse(content: Mapping[str, Any]) -> str:
    headline = content["headline"]
    difference = headline.get("difference")
    if not difference or difference["value"] is None or _gain(content, difference["value"]) >= 0:
        return ""
    metric = headline["metric"]
    told = (
        f"{metric} {number(headline['tuned'])} against {number(headline['base'])} "
        f"({signed(difference['value'])}, 95 % interval {range_of(difference, True)})"
    )
    if content["documents"] < FEW or difference["low"] is None:
        few = f"too few documents to tell ({content['documents']})"
        return f"The tuned model scores worse than its base: {told}, on {few}."
    if difference["low"] <= 0 <= difference["high"]:
        return f"The tuned model scores worse than its base: {told}; the interval holds 0."
    return f"The tuned model is worse than its base: {told}."


def _unread(content: Mapping[str, Any]) -> list[str]:
    """Answers that could not be read, and rows that were not scored."""
    made, name = [], main_of(content)
    share = read_share(content, name)
    # a headline of likelihoods stands on the gold answers: what was written, or left empty, doesn't touch it
    if share is not None and share < READ and content["headline"].get("from") != "likelihood":
        made.append(
            f"Only {percent(share)} of the answers of {shown_name(content, name)} can be read; the others count as all "
            "missed. Don't quote the headline before that is mended."
        )
    scored = content["scores"][name][content["headline"]["metric"]]["n"]
    if scored != content["rows"]:
        made.append(
            f"Only {scored} of {content['rows']} rows were scored: the headline is not about all of them."
        )
    return made


def _seen(content: Mapping[str, Any]) -> list[str]:
    """Scored rows that were trained on or chose the checkpoint."""
    if "alone" in content:
        return []  # the first line says that nothing is known of it
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
    return said


def sentences(content: Mapping[str, Any]) -> list[str]:
    """The findings, each a sentence."""
    made = [
        *_tuned(content), *_forgotten(content), *_prompting(content), *_floors(content), *_constrained(content),
        *_exported(content), *_others(content), *_all_right(content), *_format(content),
    ]  # fmt: skip
    stops = content.get("answers_stop", {})
    if "tuned" in stops:
        made.append(f"Tuned answers that end by the terminator: {percent(stops['tuned'])}.")
    return made


def _gain(content: Mapping[str, Any], change: float) -> float:
    """A change of the headline metric, positive where it is for the better."""
    return -change if less_is_better(content, content["headline"]["metric"]) else change


def _shown(content: Mapping[str, Any], over: Mapping[str, Any]) -> int:
    """1 where an interval shows an improvement, -1 for the worse, 0 where it shows nothing."""
    if content["documents"] < FEW or over["low"] is None or over["low"] <= 0 <= over["high"]:
        return 0
    return 1 if _gain(content, over["value"]) > 0 else -1


def _tuned(content: Mapping[str, Any]) -> list[str]:
    difference, metric = content["headline"].get("difference"), content["headline"]["metric"]
    if not difference:
        return []
    if content["documents"] < FEW or difference["low"] is None:
        return [
            f"Too few documents to tell whether {metric} differs from the base's: {content['documents']}, "
            f"and at least {FEW} are wanted."
        ]
    shown = _shown(content, difference)
    if shown == 0:
        return [f"No difference in {metric} is shown: the interval holds 0."]
    way = "higher" if difference["value"] > 0 else "lower"
    if less_is_better(content, metric):
        way += " (better)" if shown > 0 else " (worse)"
    return [f"The tuned model has a {way} {metric} than its base; the interval excludes 0."]


def _forgotten(content: Mapping[str, Any]) -> list[str]:
    """Sources of the scored rows on which tuning did harm: a language, a specialty, what the base could do before."""
    made, metric = [], content["headline"]["metric"]
    for one in content.get("slices", []):
        change = one.get("difference")
        if one["slice"] == "source" and change and _shown({**content, **one}, change) < 0:
            scores = one["scores"]
            made.append(
                f"The tuned model has forgotten something: on the {one['rows']} rows of {one['value']} its {metric} is "
                f"{number(scores['tuned'][metric]['value'])}, the base's {number(scores['base'][metric]['value'])} "
                f"({signed(change['value'])}, {range_of(change, True)}). Mix rows of that kind into the training rows."
            )
    return made


def _prompting(content: Mapping[str, Any]) -> list[str]:
    """Is fine-tuning worth it over prompting? Against the best of the prompts, chosen on these rows: a hard test."""
    over = content.get("over_prompts", {})
    metric = content["headline"]["metric"]
    reached = {name: content["scores"][name][metric]["value"] for name in over}
    known = {name: value for name, value in reached.items() if value is not None}
    if not known:
        return []
    best = min(known, key=lambda name: _gain(content, -known[name]))
    change = over[best]
    ways = (
        f"the best of {len(known)} ways to ask is" if len(known) > 1 else "the base was asked one other way,"
    )
    told = (
        f"{ways} “{shown_name(content, best)}” with {number(known[best])}; the tuned "
        f"model's difference to it is {signed(change['value'])} ({range_of(change, True)})"
    )
    answer = {
        1: "Is fine-tuning worth it over prompting? Yes, on these rows:",
        0: "Is fine-tuning worth it over prompting? These rows don't show it:",
        -1: "Is fine-tuning worth it over prompting? No, prompting does better:",
    }[_shown(content, change)]
    return [f"{answer} {told}."]


def _floors(content: Mapping[str, Any]) -> list[str]:
    said = {True: "It scores worse than", False: "It is not shown to beat"}
    return [
        f"{said[_shown(content, over) < 0]} the {shown_name(content, floor)} floor, which needs no model."
        for floor, over in content.get("over_floors", {}).items()
        if not _above(content, over)
    ]


def _above(content: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Whether the interval lies on the better side of 0."""
    return over["low"] is not None and min(_gain(content, over["low"]), _gain(content, over["high"])) > 0


def _constrained(content: Mapping[str, Any]) -> list[str]:
    metric, scores = content["headline"]["metric"], content["scores"]
    pairs = [
        (name, f"{name}-constrained")
        for name in ("tuned", "base")
        if kind_of(content, f"{name}-constrained") == "constrained"
        and all(metric in scores.get(one, {}) for one in (name, f"{name}-constrained"))
    ]
    if not pairs:
        return []
    told = ", ".join(
        f"{free} {number(scores[free][metric]['value'])} free and {number(scores[held][metric]['value'])} held"
        for free, held in pairs
    )
    return [
        f"Held to the schema while they are written, answers score: {told} ({metric}). The headline is of free answers."
    ]


def _exported(content: Mapping[str, Any]) -> list[str]:
    made, metric = [], content["headline"]["metric"]
    for system, change in content.get("exported", {}).items():
        value, by = number(content["scores"][system][metric]["value"]), signed(change["value"])
        name = shown_name(content, system)
        made.append(f"{name} scores {value}: {by} ({range_of(change, True)}) against the live adapter.")
    return made


def _others(content: Mapping[str, Any]) -> list[str]:
    """Systems from elsewhere, whose answers were given as files."""
    metric = content["headline"]["metric"]
    return [
        f"{shown_name(content, name)} scores {number(content['scores'][name][metric]['value'])}; the tuned model's "
        f"difference to it is {signed(change['value'])} ({range_of(change, True)})."
        for name, change in content.get("over_others", {}).items()
    ]


def _all_right(content: Mapping[str, Any]) -> list[str]:
    if "mcnemar" in content:
        test = content["mcnemar"]
        if not test["only_tuned"] + test["only_base"]:
            return []  # both have the same rows right, in free text mostly none: nothing is tested
        return [
            f"Rows all right only with tuning: {test['only_tuned']}; only without: {test['only_base']} "
            f"(McNemar, exact p = {test['p']:.2g})."
        ]
    if "sign_test" in content:
        test = content["sign_test"]
        if not test["tuned_better"] + test["base_better"]:
            return []
        return [
            f"Documents with more rows all right with tuning: {test['tuned_better']}; with fewer: "
            f"{test['base_better']} (sign test over documents, exact p = {test['p']:.2g})."
        ]
    return []


def _format(content: Mapping[str, Any]) -> list[str]:
    """How many answers fit the schema, and whether that alone explains what the base scores."""
    scores, metric = content["scores"], content["headline"]["metric"]
    fit = {
        name: scores[name]["schema_valid"]["value"]
        for name in ("tuned", "base")
        if "schema_valid" in scores.get(name, {})
    }
    if set(fit) != {"tuned", "base"}:
        return [f"{name.capitalize()} answers that fit the schema: {percent(fit[name])}." for name in fit]
    shares = f"answers that fit the schema: tuned {percent(fit['tuned'])}, base {percent(fit['base'])}."
    if fit["base"] >= min(0.5, fit["tuned"]):
        return [shares[0].upper() + shares[1:]]
    reached = scores["base"][metric]["value"] or 0.0
    if reached >= NOTHING:
        return [f"Part of the difference may be one of format alone: {shares}"]
    return [
        f"The base's {metric} of {number(reached)} is one of format, and says little of what it knows: {shares}"
    ]
