"""What the report says and in which order: first line, systems, studies, faults, examples, weight and colours."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
from test_report import TEST, TRAIN, Tags, fill
from tiny_run import guess, recipe, reports, write_predictions, write_run

from tunesmith.evaluate.report import write_report
from tunesmith.evaluate.score import load_systems
from tunesmith.evaluate.shown import markdown, page, page_head
from tunesmith.evaluate.shown.examples import quote
from tunesmith.evaluate.shown.findings import doubts, first_line, is_warning, sentences
from tunesmith.evaluate.shown.page_tables import studies_section
from tunesmith.evaluate.shown.wording import listed_metrics, ordered
from tunesmith.example import Example, Message
from tunesmith.run import Run
from tunesmith.statistics import Interval
from tunesmith.tasks import make_task
from tunesmith.verbs.run import _outcome
from tunesmith.view import figures
from tunesmith.view.page_parts import grid
from tunesmith.view.page_style import STYLE
from tunesmith.view.series import Series


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """A run with several kinds of systems, and its report."""
    run = write_run(tmp_path_factory.mktemp("run") / "tiny", TRAIN, test=TEST)
    fill(run, TEST)
    rng = random.Random(5)
    for name, skill in (
        ("3-shot", 0.6),
        ("zero-shot", 0.4),
        ("tuned-constrained", 0.9),
        ("base-constrained", 0.3),
    ):
        write_predictions(run.predictions / f"{name}.jsonl", TEST, [guess(row, rng, skill) for row in TEST])
    told = {
        "3-shot": {"kind": "prompt", "shown": "base, 3-shot", "note": "three rows as earlier turns"},
        "zero-shot": {"kind": "prompt", "shown": "base, zero-shot", "note": ""},
        "tuned-constrained": {"kind": "constrained", "shown": "tuned, constrained", "note": ""},
        "base-constrained": {"kind": "constrained", "shown": "base, constrained", "note": ""},
    }
    run.report.mkdir()
    (run.report / "systems.json").write_text(json.dumps(told))
    return run, write_report(recipe(), run)


def changed(content: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A report's content with some of its keys otherwise."""
    return json.loads(json.dumps(content)) | keys


def with_difference(
    content: dict[str, Any], value: float, low: float, high: float, **more: Any
) -> dict[str, Any]:
    headline = content["headline"] | {"difference": {"value": value, "low": low, "high": high}} | more
    return changed(content, headline=headline, documents=200)


# ---- the first line


@pytest.mark.parametrize(
    "interval, better, says",
    [
        ((-0.2, -0.3, -0.1), "higher", "The tuned model is worse than its base"),
        ((-0.1, -0.3, 0.1), "higher", "scores worse than its base"),
        ((0.2, 0.1, 0.3), "lower", "The tuned model is worse than its base"),
        ((0.2, 0.1, 0.3), "higher", None),
        ((-0.2, -0.3, -0.1), "lower", None),
    ],
)
def test_first_line_says_that_tuning_made_it_worse(
    made: tuple[Run, dict[str, Any]], interval: tuple[float, float, float], better: str, says: str | None
) -> None:
    content = with_difference(made[1], *interval, better=better)
    if says is None:
        assert "worse" not in first_line(content) and not is_warning(content)
        return
    assert says in first_line(content) and is_warning(content)
    html = page.render(content, {}, None)
    assert says in html.split("<main>")[1].split("</p>")[0]
    assert says in markdown.render(content).split("\n")[0]


def test_a_headline_with_unread_answers_is_no_good_news(made: tuple[Run, dict[str, Any]]) -> None:
    content = changed(made[1])
    assert doubts(content) == []
    assert "doubt" not in page.render(content, {}, None).split("<main>")[1]
    content["scores"]["tuned"]["parse_rate"]["value"] = 0.6
    assert "Only 60.0 % of the answers of tuned can be read" in first_line(content)
    assert 'class="card tuned doubt"' in page.render(content, {}, None)
    likely = changed(content, headline=content["headline"] | {"from": "likelihood"})
    assert doubts(likely) == []  # it stands on the gold answers, not on what was written
    few = changed(made[1])
    few["scores"]["tuned"]["item_f1"]["n"] = 40
    assert "Only 40 of 45 rows were scored" in first_line(few)


