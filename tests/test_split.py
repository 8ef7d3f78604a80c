"""The side of every row: whole units, shares, strata, and nothing that hangs on the order of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tunesmith.data.pool import FACTS, hash_text
from tunesmith.data.split import split
from tunesmith.errors import RowError

SHARES = {"validation": 0.1, "test": 0.1}


def facts_of(
    rows: int, documents: int = 0, prompts: int = 0, strata: int = 0, seed: int = 0
) -> NDArray[np.void]:
    """Rows with random names; 0 documents or prompts: each row its own."""
    random = np.random.default_rng(seed)
    facts = np.zeros(rows, dtype=FACTS)
    for field, many in (("document", documents), ("prompt", prompts), ("stratum", strata)):
        names = np.array([hash_text(field, str(i)) for i in range(many or rows)], np.uint64)
        facts[field] = names[random.integers(0, many, rows)] if many else names
    if not strata:
        facts["stratum"] = 0
    facts["answer"] = random.integers(1, 1 << 62, rows)
    return facts


def no_pairs() -> NDArray[np.int32]:
    return np.zeros((0, 2), np.int32)


def parted(facts: NDArray[np.void], pairs: NDArray[np.int32], side: NDArray[np.int8]) -> list[str]:
    """What stands on two sides, by name; rows with a side of their own don't count."""
    free = facts["given"] == 0
    found = []
    for field in ("document", "prompt"):
        mine = [free & (facts[field] == name) for name in np.unique(facts[field][free])]
        found += [field for rows in mine if len(set(side[rows].tolist())) > 1]
    near = pairs[free[pairs].all(1)]
    return found + ["near"] * int((side[near[:, 0]] != side[near[:, 1]]).sum())


def by_row(
    facts: NDArray[np.void], pairs: NDArray[np.int32], shares: dict[str, float], seed: int
) -> NDArray[np.int8]:
    """The mutant: every row drawn by itself."""
    drawn = np.random.default_rng(seed).random(len(facts))
    limit = shares.get("validation", 0.0)
    side = np.where(drawn < limit, 1, np.where(drawn < limit + shares.get("test", 0.0), 2, 0))
    return np.where(facts["given"] > 0, facts["given"], side).astype(np.int8)


