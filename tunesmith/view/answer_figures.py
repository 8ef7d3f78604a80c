"""Figures of answers: systems beside each other, confidence against being right, errors by confidence, length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tunesmith.statistics import Interval
from tunesmith.view.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY, plain, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HALF = 10.0, 4.8  # inches: the page's column, and half of it
_PHONE = 5.0  # still to be read on a phone
_COLOURS = {
    "tuned": BLUE, "base": ORANGE, "prompt": PURPLE, "constrained": GREEN, "exported": SKY, "quantised": SKY,
    "floor": GREY,
}  # fmt: skip
_MARKERS = {
    "tuned": "o", "base": "s", "prompt": "D", "constrained": "^", "exported": "v", "quantised": "v", "floor": "x",
}  # fmt: skip


def systems(scores: Mapping[str, tuple[str, Interval]], published: float | None = None) -> Figure:
    """One metric of each system: a dot with its 95 % interval. `scores`: shown name → (kind, interval).

    `published`: a figure of others on other rows, as a dashed line. Shares lie on a line from 0 to 1.
    """
    with style():
        figure, axes = _figure(_PHONE, 0.55 + 0.27 * len(scores))
        names = list(scores)
        for row, name in enumerate(names):
            kind, found = scores[name]
            if found.value != found.value:
                continue
            colour = _COLOURS.get(kind, RED)
            if found.low == found.low:
                axes.plot(
                    [found.low, found.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="butt"
                )
            axes.plot(
                [found.value],
                [row],
                color=colour,
                marker=_MARKERS.get(kind, "P"),
                markersize=6.5,
                linestyle="",
            )
            end = found.value if found.high != found.high else found.high
            axes.annotate(f"{found.value:.3f}", (max(end, found.value), row), xytext=(7, 0),
                          textcoords="offset points", va="center", fontsize=8.5)  # fmt: skip
        if published is not None:
            axes.axvline(published, color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
            axes.annotate("published, on other rows", (published, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
                          textcoords="offset points", ha="right" if published > 0.5 else "left", va="bottom",
                          fontsize=8)  # fmt: skip
        axes.set_yticks(range(len(names)), [plain(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        values = [x for _, one in scores.values() for x in one[:3] if x == x]
        values += [published] if published is not None else []
        if all(0 <= value <= 1 for value in values):
            axes.set_xlim(-0.01, 1.06)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return figure


def reliability(bins: Sequence[tuple[float, float, int]]) -> Figure:
    """`bins`: (mean confidence, share right, rows). On the diagonal an answer is as often right as it is sure."""
    with style():
        figure, axes = _figure(_HALF, 3.1)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
        most = max((rows for _, _, rows in bins), default=0) or 1
        for sure, right, rows in bins:
            over = sure > right
            axes.plot([sure, sure], [right, sure], color=ORANGE if over else SKY, linewidth=6, alpha=0.55,
                      solid_capstyle="butt")  # fmt: skip
            axes.plot(
                [sure],
                [right],
                marker="o",
                color=BLUE,
                markersize=3.5 + 7 * (rows / most) ** 0.5,
                linestyle="",
            )
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.06)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share right")
        axes.text(0.02, 0.99, "surer than right: orange\nlarger dot: more answers", transform=axes.transAxes, va="top",
                  fontsize=8, alpha=0.8)  # fmt: skip
    return figure


def risk_coverage(points: Sequence[tuple[float, float]]) -> Figure:
    """`points`: (share of rows kept, share wrong among them), the surest first. Flat: confidence tells nothing."""
    with style():
        figure, axes = _figure(_HALF, 3.1)
        kept, wrong = [point[0] for point in points], [point[1] for point in points]
        axes.plot(kept, wrong, color=BLUE, marker="o" if len(points) <= 25 else "", markersize=3.5)
        axes.fill_between(kept, 0, wrong, color=BLUE, alpha=0.12, linewidth=0)
        if points:
            axes.axhline(wrong[-1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, max([*wrong, 0.02]) * 1.15)
        axes.set_xlabel("share kept, the surest first")
        axes.set_ylabel("share wrong among them")
        axes.xaxis.set_major_formatter("{x:.0%}")
    return figure


def by_length(bins: Mapping[str, Sequence[tuple[float, Interval]]], unit: str, metric: str) -> Figure:
    """`bins`: system → (mean length, score of the rows of about that length)."""
    with style():
        figure, axes = _figure(_WIDTH, 2.6)
        for place, (system, found) in enumerate(bins.items()):
            colour, marker = _COLOURS.get(system, RED), _MARKERS.get(system, "P")
            known = [(at, one) for at, one in found if one.value == one.value]
            axes.plot([at for at, _ in known], [one.value for _, one in known], color=colour, marker=marker,
                      markersize=5, linewidth=1.1, label=plain(system))  # fmt: skip
            for at, one in known:
                if one.low == one.low:
                    axes.plot([at, at], [one.low, one.high], color=colour, linewidth=2, alpha=0.5 if place else 0.7,
                              solid_capstyle="butt")  # fmt: skip
        values = [x for found in bins.values() for _, one in found for x in one[:3] if x == x]
        if values and min(values) >= 0 and max(values) <= 1:
            axes.set_ylim(-0.02, 1.04)
        axes.set_xlabel(unit)
        axes.set_ylabel(plain(metric).replace("_", " "))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="best", ncols=2)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()