def test_a_floor_that_is_better_is_said_to_be(made: tuple[Run, dict[str, Any]]) -> None:
    below, unclear = ({"value": -0.2, "low": -0.3, "high": high} for high in (-0.1, 0.1))
    said = sentences(changed(made[1], documents=200, over_floors={"nearest": below, "majority": unclear}))
    assert "It scores worse than the nearest row floor, which needs no model." in said
    assert "It is not shown to beat the majority floor, which needs no model." in said


def test_an_answer_that_can_t_be_read_is_no_frequent_mistake(tmp_path: Path) -> None:
    task = make_task("auto", None, [row.answer or "" for row in TRAIN])
    for answer, counted in (
        (json.dumps({"site": None, "treatment": None, "stage": None}), True),
        ("none", False),
    ):
        write_predictions(tmp_path / "tuned.jsonl", TEST, [answer] * len(TEST))
        assert bool(quote(load_systems(tmp_path, TEST, task)).mistakes) is counted


# ---- systems


def test_systems_stand_in_order_with_their_kinds(made: tuple[Run, dict[str, Any]]) -> None:
    run, content = made
    assert ordered(content) == [
        "tuned", "base", "3-shot", "zero-shot", "base-constrained", "tuned-constrained", "majority", "nearest",
    ]  # fmt: skip
    html = (run.report / "report.html").read_text()
    table = html.split('id="systems"')[1].split("</table>")[0]
    rows = [re.sub(r"<[^>]+>", " ", row) for row in table.split("<tbody>")[1].split("<tr")[1:]]
    assert len(rows) == 8
    assert "three rows as earlier turns" in rows[2] and "base with a prompt" in rows[2]
    assert "| base, 3-shot | three rows" in (run.report / "report.md").read_text()


@pytest.mark.parametrize(
    "over, says",
    [
        ((0.3, 0.2, 0.4), "Yes, on these rows"),
        ((0.1, -0.1, 0.3), "These rows don't show it"),
        ((-0.3, -0.4, -0.2), "No, prompting does better"),
    ],
)
def test_is_tuning_worth_it_over_prompting(
    made: tuple[Run, dict[str, Any]], over: tuple[float, float, float], says: str
) -> None:
    found = dict(zip(("value", "low", "high"), over, strict=True)) | {"n": 45}
    content = changed(made[1], documents=200, over_prompts={"3-shot": found, "zero-shot": found})
    (said,) = [one for one in sentences(content) if "worth it over prompting" in one]
    assert says in said and "base, 3-shot" in said  # the better of the two
    assert not any("prompting" in one for one in sentences(changed(made[1], over_prompts={})))


def test_free_and_constrained_answers_stand_side_by_side(made: tuple[Run, dict[str, Any]]) -> None:
    content = made[1]
    value = {
        name: f"{content['scores'][name]['item_f1']['value']:.3f}" for name in ("tuned", "tuned-constrained")
    }
    said = " ".join(sentences(content))
    assert f"tuned {value['tuned']} free and {value['tuned-constrained']} held" in said


def test_a_published_figure_is_marked_as_of_other_rows(made: tuple[Run, dict[str, Any]]) -> None:
    one = {"system": "A <model>", "value": 0.83, "source": "a paper", "note": "test"}
    html = page.render(changed(made[1], published=[one]), {}, None)
    assert "on other rows" in html and "A &lt;model&gt;" in html and "0.830" in html
    assert "published, on other rows" in markdown.render(changed(made[1], published=[one]))
    assert "on other rows" not in page.render(changed(made[1], published=[]), {}, None)


def test_less_is_better_is_said(made: tuple[Run, dict[str, Any]]) -> None:
    html = (made[0].report / "report.html").read_text()
    assert "missed ↓" in html and "item_recall ↓" not in html
    assert "where lower is better" in page.render(
        with_difference(made[1], -1, -2, -0.5, better="lower"), {}, None
    )


# ---- studies, slices, faults


