"""The page's tables of scores: systems beside each other, then every metric."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from tunesmith.evaluate.score import interval
from tunesmith.evaluate.shown.wording import (
    kind_of,
    less_is_better,
    listed_metrics,
    number,
    of_gold,
    ordered,
    percent,
    range_of,
    read_share,
    shown_name,
    signed,
)
from tunesmith.view import answer_figures, figures
from tunesmith.view.page_parts import body_row, folded, table

_KINDS = {
    "tuned": "tuned", "base": "base", "prompt": "base with a prompt", "constrained": "held to the schema",
    "quantised": "base, quantised", "exported": "exported", "other": "another file", "floor": "floor: no model",
}  # fmt: skip
# metrics of the figure, before others that lie between 0 and 1 and get better as they rise
_PICTURED = (
    "item_f1", "item_f1_macro", "field_exact", "row_exact", "schema_valid", "grounded_words", "word_f1", "match",
    "exact_match", "answered", "mention_f1", "string_f1", "concept_f1", "relation_f1", "parse_rate",
)  # fmt: skip
_IN_FIGURE = 4  # systems of the figure of many metrics
_DRAWN = 8  # metrics of that figure
_IN_SIGHT = 10  # metrics of the table that is not folded


def systems_section(content: Mapping[str, Any]) -> str:
    """One row a system, the headline metric as a figure; others' figures of other rows at its end."""
    metric, names = content["headline"]["metric"], ordered(content)
    scores, differences = content["scores"], content.get("differences", {})
    known = {
        shown_name(content, name): (kind_of(content, name), interval(scores[name][metric]))
        for name in names
        if metric in scores[name]
    }
    published = content.get("published", [])
    best = published[0]["value"] if published else None
    picture = figures.svg(answer_figures.systems(known, best), f"{metric} of each system with 95 % intervals")
    rows = []
    for name in names:
        about = content.get("systems", {}).get(name, {})
        what = f"<span class=what>{escape(about.get('note', ''))}</span>" if about.get("note") else ""
        cells = [f"{escape(shown_name(content, name))}{what}", escape(_KINDS.get(kind_of(content, name), ""))]
        cells.append(value(scores[name].get(metric)))
        if differences:
            cells.append(value(differences.get(name, {}).get(metric), sign=True))
            cells.append(_against_tuned(content, name))
        cells.append(percent(read_share(content, name)))
        rows.append(cells)
    head = (
        ["system", "what it is", metric]
        + (["this − base", "tuned − this"] if differences else [])
        + ["answers read"]
    )
    return (
        f"<figure class=fit>{picture}</figure>{table(head, rows, kind='sortable two-text', name='Systems')}"
        f"{_published(content)}{_note(content)}"
    )


def _against_tuned(content: Mapping[str, Any], name: str) -> str:
    """How far the tuned model is above a floor or a prompt; paired, where that was drawn."""
    over = {**content.get("over_floors", {}), **content.get("over_prompts", {})}.get(name)
    return "" if over is None else value(over, sign=True)


def _published(content: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{escape(one['system'])}<span class=what>{escape(one.get('note', ''))}</span>",
            escape(number(one["value"])),
            escape(one["source"]),
        ]
        for one in content.get("published", [])
    ]
    if not rows:
        return ""
    shown = table(
        ["published, on other rows", content["headline"]["metric"], "source"],
        rows,
        kind="text",
        name="Published",
    )
    return (
        f"<h3>What others reached, on other rows</h3>{shown}"
        '<p class="note">Other rows, other splits, often another way of counting: an order of magnitude, no rival.</p>'
    )


def _note(content: Mapping[str, Any]) -> str:
    boot = content["bootstrap"]
    return (
        f'<p class="note">Below each value its 95 % interval: {boot["draws"]} draws of documents, seed {boot["seed"]}. '
        "Where every document has the same 0 (or 1) of a share, the exact bound over documents (Clopper and Pearson). "
        "Differences are paired: the same documents drawn for both.</p>"
    )


def scores_section(content: Mapping[str, Any]) -> str:
    """Every metric of every system; those of single fields apart, folded."""
    scores, systems = content["scores"], ordered(content)
    metrics = listed_metrics(content)
    shares = [metric for metric in metrics if _is_share(content, metric)]
    pictured = sorted(shares, key=lambda metric: metric not in _PICTURED)[:_DRAWN]
    pictured = [metric for metric in metrics if metric in pictured]
    parts = []
    if pictured:
        kept = {
            shown_name(content, name): {
                metric: interval(scores[name][metric]) for metric in pictured if metric in scores[name]
            }
            for name in systems[:_IN_FIGURE]
        }
        picture = figures.svg(figures.intervals(kept, pictured), "scores with 95 % intervals")
        parts.append(f"<figure>{picture}</figure>")
    first = [metric for metric in metrics if metric in pictured or metric == content["headline"]["metric"]]
    first += [metric for metric in metrics if metric not in first][: max(0, _IN_SIGHT - len(first))]
    parts.append(_metrics(content, [metric for metric in metrics if metric in first], systems, "Metrics"))
    rest = [metric for metric in metrics if metric not in first]
    if rest:
        said = f"{len(rest)} more metrics: {', '.join(rest)}"
        parts.append(folded(said, _metrics(content, rest, systems, "More metrics")))
    single = [name for name in dict.fromkeys(m for one in scores.values() for m in one) if ":" in name]
    if single:
        inside = _metrics(content, single, systems, "Metrics of single fields and classes")
        parts.append(folded(f"{len(single)} metrics of single fields and classes", inside))
    parts.append(
        '<p class="note">n counts rows, also where a metric divides by something else. ↓: lower is better.</p>'
    )
    return "".join(parts)


def _is_share(content: Mapping[str, Any], metric: str) -> bool:
    """Whether a metric lies between 0 and 1 in every system and gets better as it rises."""
    found = [one[metric] for one in content["scores"].values() if metric in one]
    known = [one[key] for one in found for key in ("value", "low", "high") if one[key] is not None]
    return bool(known) and 0 <= min(known) <= max(known) <= 1 and not less_is_better(content, metric)


def _metrics(content: Mapping[str, Any], metrics: list[str], systems: list[str], name: str) -> str:
    scores, meaning = content["scores"], content["meaning"]
    paired = content.get("differences", {}).get("tuned", {})
    head = ["metric", *(shown_name(content, system) for system in systems)] + (
        ["tuned − base"] if paired else []
    )
    rows = []
    for metric in metrics:
        less = " ↓" if less_is_better(content, metric) else ""
        said = "" if ":" in metric else meaning.get(metric, "") + of_gold(metric, scores)
        cells = [f"{escape(metric)}{less}" + (f"<span class=what>{escape(said)}</span>" if said else "")]
        cells += [value(scores[system].get(metric)) for system in systems]
        if paired:
            cells.append(value(paired.get(metric), sign=True))
        rows.append(body_row(cells, "main" if metric == content["headline"]["metric"] else ""))
    return table(head, rows, kind="sortable", name=name)


def value(score: Mapping[str, Any] | None, sign: bool = False) -> str:
    """A score over its interval, as HTML."""
    if score is None or score["value"] is None:
        return "–"
    shown = signed(score["value"]) if sign else number(score["value"])
    return f"{escape(shown)}<small>{escape(range_of(score, sign))}</small>"
