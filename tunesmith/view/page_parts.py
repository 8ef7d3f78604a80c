"""Pieces of HTML that pages share. What comes in as text is escaped here; what comes in as HTML says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tunesmith.view.page_style import STYLE

# a page draws with what it holds: no script, no font, no picture from anywhere, whatever a row's text says
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page that needs no network; `sections` hold HTML, empty ones are left out."""
    text = (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # a model may write half a surrogate pair


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """`rows` hold HTML; `head` is text."""
    body = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for cells in rows]
    top = "".join(f"<th>{escape(column)}</th>" for column in head)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


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
