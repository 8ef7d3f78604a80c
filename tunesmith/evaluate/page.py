"""report.html: one file that needs no network. Every text from rows or models is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tunesmith.evaluate.examples import Mistake, ShownRow
from tunesmith.evaluate.page_rows import examples_section, mistakes_section
from tunesmith.evaluate.score import SMALL, interval
from tunesmith.evaluate.wording import (
    facts,
    first_line,
    is_warning,
    listed_metrics,
    number,
    of_gold,
    range_of,
    sentences,
    shown_name,
    signed,
)
from tunesmith.view import figures
from tunesmith.view.page_parts import card, document, facts_list, table
from tunesmith.view.series import Series, gaps

# metrics of the figure: all between 0 and 1, higher is better
_PICTURED = (
    "item_f1", "item_f1_macro", "field_exact", "row_exact", "schema_valid", "grounded_words",
    "word_f1", "match", "exact_match", "answered",
)  # fmt: skip
SHOWN_SMALL = 6  # small slices that are shown unfolded


def render(
    content: Mapping[str, Any],
    series: Mapping[str, Series],
    rows: Sequence[ShownRow],
    mistakes: Sequence[Mistake],
) -> str:
    """The whole page from report.json's `content`; without `rows` and `mistakes` it quotes no text of rows."""
    sections = [
        _head(content), _facts(content), _scores(content), _fields(content), _slices(content), _training(series),
        _proofs(content), mistakes_section(mistakes),
        examples_section(rows, content["rows"], content["headline"]["metric"]),
    ]  # fmt: skip
    return document(f"{content['run']}: base and tuned", sections)


def _head(content: Mapping[str, Any]) -> str:
    headline, line = content["headline"], first_line(content)
    cards = []
    for system in ("base", "tuned"):
        if system in headline:
            score = content["scores"][system][headline["metric"]]
            cards.append(card(shown_name(system), number(score["value"]), range_of(score), system))
    if "difference" in headline:
        cards.append(
            card(
                "difference", signed(headline["difference"]["value"]), range_of(headline["difference"], True)
            )
        )
    for floor, over in content.get("over_floors", {}).items():
        cards.append(card(f"over {shown_name(floor)}", signed(over["value"]), range_of(over, True)))
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(content))
    warning = f'<p class="warning">{escape(line)}</p>' if is_warning(content) else ""
    plain = "" if warning else f'<p class="lead">{escape(line)}</p>'
    return (
        f"{warning}<h1>{escape(content['run'])}</h1>{plain}"
        f'<p class="lead">{escape(content["base"]["name"])}, {escape(content["method"])} · '
        f"{escape(headline['metric'])} on {headline['n']} rows of {content['documents']} documents</p>"
        f'<div class="cards">{"".join(cards)}</div>{said}'
    )


def _scores(content: Mapping[str, Any]) -> str:
    scores, meaning, systems = content["scores"], content["meaning"], list(content["scores"])
    metrics = listed_metrics(scores)
    head = ["metric", *map(shown_name, systems)] + (["tuned − base"] if "differences" in content else [])
    rows = []
    for metric in metrics:
        cells = [
            f"{escape(metric)}<span class=what>{escape(meaning.get(metric, '') + of_gold(metric, scores))}</span>"
        ]
        cells += [_value(scores[system].get(metric)) for system in systems]
        if "differences" in content:
            cells.append(_value(content["differences"].get("tuned", {}).get(metric), sign=True))
        rows.append(cells)
    pictured = [metric for metric in _PICTURED if metric in metrics]
    kept = {system: {metric: interval(scores[system][metric]) for metric in pictured} for system in systems}
    picture = figures.svg(figures.intervals(kept, pictured), "scores with 95 % intervals")
    return (
        "<h2>Scores</h2>"
        f"<figure>{picture}</figure>{table(head, rows)}"
        '<p class="note">Below each value its 95 % interval: '
        f"{content['bootstrap']['draws']} draws of documents, seed {content['bootstrap']['seed']}. "
        "Where every document has the same 0 (or 1) of a share, the exact bound over documents (Clopper and Pearson). "
        "Differences are paired: the same documents drawn for both. n counts rows, also where a metric divides by "
        "something else. majority and nearest need no model: the commonest "
        "training values, and the answer of the nearest training row.</p>"
    )


def _fields(content: Mapping[str, Any]) -> str:
    tables = content["tables"]
    first = next(
        (name for name in ("tuned", "base") if tables.get(name)), next((n for n in tables if tables[n]), None)
    )
    if first is None:
        return ""
    parts = [f"<h2>Fields</h2><p>What became of each field's gold values: {escape(shown_name(first))}.</p>"]
    for fields in tables[first]:
        if "match" in fields["columns"]:
            parts.append(
                f"<figure>{figures.svg(figures.outcomes(_verdicts(fields)), 'outcomes by field')}</figure>"
            )
        parts.append(_counts(fields) + f'<p class="note">{escape(fields["note"])}</p>')
    for system in tables:
        if system != first:
            inside = "".join(_counts(fields) for fields in tables[system])
            parts.append(
                f"<details><summary>The same for {escape(shown_name(system))}</summary>{inside}</details>"
            )
    return "".join(parts)


