"""A redacted report holds no text of rows, whatever the task, and a leak is found."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import recipe, reports, write_predictions, write_run

from tunesmith.evaluate import report
from tunesmith.evaluate.report import write_report
from tunesmith.evaluate.shown.redaction import redacted
from tunesmith.example import Example, Message
from tunesmith.run import Run

MARKER = "Zqxw"


TASKS = ("extraction", "text", "qa", "entities", "records")


def marked(task: str) -> tuple[list[Example], list[Example]]:
    """Rows with the marker in every text; ids, fields and slices are the user's own and bear none."""
    sides = []
    for side in ("train", "test"):
        rows = []
        for row in reports(40, seed=len(side), name=side):
            gold = json.loads(row.answer or "")
            gold = {key: value and f"{value} {MARKER}{value[0]}" for key, value in gold.items()}
            # a person's name that looks like a heading, in one row alone
            said = f"{MARKER} Miller: she came alone" if row.id.endswith("-7") else "Plan: none"
            answer = {
                "extraction": json.dumps(gold),
                "entities": "\n".join(f"- {value}" for value in gold.values() if value),
            }.get(
                task,
                f"{MARKER} {gold['treatment']} was given.\n\nTreatment: {MARKER} {gold['stage']}\n\n{said}",
            )
            asked = f"{row.asked} {MARKER} {' '.join(value for value in gold.values() if value)}"
            turns = (
                Message("system", f"{MARKER} answers"),
                Message("user", asked),
                Message("assistant", answer, learned=True),
            )
            rows.append(replace(row, messages=turns))
        sides.append(rows)
    return sides[0], sides[1]


def leaks(folder: Path) -> list[str]:
    """Which of the three files hold the marker."""
    names = ("report.html", "report.json", "report.md")
    return [name for name in names if MARKER.casefold() in (folder / name).read_text().casefold()]


def marked_run(folder: Path, task: str) -> Run:
    train, test = marked(task)
    run = write_run(folder / "tiny", train, test=test)
    rng = random.Random(2)
    answers = [row.answer or "" for row in test]
    bad = ("{0}", MARKER + " {0}", '{{"' + MARKER + '": 1}}', "{0}\n\n" + MARKER + " Smith: well", "")
    wrong = [rng.choice(bad).format(rng.choice((one, one[:-9], rng.choice(answers)))) for one in answers]
    mixed = [rng.choice(pair) for pair in zip(answers, wrong, strict=True)]
    write_predictions(run.predictions / "tuned.jsonl", test, mixed)
    write_predictions(run.predictions / "base.jsonl", test, wrong)
    return run


@pytest.mark.parametrize("task", TASKS)
def test_a_redacted_report_holds_no_text_of_rows(tmp_path: Path, task: str) -> None:
    run = marked_run(tmp_path, task)
    settings = recipe(evaluate={"task": task})
    write_report(settings, run)
    assert "report.html" in leaks(run.report)  # the marker is where it would leak from
    write_report(settings, run, redact=True)
    assert leaks(run.report) == []
    html = (run.report / "report.html").read_text()
    assert "redacted" in html and 'id="examples"' in html


def test_a_leak_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = marked_run(tmp_path, "extraction")
    monkeypatch.setattr(report, "redacted", lambda content: content)
    write_report(recipe(evaluate={"task": "extraction"}), run, redact=True)
    assert leaks(run.report) == ["report.html", "report.json", "report.md"]  # the confusions


def test_redaction_takes_texts_and_keeps_counts() -> None:
    table = {"title": "t", "columns": ["a"], "rows": [["x"]], "note": "", "kind": "", "quotes": False}
    content = {
        "tables": {"tuned": [table, table | {"quotes": True}]},
        "studies": {"tuned": [table | {"quotes": True}]},
        "faults": {
            "tuned": {"by_kind": [{"kind": "wrong", "times": 2, "gold": MARKER, "predicted": MARKER}]}
        },
        "next": [{"say": "a", "count": 1, "of": 2}, {"say": MARKER, "quotes": True}],
    }
    made = redacted(content)
    assert MARKER not in json.dumps(made)
    assert made["faults"]["tuned"]["by_kind"] == [{"kind": "wrong", "times": 2}]
    assert len(made["tables"]["tuned"]) == len(made["next"]) == 1 and made["redacted"]
