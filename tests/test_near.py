"""Near-duplicates: shingles, signatures, and the pairs that banding finds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tunesmith.data.alike import bands
from tunesmith.data.alike.minhash import HASHES, similarity
from tunesmith.data.alike.near import jaccard, near_pairs, recall, shingles, signatures
from tunesmith.data.alike.shingles import shingle_hashes

GOLDEN = [
    [2019177070, 164297848, 194840233],
    [4191240771, 2027161737, 1695946209],
    [2249861108, 1856808698, 1518281578],
    [4294967295, 4294967295, 4294967295],
]
ALPHABET = "ab Z9.,\n\0\x85\u2028ßİΣé—ಕನ್ನಡ\u200dनमस्ते漢字かなไทย한국😀\ud800"


def words(source: random.Random, count: int, many: int = 30_000) -> list[str]:
    return [f"word{source.randrange(many)}" for _ in range(count)]


def changed(source: random.Random, text: str, share: float) -> str:
    """The text with about this share of its words replaced."""
    return " ".join(
        word if source.random() > share else f"x{source.randrange(10**6)}" for word in text.split()
    )


def sets_of(texts: list[str]) -> list[set[int]]:
    hashes, begins = shingle_hashes(texts)
    return [set(hashes[a:b].tolist()) for a, b in pairwise(begins)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Stage IV lung, stage iv LUNG", {"stage iv lung", "iv lung stage", "lung stage iv"}),
        ("yes", {"yes"}),
        ("Yes, doctor!", {"yes doctor"}),
        ("", set()),
        (" … — . ", set()),
        ("a—b\u2028c", {"a b c"}),
        ("肺がんです", {"肺 が ん", "が ん で", "ん で す"}),
        ("ไทย", {"ไ ท ย"}),
        ("stage 肺 x", {"stage 肺 x"}),
        ("PD-L1肺", {"pd l1 肺"}),
        ("ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ", {"ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ"}),
        ("한국어 단어 셋", {"한국어 단어 셋"}),
    ],
)
def test_shingles_as_they_read(text: str, expected: set[str]) -> None:
    assert shingles(text) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(ALPHABET, max_size=40), min_size=1, max_size=8))
def test_hashes_are_those_of_the_shingles(texts: list[str]) -> None:
    read = [shingles(text) for text in texts]
    hashed = sets_of(texts)
    assert [len(one) for one in hashed] == [len(one) for one in read]
    for a, left in enumerate(read):
        for b, right in enumerate(read):
            assert len(left & right) == len(hashed[a] & hashed[b])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(ALPHABET + "abcdefgh ", max_size=200), min_size=1, max_size=12), st.data())
def test_a_signature_hangs_on_its_text_alone(texts: list[str], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(texts))))
    assert (signatures([texts[i] for i in order]) == signatures(texts)[order]).all()
    assert (signatures(texts) == np.concatenate([signatures([text]) for text in texts])).all()


def test_long_texts_are_hashed_like_short_ones() -> None:
    source = random.Random(3)
    text = " ".join(words(source, 60_000))  # over half a million characters: many stretches
    assert len(sets_of([text])[0]) == len(shingles(text))
    tail = " ".join(text.split()[-50:])
    assert sets_of([tail])[0] <= sets_of([text])[0]
    assert (
        signatures(["a b c", text, tail]) == np.concatenate([signatures([t]) for t in ["a b c", text, tail]])
    ).all()


def test_signatures_are_the_same_everywhere() -> None:
    # written down once: a change here makes every stored signature worthless
    signed = signatures(
        ["Stage IV lung adenocarcinoma with brain metastases.", "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ", "肺がんです", ""]
    )
    assert signed.dtype == np.uint32 and signed.shape == (4, HASHES)
    assert signed[:, [0, 1, 127]].tolist() == GOLDEN


@cache
def exact_of(pairs: tuple[tuple[str, str], ...]) -> NDArray[np.float64]:
    return np.array([jaccard(a, b) for a, b in pairs])


def estimate_error(
    pairs: list[tuple[str, str]], sign: Callable[[list[str]], NDArray[np.uint32]]
) -> tuple[float, float]:
    """Of the estimates' errors in units of sqrt(J (1 - J) / HASHES): the mean times sqrt(pairs), and the spread."""
    exact = exact_of(tuple(pairs))
    estimated = similarity(sign([a for a, _ in pairs]), sign([b for _, b in pairs]))
    middle = (exact > 0.02) & (exact < 0.98)
    error = (estimated - exact)[middle] / np.sqrt(exact * (1 - exact) / HASHES)[middle]
    return float(error.mean() * np.sqrt(len(error))), float(error.std())


def as_theory_says(error: tuple[float, float]) -> bool:
    return abs(error[0]) < 4 and 0.85 < error[1] < 1.15


