"""Rows as files really have them: a document called 0, slices that are numbers, golds that no rule calls sound."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tunesmith.errors import RowCheckFailed
from tunesmith.evaluate.build import build
from tunesmith.evaluate.compared.compared_words import findings as compared_findings
from tunesmith.evaluate.compared.comparison import Group, compare
from tunesmith.evaluate.score import Systems
from tunesmith.evaluate.shown.findings import sentences
from tunesmith.tasks import make_task
from tunesmith.tasks.generated.copies import CopyIndex, index_of
from tunesmith.tasks.prose.rouge import _common, _places, rouge, tokens
from tunesmith.tasks.prose.rouge import sentences as split
from tunesmith.tasks.score import examples_in, score_answers


def lines(answers: list[str], golds: list[str], **more: list[Any]) -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "answer": said, "gold": gold, **{name: values[i] for name, values in more.items()}}
        for i, (said, gold) in enumerate(zip(answers, golds, strict=True))
    ]


def test_a_document_called_0_is_one_document_and_slices_may_be_numbers() -> None:
    made = lines(
        ["a"] * 4, ["a"] * 4, document=[0, 0, 1, None], slices=[{"n": 1}, {"n": "x"}, {"n": None}, {}]
    )
    rows = examples_in(made, "file")
    assert [row.document for row in rows] == ["0", "0", "1", "r3"]
    task = make_task("text")
    content = build(Systems(task, rows, {"it": score_answers(made, rows, task)}), draws=50)
    assert [(one["value"], one["rows"]) for one in content["slices"]] == [("1", 1), ("x", 1)]


def test_records_whose_golds_are_all_unsound_are_scored() -> None:
    golds = ["Date of Birth: 2020-01-02\nAdmission Date: 2019-01-02\nCourse: well"] * 3
    made = lines(golds, golds)
    task = make_task("records", None, [])
    rows = examples_in(made, "file")
    found = score_answers(made, rows, task)
    assert found.counts["sound"].sum() == found.counts["gold_sound"].sum() == 0


def test_broken_golds_of_a_file_are_told_by_their_rows() -> None:
    made = lines(["{}"] * 3, ['{"a": 1}', "no", "none"])
    with pytest.raises(RowCheckFailed) as error:
        score_answers(made, examples_in(made, "f.jsonl"), make_task("extraction", None, ['{"a": 1}']))
    assert error.value.where == "f.jsonl, row r1, f.jsonl, row r2"


def test_where_both_have_the_same_rows_right_no_test_is_told() -> None:
    golds = [f"an answer number {i} of many" for i in range(30)]
    rows, task = examples_in(lines(golds, golds), "file"), make_task("text")
    scored = {
        name: score_answers(lines([f"{name} {i}" for i in range(30)], golds), rows, task)
        for name in ("tuned", "base")
    }
    content = build(Systems(task, rows, scored), draws=50)
    assert content["mcnemar"]["p"] == 1.0 and not any(
        "McNemar" in one for one in sentences({**content, "overlap": {}})
    )
    both = compare(Systems(task, rows, scored), [Group("a", ("base",)), Group("b", ("tuned",))], draws=50)
    assert not any("McNemar" in one for one in compared_findings(both))


def test_the_same_training_answers_are_indexed_once_while_somebody_holds_the_index() -> None:
    golds = [" ".join(f"w{i}x{j}" for j in range(20)) for i in range(30)]
    first = index_of(golds)
    assert index_of(list(golds)) is first and index_of(golds[1:]) is not first
    assert first.measure(golds[3]) == CopyIndex(golds).measure(golds[3])


def test_rouge_lsum_takes_the_very_words_that_the_whole_table_takes() -> None:
    """The union over all pairs of sentences, without the short cuts."""
    draw = random.Random()
    for _ in range(300):
        gold, answer = (
            ". ".join(
                " ".join(draw.choices("abcde", k=draw.randint(1, 6))) for _ in range(draw.randint(1, 4))
            )
            for _ in range(2)
        )
        from rouge_score.rouge_scorer import _union_lcs

        right, given = ([tokens(one) for one in split(text)] for text in (gold, answer))
        for sentence in right:
            mine: set[int] = set()
            for one in given:
                places = _places(one)
                kept = [place for place, word in enumerate(sentence) if word in places]
                mine |= set(_common(sentence, kept, one, places))
            assert [sentence[place] for place in sorted(mine)] == list(_union_lcs(sentence, given))
        assert 0 <= rouge(gold, answer)["rougeLsum"] <= 1
