"""Bad input to evaluate, evaluate --from and compare: each is a clear error that names rows, never a lower score."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import recipe, reports, write_predictions, write_run

from tunesmith.errors import RowCheckFailed, TunesmithError
from tunesmith.evaluate.report import write_report
from tunesmith.example import Example, Message
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import dump_recipe
from tunesmith.run import Run
from tunesmith.tasks import own_task
from tunesmith.verbs.compare import compare
from tunesmith.verbs.score import score, score_beside

TRAIN, TEST = reports(60, seed=1, name="train"), reports(30, seed=2, name="test")
Lines = list[dict[str, Any]]
Spoil = Callable[[Lines], Lines]


def run_of(folder: Path, name: str, rows: Sequence[Example], spoil: Spoil, of: Recipe) -> Run:
    """A finished run whose tuned answers are the gold ones, spoilt."""
    run = write_run(folder / name, TRAIN, test=rows)
    run.recipe_file.write_text(dump_recipe(of.model_copy(update={"name": name})))
    for system in ("tuned", "base"):
        write_predictions(run.predictions / f"{system}.jsonl", rows, [row.answer or "" for row in rows])
    spoilt(run.predictions / "tuned.jsonl", spoil)
    return run


def spoilt(path: Path, spoil: Spoil) -> Path:
    lines = spoil([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def file_of(folder: Path, rows: Sequence[Example], spoil: Spoil) -> Path:
    write_predictions(folder / "given.jsonl", rows, [row.answer or "" for row in rows])
    return spoilt(folder / "given.jsonl", spoil)


def same(lines: Lines) -> Lines:
    return lines


def by_evaluate(folder: Path, rows: Sequence[Example], spoil: Spoil, of: Recipe) -> Any:
    return write_report(of, run_of(folder, "a", rows, spoil, of))


def by_file(folder: Path, rows: Sequence[Example], spoil: Spoil, of: Recipe) -> Any:
    return score(of, file_of(folder, rows, spoil), folder)


def beside_a_run(folder: Path, rows: Sequence[Example], spoil: Spoil, of: Recipe) -> Any:
    run = run_of(folder, "a", rows, same, of)
    write_report(of, run)
    return score_beside("a", file_of(folder, rows, spoil), folder)


def by_compare(folder: Path, rows: Sequence[Example], spoil: Spoil, of: Recipe) -> Any:
    run_of(folder, "a", rows, same, of)
    run_of(folder, "b", rows, spoil, of)
    return compare(["a", "b"], folder)


ALL = pytest.mark.parametrize("way", [by_evaluate, by_file, beside_a_run, by_compare])
WITH_ROWS = pytest.mark.parametrize(
    "way", [by_evaluate, beside_a_run, by_compare]
)  # a lone file tells its own rows
EXTRACTION = {"evaluate": {"task": "extraction"}}


def told(way: Any, folder: Path, spoil: Spoil = same, rows: Sequence[Example] = TEST, **sections: Any) -> str:
    with pytest.raises(TunesmithError) as caught:
        way(folder, rows, spoil, recipe(**(EXTRACTION | sections)))
    assert caught.value.where and caught.value.fix
    return str(caught.value)


# ---- rows


@WITH_ROWS
def test_missing_rows(way: Any, tmp_path: Path) -> None:
    said = told(way, tmp_path, lambda lines: lines[:-2])
    assert "30 rows, 2 without a prediction (test-28, test-29), 0 predictions for other rows" in said


@ALL
def test_a_repeated_id(way: Any, tmp_path: Path) -> None:
    assert "1 ids stand more than once: test-3" in told(way, tmp_path, lambda lines: [*lines, lines[3]])


@ALL
def test_samples_of_some_rows_alone(way: Any, tmp_path: Path) -> None:
    said = told(way, tmp_path, lambda lines: [*lines, *lines[:-1]])
    assert "1 rows have not 2 answers as the others: test-29" in said


@WITH_ROWS
def test_ids_of_another_run(way: Any, tmp_path: Path) -> None:
    said = told(way, tmp_path, lambda lines: [line | {"id": f"x{line['id']}"} for line in lines])
    assert "30 without a prediction (test-0, " in said and "30 predictions for other rows (xtest-0, " in said


@WITH_ROWS
def test_the_same_ids_of_another_run(way: Any, tmp_path: Path) -> None:
    """Row numbers are alike everywhere: the gold answer tells that they are other rows."""
    others = reports(30, seed=7, name="test")
    spoil = lambda lines: [  # noqa: E731
        line | {"gold": row.answer} for line, row in zip(lines, others, strict=True)
    ]
    assert "predictions were made for another gold answer: test-" in told(way, tmp_path, spoil)


# ---- gold


def answered(row: Example, answer: str) -> Example:
    return replace(row, messages=(row.messages[0], Message("assistant", answer, learned=True)))


@ALL
def test_gold_that_cant_be_parsed(way: Any, tmp_path: Path) -> None:
    rows = [answered(TEST[0], "stage IV"), *TEST[1:]]
    said = told(way, tmp_path, rows=rows)
    assert "1 of 30 gold answers can't be parsed by the extraction task: unparsable: no JSON object" in said
    assert "test.jsonl:1" in said or "given.jsonl" in said


@ALL
def test_gold_that_is_all_null(way: Any, tmp_path: Path) -> None:
    nothing = json.dumps(dict.fromkeys(("site", "treatment", "stage")))
    said = told(way, tmp_path, rows=[answered(row, nothing) for row in TEST])
    assert "gold count is 0: no gold value in 30 rows, so item_f1 has nothing to find" in said


@ALL
def test_one_row_has_a_score_and_no_interval(way: Any, tmp_path: Path) -> None:
    made = way(tmp_path, TEST[:1], same, recipe(**EXTRACTION))
    if way is by_compare:
        found = made["comparison"]["scores"]["a"]["item_f1"]
    else:
        found = made["scores"].get("tuned", made["scores"])["item_f1"]
    assert found == {"value": 1.0, "low": None, "high": None, "n": 1}


# ---- the user's own scorers

OWN = """
from tunesmith.tasks.text import TextTask

