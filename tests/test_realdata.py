"""Real rows: the seed project's cancer reports (4,500 and 250) through the stages that need no long training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.base import resolve
from tunesmith.cli import main
from tunesmith.data.prepare import Prepared, build
from tunesmith.evaluate.floors import nearest
from tunesmith.recipe_file import load_recipe
from tunesmith.tasks import make_task

pytestmark = pytest.mark.realdata
RECIPE = Path(__file__).parents[1] / "recipes" / "cancer-extraction.yaml"


def settings(realdata: Path) -> list[str]:
    rows = realdata / "cancer_ie"
    return [
        "model.base=starter",
        f"data.train={rows / 'train.jsonl'}",
        f"data.validation={rows / 'validation_a.jsonl'}",
    ]


@pytest.fixture(scope="module")
def prepared(request: pytest.FixtureRequest) -> Prepared:
    from conftest import REALDATA

    if not REALDATA.is_dir():
        pytest.skip("no real data beside the repository")
    recipe = load_recipe(RECIPE, settings(REALDATA))
    folder = request.getfixturevalue("tmp_path_factory").mktemp("rows")
    return build(recipe, resolve(recipe.model), folder)


def test_every_row_is_used_and_proved(prepared: Prepared) -> None:
    assert {name: len(rows) for name, rows in prepared.splits.items()} == {"train": 4500, "validation": 250}
    assert all(proof.passed for proof in prepared.proofs())
    values = [json.loads(example.answer or "") for example in prepared.splits["train"].examples()]
    assert sum(value is None for row in values for value in row.values()) == 3496  # counted by others as well
    assert {len(row) for row in values} == {7}


def test_the_floor_is_where_others_found_it(prepared: Prepared) -> None:
    """Copying the nearest training row's answer: all seven fields right in 3.6 % of 250 rows."""
    train, scored = (list(prepared.splits[name].examples()) for name in ("train", "validation"))
    task = make_task("auto", None, [example.answer or "" for example in train])
    assert task.name == "extraction"
    answers = nearest(train, scored)
    right = [
        task.correct(task.parse(row.answer or ""), task.parse(said))
        for row, said in zip(scored, answers, strict=True)
    ]
    assert sum(right) / 250 == pytest.approx(0.036, abs=0.01)


def test_a_few_steps_of_the_recipe_itself(realdata: Path, tmp_path: Path) -> None:
    """NF4, dropout 0.1, micro-batches of four: two steps, stopped and gone on with."""
    words = [word for one in settings(realdata) for word in ("--set", one)]
    words += ["--set", "train.max_steps=2", "--set", "train.warmup=1", "--set", "train.evaluate_every=2"]
    rows = realdata / "cancer_ie" / "validation_a.jsonl"
    words += [
        "--set",
        f"data.train={rows}",
        "--set",
        "data.validation=null",
        "--set",
        "data.split.validation=0.2",
    ]
    assert main(["train", str(RECIPE), "--runs-dir", str(tmp_path), *words]) == 0
    lines = [
        json.loads(line)
        for line in (tmp_path / "cancer-extraction" / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["step"] == 2 and 0 < lines[-1]["validation_loss"] < 15