def correlated(texts: list[str]) -> NDArray[np.uint32]:
    """The mutant: places that repeat one another."""
    return np.repeat(signatures(texts)[:, ::4], 4, axis=1)


def biased(texts: list[str]) -> NDArray[np.uint32]:
    """The mutant: the least of 2 ^ 4 values only, so that different shingles agree by chance."""
    return signatures(texts) & np.uint32(0xF)


def random_pairs(count: int) -> list[tuple[str, str]]:
    source = random.Random(11)
    texts = [" ".join(words(source, source.randrange(5, 150))) for _ in range(count)]
    return [(text, changed(source, text, source.choice([0.02, 0.05, 0.1, 0.2]))) for text in texts]


def test_estimates_err_as_theory_says() -> None:
    pairs = random_pairs(600)
    assert as_theory_says(estimate_error(pairs, signatures))
    assert not as_theory_says(estimate_error(pairs, correlated))
    assert not as_theory_says(estimate_error(pairs, biased))


@pytest.mark.realdata
def test_estimates_err_as_theory_says_on_real_text(realdata: Path) -> None:
    with (realdata / "cancer_ie" / "train.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["input"] for line in file][:600]
    source = random.Random(2)
    pairs = [(text, changed(source, text, source.choice([0.02, 0.05, 0.1, 0.2]))) for text in texts]
    assert as_theory_says(estimate_error(pairs, signatures))
    assert not as_theory_says(estimate_error(pairs, correlated))


def planted(source: random.Random, count: int, changes: int) -> list[str]:
    """Texts of 150 words in pairs: the second has this many words changed."""
    texts = []
    for _ in range(count):
        first = words(source, 150)
        second = list(first)
        for at in source.sample(range(150), changes):
            second[at] = "changed"
        texts += [" ".join(first), " ".join(second)]
    return texts


def pairs_of(texts: list[str], **more: object) -> dict[tuple[int, int], float]:
    pairs, alike = near_pairs(signatures(texts), texts.__getitem__, **more)  # type: ignore[arg-type]
    assert pairs.dtype == np.int32 and alike.dtype == np.float32 and len(pairs) == len(alike)
    return {(a, b): s for (a, b), s in zip(pairs.tolist(), alike.tolist(), strict=True)}


@pytest.mark.parametrize(("changes", "least"), [(2, 0.995), (4, 0.99), (5, 0.96)])
def test_planted_pairs_are_found(changes: int, least: float) -> None:
    texts = planted(random.Random(changes), 400, changes)
    near = {(row, row + 1) for row in range(0, len(texts), 2) if jaccard(texts[row], texts[row + 1]) >= 0.8}
    found = pairs_of(texts)
    assert len(near) > 100
    assert set(found) <= near  # nothing but what exact comparison says
    assert len(found) / len(near) >= least
    for (a, b), alike in found.items():
        assert alike == pytest.approx(jaccard(texts[a], texts[b]), abs=1e-6)


def test_a_shallow_search_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = planted(random.Random(5), 600, 5)
    monkeypatch.setattr(bands, "BANDS", 4)  # the mutant
    near = sum(jaccard(texts[row], texts[row + 1]) >= 0.8 for row in range(0, len(texts), 2))
    assert len(pairs_of(texts)) / near < 0.9


def test_recall_by_theory() -> None:
    assert [round(recall(s), 3) for s in (0.8, 0.85, 0.9)] == [0.986, 0.999, 1.0]
    assert recall(0.3) < 0.005


def test_only_near_texts_are_pairs() -> None:
    source = random.Random(1)
    assert pairs_of([" ".join(words(source, 80, many=500)) for _ in range(2000)]) == {}


def test_texts_without_words_are_nobodys_duplicates() -> None:
    assert pairs_of(["", "…", "", "a b c d", "A, b: c d!"]) == {(3, 4): 1.0}
    assert pairs_of([]) == {} == pairs_of(["one text"])


def reading(texts: list[str]) -> tuple[Callable[[int], str], list[int]]:
    read: list[int] = []

    def text_of(row: int) -> str:
        read.append(row)
        return texts[row]

    return text_of, read


def clusters(pairs: NDArray[np.int32], rows: int) -> list[int]:
    """Sizes of the groups of connected rows."""
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(rows, rows))
    sizes = np.bincount(connected_components(graph, directed=False)[1])
    return sizes[sizes > 1].tolist()


def test_many_equal_rows_cost_one_pair_each_and_no_reading() -> None:
    source = random.Random(1)
    texts = ["the same answer to all of these questions"] * 20_000 + [
        " ".join(words(source, 50)) for _ in range(200)
    ]
    text_of, read = reading(texts)
    same = np.array([hash(text) & (1 << 63) - 1 for text in texts], np.uint64)
    pairs, alike = near_pairs(signatures(texts), text_of, same=same)
    assert len(pairs) == 19_999 and (alike == 1).all() and read == []
    assert clusters(pairs, len(texts)) == [20_000]


