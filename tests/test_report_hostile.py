"""What comes from outside (rows, answers, names, kinds of faults) is text on the report's page."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_report import TEST, TRAIN, Tags, fill
from test_report_page_content import changed
from tiny_run import recipe, write_predictions, write_run

from tunesmith.evaluate.report import write_report
from tunesmith.evaluate.score import load_systems
from tunesmith.evaluate.shown import markdown, page
from tunesmith.evaluate.shown.examples import quote
from tunesmith.example import Message
from tunesmith.run import Run
from tunesmith.statistics import Interval
from tunesmith.tasks import make_task
from tunesmith.tasks.protocol import Fault
from tunesmith.view import answer_figures, figures

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</script><script>document.title='x'</script>",
    '" onmouseover="alert(1)', "' autofocus onfocus=alert(1) '", "javascript:alert(1)", "</style><svg onload=alert(1)>",
    "$x_1$ & \\frac", "\u202e", "</details></main><h1>mine</h1>",
]  # fmt: skip


class Handlers(HTMLParser):
    """Elements and attributes that could run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            tag for _ in [0] if tag in ("script", "img", "iframe", "object", "embed", "form", "link")
        ]
        self.found += [name for name, _ in attrs if name.startswith("on") or name in ("autofocus", "srcdoc")]
        self.found += [
            value or ""
            for name, value in attrs
            if name.endswith("href") and not (value or "").startswith("#")
        ]

    handle_startendtag = handle_starttag


class Label(HTMLParser):
    """What a figure is called."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.label = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.label = self.label or dict(attrs).get("aria-label") or ""


def hostile_run(folder: Path) -> Run:
    """Everything that rows and models may write wants out of its place."""
    rows = []
    for number, row in enumerate(TEST):
        bad = HOSTILE[number % len(HOSTILE)]  # half a character can stand in answers alone
        turns = (Message("system", bad), Message("user", f"{row.asked} {bad}"), row.messages[-1])
        rows.append(
            replace(row, id=f"{bad} {number}", messages=turns, slices={bad: HOSTILE[0], "values": "seen"})
        )
    run = write_run(folder / "tiny", TRAIN, test=rows)
    fill(run, rows)
    answers = [json.dumps({"site": bad, "treatment": bad, "stage": bad}) for bad in [*HOSTILE, "\ud83d"]] * 5
    write_predictions(run.predictions / "tuned.jsonl", rows, answers[: len(rows)])
    told = {"base": {"kind": "base", "shown": HOSTILE[0], "note": HOSTILE[1]}}
    run.report.mkdir()
    (run.report / "systems.json").write_text(json.dumps(told))
    return run


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    content = write_report(recipe(), run)
    html = (run.report / "report.html").read_text()
    assert Handlers(html).found == ["script"]  # ours
    assert Tags(html).open == []
    assert Handlers(html.replace("&lt;img ", "<img ")).found != ["script"]  # a leak would be seen
    bad = HOSTILE[1]
    renamed = changed(
        content, run=bad, next=[{"say": bad, "count": 1, "of": 2}],
        meaning=dict.fromkeys(content["meaning"], bad),
        published=[{"system": bad, "value": 0.5, "source": bad, "note": bad}],
    )  # fmt: skip
    for system in renamed["scores"].values():
        system[bad] = system["row_exact"]
    text = page.render(renamed, {}, None)
    assert Handlers(text).found == ["script"] and bad not in text
    assert bad not in markdown.render(renamed)
    for bad in HOSTILE:  # a figure's label is an attribute: quotes matter there
        drawn = figures.svg(answer_figures.reliability([(0.5, 0.5, 9)]), f"Calibration of {bad}")
        assert Handlers(drawn).found == [] and f"Calibration of {bad}" in Label(drawn).label


@pytest.mark.parametrize(
    "name", ["$x_1$ & \\frac", "$", "\u0c95\u0ca8\u0ccd\u0ca8\u0ca1", "<b>", "\u202e" * 40]
)
def test_names_in_figures_are_no_formulas(name: str) -> None:
    found = Interval(0.5, 0.4, 0.6, 9)
    counts = dict.fromkeys(("match", "partly", "wrong", "missed", "hallucinated", "null"), 1)
    drawn = [
        figures.intervals({name: {name: found}}, [name]), figures.outcomes({name: counts}),
        answer_figures.systems({name: ("base", found)}), answer_figures.by_length({name: [(3.0, found)]}, "x", name),
    ]  # fmt: skip
    for number, figure in enumerate(drawn):
        text = figures.svg(figure, f"n{number}")
        assert "<b>" not in text and (name != "$" or ">$<" in text)


def test_kinds_of_faults_of_a_users_task_are_text(tmp_path: Path) -> None:
    from tunesmith.evaluate.shown.page_rows import examples_section

    task = make_task("auto", None, [row.answer or "" for row in TRAIN])
    run = write_run(tmp_path / "tiny", TRAIN, test=TEST)
    fill(run, TEST)
    rows = quote(load_systems(run.predictions, TEST, task)).rows
    rows = [row._replace(faults=(Fault(HOSTILE[3], ""), Fault(HOSTILE[0], ""))) for row in rows]
    assert Handlers(examples_section(rows, 45, HOSTILE[1])).found == []
