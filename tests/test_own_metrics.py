"""A user's own metrics: means over the rows that count, beside whatever the task says; and told where they fail."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_run import guess, recipe, reports, write_predictions, write_run

from tunesmith.data.own_code import code_hash, metric_files
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.evaluate import evaluate as stage
from tunesmith.evaluate.build import build
from tunesmith.evaluate.file_report import systems_of
from tunesmith.example import Example
from tunesmith.pipeline import _scores_inputs
from tunesmith.statistics import bootstrap
from tunesmith.tasks import Task, make_task
from tunesmith.tasks.answered import answered, faults_of, gold_of
from tunesmith.tasks.own_metrics import with_own_metrics
from tunesmith.tasks.score import Scored, check_golds, score_answers
from tunesmith.verbs.score import score as score_verb
from tunesmith.view.scored import run_task

OWN = '''
import numpy as np

def length(prompt, gold, answer):
    """How long the answer is, in characters."""
    return len(answer)

def same(prompt: str, gold: str, answer: str) -> bool:
    return answer == gold

def known(prompt, gold, answer):
    return None if "liver" not in gold else np.float32(0.25)

def parts(prompt, gold, answer):
    return {"first": answer[:1] == gold[:1], "grade": None if "IV" in gold else len(gold) / 10}

def never(prompt, gold, answer):
    return None

def raises(prompt, gold, answer):
    return helped(answer)

def helped(answer):
    raise KeyError("no such thing")

def nan(prompt, gold, answer):
    return float("nan")

def words(prompt, gold, answer):
    return answer

def late(prompt, gold, answer):
    return 1.0 if answer == gold else "bad"

def changing(prompt, gold, answer):
    return {"a": 1} if answer == gold else {"b": 1}

def colon(prompt, gold, answer):
    return {"a:b": 1}

def two(prompt, gold):
    return 1

def leaves(prompt, gold, answer):
    raise SystemExit(3)

def item_f1(prompt, gold, answer):
    return 1

number = 3
'''
ROWS = reports(24, seed=5)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_metrics_of_a_user.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_metrics_of_a_user"


def task(*names: str, inner: str = "extraction") -> Task:
    return with_own_metrics(make_task(inner, None, [row.answer or "" for row in ROWS]), names)


def said(answers: Sequence[str], rows: Sequence[Example] = ROWS) -> list[dict[str, object]]:
    return [{"id": row.id, "answer": answer} for row, answer in zip(rows, answers, strict=True)]


def values(given: Task, scored: Scored) -> dict[str, float]:
    sums = {name: each.sum(keepdims=True) for name, each in scored.counts.items()}
    return {name: float(metric(sums)[0]) for name, metric in given.metrics().items()}


def test_means_over_the_rows_that_count(own: str) -> None:
    given = task(*(f"{own}:{name}" for name in ("length", "same", "known", "parts")))
    answers = ["x" if i % 3 else row.answer or "" for i, row in enumerate(ROWS)]
    found = values(given, score_answers(said(answers), ROWS, given))
    assert found["length"] == pytest.approx(np.mean([len(answer) for answer in answers]))
    assert found["same"] == pytest.approx(8 / 24)
    assert found["known"] == 0.25
    assert found["parts.first"] == pytest.approx(8 / 24)
    early = [len(row.answer or "") / 10 for row in ROWS if "IV" not in (row.answer or "")]
    assert 0 < len(early) < len(ROWS)
    assert found["parts.grade"] == pytest.approx(np.mean(early))


def test_the_tasks_own_figures_stay_what_they_are(own: str) -> None:
    import random

    rng = random.Random(0)
    answers = [guess(row, rng, 0.6) for row in ROWS]
    alone, beside = task(), task(f"{own}:length", f"{own}:never")
    plain = score_answers(said(answers), ROWS, alone)
    scored = score_answers(said(answers), ROWS, beside)
    before, after = values(alone, plain), values(beside, scored)
    assert {name: after[name] for name in before} == pytest.approx(before, nan_ok=True)
    assert set(after) - set(before) == {"length", "never"}
    assert np.isnan(after["never"])
    assert list(plain.correct) == list(scored.correct)
    assert beside.headline == "item_f1" and beside.name == "extraction"
    assert beside.explain()["length"].startswith("How long the answer is, in characters.")
    for row, answer in zip(ROWS, answers, strict=True):
        one, other = answered(alone, row, {"answer": answer}), answered(beside, row, {"answer": answer})
        assert faults_of(alone, one) == faults_of(beside, other)


def test_optional_members_are_the_inner_tasks(own: str) -> None:
    class Rich:
        by_token = True
        lower_is_better = frozenset({"missed"})

        def __init__(self, inner: Task, seen: tuple[str, ...] = ()) -> None:
            self.inner, self.seen = inner, seen

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def gold(self, example: Example) -> object:
            return self.inner.parse(example.answer or "")

        def for_answers(self, answers: Sequence[str]) -> Rich:
            return Rich(self.inner, tuple(answers))

    rich = with_own_metrics(Rich(make_task("text")), [f"{own}:same"])  # type: ignore[arg-type]
    assert rich.by_token is True and rich.lower_is_better == {"missed"}  # type: ignore[attr-defined]
    assert not hasattr(rich, "study") and not hasattr(rich, "floors")
    seen = rich.for_answers(["a"])  # type: ignore[attr-defined]
    assert seen.seen == ("a",) and "same" not in seen._task.metrics()
    found = score_answers(said(["x"] * len(ROWS)), ROWS, rich)
    assert found.counts["own:same"].sum() == 0 and found.counts["ownrows:same"].sum() == len(ROWS)
    assert values(rich, found)["same"] == 0.0


def test_samples_of_a_row_are_averaged(own: str) -> None:
    given = task(f"{own}:same")
    lines = said([row.answer or "" for row in ROWS]) + said(["x"] * len(ROWS))
    assert values(given, score_answers(lines, ROWS, given))["same"] == 0.5


def test_a_yes_and_no_metric_has_an_exact_interval_at_its_end(own: str) -> None:
    given = task(f"{own}:same", f"{own}:length")
    scored = score_answers(said([row.answer or "" for row in ROWS]), ROWS, given)
    found = bootstrap(scored.counts, scored.documents, given.metrics(), 200, 0)
    assert found["same"].value == 1.0 and found["same"].low < 0.9  # 12 documents, all right
    assert found["length"].low < found["length"].value < found["length"].high


@pytest.mark.parametrize(
    ("function", "told", "line"),
    [
        ("raises", "fails: KeyError: 'no such thing'", "raise KeyError"),
        ("nan", "returned nan as nan", "def nan"),
        ("words", "which is no number", "def words"),
        ("colon", "which name no figures", "def colon"),
        ("leaves", "fails: SystemExit: 3", "raise SystemExit"),
    ],
)
def test_what_fails_on_gold_is_told_before_an_answer_is_there(
    own: str, function: str, told: str, line: str
) -> None:
    given = task(f"{own}:{function}")
    with pytest.raises(RecipeError) as caught:
        check_golds(given, ROWS)
    number = next(i for i, text in enumerate(OWN.split("\n"), start=1) if line in text)
    assert told in str(caught.value) and caught.value.exit_code == 2
    assert f"own_metrics_of_a_user.py:{number}, on row row-0" in str(caught.value.where)


@pytest.mark.parametrize(
    ("function", "told"), [("late", "returned 'bad' as late"), ("changing", "where it had returned")]
)
def test_what_fails_on_an_answer_is_told_with_its_row(own: str, function: str, told: str) -> None:
    given = task(f"{own}:{function}")
    check_golds(given, ROWS)
    answers = [row.answer or "" for row in ROWS]
    answers[7] = "odd"
    with pytest.raises(RecipeError) as caught:
        score_answers(said(answers), ROWS, given)
    assert told in str(caught.value) and "on row row-7" in str(caught.value.where)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (":number", "can't be called"),
        (":two", "can't be called with a prompt"),
        (":lenght", "did you mean 'length'"),
        (":item_f1", "there is a metric 'item_f1' already"),
    ],
)
def test_what_is_no_metric_is_told(own: str, name: str, told: str) -> None:
    with pytest.raises(TunesmithError) as caught:
        task(f"{own}{name}")
    assert told in str(caught.value) and caught.value.exit_code == 2
    with pytest.raises(RecipeError, match="already"):
        task(f"{own}:same", f"{own}:same")


def test_a_task_with_metrics_can_be_sent_to_another_process(own: str) -> None:
    given = pickle.loads(pickle.dumps(task(f"{own}:same")))
    parsed = pickle.loads(pickle.dumps(gold_of(given, ROWS[0])))
    assert given.counts("", parsed, given.parse(ROWS[0].answer))["own:same"] == 1.0


def test_it_reaches_a_run_and_a_file_of_predictions(own: str, tmp_path: Path) -> None:
    made = recipe(evaluate={"metrics": [f"{own}:length"]})
    run = write_run(tmp_path / "tiny", ROWS, validation=reports(6, seed=9, name="val"))
    assert "length" not in run_task(recipe(), run).explain()
    path = tmp_path / "other.jsonl"
    write_predictions(path, ROWS, ["ab"] * len(ROWS))
    given = run_task(made, run)
    assert build(systems_of(path, lambda rows: given))["scores"]["other"]["length"]["value"] == 2.0
    scores = score_verb(made, path)["scores"]
    assert json.loads(json.dumps(scores))["length"]["value"] == 2.0


def test_a_change_of_its_code_makes_the_scores_stale(own: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny", ROWS)
    made = recipe(evaluate={"metrics": [f"{own}:length"]})
    (file,) = metric_files([f"{own}:length"])
    assert file.name == "own_metrics_of_a_user.py"
    assert _scores_inputs(made, run)["own metrics"] == code_hash([file])
    assert "own metrics" not in _scores_inputs(recipe(), run)
    file.write_text(OWN + "\n# another\n")
    with pytest.raises(TunesmithError, match="has changed since"):
        _scores_inputs(made, run)


def test_evaluate_tries_it_before_a_model_is_loaded(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "tiny", ROWS, validation=reports(6, seed=9, name="val"))
    monkeypatch.setattr(stage, "load_tuned", lambda *given: pytest.fail("loaded a model"))
    with pytest.raises(RecipeError, match="returned nan"):
        stage.evaluate(recipe(evaluate={"metrics": [f"{own}:nan"]}), run)
