"""The head of the page: what speaks against the headline, the headline, what to do next, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from tunesmith.evaluate.shown.findings import doubts, first_line, is_warning, sentences
from tunesmith.evaluate.shown.wording import (
    facts,
    hashes,
    less_is_better,
    main_of,
    many,
    number,
    range_of,
    shown_name,
    signed,
    subject,
)
from tunesmith.view.page_parts import card, facts_list

_CARDS = 6  # more floors than that stand in the table alone


def head(content: Mapping[str, Any]) -> str:
    """First line, name, cards, findings."""
    headline, line = content["headline"], first_line(content)
    metric = headline["metric"]
    doubted = " doubt" if doubts(content) else ""
    cards = []
    for system in ("base", "tuned"):
        if system in headline:
            score = content["scores"][system][metric]
            kind = system + (doubted if system == "tuned" else "")
            cards.append(card(shown_name(content, system), number(score["value"]), range_of(score), kind))
    if not cards:
        name = main_of(content)
        score = content["scores"][name][metric]
        cards.append(
            card(shown_name(content, name), number(score["value"]), range_of(score), doubted.strip())
        )
    if "difference" in headline:
        change = headline["difference"]
        cards.append(card("difference", signed(change["value"]), range_of(change, True), doubted.strip()))
    for floor, over in [*content.get("over_floors", {}).items()][: _CARDS - len(cards)]:
        name = f"over {shown_name(content, floor)}"
        cards.append(card(name, signed(over["value"]), range_of(over, True), doubted.strip()))
    plain = "" if is_warning(content) else f'<p class="lead">{escape(line)}</p>'
    less = ", where lower is better," if less_is_better(content, metric) else ""
    parts = content["meaning"].get(metric, "").removesuffix("; headline").split("; ")
    told = "; ".join(
        part for part in parts if "|" not in part
    )  # a scorer's signature stands among the scores
    return (
        (f'<p class="warning">{escape(line)}</p>' if is_warning(content) else "")
        + f"<h1>{escape(content['run'])}</h1>{plain}"
        f'<p class="lead">{escape(subject(content))} · '
        f"{escape(metric)}{less} on {headline['n']:,} rows of {content['documents']:,} documents"
        f"{f'<br>{escape(metric)}: {escape(told)}' if told else ''}</p>"
        f'<div class="cards">{"".join(cards)}</div>'
    )


def findings(content: Mapping[str, Any]) -> str:
    """Sentences, and what to do next."""
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(content))
    listed = f"<ul>{said}</ul>" if said else ""
    quiet = "<p>Nothing to say of these answers beyond their scores and faults below.</p>"
    return (listed + _next(content)) or quiet


def _next(content: Mapping[str, Any]) -> str:
    steps = content.get("next", [])
    if not steps:
        return ""
    listed = "".join(
        f"<li>{escape(one['say'])}"
        + (f'<span class="many">{many(one)}</span>' if many(one) else "")
        + "</li>"
        for one in steps
    )
    return f'<h3>What to do next</h3><ul class="next">{listed}</ul>'


def measured(content: Mapping[str, Any]) -> str:
    """Settings in sight, hashes folded."""
    return (
        f"{facts_list(facts(content))}<details><summary>Hashes and versions</summary>"
        f"{facts_list(hashes(content))}</details>"
    )
