"""Pieces of HTML that the page's sections share. What comes in as text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tunesmith.evaluate.wording import number, range_of, signed


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """`rows` hold HTML; `head` is text."""
    body = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for cells in rows]
    top = "".join(f"<th>{escape(column)}</th>" for column in head)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def value(score: Mapping[str, Any] | None, sign: bool = False) -> str:
    """A score over its interval."""
    if score is None or score["value"] is None:
        return "–"
    shown = signed(score["value"]) if sign else number(score["value"])
    return f"{escape(shown)}<small>{escape(range_of(score, sign))}</small>"


def card(label: str, value: str, below: str, kind: str = "") -> str:
    """A large figure with its interval."""
    return (
        f'<div class="card {kind}"><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
        f'<div class="range">{escape(below)}</div></div>'
    )


def text(value: str | None) -> str:
    """A value of a field."""
    return '<span class="null">null</span>' if value is None else escape(value)