@st.composite
def any_rows(draw: st.DrawFn) -> tuple[NDArray[np.void], NDArray[np.int32]]:
    rows = draw(st.integers(60, 400))
    # one of both has few names: else all rows hang together
    many = draw(st.permutations([draw(st.sampled_from([rows, rows // 2, rows // 5])), 20 * rows]))
    facts = facts_of(rows, *many, draw(st.integers(0, 5)), seed=draw(st.integers(0, 2**32 - 1)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        facts["given"] = random.choice(3, rows, p=[0.8, 0.1, 0.1])
    pairs = random.integers(0, rows, (draw(st.integers(0, rows // 10)), 2)).astype(np.int32)
    return facts, pairs[pairs[:, 0] < pairs[:, 1]]


@settings(max_examples=60, deadline=None)
@given(any_rows(), st.integers(0, 2**63))
def test_units_stay_whole_and_named_rows_keep_their_side(
    rows: tuple[NDArray[np.void], NDArray[np.int32]], seed: int
) -> None:
    facts, pairs = rows
    try:
        side = split(facts, pairs, SHARES, seed)
    except RowError:
        reject()  # hypothesis fails the test if that happens often
    assert side.shape == (len(facts),) and side.dtype == np.int8 and set(side.tolist()) <= {0, 1, 2}
    named = facts["given"] > 0
    assert (side[named] == facts["given"][named]).all()
    assert parted(facts, pairs, side) == []


@settings(max_examples=40, deadline=None)
@given(any_rows(), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(
    rows: tuple[NDArray[np.void], NDArray[np.int32]], seed: int, random: Any
) -> None:
    facts, pairs = rows
    order = list(range(len(facts)))
    random.shuffle(order)
    new_row = np.argsort(order).astype(np.int32)
    try:
        side = split(facts, pairs, SHARES, seed)
    except RowError:
        with pytest.raises(RowError):
            split(facts[order], new_row[pairs], SHARES, seed)
        return
    assert (split(facts[order], new_row[pairs], SHARES, seed) == side[order]).all()


def test_a_split_by_row_is_found_out() -> None:
    for field, facts in (("document", facts_of(300, documents=100)), ("prompt", facts_of(300, prompts=250))):
        assert parted(facts, no_pairs(), split(facts, no_pairs(), SHARES, 3)) == []
        assert field in parted(facts, no_pairs(), by_row(facts, no_pairs(), SHARES, 3))
    near = facts_of(300)
    all_pairs = np.stack([np.arange(0, 300, 2), np.arange(1, 300, 2)], axis=1).astype(np.int32)
    assert parted(near, all_pairs, split(near, all_pairs, SHARES, 3)) == []
    assert "near" in parted(near, all_pairs, by_row(near, all_pairs, SHARES, 3))


@pytest.mark.parametrize("documents", [0, 500, 2000])
def test_shares_are_met(documents: int) -> None:
    facts = facts_of(5000, documents=documents, strata=4)
    side = split(facts, no_pairs(), {"validation": 0.1, "test": 0.2}, 7)
    counts = np.bincount(side) / len(facts)
    assert counts == pytest.approx([0.7, 0.1, 0.2], abs=0.004)
    if not documents:  # rows are units: each stratum's share to less than a row, on either side of it
        for stratum in np.unique(facts["stratum"]):
            mine = side[facts["stratum"] == stratum]
            for number, share in ((1, 0.1), (2, 0.2)):
                assert abs((mine == number).sum() - share * len(mine)) < 1


def worst_stratum(facts: NDArray[np.void], side: NDArray[np.int8]) -> float:
    """The largest distance of a stratum's test share from a tenth."""
    return max(
        abs(float((side[facts["stratum"] == stratum] == 2).mean()) - 0.1)
        for stratum in np.unique(facts["stratum"])
    )


def test_strata_are_kept_where_documents_mix_them() -> None:
    # documents have rows of several of 8 strata: hardly any set of strata is large enough for a share of its own
    facts = facts_of(3000, documents=750, strata=8, seed=5)
    assert worst_stratum(facts, split(facts, no_pairs(), SHARES, 1)) < 0.01
    unstratified = facts.copy()
    unstratified["stratum"] = 0
    drawn = [worst_stratum(facts, split(unstratified, no_pairs(), SHARES, seed)) for seed in range(5)]
    assert np.mean(drawn) > 0.015  # the test's own check: chance alone is further off


def test_many_small_strata_get_their_share_together() -> None:
    facts = facts_of(3000, strata=1000)
    side = split(facts, no_pairs(), SHARES, 1)
    assert np.bincount(side)[1:] == pytest.approx([300, 300], abs=30)
    for stratum in np.unique(facts["stratum"]):
        assert (side[facts["stratum"] == stratum] == 1).sum() <= 2


@pytest.mark.parametrize("strata", [0, 5])
def test_more_rows_move_few(strata: int) -> None:
    facts = facts_of(4000, documents=2000, strata=strata)
    before = split(facts[:3960], no_pairs(), SHARES, 1)
    moved = (split(facts, no_pairs(), SHARES, 1)[:3960] != before).mean()
    assert moved < 0.02
    assert (split(facts[:3960], no_pairs(), SHARES, 2) != before).mean() > 0.2  # another seed: another draw


def test_the_seed_decides_and_one_side_leaves_the_other_alone() -> None:
    facts = facts_of(1000)
    one = split(facts, no_pairs(), SHARES, 1)
    assert (one == split(facts, no_pairs(), SHARES, 1)).all()
    assert (one != split(facts, no_pairs(), SHARES, 2)).any()
    alone = split(facts, no_pairs(), {"validation": 0.1}, 1)
    assert ((alone == 1) == (one == 1)).all() and not (alone == 2).any()


def test_a_unit_larger_than_a_side_stays_in_train(capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(1000)
    facts["document"][:400] = hash_text("large")
    side = split(facts, no_pairs(), SHARES, 1)
    assert not side[:400].any()
    assert np.bincount(side).tolist() == [800, 100, 100]
    assert "split:" not in capsys.readouterr().err


def test_a_share_that_is_missed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(100)
    facts["document"] = [hash_text(str(i // 14)) for i in range(100)]
    side = split(facts, no_pairs(), {"test": 0.2}, 1)
    assert (side == 2).sum() in (14, 16)
    said = capsys.readouterr()
    assert "test gets" in said.err + said.out and "20 were asked for" in said.err + said.out


@pytest.mark.parametrize(
    ("documents", "shares"), [(1, {"test": 0.5}), (2, {"validation": 0.1, "test": 0.1}), (0, {"test": 0.001})]
)
def test_an_empty_side_is_refused(documents: int, shares: dict[str, float]) -> None:
    with pytest.raises(RowError, match=r"leaves no .* rows") as caught:
        split(facts_of(20, documents=documents), no_pairs(), shares, 1)
    assert "data.split.group" in str(caught.value) and "20 rows" in str(caught.value)


def test_rows_named_for_a_side_are_not_drawn() -> None:
    facts = facts_of(200)
    facts["given"][:50] = 1
    side = split(facts, no_pairs(), {"test": 0.2}, 1)
    assert (side[:50] == 1).all() and (side[50:] == 2).sum() == 30 and not (side[50:] == 1).any()
    assert (split(facts, no_pairs(), {}, 1) == facts["given"]).all()


def test_a_link_through_a_named_row_holds() -> None:
    facts = facts_of(100)
    facts["given"][0] = 1
    pairs = np.array([[0, i] for i in range(1, 5)], np.int32)
    for seed in range(20):
        assert len(set(split(facts, pairs, {"test": 0.3}, seed)[1:5].tolist())) == 1


def test_rows_without_a_document_are_no_document() -> None:
    facts = facts_of(100)
    facts["document"] = hash_text("")
    assert np.bincount(split(facts, no_pairs(), SHARES, 1)).tolist() == [80, 10, 10]
