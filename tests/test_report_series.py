"""What a report is made from: floors, the rows and the decoding that are chosen, series and figures."""

# ruff: noqa: F401, F811  (fixtures)

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from test_report import TEST, TRAIN, run
from tiny_run import recipe, reports, write_curves, write_run

from tunesmith.evaluate import floors
from tunesmith.rows import Rows
from tunesmith.statistics import Interval
from tunesmith.view import figures
from tunesmith.view.scored import chosen, run_decoding, scored_rows
from tunesmith.view.series import best, gaps, load_series


def test_nearest_row_is_copied_and_reads_other_scripts():
    rows = reports(30, seed=5)
    assert floors.nearest(rows, rows[10:13]) == [row.answer for row in rows[10:13]]
    text = ["ಮಾನವ ಕುಟುಂಬದ ಎಲ್ಲಾ", "ಹಕ್ಕು ಸ್ವಾತಂತ್ರ್ಯ"]
    turns = [type(rows[0].messages[0])("user", one) for one in text]
    train = [type(row)(row.id, (turn, row.messages[1])) for row, turn in zip(rows, turns, strict=False)]
    asked = type(rows[0])("q", (type(turns[0])("user", "ಹಕ್ಕು"), rows[0].messages[1]))
    assert floors.nearest(train, [asked]) == [train[1].answer]


def test_rows_are_chosen_by_hash_and_test_comes_before_validation(tmp_path):
    made = write_run(tmp_path / "tiny", TRAIN, test=TEST, validation=TRAIN[:5])
    found = scored_rows(recipe(evaluate={"rows": 10}), made)
    assert (found.split, found.selected, len(found.examples)) == ("test", False, 10)
    assert [example.id for example in found.examples] == [TEST[i].id for i in chosen(45, 10, 0)]
    assert chosen(45, 10, 0) != chosen(45, 10, 1)
    assert chosen(45, "all", 0) == list(range(45))


def test_longest_answer_leaves_room_for_the_longest_prompt(tmp_path):
    made = write_run(tmp_path / "tiny", TRAIN, test=TEST, validation=TRAIN[:5])
    rows = Rows.open(made.data, "test")
    wanted = int(Rows.open(made.data, "train").learned_counts.max()) * 5 // 4 + 16
    assert run_decoding(recipe(), made).max_tokens == wanted
    longest = max(int(np.flatnonzero(rows.learned(i))[0]) for i in range(len(rows)))
    made.write_json(made.data / "report.json", {"positions": longest + 20})
    assert run_decoding(recipe(), made).max_tokens == 20
    assert run_decoding(recipe(evaluate={"decoding": {"max_tokens": 7}}), made).max_tokens == 7


def test_series_pass_over_a_torn_line_and_give_the_gap(run):
    write_curves(run)
    with run.metrics_file.open("a") as file:
        file.write('{"step": 125, "lo')
    series = load_series(run)
    assert series["loss"].steps[-1] == 120
    assert len(series["validation_loss"].steps) == 6
    found = gaps(series)
    assert [gap.step for gap in found] == [20, 40, 60, 80, 100, 120]
    recent = [v for s, v in zip(series["loss"].steps, series["loss"].values, strict=True) if 115 < s <= 120]
    assert found[-1].training == pytest.approx(sum(recent) / len(recent))
    assert found[-1].gap == pytest.approx(found[-1].validation - found[-1].training)
    assert best(series)[1] == min(series["validation_loss"].values)


def test_figures_are_valid_svg_in_the_page_colour_and_png(run, tmp_path):
    write_curves(run)
    series = load_series(run)
    first = figures.svg(figures.loss_curves(series), "loss")
    assert first == figures.svg(figures.loss_curves(series), "loss")
    ElementTree.fromstring(first.replace("xlink:href", "href"))
    assert "currentColor" in first and figures.INK not in first
    second = figures.svg(
        figures.intervals({"tuned": {"item_f1": Interval(0.5, 0.4, 0.6, 9)}}, ["item_f1"]), "scores"
    )
    ids = re.findall(r'id="([^"]+)"', first) + re.findall(r'id="([^"]+)"', second)
    assert len(ids) == len(set(ids))
    figures.png(figures.step_curves(series), tmp_path / "steps.png")
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")
