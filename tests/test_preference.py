"""Pairs: who is likelier, by whole answers and per byte, and what length has to do with it."""

import json
from pathlib import Path

import numpy as np
import pytest

from tunesmith.errors import RowCheckFailed
from tunesmith.evaluate.score import Systems, headline_of, metrics_of, with_likelihood
from tunesmith.example import Example
from tunesmith.tasks import make_task
from tunesmith.tasks.answered import answered, faults_of
from tunesmith.tasks.score import check_golds, score_answers

TASK = make_task("preference")
ROWS = 400


def pairs(count: int = ROWS) -> list[Example]:
    return [
        Example.make(
            f"Which tool for case {i}?",
            f"the better tool {i}",
            id=f"pair-{i}",
            rejected=f"the worse tool {i}",
        )
        for i in range(count)
    ]


def measured(seed: int, shift: float = 4.0, by_length: float = 0.0) -> list[dict]:
    """Lines of likelihood.jsonl. `by_length`: nats a byte that any answer costs, whatever it says."""
    draw = np.random.default_rng(seed)
    lines = []
    for i in range(ROWS):
        length, other = (int(n) for n in draw.integers(40, 400, 2))
        nll = {
            name: by_length * length + float(draw.normal(60 - edge, 8))
            for name, edge in (("base", 0), ("tuned", shift))
        }
        worse = {name: by_length * other + float(draw.normal(60, 8)) for name in nll}
        lines.append(
            {"id": f"pair-{i}", "bytes": length, "tokens": length // 3, "nll": nll,
             "rejected_bytes": other, "rejected_tokens": other // 3, "rejected_nll": worse}
        )  # fmt: skip
    return lines


def swapped(lines: list[dict]) -> list[dict]:
    """The mutant: better and worse exchanged."""
    turned = {"bytes", "tokens", "nll"}
    return [
        {"id": line["id"]}
        | {key: line[f"rejected_{key}"] for key in turned}
        | {f"rejected_{key}": line[key] for key in turned}
        for line in lines
    ]


def systems_of(lines: list[dict], rows: list[Example] | None = None) -> Systems:
    rows = rows or pairs()
    said = [{"id": row.id, "answer": row.answer} for row in rows]
    scored = score_answers(said, rows, TASK)
    return with_likelihood(Systems(TASK, rows, {"base": scored, "tuned": scored, "nearest": scored}), lines)


def values(systems: Systems, name: str) -> dict[str, float]:
    one = systems.scored[name]
    sums = {count: each.sum(keepdims=True) for count, each in one.counts.items()}
    return {metric: float(of(sums)[0]) for metric, of in metrics_of(TASK, one).items()}


def test_figures_against_plain_counting():
    lines = measured(0)
    found = values(systems_of(lines), "tuned")
    better, worse = (np.array([line[key]["tuned"] for line in lines]) for key in ("nll", "rejected_nll"))
    length, other = (np.array([line[key] for line in lines]) for key in ("bytes", "rejected_bytes"))
    chose = better < worse
    assert found["preferred"] == pytest.approx(chose.mean()) and 0.55 < found["preferred"] < 0.8
    assert found["preferred_by_byte"] == pytest.approx((better / length < worse / other).mean())
    assert found["margin"] == pytest.approx((worse - better).mean())
    assert found["longer_preferred"] == pytest.approx((chose == (length > other))[length != other].mean())
    assert found["gold_longer_preferred"] == pytest.approx((length > other)[length != other].mean())
    assert found["preferred_where_shorter"] == pytest.approx(chose[length < other].mean())
    assert found["preferred_where_longer"] == pytest.approx(chose[length > other].mean())
    assert found["margin_length_correlation"] == pytest.approx(
        np.corrcoef(worse - better, length - other)[0, 1]
    )
    assert found["rejected_bits_per_byte"] == pytest.approx(worse.sum() / other.sum() / np.log(2))
    assert found["bits_per_byte"] == pytest.approx(better.sum() / length.sum() / np.log(2))


def test_the_mutant_with_both_sides_exchanged_scores_what_is_left():
    lines = measured(1)
    found, mutant = (values(systems_of(one), "tuned") for one in (lines, swapped(lines)))
    for name in ("preferred", "preferred_by_byte", "gold_longer_preferred"):
        assert mutant[name] == pytest.approx(1 - found[name])
    assert mutant["margin"] == pytest.approx(-found["margin"])
    assert mutant["longer_preferred"] == pytest.approx(
        found["longer_preferred"]
    )  # length bias knows no better side


def test_length_bias_shows():
    fair, biased = (values(systems_of(measured(2, by_length=nats)), "tuned") for nats in (0.0, 0.5))
    assert abs(fair["margin_length_correlation"]) < 0.15 and 0.4 < fair["longer_preferred"] < 0.6
    assert biased["margin_length_correlation"] < -0.9 and biased["longer_preferred"] < 0.2
    assert biased["preferred_where_shorter"] - biased["preferred_where_longer"] > 0.6
    assert abs(fair["preferred_where_shorter"] - fair["preferred_where_longer"]) < 0.15


def test_the_headline_is_the_share_of_pairs_with_a_paired_interval():
    from tunesmith.evaluate.build import build

    content = build(systems_of(measured(3)), draws=500)
    headline = content["headline"]
    assert headline["metric"] == "preferred" and headline["n"] == ROWS
    assert headline["tuned"] > headline["base"] and headline["difference"]["low"] > 0
    assert "nearest" not in content["over_floors"]  # a floor has no likelihoods
    assert content["mcnemar"]["only_tuned"] > content["mcnemar"]["only_base"]  # by pairs, not by letters
    assert content["scores"]["nearest"]["word_f1"]["value"] == 1


def test_without_likelihoods_of_the_worse_answers_it_is_text():
    old = [
        {key: value for key, value in line.items() if not key.startswith("rejected")} for line in measured(4)
    ]
    systems = systems_of(old)
    assert headline_of(systems) == "word_f1" and "bits_per_byte" in values(systems, "tuned")
    assert "preferred" not in values(systems, "tuned")
    assert headline_of(systems_of(measured(4))) == "preferred"


def test_a_tie_is_half():
    lines = measured(5)
    for line in lines:
        line["nll"] = line["rejected_nll"] = {"base": 12.0, "tuned": 12.0}
    assert values(systems_of(lines), "base")["preferred"] == 0.5


def test_a_row_without_a_worse_answer_is_refused_by_name():
    rows = [*pairs(3), Example.make("Which one?", "this", id="single")]
    with pytest.raises(RowCheckFailed, match="no rejected answer") as caught:
        check_golds(TASK, rows)
    assert "single" in str(caught.value)


def test_saying_the_worse_answer_again_is_a_fault():
    row = pairs(1)[0]
    kinds = {said: [one.kind for one in faults_of(TASK, answered(TASK, row, {"answer": said}))] for said in
             (row.answer, row.rejected, row.rejected.upper() + ".", "something else", "")}  # fmt: skip
    assert kinds == {
        row.answer: [],
        row.rejected: ["wrong"],
        "THE WORSE TOOL 0.": ["wrong"],
        "something else": [],
        "": ["empty"],
    }


@pytest.mark.realdata
def test_real_pairs_are_all_pairs(realdata: Path):
    """The text stays unseen: only what it measures is looked at."""
    from tunesmith.data.formats.examples import row_examples
    from tunesmith.data.row import BadRow, Manner

    rows, refused = [], 0
    for number, line in enumerate(
        (realdata / "hh_rlhf_harmless" / "pairs.jsonl").read_text("utf-8").split("\n")[:-1]
    ):
        try:
            rows += row_examples(json.loads(line), f"pairs:{number}", Manner(format="preference"))
        except BadRow:
            refused += 1
    usable = [row for row in rows if (row.answer or "").strip()]
    assert refused == 5 and len(check_golds(TASK, usable)) == len(usable) > 1740
    longer = np.mean([len(row.answer or "") > len(row.rejected or "") for row in usable])
    assert 0.40 < longer < 0.48  # 44 % were counted by others
