"""What a comparison of runs tells, in plain sentences: is one better, what could these rows show, whose luck it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.evaluate.shown.findings import FEW
from tunesmith.evaluate.shown.wording import number, range_of, signed
from tunesmith.pooled import FEW_SEEDS


def findings(content: Mapping[str, Any]) -> list[str]:
    """Sentences, the answer first."""
    made = []
    for one in content["comparisons"]:
        made += [_verdict(content, one), *_reach(content, one), *_test(one)]
    if len(content["comparisons"]) > 1:
        count = len(content["comparisons"])
        made.append(
            f"{count} differences are tested here: one in twenty that are none would still look like one."
        )
    return made + _seeds(content) + list(content.get("said", ()))


def _verdict(content: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    by, metric = one["difference"], content["metric"]
    first, second = one["first"], one["second"]
    if by["value"] is None:
        return f"{metric} of {first} and {second} has nothing to divide by: there is nothing to compare."
    told = f"{signed(by['value'])} {metric}"
    if by["low"] is None or content["documents"] < FEW:
        return (
            f"Too few documents to tell whether {second} differs from {first}: {content['documents']}, and at least "
            f"{FEW} are wanted ({told})."
        )
    told += f", 95 % interval {range_of(by, True)}"
    if by["low"] <= 0 <= by["high"]:
        return f"No difference between {first} and {second} is shown: {told} holds 0."
    better = (by["value"] > 0) == (content["better"] == "higher")
    return f"{second} is {'better' if better else 'worse'} than {first}: {told}."


def _reach(content: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
    """The smallest difference these rows could show, and how many documents the one seen would want."""
    by = one["difference"]
    if by["smallest_shown"] is None or content["documents"] < FEW:
        return []
    if by["smallest_shown"] == 0:
        return [
            "Both answer every document alike, so the rows don't say how small a difference they could show."
        ]
    made = (
        f"{content['rows']} rows of {content['documents']} documents show a difference of "
        f"{number(by['smallest_shown'])} or more in four of five tries; a smaller one may well be missed."
    )
    if not by["low"] <= 0 <= by["high"]:
        return [made]
    needed = by["documents_needed"]
    if needed is not None and needed > content["documents"]:
        made += (
            f" To show one of {number(abs(by['value']))}, about {needed:,} documents like these are needed."
        )
    elif needed is None and by["of_seeds"]:
        made += (
            f" One of {number(abs(by['value']))} would be hidden by the seeds' own luck: train more seeds."
        )
    return [made]


def _test(one: Mapping[str, Any]) -> list[str]:
    """Nothing where both have the same rows right, in free text mostly none: then nothing is tested."""
    test, first, second = one["test"], one["first"], one["second"]
    if test["name"] == "McNemar":
        if not test["only_first"] + test["only_second"]:
            return []
        return [
            f"Rows all right only by {second}: {test['only_second']}; only by {first}: {test['only_first']} "
            f"(McNemar, exact p = {test['p']:.2g})."
        ]
    if not test["first_better"] + test["second_better"]:
        return []
    return [
        f"Documents with more rows all right by {second}: {test['second_better']}; by {first}: "
        f"{test['first_better']}; as many: {test['equal']} (sign test over documents, exact p = {test['p']:.2g})."
    ]


def _seeds(content: Mapping[str, Any]) -> list[str]:
    """Whose luck the intervals hold."""
    made = []
    tuned = [group for group in content["groups"] if group["kind"] == "tuned"]
    for group in tuned:
        if group["seeds"] == 1:
            continue
        each = content["scores"][group["name"]][content["metric"]]["seeds"]
        values = f"{group['name']} is the mean of {group['seeds']} seeds ({', '.join(map(number, each))})"
        if group["seeds"] >= FEW_SEEDS:
            made.append(
                f"{values}; its intervals hold both which documents were scored and which seeds were trained."
            )
        else:
            made.append(
                f"{values}: from so few nothing can be told of how much a seed matters, and the interval is a guess. "
                f"Train at least {FEW_SEEDS}."
            )
    alone = [group["name"] for group in tuned if group["seeds"] == 1]
    if alone:
        made.append(
            f"{' and '.join(alone)}: one seed each. The intervals hold which documents were scored, not how much "
            "another seed would change: train each recipe with other values of `seed` before a claim of a point or two."
        )
    return made
