"""compare: what it says of made-up runs, what it refuses, and that seeds of one recipe are pooled."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student
from tiny_run import guess, recipe, reports, write_predictions, write_run

from tunesmith.cli import main
from tunesmith.errors import RowCheckFailed, TunesmithError
from tunesmith.evaluate.compared import comparison as comparison_module
from tunesmith.evaluate.compared.compared_words import findings
from tunesmith.example import Example
from tunesmith.recipe_file import dump_recipe
from tunesmith.run import Run
from tunesmith.verbs import compare as compare_module
from tunesmith.verbs.compare import compare

TRAIN, TEST = reports(60, seed=1, name="train"), reports(120, seed=2, name="test")


def made(
    folder: Path,
    name: str,
    skill: float,
    seed: int = 0,
    rows: list[Example] = TEST,
    luck: int = 0,
    **sections: Any,
) -> Run:
    """A finished run whose tuned model is right with probability `skill`; the base is always the same one."""
    run = write_run(folder / name, TRAIN, test=rows)
    of = recipe(seed=seed, data={"test": "test.jsonl"}, **sections).model_copy(update={"name": name})
    run.recipe_file.write_text(dump_recipe(of))
    draw, base = random.Random(f"{name}/{seed}/{luck}"), random.Random(0)
    write_predictions(run.predictions / "tuned.jsonl", rows, [guess(row, draw, skill) for row in rows])
    write_predictions(run.predictions / "base.jsonl", rows, [guess(row, base, 0.2) for row in rows])
    return run


def content_of(folder: Path, *names: str) -> dict[str, Any]:
    result: dict[str, Any] = compare(names, folder)["comparison"]
    return result


def test_a_better_run_is_called_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, "weak", 0.4, tune={"rank": 4})
    made(tmp_path, "strong", 0.9, tune={"rank": 16})
    content = content_of(tmp_path, "weak", "strong")
    (one,) = content["comparisons"]
    by = one["difference"]
    assert by["low"] > 0 and content["findings"][0].startswith("strong is better than weak: +0.")
    scores = content["scores"]
    assert by["value"] == pytest.approx(
        scores["strong"]["item_f1"]["value"] - scores["weak"]["item_f1"]["value"]
    )
    assert list(scores) == ["weak", "strong", "base"]  # the base once
    assert {part["value"]: part["rows"] for part in one["slices"]} == {"seen": 80, "unseen": 40}
    assert one["test"]["name"] == "sign test" and one["test"]["p"] < 0.01
    assert "item_f1:stage" in one["differences"]
    turned = content_of(tmp_path, "strong", "weak")
    assert turned["findings"][0].startswith("weak is worse than strong: −0.")
    assert turned["comparisons"][0]["difference"]["value"] == pytest.approx(-by["value"])
    printed = capsys.readouterr().out
    assert "strong is better than weak" in printed and "values: unseen" in printed
    assert "another seed would change" in printed


def test_equal_runs_say_what_the_rows_could_have_shown(tmp_path: Path) -> None:
    made(tmp_path, "one", 0.7, tune={"rank": 4})
    made(tmp_path, "other", 0.7, tune={"rank": 16})
    content = content_of(tmp_path, "one", "other")
    by = content["comparisons"][0]["difference"]
    assert by["low"] <= 0 <= by["high"]
    said = " ".join(content["findings"])
    assert "No difference between one and other is shown" in said and "in four of five tries" in said
    assert by["smallest_shown"] > by["half_width"] > 0
    assert by["documents_needed"] > content["documents"]
    assert f"{by['documents_needed']:,} documents like these" in said


def test_lower_is_better_turns_the_verdict(tmp_path: Path) -> None:
    made(tmp_path, "weak", 0.4)
    made(tmp_path, "strong", 0.9, tune={"rank": 4})
    content = content_of(tmp_path, "weak", "strong") | {"better": "lower"}
    assert findings(content)[0].startswith("strong is worse than weak")


def test_rows_that_are_their_own_documents_get_mcnemar(tmp_path: Path) -> None:
    rows = [replace(row, document=row.id) for row in TEST]
    made(tmp_path, "weak", 0.4, rows=rows)
    made(tmp_path, "strong", 0.9, rows=rows, tune={"rank": 4})
    test = content_of(tmp_path, "weak", "strong")["comparisons"][0]["test"]
    assert test["name"] == "McNemar" and test["only_second"] > test["only_first"]


def test_few_documents_claim_nothing(tmp_path: Path) -> None:
    made(tmp_path, "weak", 0.1, rows=TEST[:12])
    made(tmp_path, "strong", 1.0, rows=TEST[:12], tune={"rank": 4})
    content = content_of(tmp_path, "weak", "strong")
    assert content["findings"][0].startswith("Too few documents to tell whether strong differs from weak: 6,")
    assert not any("four of five" in said for said in content["findings"])


def test_one_row_has_no_interval(tmp_path: Path) -> None:
    made(tmp_path, "weak", 0.1, rows=TEST[:1])
    made(tmp_path, "strong", 1.0, rows=TEST[:1], tune={"rank": 4})
    by = content_of(tmp_path, "weak", "strong")["comparisons"][0]["difference"]
    assert by["low"] is by["high"] is by["smallest_shown"] is by["documents_needed"] is None


# ---- seeds


def test_seeds_of_a_recipe_are_pooled(tmp_path: Path) -> None:
    for seed in range(3):
        made(tmp_path, f"a-{seed}", 0.55, seed)
    made(tmp_path, "b", 0.9, tune={"rank": 4})
    content = content_of(tmp_path, "a-0", "a-1", "a-2", "b")
    assert [(one["name"], one["seeds"]) for one in content["groups"]] == [
        ("a-0 (3 seeds)", 3), ("b", 1), ("base", 1)
    ]  # fmt: skip
    score = content["scores"]["a-0 (3 seeds)"]["item_f1"]
    assert score["value"] == pytest.approx(np.mean(score["seeds"]))
    alone = [content_of(tmp_path, f"a-{seed}", "b")["scores"][f"a-{seed}"]["item_f1"] for seed in range(3)]
    assert score["seeds"] == pytest.approx([one["value"] for one in alone])
    assert any(
        "is the mean of 3 seeds (0." in said and "intervals hold both" in said for said in content["findings"]
    )
    assert any(said.startswith("b: one seed each") for said in content["findings"])


def test_seeds_alone_are_compared_with_their_base(tmp_path: Path) -> None:
    for seed in range(2):
        made(tmp_path, f"a-{seed}", 0.9, seed)
    content = content_of(tmp_path, "a-0", "a-1")
    assert content["findings"][0].startswith("a-0 (2 seeds) is better than base")
    assert any("from so few nothing can be told" in said for said in content["findings"])


def test_the_same_seed_twice_is_no_second_seed(tmp_path: Path) -> None:
    made(tmp_path, "a", 0.7)
    made(tmp_path, "again", 0.7)
    assert [one["seeds"] for one in content_of(tmp_path, "a", "again")["groups"]] == [1, 1, 1]


def test_other_training_rows_are_no_other_seed(tmp_path: Path) -> None:
    made(tmp_path, "a", 0.7)
    run = made(tmp_path, "b", 0.7, seed=1)
    write_run(tmp_path / "made", reports(30, seed=9, name="other"))
    for path in (tmp_path / "made" / "data").glob("train.*"):
        path.replace(run.data / path.name)
    assert [one["seeds"] for one in content_of(tmp_path, "a", "b")["groups"]] == [1, 1, 1]


# ---- what differs, and what is refused


def test_other_bases_and_decodings_are_said(tmp_path: Path) -> None:
    made(tmp_path, "a", 0.7)
    run = made(tmp_path, "b", 0.7, model={"base": "other/base"}, evaluate={"decoding": {"max_tokens": 9}})
    write_predictions(run.predictions / "base.jsonl", TEST, ["{}"] * len(TEST))
    content = content_of(tmp_path, "a", "b")
    assert [one["name"] for one in content["groups"]] == ["a", "b", "base of a", "base of b"]
    said = " ".join(content["findings"])
    assert "b has another base than a: other/base (bfloat16), not base (bfloat16)." in said
    assert "b has another decoding than a" in said


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[:-2], "2 only in a (test-118, test-119)"),
        (lambda rows: [replace(row, id=f"x{row.id}") for row in rows], "120 only in b (xtest-0, xtest-1"),
        (
            lambda rows: [replace(rows[0], document="moved"), *rows[1:]],
            "1 in both, with another prompt, gold answer or document (test-0)",
        ),
        (lambda rows: [reports(1, seed=5, name="test")[0], *rows[1:]], "1 in both, with another prompt"),
    ],
)
def test_other_rows_are_refused(tmp_path: Path, change: Any, told: str) -> None:
    made(tmp_path, "a", 0.7)
    made(tmp_path, "b", 0.7, rows=change(TEST))
    with pytest.raises(RowCheckFailed, match="scored on other rows") as caught:
        compare(["a", "b"], tmp_path)
    assert told in str(caught.value) and "sha256" in str(caught.value) and caught.value.fix


def test_another_order_of_the_rows_is_no_other_rows(tmp_path: Path) -> None:
    made(tmp_path, "a", 0.4)
    made(tmp_path, "b", 0.9, tune={"rank": 4})
    before = content_of(tmp_path, "a", "b")["comparisons"]
    made(tmp_path / "turned", "a", 0.4)
    run = made(tmp_path / "turned", "b", 0.9, rows=TEST[::-1], tune={"rank": 4})
    for name in ("tuned", "base"):  # the same answers
        path = tmp_path / "b" / "predictions" / f"{name}.jsonl"
        (run.predictions / path.name).write_text(path.read_text())
    assert content_of(tmp_path / "turned", "a", "b")["comparisons"] == before


def test_runs_without_answers_and_one_run_alone_are_refused(tmp_path: Path) -> None:
    run = made(tmp_path, "a", 0.7)
    made(tmp_path, "b", 0.7)
    with pytest.raises(TunesmithError, match="two or more are compared"):
        compare(["a", "a"], tmp_path)
    with pytest.raises(TunesmithError, match="ends in none of"):
        compare(["a", "b"], tmp_path, tmp_path / "page.pdf")
    (run.predictions / "tuned.jsonl").unlink()
    with pytest.raises(TunesmithError, match="a has no answers yet") as caught:
        compare(["a", "b"], tmp_path)
    assert "tunesmith evaluate" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (lambda lines: lines[:-3], "3 without a prediction (test-117, test-118, test-119)"),
        (lambda lines: [*lines, lines[0]], "1 ids stand more than once: test-0"),
        (lambda lines: [line.replace('"id": "test-', '"id": "mine-') for line in lines], "120 predictions for other"),
        (lambda lines: [*lines[:-1], "{}"], "this line is no prediction: 'id'"),
    ],
)  # fmt: skip
def test_a_spoilt_predictions_file_is_named(tmp_path: Path, lines: Any, told: str) -> None:
    made(tmp_path, "a", 0.7)
    run = made(tmp_path, "b", 0.7)
    path = run.predictions / "tuned.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines(path.read_text().splitlines())))
    with pytest.raises(TunesmithError) as caught:
        compare(["a", "b"], tmp_path)
    assert told in str(caught.value) and str(path) in str(caught.value)


# ---- files and the command line


def test_files_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, "a", 0.4)
    made(tmp_path, "b", 0.9, tune={"rank": 4})
    for form in ("json", "md", "html"):
        out = tmp_path / f"it.{form}"
        assert main(["compare", "a", "b", "--runs-dir", str(tmp_path), "--out", str(out), "--json"]) == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert said["exit"] == 0 and said["headline"]["difference"]["low"] > 0
        text = out.read_text()
        assert "b is better than a" in text and "NaN" not in text
        assert not any(row.answer and row.answer in text for row in TEST)
    assert json.loads((tmp_path / "it.json").read_text())["comparisons"] == said["comparison"]["comparisons"]
    assert (tmp_path / "it.html").read_text().endswith("</html>\n")


def test_other_rows_end_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, "a", 0.4)
    made(tmp_path, "b", 0.9, rows=TEST[:50])
    assert main(["compare", "a", "b", "--runs-dir", str(tmp_path)]) == 3
    assert "scored on other rows" in capsys.readouterr().err


# ---- mutants


def test_a_comparison_that_is_not_paired_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answers but for a few: pairing tells them apart, drawing documents for each side alone can't."""
    run = made(tmp_path, "a", 0.6)
    better = made(tmp_path, "b", 0.6, tune={"rank": 4})
    lines = [json.loads(line) for line in (run.predictions / "tuned.jsonl").read_text().splitlines()]
    for line in lines[::12]:
        line["answer"] = line["gold"]
    (better.predictions / "tuned.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert content_of(tmp_path, "a", "b")["comparisons"][0]["difference"]["low"] > 0
    real = comparison_module.pooled_difference

    def unpaired(drawn: Any, first: Any, second: Any, metric: Any) -> Any:
        one, both = (
            real(drawn, first, second, metric),
            [drawn.values(side[0], metric) for side in (first, second)],
        )
        error = np.sqrt(both[0].var() + both[1].var()) * student.ppf(0.975, drawn.effective - 1)
        value = one.interval.value
        return replace(one, interval=one.interval._replace(low=value - error, high=value + error))

    monkeypatch.setattr(comparison_module, "pooled_difference", unpaired)
    assert content_of(tmp_path, "a", "b")["comparisons"][0]["difference"]["low"] < 0


def test_a_comparison_that_skips_the_rows_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, "a", 0.7)
    made(tmp_path, "b", 0.7, rows=[replace(TEST[0], document="moved"), *TEST[1:]])
    monkeypatch.setattr(compare_module, "require_same_rows", lambda *given: None)
    assert content_of(tmp_path, "a", "b")["rows"] == 120  # nothing else would have noticed