def test_confusions_become_a_grid_or_a_list() -> None:
    def drawn(rows: Sequence[Sequence[Any]]) -> str:
        table = {"title": "Confusions: x", "columns": ["gold", "answered", "times"], "rows": rows, "note": "",
                 "kind": "confusion", "quotes": True}  # fmt: skip
        content = {"studies": {"tuned": [table]}, "scores": {"tuned": {}}, "systems": {}}
        return studies_section(content)

    square = drawn([["II", "II", 9], ["II", "IV", 2], ["IV", "IV", 5]])
    assert 'class="grid"' in square and 'class="cell good"' in square
    many = drawn([[f"<{i}>", f"{i}!", 2] for i in range(30)])
    assert 'class="grid"' not in many and "&lt;3&gt;" in many and Tags(f"<main>{many}</main>").open == []


def test_a_grid_holds_its_counts() -> None:
    text = grid(["a<b", "c"], ["a<b", "d"], [[3, 0], [0, 1]], "gold", "name", right=True)
    assert re.findall(r'<td class="cell( good)?"[^>]*>(\d+)', text) == [(" good", "3"), ("", "1")]
    assert "a<b" not in text


def test_calibration_and_risk_are_drawn(made: tuple[Run, dict[str, Any]]) -> None:
    studies = {
        "tuned": [
            {"title": "Calibration", "columns": ["confidence", "right", "rows"],
             "rows": [[0.3, 0.2, 40], [0.9, 0.7, 60]], "note": "ECE 0.100", "kind": "calibration", "quotes": False},
            {"title": "Risk", "columns": ["kept", "wrong"], "rows": [[0.1, 0.0], [1.0, 0.3]], "note": "",
             "kind": "risk_coverage", "quotes": False},
        ]
    }  # fmt: skip
    html = page.render(changed(made[1], studies=studies), {}, None)
    part = html.split('id="studies"')[1].split("</section>")[0]
    assert part.count("<svg") == 2 and "ECE 0.100" in part and part.count("<details>") == 2


def test_small_slices_are_grey(made: tuple[Run, dict[str, Any]]) -> None:
    part = (made[0].report / "report.html").read_text().split('id="slices"')[1]
    assert re.search(r'<tr class="small"><td>values: unseen', part)
    assert re.search(r"<tr><td>values: seen", part)


def test_faults_are_told_by_kind_and_slice(made: tuple[Run, dict[str, Any]]) -> None:
    run, content = made
    found = content["faults"]["tuned"]
    part = (run.report / "report.html").read_text().split('id="faults"')[1].split("</section>")[0]
    for kind in found["by_kind"]:
        assert escape(kind["meaning"]) in part
        assert f"{kind['rows']:,} · " in part
    assert "values: seen" in part
    assert found["by_kind"][0]["kind"] in (run.report / "report.md").read_text()


# ---- examples


def test_examples_come_in_two_orders_and_show_each_kind(made: tuple[Run, dict[str, Any]]) -> None:
    run, _ = made
    task = make_task("auto", None, [row.answer or "" for row in TRAIN])
    systems = load_systems(run.predictions, TEST, task)
    shown = quote(systems, limit=6).rows
    assert [row.worst for row in shown] == list(range(len(shown)))
    by_harm = sorted(shown, key=lambda row: row.harmful)
    assert any(fault.kind == "hallucinated" for fault in by_harm[0].faults)
    everywhere = {fault.kind for row in quote(systems, limit=len(TEST)).rows for fault in row.faults}
    assert {fault.kind for row in shown for fault in row.faults} == everywhere
    html = (run.report / "report.html").read_text()
    options = re.findall(r"<option value=\"(\d*)\">([^<]*)", html)
    assert options[0] == ("", "any") and "harm 4" in options[1][1]
    for kinds in re.findall(r'data-kinds="([\d ]*)"', html):
        assert set(kinds.split()) <= {value for value, _ in options}


def test_spans_are_marked_where_facts_give_them() -> None:
    text = "List them.\n\nLithium helps; lithium carbonate and nausea too."
    facts = {
        "kind": "entities", "types": ["chemical"], "article": [12, len(text), len(text) - 12],
        "mentions": [[0, 7, "Lithium", "chemical", ["D1"]], [15, 32, "lithium carbonate", "chemical", ["D2"]],
                     [37, 43, "nausea", "disease", ["D3"]], [0, 4, "nope", "chemical", []]],
    }  # fmt: skip
    turns = (Message("user", text), Message("assistant", "- Lithium\n- lithium carbonate", learned=True))
    from tunesmith.evaluate.shown.examples import _spans

    found = [text[begin:end] for begin, end, _ in _spans(Example("1", turns, facts=facts))]
    assert found == ["Lithium", "lithium carbonate"]


