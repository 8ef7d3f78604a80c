"""Figures as SVG for pages (they take the page's text colour, light or dark) and as PNG files.

Colours are Okabe and Ito's, told apart with any colour vision; systems also differ in their markers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.run import write_atomic
from tunesmith.statistics import Interval
from tunesmith.view.series import Series, best

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#0a0b0c"  # stands for the page's text colour; `svg` replaces it by currentColor
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GREY = (
    "#2f86c6", "#e69f00", "#009e73", "#b07aa1", "#56b4e9", "#d55e00", "#8c8c8c",
)  # fmt: skip
SYSTEM_COLOURS = {"tuned": BLUE, "base": ORANGE, "majority": GREY, "nearest": GREY}
_OTHER_COLOURS = (GREEN, PURPLE, SKY, RED)
_MARKERS = "osD^vP"
_WIDTH = 10.0  # inches: the page's column
_VERDICTS = {"match": GREEN, "partly": SKY, "wrong": ORANGE, "missed": GREY, "hallucinated": RED}
_STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"], "font.size": 10, "svg.fonttype": "none",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": INK, "grid.alpha": 0.12, "grid.linewidth": 0.6,
    "legend.frameon": False, "lines.linewidth": 1.6, "figure.constrained_layout.use": True,
}  # fmt: skip


def loss_curves(series: Mapping[str, Series]) -> Figure:
    """Training and validation loss over steps, the gap between them shaded, the best checkpoint marked."""
    with style():
        figure, axes = _figure(_WIDTH, 3.0)
        loss, validation = series["loss"], series.get("validation_loss")
        axes.plot(
            loss.steps, loss.values, color=BLUE, alpha=0.3 if len(loss.steps) > 60 else 1.0, label="training",
            marker=_alone(loss),
        )  # fmt: skip
        smooth = loss.values
        if len(loss.steps) > 60:
            smooth = smoothed(loss.values, window=max(3, len(loss.steps) // 40))
            axes.plot(loss.steps, smooth, color=BLUE, label="training, smoothed")
        if validation is not None:
            axes.plot(
                validation.steps,
                validation.values,
                color=ORANGE,
                marker="o",
                markersize=4,
                label="validation",
            )
            if len(validation.steps) > 1:
                import numpy as np

                below = np.interp(validation.steps, loss.steps, smooth)
                over = np.maximum(below, validation.values)
                axes.fill_between(validation.steps, below, over, color=ORANGE, alpha=0.15, linewidth=0)
            step, value = best(dict(series)) or (0, 0.0)
            axes.plot(
                [step], [value], marker="o", markersize=9, markerfacecolor="none", color=ORANGE, linestyle="",
                label=f"best: {value:.3f} at step {step}",
            )  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per token")
        _whole_steps(axes)
        frame_losses(axes, [*smooth, *(validation.values if validation else [])])
        axes.legend(loc="upper right", ncols=4)
    return figure


def step_curves(series: Mapping[str, Series]) -> Figure:
    """Learning rate, gradient norm and speed: what a step was like."""
    names = [name for name in ("learning_rate", "gradient_norm", "tokens_per_second") if name in series]
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(_WIDTH, 1.8))
        for place, name in enumerate(names, start=1):
            axes = figure.add_subplot(1, len(names), place)
            one = series[name]
            axes.plot(one.steps, one.values, color=BLUE, linewidth=1.2, marker=_alone(one))
            _whole_steps(axes)
            axes.set_title(name.replace("_", " "), fontsize=10, loc="left")
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
            axes.yaxis.get_offset_text().set_fontsize(7)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("step", fontsize=8)
    return figure


def intervals(scores: Mapping[str, Mapping[str, Interval]], metrics: Sequence[str]) -> Figure:
    """Each metric of each system as a dot with its 95 % interval. All metrics lie between 0 and 1."""
    systems = list(scores)
    with style():
        figure, axes = _figure(_WIDTH, 0.6 + (0.11 * len(systems) + 0.12) * len(metrics))
        named: set[str] = set()  # the first metric may have no value of theirs
        for number, system in enumerate(systems):
            colour = SYSTEM_COLOURS.get(system) or _OTHER_COLOURS[number % len(_OTHER_COLOURS)]
            for row, metric in enumerate(metrics):
                found = scores[system].get(metric)
                if found is None or found.value != found.value:
                    continue
                at = row + (number - (len(systems) - 1) / 2) * 0.8 / len(systems)
                axes.plot([found.low, found.high], [at, at], color=colour, linewidth=2, solid_capstyle="butt")
                axes.plot(
                    [found.value], [at], color=colour, marker=_MARKERS[number % len(_MARKERS)], markersize=5,
                    linestyle="", label=None if system in named else plain(system),
                )  # fmt: skip
                named.add(system)
        axes.set_yticks(range(len(metrics)), [plain(metric.replace("_", " ")) for metric in metrics])
        axes.set_ylim(len(metrics) - 0.4, -0.6)
        axes.set_xlim(-0.01, 1.01)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=len(systems), handletextpad=0.1, columnspacing=1.2)
    return figure


def outcomes(fields: Mapping[str, Mapping[str, int]]) -> Figure:
    """What became of each field's gold values, as shares; to the right, values given where the gold is null."""
    names = list(fields)
    with style():
        figure, axes = _figure(_WIDTH, 0.75 + 0.27 * len(names))
        for row, name in enumerate(names):
            total = sum(fields[name][verdict] for verdict in ("match", "partly", "wrong", "missed"))
            left = 0.0
            for verdict in ("match", "partly", "wrong", "missed"):
                share = fields[name][verdict] / total if total else 0.0
                axes.barh(row, share, left=left, height=0.66, color=_VERDICTS[verdict],
                          label=verdict if row == 0 else None)  # fmt: skip
                left += share
            nulls = fields[name]["hallucinated"] + fields[name]["null"]
            share = fields[name]["hallucinated"] / nulls if nulls else 0.0
            axes.barh(row, share * 0.3, left=1.06, height=0.66, color=_VERDICTS["hallucinated"],
                      label="hallucinated" if row == 0 else None)  # fmt: skip
            axes.text(
                1.06 + share * 0.3 + 0.008,
                row,
                f"{fields[name]['hallucinated']} of {nulls}",
                va="center",
                fontsize=8,
            )
        axes.set_yticks(range(len(names)), [plain(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1.5)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0, 1.06], ["0", "", "0.5", "", "1", "  of nulls"])
        axes.get_xticklabels()[-1].set_horizontalalignment("left")
        axes.grid(visible=False)
        axes.tick_params(axis="both", length=0)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=5, handlelength=1, columnspacing=1.2)
    return figure


def svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element for a page: same bytes for the same data, text in the page's colour.

    `name` becomes its accessible label and keeps the ids of several figures on one page apart.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace("#000000", "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", name)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}-", text)
    size = re.search(r'width="([\d.]+)pt" height="[\d.]+pt"', text)
    width = f' style="max-width:{float(size[1]) * 4 / 3:.0f}px"' if size else ""
    text = re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(name)}" width="100%"{width}', 1).strip()


def png(figure: Figure, path: Path) -> None:
    """The figure as a PNG file on white, whole or not at all."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    write_atomic(path, buffer.getvalue())


def style() -> AbstractContextManager[Any]:
    """What all figures share: fonts, colours, grid."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def plain(name: str, room: int = 26) -> str:
    """A name as matplotlib takes it: no mathematics between dollars, no letters that its measuring font lacks."""
    short = name if len(name) <= room else f"{name[: room - 1]}…"
    known = (sign if (sign.isascii() and sign.isprintable()) or sign == "…" else "?" for sign in short)
    return "".join(known).replace("$", r"\$")


def _alone(series: Series) -> str:
    """A line of one point is none: it gets a dot."""
    return "o" if len(series.steps) == 1 else ""


def _whole_steps(axes: Axes) -> None:
    """No half steps below the line."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins="auto", min_n_ticks=1))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def frame_losses(axes: Axes, values: Sequence[float]) -> None:
    """Keeps a few wild first steps from flattening the rest."""
    ordered = sorted(value for value in values if value == value)
    if not ordered:
        return
    usual = ordered[int(0.97 * (len(ordered) - 1))] if len(ordered) > 30 else ordered[-1]
    top = max(usual * 1.15, ordered[0] * 1.05)
    axes.set_ylim(max(0.0, ordered[0] - 0.08 * (top - ordered[0])), top)
