"""plot: one picture of one or more runs, while they still train."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from test_runs import make_run

from tunesmith.cli import main
from tunesmith.run import Run
from tunesmith.view.overlay import overlay
from tunesmith.view.series import gaps, load_series


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "three", "four"):
        make_run(tmp_path / "runs", name, phase="train", step=1)
    make_run(tmp_path / "runs", "empty", phase="prepare", curves=False)
    return tmp_path / "runs"


@pytest.mark.parametrize("names", [["one"], ["one", "two", "three", "four"], ["one", "empty"]])
def test_a_picture(runs: Path, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with (runs / "one" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 125, "lo')  # the run writes this very moment
    assert main(["plot", *names, "--json"]) == 0
    said = capsys.readouterr()
    out = Path(json.loads(said.out.splitlines()[-1])["out"])
    assert out == Path("one.png" if len(names) == 1 else f"one-and-{len(names) - 1}-more.png")
    with Image.open(out) as image:
        assert image.size == (1600, 1280)
        colours = {colour for count, colour in image.convert("RGB").getcolors(1 << 24) if count > 100}
    assert (0x2F, 0x86, 0xC6) in colours  # the first run's curve
    assert ("no step is logged yet in empty" in said.err) == ("empty" in names)


def test_every_curve_is_what_was_logged(runs: Path) -> None:
    """The figure's own lines, point by point; a mutant that drops a run or a series can't draw them."""
    curves = {name: load_series(Run(runs / name)) for name in ("one", "two")}
    curves["two"]["loss"].values[:] = [value + 1 for value in curves["two"]["loss"].values]
    loss, gap, rate, norm, speed = overlay(curves).axes
    for axes, name in (
        (loss, "loss"),
        (rate, "learning_rate"),
        (norm, "gradient_norm"),
        (speed, "tokens_per_second"),
    ):
        drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
        for series in curves.values():
            assert (series[name].steps, series[name].values) in drawn
    validated = [list(line.get_ydata()) for line in loss.lines]
    assert curves["one"]["validation_loss"].values in validated
    assert [one.gap for one in gaps(curves["two"])] in [list(line.get_ydata()) for line in gap.lines]
    assert [text.get_text() for text in loss.figure.legends[0].get_texts()] == ["one", "two"]
    assert (
        loss.get_title(loc="left") == "loss, nats per token"
        and speed.get_title(loc="left") == "speed, tokens/s"
    )


def test_nothing_logged_yet(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "empty"]) == 2
    assert "no step is logged yet in empty" in capsys.readouterr().err
    assert not list(runs.parent.glob("*.png"))


def test_only_a_png(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "one", "--out", "one.svg"]) == 2
    assert "--out one.png" in capsys.readouterr().err


def test_same_name_from_two_places(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "other", "one", phase="train", step=1)
    assert main(["plot", "one", "other/one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == [f"runs{os.sep}one", "other/one"]


def test_no_words_lie_on_a_curve(runs: Path) -> None:
    """The best loss is told in the legend: beside its ring there is a curve, wherever it is."""
    curves = {"one": load_series(Run(runs / "one"))}
    losses = overlay(curves).axes[0]
    assert len(losses.texts) == 0
    found = losses.get_legend()
    assert found is not None and "best: 0.511 at step 100" in [text.get_text() for text in found.get_texts()]


def test_a_wide_line_is_explained_and_only_there(runs: Path) -> None:
    curves = {name: load_series(Run(runs / name)) for name in ("one", "two")}
    curves["two"]["gradient_norm"].values[3] += 1
    rates, norms = overlay(curves).axes[2:4]
    assert rates.lines[0].get_linewidth() > rates.lines[1].get_linewidth()
    assert [text.get_text() for text in rates.texts] == ["wide: the same as another's"]
    assert norms.lines[0].get_linewidth() == norms.lines[1].get_linewidth()
    assert [text.get_text() for text in norms.texts] == ["before clipping"]


def test_a_marker_of_the_legend_is_in_the_picture(runs: Path) -> None:
    curves = {name: load_series(Run(runs / name)) for name in ("one", "two")}
    del curves["two"]["validation_loss"]
    figure = overlay(curves)
    assert [line.get_marker() for line in figure.legends[0].get_lines()] == ["o", ""]
    drawn = {line.get_marker() for axes in figure.axes for line in axes.lines}
    assert "o" in drawn and "s" not in drawn


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder in which nobody may write")
def test_a_place_where_nobody_may_write(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "one", "--out", "/proc/one.png"]) == 2
    assert "fix:   --out FILE" in capsys.readouterr().err