class Broken(TextTask):
    def {member}(self, *given):
        {line}

def broken(schema, golds):
    return Broken()

def metric(prompt, gold, answer):
    return 1 / len(prompt[:0])
"""

MEMBERS = {
    "counts": ("counts", "raise KeyError('no such word')", "KeyError: 'no such word'", True),
    "counts of no number": ("counts", "return {'rows': 1.0, 'word_f1': None}", "TypeError", True),
    "parse": ("parse", "raise ValueError('what is this')", "ValueError: what is this", True),
    "metrics": ("metrics", "return {'word_f1': lambda sums: sums['lost']}", "KeyError: 'lost'", False),
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    member, line = getattr(request, "param", ("counts", "raise KeyError('x')"))
    name = f"own_task_{abs(hash((request.node.name, str(tmp_path))))}"
    (tmp_path / f"{name}.py").write_text(OWN.format(member=member, line=line))
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@ALL
@pytest.mark.parametrize(
    ("own", "error", "names_row"),
    [
        pytest.param((member, line), error, row, id=name)
        for name, (member, line, error, row) in MEMBERS.items()
    ],
    indirect=["own"],
)
def test_a_task_that_raises(way: Any, own: str, error: str, names_row: bool, tmp_path: Path) -> None:
    said = told(way, tmp_path / "runs", evaluate={"task": f"{own}:broken"})
    assert "the task 'text' fails" in said and error in said and f"{own}.py:" in said
    assert ("on row test-0" in said) is names_row


@ALL
def test_a_metric_that_raises(way: Any, own: str, tmp_path: Path) -> None:
    said = told(way, tmp_path / "runs", evaluate={"task": "text", "metrics": [f"{own}:metric"]})
    assert f"the metric '{own}:metric' fails: ZeroDivisionError" in said and "on row test-0" in said


def test_an_error_in_our_own_task_stays_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise KeyError("ours")

    monkeypatch.setattr("tunesmith.tasks.extraction.ExtractionTask.correct", broken)
    with pytest.raises(KeyError, match="ours"):
        by_evaluate(tmp_path / "a", TEST, same, recipe(**EXTRACTION))
    monkeypatch.setattr(own_task, "is_own", lambda task: True)  # the mutant blames the user
    with pytest.raises(TunesmithError, match="the task 'extraction' fails on a row"):
        by_evaluate(tmp_path / "b", TEST, same, recipe(**EXTRACTION))


def test_other_rows_fail_with_3_and_other_input_with_2() -> None:
    assert (RowCheckFailed.exit_code, TunesmithError.exit_code) == (3, 2)
