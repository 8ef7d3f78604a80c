"""The page's sections that quote rows: frequent mistakes, and examples with gold beside prediction."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from tunesmith.evaluate.shown.examples import SHOWN, Mistake, ShownRow
from tunesmith.evaluate.shown.wording import number
from tunesmith.tasks import Detail
from tunesmith.tasks.normalise import split_items
from tunesmith.tasks.protocol import FAULTS
from tunesmith.view.page_parts import folded, table, text

_LONGEST = 8_000  # characters of a text that are shown: the page stays below 2 MB


def mistakes_section(mistakes: Sequence[Mistake]) -> str:
    """A table of wrong answers that were given more than once; empty for none."""
    if not mistakes:
        return ""
    rows = [
        [escape(one.field), text(one.gold), text(one.predicted), str(one.times), escape(one.row)]
        for one in mistakes
    ]
    head = ["field", "gold", "answered", "times", "one of the rows"]
    return table(head, rows, kind="text sortable", name="Frequent mistakes")


def examples_section(rows: Sequence[ShownRow], total: int, metric: str) -> str:
    """One folded block a row, ordered and filtered by the page's script. `metric` is what `worst` is sorted by."""
    if not rows:
        return ""
    kinds = _kinds(rows)
    common = Counter(row.told for row in rows).most_common(1)[0]
    shared = common[0] if common[0] and common[1] > 1 else ""
    told = folded("What the system was told (system prompt)", f"<pre>{_cut(shared)}</pre>") if shared else ""
    shown = "".join(_example(row, kinds, shared, opened=place < 2) for place, row in enumerate(rows))
    return (
        f"<p>{len(rows)} of {total:,} rows. In the text, gold values are underlined green (double where they were "
        "answered too), answered values that are not gold dashed orange. Confidence: exp of the mean log-probability "
        f"of the answer's tokens. Score: the row's own {escape(metric)}.</p>{told}{_filters(kinds)}"
        f'<div id="rows" data-most="{SHOWN}">{shown}</div>'
    )


def _kinds(rows: Iterable[ShownRow]) -> dict[str, int]:
    """Kinds of faults of these rows, the most harmful first, and how many rows have each."""
    counted = Counter(kind for row in rows for kind in {fault.kind for fault in row.faults})
    return dict(sorted(counted.items(), key=lambda item: (-_harm(item[0]), item[0])))


def _harm(kind: str) -> int:
    return FAULTS.get(kind, (0, ""))[0]


def _filters(kinds: dict[str, int]) -> str:
    """Hidden until the script shows them: without it all rows stand there, the worst first."""
    options = "".join(
        f'<option value="{place}">{escape(kind.replace("_", " "))} ({rows}, harm {_harm(kind)})</option>'
        for place, (kind, rows) in enumerate(kinds.items())
    )
    return (
        '<div id="filters" role="group" aria-label="Order and filter of the examples" hidden><fieldset><legend>First'
        '</legend><label><input type="radio" name="order" value="worst" checked> worst score</label>'
        '<label><input type="radio" name="order" value="harmful"> highest harm</label></fieldset>'
        '<label>Kind of fault <select id="kind"><option value="">any</option>'
        f'{options}</select></label><button type="button" id="unfold" aria-pressed="false">unfold all</button>'
        '<output id="told" aria-live="polite"></output></div>'
    )


def _example(row: ShownRow, kinds: dict[str, int], shared: str, opened: bool) -> str:
    counted = Counter(fault.kind for fault in row.faults)
    places = list(kinds)
    mine = " ".join(str(places.index(kind)) for kind in kinds if kind in counted)
    tags = "".join(
        f'<span class="tag harm{_harm(kind)}">{counted[kind]} {escape(kind.replace("_", " "))}</span>'
        for kind in sorted(counted, key=lambda kind: -_harm(kind))
    )
    sure = "" if row.confidence is None else f" · confidence {row.confidence:.2f}"
    problems = "".join(f'<p class="note">{escape(problem)}</p>' for problem in row.problems)
    told = ""
    if row.told and row.told != shared:
        told = folded("what the system was told (system prompt)", f"<pre>{_cut(row.told)}</pre>")
    raw = "".join(
        f"<div><h4>{escape(name)}</h4><pre>{_cut(answer)}</pre></div>"
        for name, answer in {"gold": row.gold, **row.answers}.items()
    )
    return (
        f'<details{" open" if opened else ""} data-worst="{row.worst}" data-harmful="{row.harmful}" '
        f'data-kinds="{mine}"><summary><b>{escape(row.id)}</b> · {escape(number(row.score))}{sure}{tags}</summary>'
        f'<div class="text-in">{_marked(row)}</div>{problems}{_fields(row)}{told}'
        f"{folded('raw answers', f'<div class=raw>{raw}</div>')}</details>"
    )