def test_a_crowd_of_near_duplicates_hangs_together_without_all_pairs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = random.Random(4)
    body = words(source, 300)
    texts = []
    for row in range(3000):
        mine = list(body)
        mine[source.randrange(300)] = f"patient{row}"
        texts.append(" ".join(mine))
    text_of, read = reading(texts)
    pairs, alike = near_pairs(signatures(texts), text_of)
    assert clusters(pairs, len(texts)) == [3000]
    assert len(pairs) < 40 * 3000 and alike.min() >= 0.8
    assert len(read) < 2 * len(pairs)
    assert "near-duplicates" not in capsys.readouterr().err


def test_boilerplate_that_all_rows_share_is_bounded_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    source = random.Random(4)
    head = " ".join(words(source, 200))
    texts = [f"{head} {' '.join(words(source, 60))}" for _ in range(4000)]  # Jaccard 0.6 everywhere
    twin = texts[7].split()
    twin[-3] = "another"
    texts.append(" ".join(twin))
    pairs, _ = near_pairs(signatures(texts), texts.__getitem__)
    assert pairs.tolist() == [[7, 4000]]
    assert "compared only with the few that look most like them" in capsys.readouterr().err


def form(own: list[str]) -> str:
    """A form of 160 words, filled in at three places."""
    third = len(own) // 3
    parts = [f"form{at}" for at in range(160)]
    for at, start in ((40, 0), (80, third), (120, 2 * third)):
        parts[at] += " " + " ".join(own[start : start + third])
    return " ".join(parts)


def found_in_forms(own: int, changes: int) -> tuple[int, int]:
    """Of 100 pairs planted among 1,000 rows of one form: those that hang together, and those as near as 0.8."""
    source = random.Random(own)
    answers = [words(source, own) for _ in range(1000)]
    texts = [form(one) for one in answers]
    for row in range(100):
        again = list(answers[row])
        for at in source.sample(range(own), changes):
            again[at] = "changed"
        texts.append(form(again))
    near = [row for row in range(100) if jaccard(texts[row], texts[1000 + row]) >= 0.8]
    pairs, alike = near_pairs(signatures(texts), texts.__getitem__)
    assert len(alike) and alike.min() >= 0.8
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(texts), len(texts)))
    label = connected_components(graph, directed=False)[1]
    return sum(label[row] == label[1000 + row] for row in near), len(near)


@pytest.mark.parametrize(("own", "changes"), [(24, 7), (27, 7)])
def test_near_rows_among_rows_of_one_form_are_found(
    own: int, changes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, near = found_in_forms(own, changes)
    assert near >= 95 and found >= 0.99 * near
    nothing = np.zeros(0, np.uint64)
    monkeypatch.setattr(bands.Bands, "of_crowd", lambda self, crowded: nothing)  # the mutant
    found, near = found_in_forms(own, changes)
    assert found < 0.95 * near


def test_a_group_among_rows_of_one_form_hangs_together() -> None:
    source = random.Random(2)
    texts = [form(words(source, 36)) for _ in range(1000)]
    one = texts[0].split()
    for row in range(60):  # more than CROWD
        one[60 + row] = f"other{row}"
        texts.append(" ".join(one))
        one = texts[0].split()
    pairs, _ = near_pairs(signatures(texts), texts.__getitem__)
    assert clusters(pairs, len(texts)) == [61]


def test_signatures_in_a_file_give_the_same_pairs(tmp_path: Path) -> None:
    texts = [*planted(random.Random(9), 300, 3), "", "a"]
    signed = signatures(texts)
    with (tmp_path / "signatures").open("wb") as file:
        signed[:5].tofile(file)
        signed.tofile(file)
    stored = np.memmap(tmp_path / "signatures", dtype=np.uint32, mode="r").reshape(-1, HASHES)
    memory = near_pairs(signed, texts.__getitem__)
    for mapped in (
        stored[5:],
        np.memmap(tmp_path / "signatures", np.uint32, "r", 5 * HASHES * 4, signed.shape),
    ):
        pairs, alike = near_pairs(mapped, texts.__getitem__)
        assert (pairs == memory[0]).all() and (alike == memory[1]).all() and len(pairs) > 200


def test_the_order_of_rows_changes_no_pair() -> None:
    texts = planted(random.Random(9), 200, 4)
    order = random.Random(1).sample(range(len(texts)), len(texts))
    found = {
        (min(order[a], order[b]), max(order[a], order[b])) for a, b in pairs_of([texts[i] for i in order])
    }
    assert found == set(pairs_of(texts))
