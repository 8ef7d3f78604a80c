"""What rows could show: the power that is foretold is the power that is seen; and one draw serves everything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from numpy.random import Generator
from tiny_run import guess, recipe, reports, write_predictions, write_run

from tunesmith import statistics
from tunesmith.evaluate.report import write_report
from tunesmith.pooled import Estimate, pooled_difference
from tunesmith.statistics import Drawn, paired_difference
from tunesmith.tasks.schema import SchemaChecker, _surely_fits, infer_schema
from tunesmith.tasks.sums import mean

RIGHT = mean("right")


def estimate(documents: int, effect: float, rng: Generator, seed: int = 0) -> Estimate:
    """Two systems on documents of four rows; the second is right more often by `effect`."""
    luck = np.repeat(rng.beta(6, 6, size=documents), 4)
    chances = {"first": luck, "second": np.clip(luck + effect, 0, 1)}
    counts = {
        name: {"rows": np.ones(len(luck)), "right": (rng.random(len(luck)) < chance).astype(float)}
        for name, chance in chances.items()
    }
    drawn = Drawn(counts, [str(i // 4) for i in range(len(luck))], draws=300, seed=seed)
    return pooled_difference(drawn, ["first"], ["second"], RIGHT)


def power(documents: int, effect: float, tries: int = 400) -> float:
    """Share of tries whose interval excludes 0."""
    rng = np.random.default_rng(documents)
    return sum(estimate(documents, effect, rng, at).interval.low > 0 for at in range(tries)) / tries


@pytest.mark.parametrize("documents", [30, 100])
def test_the_smallest_difference_is_shown_in_four_of_five_tries(documents: int) -> None:
    rng = np.random.default_rng(1)
    smallest = float(np.mean([estimate(documents, 0.1, rng, at).smallest for at in range(50)]))
    assert 0.74 <= power(documents, smallest) <= 0.87
    assert power(documents, smallest / 2) < 0.45  # half of it is mostly missed


def test_documents_needed_are_needed() -> None:
    rng = np.random.default_rng(2)
    made = [estimate(60, 0.06, rng, at) for at in range(50)]
    needed = int(np.median([one.documents_for(0.06, 60) or 0 for one in made]))
    assert 60 < needed < 1000
    assert 0.73 <= power(needed, 0.06) <= 0.88
    assert made[0].documents_for(0.0, 60) is None and made[0].documents_for(math.nan, 60) is None


def test_no_number_of_documents_outweighs_the_luck_of_seeds() -> None:
    made = estimate(60, 0.05, np.random.default_rng(3))
    unlucky = Estimate(made.interval, made.of_documents, 0.01, 4.0, (0.1, 0.3))
    assert unlucky.documents_for(0.05, 60) is None
    assert unlucky.smallest > made.smallest


# ---- one draw


def test_one_draw_serves_every_system_metric_and_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import random

    train, test = reports(60, seed=1, name="train"), reports(45, seed=2, name="test")
    run, rng = write_run(tmp_path / "tiny", train, test=test), random.Random(0)
    for name in ("tuned", "base", "q4", "q8"):
        write_predictions(run.predictions / f"{name}.jsonl", test, [guess(row, rng, 0.6) for row in test])
    real, drawn = statistics._draw, []

    def counted(by_document: Any, draws: int, seed: int) -> Any:
        drawn.append(len(by_document))
        return real(by_document, draws, seed)

    monkeypatch.setattr(statistics, "_draw", counted)
    content = write_report(recipe(), run)
    assert sorted(drawn, reverse=True) == [23, 23, 15]  # all rows, and each slice
    systems = {name: json.loads((run.report / "report.json").read_text())["systems"][name]["kind"] for name in
               ("tuned", "base", "q4")}  # fmt: skip
    assert systems == {"tuned": "tuned", "base": "base", "q4": "exported"}
    assert set(content["differences"]) == {"tuned", "q4", "q8"} and set(content["exported"]) == {"q4", "q8"}
    assert content["headline"]["better"] == "higher" and "Confusions" in json.dumps(
        content["studies"]["tuned"]
    )


def test_a_difference_is_that_of_two_systems_alone() -> None:
    rng, documents = np.random.default_rng(0), [str(i // 3) for i in range(90)]
    counts = {
        name: {"rows": np.ones(90), "right": (rng.random(90) < 0.5).astype(float)} for name in ("a", "b", "c")
    }
    made = Drawn(counts, documents, draws=200, seed=4).difference("a", "c", RIGHT)
    assert made == paired_difference(counts["a"], counts["c"], documents, RIGHT, 200, 4)


def test_documents_of_uneven_size_count_as_fewer() -> None:
    def effective(sizes: list[int]) -> float:
        documents = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
        return Drawn({"it": {"rows": np.ones(len(documents))}}, documents, draws=2).effective

    assert effective([3] * 20) == pytest.approx(20)
    assert effective([100, 1, 1]) == pytest.approx(102**2 / 10002)


# ---- what plainly fits a schema


def _value(rng: Any, depth: int = 0) -> Any:
    kinds: list[Any] = [None, True, 3, 2.5, 4.0, "text", "", [], ["a"], {}]
    if depth < 2 and rng.random() < 0.4:
        return {key: _value(rng, depth + 1) for key in rng.sample("abcd", rng.randrange(4))}
    return rng.choice(kinds)


def test_what_skips_the_validator_would_have_passed_it() -> None:
    import random

    rng, skipped, refused = random.Random(0), 0, 0
    for _ in range(300):
        golds = [{key: _value(rng) for key in rng.sample("abcd", 3)} for _ in range(rng.randrange(1, 5))]
        schema = infer_schema(golds)
        if rng.random() < 0.2:
            schema["properties"]["a"] = {"enum": ["text"]}
        validator = Draft202012Validator(schema)
        for _ in range(20):
            value = rng.choice([_value(rng), rng.choice(golds)])
            fits = _surely_fits(schema, value)
            assert validator.is_valid(value) or not fits, (schema, value)
            assert bool(SchemaChecker(schema).problems(value)) is not validator.is_valid(value)
            skipped, refused = skipped + fits, refused + (not validator.is_valid(value))
    assert skipped > 1000 and refused > 1000