def _fields(row: ShownRow) -> str:
    """What was read in the answers, field by field, beside the gold."""
    systems = list(row.details)
    lines = _side_by_side(row.details)
    if not lines:
        return ""
    cells = []
    for (field, gold), found in lines:
        line = [escape(field), text(gold)]
        for system in systems:
            said = found.get(system)
            kind = escape(said.verdict) if said else ""
            line.append(
                f'<span class="{kind}">{text(said.predicted)}</span><small>{kind}</small>' if said else "–"
            )
        cells.append(line)
    return table(["field", "gold", *systems], cells, kind="text", name=f"Answers to {row.id}, read")


def _side_by_side(
    details: Mapping[str, list[Detail]],
) -> list[tuple[tuple[str, str | None], dict[str, Detail]]]:
    """Details of several systems on one line where they are about the same gold; a system may have more of them."""
    lines: dict[tuple[str, str | None, int], dict[str, Detail]] = {}
    for system, found in details.items():
        times: Counter[tuple[str, str | None]] = Counter()
        for one in found:
            key = (one.field, one.gold)
            lines.setdefault((*key, times[key]), {})[system] = one
            times[key] += 1
    return [((field, gold), found) for (field, gold, _), found in lines.items()]


def _cut(whole: str) -> str:
    """Escaped, and not longer than a page can bear."""
    if len(whole) <= _LONGEST:
        return escape(whole)
    return f"{escape(whole[:_LONGEST])}<i>… {len(whole) - _LONGEST:,} more characters in the predictions file</i>"


def _marked(row: ShownRow) -> str:
    """The input with gold and answered values marked: gold by its spans where the row tells of them, else by words."""
    shown = row.text[:_LONGEST]
    kinds = [""] * len(shown)
    main = next(iter(row.details))
    given = _words(detail.predicted for detail in row.details[main])
    for begin, end in _standing(shown, given):
        kinds[begin:end] = ["given"] * (end - begin)
    spans = [(begin, end) for begin, end, _ in row.spans if end <= len(shown)]
    names = {end: kind for _, end, kind in row.spans if end <= len(shown)}
    if len(set(names.values())) < 2:
        names = {}  # one type needs no name
    golds = spans or list(_standing(shown, _words(detail.gold for detail in row.details[main])))
    for begin, end in golds:
        whole = all(kind in ("given", "both") for kind in kinds[begin:end])
        kinds[begin:end] = ["both" if whole else "gold"] * (end - begin)
    return _painted(shown, kinds, names) + _cut(row.text)[len(escape(shown)) :]


def _painted(shown: str, kinds: Sequence[str], names: dict[int, str]) -> str:
    made, at = [], 0
    while at < len(shown):
        end = at + 1
        while end < len(shown) and kinds[end] == kinds[at] and not (kinds[at] and end in names):
            end += 1
        part = escape(shown[at:end])
        if kinds[at]:
            kind = f"<sub>{escape(names[end])}</sub>" if end in names else ""
            part = f'<mark class="{kinds[at]}">{part}{kind}</mark>'
        made.append(part)
        at = end
    return "".join(made)


def _words(values: Iterable[str | None]) -> set[str]:
    parts = (part.strip() for value in values for part in split_items(value or ""))
    return {part.casefold() for part in parts if len(part) > 1}


def _standing(shown: str, values: set[str]) -> Iterable[tuple[int, int]]:
    """Where values stand in a text as whole words, longer ones first."""
    if not values:
        return
    longest_first = sorted(values, key=lambda part: (-len(part), part))
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
    for found in pattern.finditer(shown):
        yield found.span()
