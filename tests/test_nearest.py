"""The training row nearest to each held-out row: exact, and chosen by signatures."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tunesmith.data.alike import nearest
from tunesmith.data.alike.near import jaccard, signatures
from tunesmith.data.alike.nearest import nearest_similarity, nearest_texts

SHORT = st.lists(st.sampled_from(["a", "b", "c", "肺"]), max_size=9).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(SHORT, max_size=6), st.lists(SHORT, max_size=12))
def test_exact_figures_are_those_of_all_pairs(queries: list[str], corpus: list[str]) -> None:
    best, at = nearest_texts(queries, corpus)
    for query, highest, row in zip(queries, best.tolist(), at.tolist(), strict=True):
        all_pairs = [jaccard(query, text) for text in corpus]
        assert highest == pytest.approx(max(all_pairs, default=0.0))
        assert row == (all_pairs.index(max(all_pairs)) if highest else -1)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = some_texts(300)
    whole = nearest_texts(texts[:40], texts[40:])
    monkeypatch.setattr(nearest, "_TEXTS", 7)
    for one, other in zip(whole, nearest_texts(texts[:40], iter(texts[40:])), strict=True):
        assert (one == other).all()


def some_texts(count: int) -> list[str]:
    """Texts of a small stock of phrases: all are somewhat alike, some much."""
    source = random.Random(8)
    phrases = [" ".join(f"word{source.randrange(2000)}" for _ in range(6)) for _ in range(400)]
    return [" ".join(source.sample(phrases, 8)) for _ in range(count)]


def first_ones(signed: NDArray[np.uint32], queries: NDArray[np.int64], corpus: NDArray[np.int64]) -> object:
    """The mutant: finalists that no signature chose."""
    return [corpus[: nearest.FINALISTS] for _ in queries]


def test_signatures_choose_nearly_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = some_texts(3000)
    queries, corpus = np.arange(0, 3000, 20), np.flatnonzero(np.arange(3000) % 20)
    exact = nearest_similarity(queries, corpus, texts.__getitem__)
    assert exact.exact and exact.of == len(exact.rows) == 150
    monkeypatch.setattr(nearest, "EXACT", 100)
    monkeypatch.setattr(nearest, "_BLOCK", 700)
    chosen = nearest_similarity(queries, corpus, texts.__getitem__, signatures(texts))
    assert not chosen.exact
    assert (chosen.similarity <= exact.similarity + 1e-12).all()  # each is a real row's similarity
    for row, other, alike in zip(chosen.rows, chosen.nearest, chosen.similarity, strict=True):
        assert alike == pytest.approx(jaccard(texts[row], texts[other]))
    assert (exact.similarity - chosen.similarity).mean() < 0.01
    monkeypatch.setattr(nearest, "_finalists", first_ones)
    mutant = nearest_similarity(queries, corpus, texts.__getitem__, signatures(texts))
    assert (exact.similarity - mutant.similarity).mean() > 0.05


def test_of_many_rows_the_same_sample_is_looked_at() -> None:
    texts = some_texts(700)
    queries, corpus = np.arange(600), np.arange(600, 700)
    found = nearest_similarity(queries, corpus, texts.__getitem__)
    assert found.of == 600 and len(found.rows) == nearest.SAMPLE
    assert (nearest_similarity(queries, corpus, texts.__getitem__).rows == found.rows).all()
    assert found.at_least(0.0) == nearest.SAMPLE >= found.at_least(0.3)


def test_no_rows_and_no_words() -> None:
    none = np.zeros(0, np.int64)
    for queries, corpus in ((none, np.arange(2)), (np.arange(2), none), (np.arange(2), np.arange(2, 4))):
        found = nearest_similarity(queries, corpus, ["", "a", "", "b"].__getitem__)
        assert not found.similarity.any() and (found.nearest == -1).all() and len(found.rows) == len(queries)


def test_a_text_without_words_is_near_nothing_by_signature_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "EXACT", 0)
    texts = ["", "a b c d", "", "A b c d"]
    found = nearest_similarity(np.arange(2), np.arange(2, 4), texts.__getitem__, signatures(texts))
    assert found.similarity.tolist() == [0, 1] and found.nearest.tolist() == [-1, 3]


@pytest.mark.realdata
def test_the_cancer_reports_are_as_far_apart_as_was_found(realdata: Path) -> None:
    """The study of the whole 500 validation rows: at most 0.41, 11 of them 0.3 or more, by the input text alone.

    Here lie the first 250 of them, with the highest among them.
    """
    texts: list[list[str]] = []
    for name in ("validation_a", "train"):
        with (realdata / "cancer_ie" / f"{name}.jsonl").open(encoding="utf-8") as file:
            texts.append([json.loads(line)["input"] for line in file])
    held, train = texts
    best, _ = nearest_texts(held, train)
    assert round(float(best.max()), 2) == 0.41
    assert int((best >= 0.3).sum()) == 7
