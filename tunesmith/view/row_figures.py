"""Figures of the rows: their lengths, and how much held-out rows are like training rows.

Half a page wide, so that a phone shows them whole. No text of rows goes in: a font may lack its letters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tunesmith.view.figures import BLUE, GREY, ORANGE, RED, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HALF = 4.8  # inches
_FAR = 1.6  # a limit so much beyond the longest row is told, not drawn
_RANGES = (GREY, BLUE, ORANGE, RED)


def lengths(
    edges: Sequence[float], counts: Sequence[int], max_length: int | None, colour: str = BLUE
) -> Figure:
    """Rows by their tokens, with the limit. `edges` are one more than `counts`."""
    with style():
        figure, axes = _half(2.1)
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.85, linewidth=0)
        axes.set_xlim(min(edges[0], 0), edges[-1])
        if max_length is not None:
            _limit(axes, edges[-1], max_length)
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("tokens")
        axes.set_ylabel("rows")
        axes.locator_params(axis="y", nbins=4, integer=True)
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def similarity(pairs: Mapping[str, Mapping[str, int]]) -> Figure:
    """For each pair of sides: how many held-out rows have their nearest row in which range of Jaccard similarity."""
    names = list(pairs)
    with style():
        figure, axes = _half(0.9 + 0.42 * len(names))
        for row, name in enumerate(names):
            total, left = sum(pairs[name].values()), 0.0
            for colour, (between, rows) in zip(_RANGES, pairs[name].items(), strict=True):
                share = rows / total if total else 0.0
                axes.barh(
                    row, share, left=left, height=0.5, color=colour, label=between if row == 0 else None
                )
                left += share
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.set_xlabel("held-out rows")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=4, handlelength=1, columnspacing=1.0, fontsize=9)
    return figure


def _limit(axes: Axes, longest: float, limit: int) -> None:
    """A line, or an arrow where it would be far outside; its name above the bars."""
    near = limit <= _FAR * longest
    if near:
        axes.axvline(limit, color=RED, linewidth=1.4, linestyle=(0, (4, 2)))
        axes.set_xlim(right=max(longest, limit) * 1.02)
    axes.annotate(
        f"limit {limit:,}" if near else f"limit {limit:,} →", (limit, 1.0) if near else (1.0, 1.0),
        xycoords=("data", "axes fraction") if near else "axes fraction", xytext=(0, 3), textcoords="offset points",
        ha="right" if limit > 0.25 * longest else "left", va="bottom", color=RED, fontsize=9,
    )  # fmt: skip


def _half(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_HALF, height))
    return figure, figure.add_subplot()
