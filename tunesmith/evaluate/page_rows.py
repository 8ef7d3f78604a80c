"""The page's sections that quote rows: frequent mistakes, and examples with gold beside prediction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from tunesmith.evaluate.examples import Mistake, ShownRow
from tunesmith.evaluate.wording import number, shown_name
from tunesmith.tasks.normalise import split_items
from tunesmith.view.page_parts import table, text

_LONGEST = 20_000  # characters of an input in which values are looked for


def mistakes_section(mistakes: Sequence[Mistake]) -> str:
    """A table of wrong answers that were given more than once; empty for none."""
    if not mistakes:
        return ""
    rows = [
        [escape(one.field), text(one.gold), text(one.predicted), str(one.times), escape(one.row)]
        for one in mistakes
    ]
    return "<h2>Frequent mistakes</h2>" + table(
        ["field", "gold", "answered", "times", "one of the rows"], rows, kind="text"
    )


def examples_section(rows: Sequence[ShownRow], total: int, metric: str) -> str:
    """One folded block a row, the first two open; empty for none. `metric` is what they are sorted by."""
    if not rows:
        return ""
    shown = "".join(_example(row, opened=place < 2) for place, row in enumerate(rows))
    return (
        f"<h2>Examples, worst first</h2><p>{len(rows)} of {total} rows, by the row's own {escape(metric)}. In the "
        "text, gold values are underlined green, values that were answered but are not gold, orange.</p>"
        + shown
    )


def _example(row: ShownRow, opened: bool) -> str:
    systems = list(row.details)
    main = systems[0]
    wrong = [detail.verdict for detail in row.details[main] if detail.verdict not in ("match", "null")]
    tags = "".join(
        f'<span class="tag {kind}">{wrong.count(kind)} {kind}</span>' for kind in dict.fromkeys(wrong)
    )
    if not row.stopped:
        tags += '<span class="tag wrong">did not stop</span>'
    sure = "" if row.confidence is None else f" · confidence {row.confidence:.2f}"
    cells = []
    for place, detail in enumerate(row.details[main]):
        line = [escape(detail.field), text(detail.gold)]
        for system in systems:
            said = row.details[system][place]
            line.append(
                f'<span class="{said.verdict}">{text(said.predicted)}</span><small>{said.verdict}</small>'
            )
        cells.append(line)
    problems = "".join(f'<p class="note">{escape(problem)}</p>' for problem in row.problems)
    raw = "".join(
        f"<h3>{escape(shown_name(name))}</h3><pre>{escape(answer)}</pre>"
        for name, answer in {"gold": row.gold, **row.answers}.items()
    )
    return (
        f"<details{' open' if opened else ''}><summary><b>{escape(row.id)}</b> · {escape(number(row.score))}{sure}"
        f'{tags}</summary><div class="text-in">{_marked(row, main)}</div>{problems}'
        f"{table(['field', 'gold', *map(shown_name, systems)], cells, kind='text')}"
        f"<details><summary>raw answers</summary>{raw}</details></details>"
    )


def _marked(row: ShownRow, system: str) -> str:
    """The input with values underlined: gold ones, and answered ones that are not gold."""
    kinds: dict[str, str] = {}
    for detail in row.details[system]:
        for kind, value in (("given", detail.predicted), ("gold", detail.gold)):
            for part in split_items(value or ""):
                if len(part.strip()) > 1:
                    kinds[part.strip().casefold()] = kind  # gold last: it wins
    if not kinds or len(row.text) > _LONGEST:
        return escape(row.text)
    longest_first = sorted(kinds, key=lambda part: -len(part))
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
    made, at = [], 0
    for found in pattern.finditer(row.text):
        kind = kinds.get(found.group().casefold(), "gold")
        made.append(
            f'{escape(row.text[at : found.start()])}<mark class="{kind}">{escape(found.group())}</mark>'
        )
        at = found.end()
    return "".join(made) + escape(row.text[at:])
