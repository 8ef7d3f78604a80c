"""Pieces of HTML that pages share. What comes in as text is escaped here; what comes in as HTML says so."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape

from tunesmith.view.page_style import STYLE

# a page draws with what it holds: no font, no picture from anywhere, and no script but the one of its hash, whatever
# a row's text says
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def document(title: str, sections: Iterable[str], script: str = "", skip: str = "") -> str:
    """A whole page that needs no network; `sections` hold HTML, empty ones are left out.

    `script`: JavaScript of ours, the only one that the page's policy lets run. `skip`: the id behind head and links
    that the keyboard reaches first.
    """
    policy = _POLICY
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    text = (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        + (f'<a class="skip" href="#{skip}">Skip to the findings</a>' if skip else "")
        + "<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>"
        + (f"<script>{script}</script>" if script else "")
        + "</body></html>\n"
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # a model may write half a surrogate pair


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "", name: str = "table") -> str:
    """`rows` hold HTML; `head` is text, and `name` what a screen reader says of the part that scrolls.

    Kinds: text, proofs, small, counts, bars, sortable (by the page's script). A row may be a `body_row`.
    """
    body = [row if isinstance(row, str) else body_row(row) for row in rows]
    top = "".join(f'<th scope="col">{escape(column)}</th>' for column in head)
    return scrolling(
        f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table>', name
    )


def body_row(cells: Sequence[str], kind: str = "") -> str:
    """A row of HTML cells, the first of which names it. Kinds: total, small."""
    inside = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{kind}">{inside}</tr>' if kind else f"<tr>{inside}</tr>"


def scrolling(inside: str, name: str) -> str:
    """What may be wider than a phone: it scrolls by itself, also by keyboard, and the page doesn't."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{inside}</div>'


def folded(summary: str, inside: str, opened: bool = False) -> str:
    """`summary` is text, `inside` HTML."""
    return f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>{inside}</details>"


def grid(
    rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[float]], corner: str, name: str,
    right: bool = False,
) -> str:  # fmt: skip
    """Counts as a shaded grid, each cell with its figure. `right`: green where row and column bear the same name.

    A table of HTML and no picture: names of any script, any colours, read aloud as it stands.
    """
    most = max((count for line in counts for count in line), default=0) or 1
    top = "".join(f'<th scope="col">{_short(column)}</th>' for column in columns)
    body = []
    for row, line in zip(rows, counts, strict=True):
        cells = []
        for column, count in zip(columns, line, strict=True):
            kind = " good" if right and row == column else ""
            shade = f' style="--n:{0.08 + 0.62 * count / most:.2f}"' if count else ""
            cells.append(
                f'<td class="cell{kind if count else ""}"{shade}>{count:g}</td>' if count else "<td>·</td>"
            )
        body.append(f'<tr><th scope="row">{_short(row, 44)}</th>{"".join(cells)}</tr>')
    return scrolling(
        f'<table class="grid"><thead><tr><th scope="col">{escape(corner)}</th>{top}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>",
        name,
    )


def _short(name: str, room: int = 28) -> str:
    """A name in a grid: whole in its title."""
    if len(name) <= room:
        return escape(name)
    return f'<span title="{escape(name)}">{escape(name[: room - 1])}…</span>'


def card(label: str, value: str, below: str, kind: str = "") -> str:
    """A large figure with what stands below it, such as its interval."""
    return (
        f'<div class="card {kind}"><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
        f'<div class="range">{escape(below)}</div></div>'
    )


def bar(share: float, said: str, kind: str = "") -> str:
    """A share between 0 and 1 as a bar with its figure beside it."""
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<span class="bar {kind}"><i style="width:{width:.1f}%"></i></span><span class="of">{escape(said)}</span>'


def text(value: str | None) -> str:
    """A value of a field."""
    return '<span class="null">null</span>' if value is None else escape(value)


def facts_list(listed: Iterable[tuple[str, str]]) -> str:
    """Names and what they are, as a definition list."""
    inside = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in listed)
    return f"<dl class=facts>{inside}</dl>"
