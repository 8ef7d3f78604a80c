"""One picture of one or more runs: loss and validation, the gap, learning rate, gradient norm, speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunesmith.view.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    frame_losses,
    smoothed,
    style,
)
from tunesmith.view.series import Series, best, gaps
from tunesmith.view.words import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, dict[str, Series]]
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, GREY)
_MARKERS = "osD^vPX"
_BEST: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "linestyle": ""}
_MANY = 60  # logged steps from which on the single ones stand back behind their mean
_SMALL = (
    ("learning_rate", "learning rate", "peak at the end of warm-up"),
    ("gradient_norm", "gradient norm", "before clipping"),
    ("tokens_per_second", "speed, tokens/s", "validation and checkpoints left out"),
)


def overlay(runs: Curves) -> Figure:
    """`runs`: name → its series (view.series.load_series), in the order of the legend."""
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 8))
        grid = figure.add_gridspec(3, 2, height_ratios=(1.7, 1, 1))
        losses = figure.add_subplot(grid[0, :])
        _losses(losses, runs)
        _gap(figure.add_subplot(grid[1, 0], sharex=losses), runs)
        for place, (name, title, about) in zip(((1, 1), (2, 0), (2, 1)), _SMALL, strict=True):
            _small(figure.add_subplot(grid[place], sharex=losses), runs, name, title, about)
        if len(runs) > 1:
            _name_runs(figure, runs)
        else:
            figure.suptitle(next(iter(runs)), x=0.01, ha="left", fontsize=11)
    return figure


def _name_runs(figure: Figure, runs: Curves) -> None:
    """A colour each, above all panels; the marker of its validations, where it has some."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D(
            [], [], color=_colour(i), marker=_marker(i) if "validation_loss" in series else "", markersize=5
        )
        for i, series in enumerate(runs.values())
    ]
    columns = min(len(runs), 4)
    labels = [shortened(name, 100 // columns) for name in runs]
    figure.legend(lines, labels, loc="outside upper left", ncols=columns, columnspacing=1.4)


def _losses(axes: Axes, runs: Curves) -> None:
    shown: list[float] = []
    alone = len(runs) == 1
    for number, series in enumerate(runs.values()):
        loss, validation = series.get("loss"), series.get("validation_loss")
        if loss is not None:
            curve = loss.values
            if len(loss.steps) > _MANY:
                axes.plot(loss.steps, loss.values, color=_colour(number), alpha=0.25, linewidth=0.9)
                curve = smoothed(loss.values, window=max(3, len(loss.steps) // 40))
            few = {"marker": ".", "markersize": 5} if len(loss.steps) <= 20 else {}
            axes.plot(loss.steps, curve, color=_colour(number), linewidth=1.6, **few)  # type: ignore[arg-type]
            shown += curve
        if validation is not None:
            colour = ORANGE if alone else _colour(number)
            axes.plot(
                validation.steps, validation.values, color=colour, linestyle=(0, (4, 2)), linewidth=1.3,
                marker=_marker(number), markersize=4.5,
            )  # fmt: skip
            shown += validation.values
            step, value = best(series) or (0, 0.0)
            axes.plot([step], [value], color=colour, **_BEST)
    axes.set_title("loss, nats per token", fontsize=10, loc="left")
    axes.set_xlabel("step")
    frame_losses(axes, shown)
    _name_lines(axes, runs)


def _name_lines(axes: Axes, runs: Curves) -> None:
    """What solid and dashed mean, in grey where the colours stand for runs."""
    from matplotlib.lines import Line2D

    alone = len(runs) == 1
    train, valid = (BLUE, ORANGE) if alone else (INK, INK)
    lines, labels = [Line2D([], [], color=train)], ["training"]
    if any(len(series["loss"].steps) > _MANY for series in runs.values() if "loss" in series):
        labels = ["training (pale: each logged step, full: their mean)"]
    if any("validation_loss" in series for series in runs.values()):
        lines += [
            Line2D([], [], color=valid, linestyle=(0, (4, 2)), marker="o", markersize=4.5),
            Line2D([], [], color=valid, **_BEST),
        ]
        # its figure stands here: beside the ring there is often a curve
        step, value = best(next(iter(runs.values()))) or (0, 0.0)
        labels += ["validation", f"best: {value:.3f} at step {step}" if alone else "best validation"]
    axes.legend(lines, labels, loc="upper right", ncols=3, fontsize=9)


def _gap(axes: Axes, runs: Curves) -> None:
    found = False
    for number, series in enumerate(runs.values()):
        points = [(one.step, one.gap) for one in gaps(series) if one.gap is not None]
        if points:
            found = True
            steps, values = zip(*points, strict=True)
            axes.plot(
                steps, values, color=_colour(number), marker=_marker(number), markersize=4, linewidth=1.3
            )
            if len(runs) == 1:
                axes.fill_between(steps, 0, values, color=ORANGE, alpha=0.15, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    _headed(axes, "gap: validation − training", "nats per token; growing: overfitting")
    if not found:
        _nothing(axes, "no validation yet")


def _small(axes: Axes, runs: Curves, name: str, title: str, about: str) -> None:
    found = {number: series[name] for number, series in enumerate(runs.values()) if name in series}
    covered = False
    for number, series in found.items():
        few = {"marker": ".", "markersize": 4} if len(series.steps) <= 20 else {}
        # what the later ones would hide shows as a rim
        over = sum(_covers(later, series) for at, later in found.items() if at > number)
        covered |= over > 0
        axes.plot(
            series.steps, series.values, color=_colour(number), linewidth=1.3 + 2 * over,
            **few,  # type: ignore[arg-type]
        )  # fmt: skip
    _headed(axes, title, "wide: the same as another's" if covered else about)
    if not found:
        _nothing(axes, "not logged yet")
        return
    if name == "learning_rate":
        axes.yaxis.set_major_formatter(lambda value, _: _power(value))
    if name == "tokens_per_second":
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylim(bottom=0)


def _covers(later: Series, series: Series) -> bool:
    """Whether the two lie on each other wherever both are."""
    there = dict(zip(later.steps, later.values, strict=True))
    both = [
        there[step] == value for step, value in zip(series.steps, series.values, strict=True) if step in there
    ]
    return bool(both) and all(both)


def _power(value: float) -> str:
    """2e-4, as recipes write it."""
    if abs(value) < 1e-12:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _headed(axes: Axes, title: str, about: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.text(1, 1.02, about, transform=axes.transAxes, ha="right", va="bottom", fontsize=8, alpha=0.65)
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8.5)


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, alpha=0.65)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]