# ---- its weight and its colours


def test_a_thousand_long_rows_stay_below_two_megabytes(
    made: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    rows = reports(1000, seed=8, name="test")
    long = "The patient was seen again, and nothing else is said of it. " * 140
    rows = [replace(row, messages=(Message("user", f"{row.asked} {long}"), row.messages[-1])) for row in rows]
    rng = random.Random(3)
    for system, skill in (("tuned", 0.4), ("base", 0.2)):
        answers = [
            guess(row, rng, skill) + long[: 9000 * (number % 10 == 0)] for number, row in enumerate(rows)
        ]
        write_predictions(tmp_path / f"{system}.jsonl", rows, answers)
    task = make_task("auto", None, [row.answer or "" for row in TRAIN])
    quoted = quote(load_systems(tmp_path, rows, task))
    assert len(quoted.rows) >= 25
    html = page.render(made[1], {}, quoted)
    assert len(html.encode()) < 2_000_000
    assert "more characters in the predictions file" in html


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's ratio."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


TEXTS = ("ink", "soft", "good", "bad", "grey", "tuned")
PAIRS = [(text, ground) for text in TEXTS for ground in ("paper", "panel")]
PAIRS += [("warn-ink", "warn"), ("stop-ink", "stop"), ("good", "calm")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_in_both_schemes(scheme: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0 if scheme == "light" else 1]))
    low = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in PAIRS}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}
    assert contrast("#777777", "#ffffff") < 4.5 < contrast("#767676", "#ffffff")  # WCAG's own example


def test_every_system_of_a_figure_is_in_its_legend() -> None:
    """The headline may be one that floors don't have, such as bits per byte."""
    here = Interval(0.5, 0.4, 0.6, 9)
    figure = figures.intervals({"tuned": {"a": here, "b": here}, "nearest": {"b": here}}, ["a", "b"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["tuned", "nearest"]


def test_one_logged_step_is_a_dot_at_a_whole_number() -> None:
    one = {name: Series(name, [3], [1.0]) for name in ("loss", "learning_rate", "gradient_norm")}
    for figure in (figures.loss_curves(one), figures.step_curves(one)):
        for axes in figure.axes:
            assert axes.lines[0].get_marker() == "o"
            assert all(tick == round(tick) for tick in axes.get_xticks())


def test_a_worse_model_is_said_to_be_in_the_terminal_too(
    made: tuple[Run, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "tiny")
    shutil.copytree(made[0].path, run.path)
    write_report(recipe(), run)
    _outcome(run)
    assert "worse" not in capsys.readouterr().err
    for name, other in (("tuned", "base"), ("base", "tuned")):
        shutil.copy(made[0].predictions / f"{name}.jsonl", run.predictions / f"{other}.jsonl")
    write_report(recipe(), run)
    _outcome(run)
    assert "The tuned model is worse than its base: item_f1" in " ".join(capsys.readouterr().err.split())


def test_a_section_without_findings_is_not_empty(
    made: tuple[Run, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a file that was scored alone, and that no step comes from."""
    monkeypatch.setattr(page_head, "sentences", lambda content: [])
    assert page_head.findings(changed(made[1], next=[])).startswith("<p>Nothing to say")
    assert "Nothing to say" not in page_head.findings(
        changed(made[1], next=[{"say": "Look.", "count": 3, "of": 9}])
    )


def test_the_head_has_no_signature_of_a_scorer(made: tuple[Run, dict[str, Any]]) -> None:
    content = changed(made[1])
    content["meaning"]["item_f1"] = "shared letters; nrefs:1|case:mixed; without phrases; headline"
    said = page_head.head(content)
    assert "item_f1: shared letters; without phrases<" in said and "nrefs" not in said
    assert "nrefs:1|case:mixed" in page.render(content, {}, None)


def test_the_headline_is_the_first_of_the_scores(made: tuple[Run, dict[str, Any]]) -> None:
    content = changed(made[1], headline=made[1]["headline"] | {"metric": "parse_rate"})
    assert listed_metrics(content)[0] == "parse_rate" and listed_metrics(content).count("parse_rate") == 1
    assert set(listed_metrics(content)) == set(listed_metrics(made[1]))
