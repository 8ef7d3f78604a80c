"""data/report.html: the inspection as one page that needs no network. Text of rows is text, never HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tunesmith.data.shown.page_texts import answers_section, fields_section, prompts_section, texts_section
from tunesmith.data.shown.words import (
    Check,
    Report,
    count,
    counted,
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
from tunesmith.view import figures, row_figures
from tunesmith.view.page_parts import bar, card, document, facts_list, table

_KINDS = {"stop": "stop", "warn": "warning", "calm": "calm"}
_OPENED = 2  # errors that are unfolded from the start
_RANGES = ("0.3", "0.5", "0.8")  # of similarity, as the report counts them
_LIMIT_HEAD = ("cut at", "rows over", "answer lost", "cue cut", "answer cut short", "answer tokens lost")


def render(
    report: Report,
    *,
    name: str,
    max_length: int | None = None,
    facts: Iterable[tuple[str, str]] = (),
    recipe: str = "RECIPE",
) -> str:
    """The page from data/report.json's content; the same report gives the same bytes.

    `name` is the recipe's, `recipe` its file; `facts` are further (name, text) lines for the head: hashes, the key.
    """
    inspection = report["inspection"]
    sections = {
        "checks": ("Checks", _unusable(report, max_length) + _checks(inspection)),
        "lengths": ("Lengths", _lengths(inspection, max_length)),
        "leaks": ("Leaks and repeats", _leaks(inspection)),
        "answers": ("Answers", answers_section(inspection)),
        "fields": ("Fields", fields_section(inspection)),
        "prompts": ("Prompts", prompts_section(inspection)),
        "texts": ("Texts", texts_section(inspection)),
    }
    held = {key: made for key, made in sections.items() if made[1]}
    links = "".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in held.items())
    parts = [
        f'<section id="{key}"><h2>{title}</h2>{inside}</section>' for key, (title, inside) in held.items()
    ]
    head = _head(report, name, max_length, recipe) + _facts(report, facts)
    return document(f"{name}: the rows", [head, f'<nav aria-label="Sections">{links}</nav>', *parts])


def _head(report: Report, name: str, max_length: int | None, recipe: str) -> str:
    kind, said = verdict(report)
    inspection = report["inspection"]
    lengths, checks = inspection["lengths"], inspection["checks"]
    rows = {split: rows_of(one) for split, one in lengths.items()}
    steps = "".join(
        f"<li>{escape(words)}: <span class=code>{escape(typed)}</span></li>"
        for words, typed in next_steps(report, recipe)
    )
    cards = [
        card(
            "rows",
            count(sum(rows.values())),
            ", ".join(f"{one_line(k, 40)} {count(n)}" for k, n in rows.items()),
        ),
        card(
            "longest row",
            count(max((one["tokens"]["max"] for one in lengths.values()), default=0)),
            f"tokens; the limit is {count(max_length)}" if max_length else "tokens",
        ),
        card("findings", count(len(findings(checks))), _levels(checks)),
    ]
    if inspection["leaks"]:
        cards.append(card("leaked rows, at least", *_leaked(inspection["leaks"])))
    return (
        f'<div class="{_KINDS[kind]}" role="status">{escape(said)}{f"<ul>{steps}</ul>" if steps else ""}</div>'
        f'<h1>{escape(name)}: the rows</h1><p class="lead">{escape(_lead(report))}</p>'
        f'<div class="cards">{"".join(cards)}</div>'
    )


def _leaked(leaks: Mapping[str, Any]) -> tuple[str, str]:
    """(held-out rows that leak in the commonest way, how many in each way): a row may leak in several."""
    kinds: dict[str, dict[str, int]] = {}
    for name, one in leaks.items():
        for kind in ("exact", "near", "group"):
            held = kinds.setdefault(name.partition(" in ")[0], {})
            held[kind] = max(held.get(kind, 0), (one.get(kind) or {"rows": 0})["rows"])
    below = ", ".join(
        f"{kind} {count(sum(one[kind] for one in kinds.values()))}" for kind in ("exact", "near", "group")
    )
    return count(sum(max(one.values()) for one in kinds.values())), below


def _lead(report: Report) -> str:
    sources = [one_line(str(one["name"]), 60) for one in report.get("sources", ())]
    shown = ", ".join(sources[:4]) + (f" and {len(sources) - 4} more" if len(sources) > 4 else "")
    return f"What the inspection saw in {shown}" if shown else "What the inspection saw"


def _levels(checks: Sequence[Check]) -> str:
    found = findings(checks)
    stop = sum(one["level"] == "error" for one in found)
    return f"of {plural(len(checks), 'check')}: {stop} stop, {len(found) - stop} warn"


def _facts(report: Report, facts: Iterable[tuple[str, str]]) -> str:
    listed = []
    for name, one in report.get("splits", {}).items():
        learned = percent(one["learned_tokens"] / one["tokens"]) if one["tokens"] else "–"
        said = f"{count(one['rows'])} rows of {plural(one['documents'], 'document')}, {count(one['tokens'])} tokens"
        listed.append((one_line(name, 60), f"{said}, {learned} of them learned"))
    for source in report.get("sources", ()):
        said = plural(source["rows"], "row")
        if source.get("refused"):
            said += f", {count(source['refused'])} of them can't be used"
        if source.get("weight", 1.0) != 1:
            said += f", read {source['weight']:g} times an epoch"
        if source.get("revision"):
            said += f", revision {source['revision']}"
        listed.append((one_line(str(source["name"]), 120), said))
    if report.get("left_out"):
        listed.append(("left out by the processor", plural(report["left_out"], "row")))
    if report.get("cache"):
        listed.append(("cache key", str(report["cache"])))
    listed += [(name, one_line(said)) for name, said in facts if said]
    return (
        f"<details><summary>Splits, files and hashes</summary>{facts_list(listed)}</details>"
        if listed
        else ""
    )


# ---- checks


def _unusable(report: Report, max_length: int | None) -> str:
    """What keeps rows from being used at all: the errors that reading them ended with, and rows over the limit."""
    parts = []
    texts = [str(one["what"]) for one in report.get("refused", ())]
    if report.get("unscorable"):
        texts.append(str(report["unscorable"]["what"]))
    for text in texts:
        first, *more = [one_line(line.strip()) for line in text.split("\n")]
        below = f"<pre>{escape(chr(10).join(more))}</pre>" if more else ""
        stops = '<span class="level error">error</span>'
        parts.append(
            f'<details class="finding" open><summary>{stops} {escape(first)}</summary>{below}</details>'
        )
    long = report.get("overlong") or {}
    if long.get("rows"):
        limit = f" ({count(max_length)} tokens)" if max_length else ""
        said = f"{count(long['rows'])} of {count(long['of'])} rows are over data.max_length{limit}"
        rows = [
            [f"<span class=code>{escape(one_line(str(place), 80))}</span>", count(n)]
            for place, n in long["first"]
        ]
        parts.append(
            f'<details class="finding"><summary><b>overlong</b> <span class="many">{escape(said)}</span>'
            f'<span class="what">The longest has {count(long["longest"])} tokens.</span></summary>'
            f"{table(['row', 'tokens'], rows)}</details>"
        )
    return "".join(parts)


def _checks(inspection: Mapping[str, Any]) -> str:
    checks, kinds = inspection["checks"], inspection.get("phi") or {}
    found = findings(checks)
    parts = [
        _finding(one, kinds, opened=place < _OPENED and one["level"] == "error")
        for place, one in enumerate(found)
    ]
    calm = quiet(checks)
    if calm:
        rows = [[f"<b>{escape(one['name'])}</b>", _level(one), escape(str(one["meaning"]))] for one in calm]
        what = "found nothing" if parts else "looked, and found nothing"
        parts.append(
            f"<details><summary>{plural(len(calm), 'check')} {what}: {escape(', '.join(c['name'] for c in calm))}"
            f"</summary>{table(['check', 'level', 'what it looks for'], rows, kind='text')}</details>"
        )
    if off := ignored(checks):
        parts.append(f'<p class="note">Turned off by the recipe: {escape(off)}.</p>')
    return "".join(parts)


def _level(check: Check) -> str:
    return f'<span class="level {escape(check["level"])}">{escape(check["level"])}</span>'


def _finding(check: Check, kinds: Mapping[str, Any], opened: bool) -> str:
    """One check that found rows: folded, with up to twenty of them."""
    examples = check["examples"]
    named = any(one.get("id") != one.get("source") for one in examples)
    rows = []
    for one in examples:
        cells = [
            f"<span class=code>{escape(one_line(str(one.get('source') or one.get('id') or ''), 80))}</span>"
        ]
        cells += [escape(one_line(str(one.get("id") or ""), 80))] if named else []
        rows.append(
            [*cells, escape(str(one.get("split") or "")), escape(one_line(detail(check, one, kinds)))]
        )
    head = ["row", *(["id"] if named else []), "split", "what is wrong"]
    more = check["rows"] - len(examples)
    below = (
        f'<p class="note">and {plural(more, "more row")}; data/findings.jsonl names every one</p>'
        if more > 0
        else ""
    )
    many = f"{count(check['rows'])} of {count(check['of'])} rows, {escape(percent(check['share']))}"
    return (
        f'<details class="finding"{" open" if opened else ""}><summary><b>{escape(check["name"])}</b> {_level(check)} '
        f'<span class="many">{many}</span><span class="what">{escape(str(check["meaning"]))}</span></summary>'
        f"{table(head, rows, kind='text') if rows else ''}{below}</details>"
    )


# ---- lengths


def _lengths(inspection: Mapping[str, Any], max_length: int | None) -> str:
    lengths = inspection["lengths"]
    drawn = []
    for split, one in lengths.items():
        histogram = one["histogram"]
        figure = row_figures.lengths(histogram["edges"], histogram["counts"], max_length)
        label = re.sub(r"[^\w ]", "", f"lengths of {split} rows")
        caption = f"{one_line(split, 40)}: {plural(rows_of(one), 'row')}"
        drawn.append(
            f"<figure>{figures.svg(figure, label)}<figcaption>{escape(caption)}</figcaption></figure>"
        )
    rows = []
    for split, one in lengths.items():
        for part, said in (("tokens", "whole row"), ("prompt", "prompt"), ("answer", "learned")):
            cells = [count(one[part][key]) for key in ("min", "p50", "p90", "p99", "max")]
            rows.append([escape(one_line(split, 40)) if part == "tokens" else "", said, *cells])
    quantiles = table(["split", "tokens of", "min", "p50", "p90", "p99", "max"], rows, kind="second")
    return f'<div class="pair">{"".join(drawn)}</div>{quantiles}{_limits(inspection["limits"], max_length)}'


def _limits(limits: Sequence[Mapping[str, Any]], max_length: int | None) -> str:
    if not limits:
        return ""
    rows = []
    for one in limits:
        own = ' <span class="tag">data.max_length</span>' if one["limit"] == max_length else ""
        lost = one["answer_tokens_share"]
        rows.append([
            count(one["limit"]) + own,
            bar(one["share"], counted(one["over"], one["share"]), "bad" if one["over"] else ""),
            count(one["answer_lost"]), count(one["cue_cut"]), count(one["answer_cut"]), escape(percent(lost)),
        ])  # fmt: skip
    return (
        f"<h3>What a limit would cut</h3>{table(_LIMIT_HEAD, rows, kind='counts')}"
        '<p class="note">As if rows were cut at their right end, which tunesmith never does: a lost answer teaches '
        "nothing, a cut cue leaves the question open, and an answer cut short never shows how to stop.</p>"
    )


# ---- leaks


def _leaks(inspection: Mapping[str, Any]) -> str:
    leaks, repeats = inspection["leaks"], inspection.get("duplicates") or {}
    parts = []
    if leaks:
        rows = []
        for name, one in leaks.items():
            cells = [_leak(one.get(kind)) for kind in ("exact", "near", "group")]
            rows.append([escape(one_line(name, 60)), *cells])
        parts.append(
            f"<p>{_said_of_leaks(leaks)}</p>"
            + table(["held-out rows", "exact", "near", "group"], rows, kind="counts")
        )
    alike = {one_line(name, 30): one["similarity"] for name, one in leaks.items() if one.get("similarity")}
    if alike:
        drawn = figures.svg(
            row_figures.similarity({name: _ranges(one) for name, one in alike.items()}), "similarity"
        )
        most = ", ".join(f"{name} {one['max']:.2f}" for name, one in alike.items())
        caption = f"Each held-out row beside its nearest on the other side, by runs of three words. Most alike: {most}"
        parts.append(
            f'<div class="pair"><figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure></div>'
        )
    said = [
        ("prompts that come again", "prompts_repeated"),
        ("prompts with different answers", "prompts_with_different_answers"),
        ("rows that are exact copies", "exact"),
        ("rows that are almost copies", "near"),
    ]
    listed = [[words, count(repeats[key])] for words, key in said if repeats.get(key) is not None]
    if listed:
        parts.append(f"<h3>Repeats, all sides together</h3>{table(['what', 'times'], listed)}")
    return "".join(parts)


def _said_of_leaks(leaks: Mapping[str, Any]) -> str:
    some = any(
        (one.get(kind) or {"rows": 0})["rows"]
        for one in leaks.values()
        for kind in ("exact", "near", "group")
    )
    if some:
        return "Held-out rows that stand on another side too: scores on them are no test."
    return "No held-out row stands on another side."


def _leak(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "–"
    return bar(one["share"], counted(one["rows"], one["share"]), "bad")


def _ranges(one: Mapping[str, Any]) -> dict[str, int]:
    """Rows between the steps of `at_least`."""
    above = [one["of"], *(one["at_least"][step] for step in _RANGES), 0]
    names = ("below 0.3", "to 0.5", "to 0.8", "0.8 and more")
    return {name: more - fewer for name, more, fewer in zip(names, above[:-1], above[1:], strict=True)}
