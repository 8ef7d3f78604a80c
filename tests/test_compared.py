"""One text by which rows are alike: what is cut from it, and that every figure is of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_pool import pool_of

from tunesmith.base import resolve
from tunesmith.data.alike import nearest
from tunesmith.data.alike.near import near_pairs, shingles
from tunesmith.data.alike.shingles import fold
from tunesmith.data.compared import Affixes, compared_text
from tunesmith.data.pool import Pool
from tunesmith.data.prepare import build
from tunesmith.example import Example
from tunesmith.recipe import Recipe

FORM = " ".join(f"form{at}" for at in range(200))


def words(source: random.Random, count: int) -> str:
    return " ".join(f"word{source.randrange(5000)}" for _ in range(count))


def asked(text: str) -> Example:
    return Example.make(text, "yes", id=text)


def report(folder: Path, splits: dict[str, list[str]], **data: Any) -> dict[str, Any]:
    """The inspection of rows with these prompts."""
    for name, prompts in splits.items():
        lines = [{"prompt": text, "completion": f"answer {row}"} for row, text in enumerate(prompts)]
        data[name] = str(folder / f"{name}.jsonl")
        Path(data[name]).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    recipe = Recipe.model_validate(
        {"name": "one", "model": {"base": "starter"}, "data": data, "evaluate": {"task": "text"}}
    )
    inspection: dict[str, Any] = build(recipe, resolve(recipe.model), folder / ".rows").report["inspection"]
    return inspection


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Stage\u00a0IV\n lung,  ", "stage iv lung,"),
        ("? ?", "??"),
        (" … ", "…"),
        ("肺 がん", "肺 がん"),
        ("", ""),
        ("\n ", ""),
    ],
)
def test_folded_texts(text: str, expected: str) -> None:
    assert fold(text) == expected and shingles(text) == shingles(expected)


def test_what_all_first_rows_share_is_cut_from_every_row_that_has_it() -> None:
    source = random.Random(1)
    firsts = [asked(f"Read this: {words(source, 9)}. Now: answer") for _ in range(30)]
    few = [asked(f"Read this: word7 {words(source, 9)}") for _ in range(5)]  # too few to say what they share
    affixes = Affixes.of([firsts, few])
    assert affixes == (("read this: ",), (" now: answer",))
    assert compared_text(asked("READ  this: one two.\nNow: answer"), affixes) == "one two."
    assert compared_text(asked("Read that: one"), affixes) == "read that: one"
    longer = Affixes.of([firsts, [asked(f"Read this: twice {words(source, 9)}") for _ in range(30)]])
    assert longer.prefixes == ("read this: twice ", "read this: ")
    assert compared_text(asked("Read this: twice a b"), longer) == "a b"


def test_affixes_are_kept_with_the_rows(tmp_path: Path) -> None:
    source = random.Random(1)
    rows = [asked(f"{FORM} {words(source, 20)}") for _ in range(30)]
    affixes = Affixes.of([rows])
    pool_of(tmp_path, rows, affixes=affixes)
    pool = Pool(tmp_path)
    assert pool.affixes == affixes and pool.compared(3) == rows[3].messages[0].content[len(FORM) + 1 :]


def form_rows() -> list[str]:
    source = random.Random(5)
    return [f"{FORM} {words(source, 30)}" for _ in range(60)]


def test_near_leaks_and_nearest_rows_are_of_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows unlike apart from a form are unlike; a mutant that forgets it for the figures alone is found out."""

    def at_least(folder: Path) -> tuple[int, int]:
        folder.mkdir()
        leaks = report(folder, {"train": form_rows()}, split={"validation": 0.2})["leaks"][
            "validation in train"
        ]
        return leaks["near"]["rows"], leaks["similarity"]["at_least"]["0.5"]

    assert at_least(tmp_path / "all") == (0, 0)
    monkeypatch.setattr(nearest, "EXACT", 10)  # signatures choose
    assert at_least(tmp_path / "chosen") == (0, 0)
    monkeypatch.setattr(Pool, "compared", lambda pool, row: compared_text(pool.example(row)))
    assert at_least(tmp_path / "mutant")[1] == 12


def test_a_small_file_is_cut_like_the_large_one_beside_it(tmp_path: Path) -> None:
    train = form_rows()
    held = train[7].split()
    held[205] = "changed"
    found = report(tmp_path, {"train": train, "validation": [" ".join(held).upper()]})
    assert found["leaks"]["validation in train"]["near"]["rows"] == 1
    assert 0.8 < found["leaks"]["validation in train"]["similarity"]["max"] < 0.9


def test_a_prompt_is_leaked_case_and_spaces_aside(tmp_path: Path) -> None:
    source = random.Random(2)
    train = [words(source, 12) for _ in range(30)]
    found = report(
        tmp_path,
        {
            "train": [*train, "??", "!", ":-)"],
            "validation": [train[3].upper() + " ", "? ?", ": - )", ".", "?"],
        },
    )
    leaks = found["leaks"]["validation in train"]
    assert leaks["exact"] == {"rows": 3, "share": 0.6, "named": 3}
    assert leaks["near"]["rows"] == 0  # an exact leak is no near one


def test_a_drawn_split_parts_no_prompts_that_are_one_but_for_spaces(tmp_path: Path) -> None:
    prompts = [f"{'?' * row}{'!' * column}" for row in range(1, 7) for column in range(1, 7)]
    again = [" ".join(prompt) for prompt in prompts]
    found = report(tmp_path, {"train": prompts + again}, split={"validation": 0.3})
    assert found["leaks"]["validation in train"]["exact"]["rows"] == 0


def test_texts_without_words_are_pairs_by_their_hash_alone() -> None:
    signed = np.full((6, 128), 0xFFFFFFFF, np.uint32)
    texts = ["?", "!", "", "?", "", "?"]
    same = np.array([5, 9, 0, 5, 0, 5], np.uint64)
    pairs, alike = near_pairs(signed, texts.__getitem__, same=same)
    assert pairs.tolist() == [[0, 3], [3, 5]] and alike.tolist() == [1, 1]
    assert len(near_pairs(signed, texts.__getitem__)[0]) == 0