def _verdicts(fields: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    at = {name: i for i, name in enumerate(fields["columns"])}
    made = {}
    for row in fields["rows"][:-1]:
        count = {name: int(row[at[name]]) for name in ("match", "partly", "wrong", "missed", "hallucinated")}
        made[str(row[0])] = count | {
            "null": int(row[at["gold nulls"]]) - count["hallucinated"] - int(row[at["unparsed"]])
        }
    return made


def _counts(fields: Mapping[str, Any]) -> str:
    body = []
    for row in fields["rows"]:
        cells = "".join(
            f"<td>{escape(number(cell) if not isinstance(cell, str) else cell)}</td>" for cell in row
        )
        body.append(
            f"<tr{' class=total' if row is fields['rows'][-1] and len(fields['rows']) > 1 else ''}>{cells}</tr>"
        )
    head = "".join(f"<th>{escape(column)}</th>" for column in fields["columns"])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _slices(content: Mapping[str, Any]) -> str:
    if not content["slices"]:
        return ""
    metric = content["headline"]["metric"]
    systems = list(content["scores"])
    rows: dict[bool, list[list[str]]] = {False: [], True: []}
    for one in content["slices"]:
        cells = [f"{escape(one['slice'])}: {escape(one['value'])}", str(one["rows"]), str(one["documents"])]
        cells += [_value(one["scores"].get(system, {}).get(metric)) for system in systems]
        rows[one["small"]].append([*cells, _value(one.get("difference"), sign=True)])
    head = ["slice", "rows", "documents", *map(shown_name, systems), "tuned − base"]
    made = f"<h2>Slices</h2><p>{escape(metric)} on parts of the rows.</p>"
    made += table(head, rows[False]) if rows[False] else ""
    if rows[True]:
        made += (
            f"<details{'' if len(rows[True]) > SHOWN_SMALL else ' open'}><summary>{len(rows[True])} with fewer than "
            f"{SMALL} rows each, too few to say much</summary>{table(head, rows[True], kind='small')}</details>"
        )
    return made


def _training(series: Mapping[str, Series]) -> str:
    if "loss" not in series:
        return ""
    curves = figures.svg(figures.loss_curves(series), "training and validation loss")
    parts = [f"<h2>Training</h2><figure>{curves}</figure>"]
    found = gaps(dict(series))
    if found:
        rows = [
            [
                str(gap.step),
                number(gap.training),
                number(gap.validation),
                signed(gap.gap) if gap.gap is not None else "–",
            ]
            for gap in found[-12:]
        ]
        listed = table(["step", "training loss", "validation loss", "gap"], rows)
        parts.append(
            f"<details><summary>The gap between training and validation: {escape(rows[-1][3])} at step "
            f'{rows[-1][0]}</summary>{listed}<p class="note">Training loss is the mean over the last '
            "quarter of the steps before. A growing gap means that the model learns its rows by heart.</p></details>"
        )
    if "learning_rate" in series:
        steps = figures.svg(figures.step_curves(series), "learning rate, gradient norm and speed")
        parts.append(f"<figure>{steps}</figure>")
    return "".join(parts)


def _proofs(content: Mapping[str, Any]) -> str:
    if not content["proofs"]:
        return ""
    rows = [
        [
            escape(proof["name"]),
            '<span class="passed">proved</span>' if proof["passed"] else '<span class="failed">FAILED</span>',
            escape(number(proof["figure"])),
            escape(number(proof["limit"])),
            escape(proof["detail"]),
        ]
        for proof in content["proofs"]
    ]
    return "<h2>Proofs</h2>" + table(
        ["proof", "", "figure", "limit", "what was compared"], rows, kind="text proofs"
    )


def _facts(content: Mapping[str, Any]) -> str:
    """One line of essentials that unfolds to settings and whole hashes."""
    listed = facts(content)
    line = " · ".join(said for name, said in listed if name in ("rows", "decoding", "intervals"))
    return f"<details><summary>{escape(line)}</summary>{facts_list(listed)}</details>"


def _value(score: Mapping[str, Any] | None, sign: bool = False) -> str:
    """A score over its interval."""
    if score is None or score["value"] is None:
        return "–"
    shown = signed(score["value"]) if sign else number(score["value"])
    return f"{escape(shown)}<small>{escape(range_of(score, sign))}</small>"
