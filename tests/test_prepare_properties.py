"""The data stage on whatever rows: none lost or counted twice, none on two sides; their order decides nothing."""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare import MODEL

from tunesmith.base import resolve
from tunesmith.data import split as split_module
from tunesmith.data.prepare import Prepared, build
from tunesmith.recipe import Recipe

WORDS = "liver lung bone scan dose week blood cell stage node left right upper lower mass fever".split()
TRAPS = ("\x85", "\u2028", "\u2029", "\x0c", "\x1c", "\ufeff", "\u200d", "ಕ್", "😀", "\x00", "\r", "\t")
SHARES = {"validation": 0.2, "test": 0.2}
KINDS = ("sound", "sound", "sound", "sound", "twin", "empty", "long", "broken", "not json", "blank")


@st.composite
def files(draw: st.DrawFn) -> list[bytes]:
    """Lines of a .jsonl file, at least 25 of them sound."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    kinds = draw(st.lists(st.sampled_from(KINDS), max_size=40))
    made = [_line("sound", rng, number) for number in range(25)]
    made += [_line(kind, rng, number) for number, kind in enumerate(kinds, 25)]
    rng.shuffle(made)
    return made


def _line(kind: str, rng: random.Random, number: int) -> bytes:
    prompt = f"{rng.choice(TRAPS)}{' '.join(rng.choices(WORDS, k=25))}{rng.choice(TRAPS)} {number}"
    row: Any = {
        "prompt": prompt,
        "completion": f"case {rng.choice(TRAPS)}{number}",
        "doc_id": f"d{number % 30}",
    }
    if kind == "twin":
        row["prompt"] = "the very same question"
    if kind == "empty":
        row["completion"] = ""
    if kind == "long":
        row["prompt"] *= 40
    if kind == "broken":
        del row["completion"]
    if kind == "not json":
        return b'{"prompt": "half'
    if kind == "blank":
        return b"  "
    return json.dumps(row, ensure_ascii=bool(rng.getrandbits(1))).encode()


def made_of(folder: Path, lines: list[bytes]) -> Prepared:
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    data = {"train": str(folder / "rows.jsonl"), "split": SHARES, "max_length": 512, "overlong": "drop"}
    recipe = Recipe.model_validate({"name": "any", "model": MODEL, "data": data})
    return build(recipe, resolve(recipe.model), folder / ".rows")


def sides(made: Prepared) -> dict[tuple[str, str], set[str]]:
    """(prompt, answer) → sides."""
    found: dict[tuple[str, str], set[str]] = {}
    for name, rows in made.splits.items():
        for example in rows.examples():
            found.setdefault((example.prompt[-1].content, example.answer or ""), set()).add(name)
    return found


def check(folder: Path, lines: list[bytes]) -> None:
    """What holds for any rows."""
    made = made_of(folder / "one", lines)
    report = made.report
    kept = Counter(example.source for rows in made.splits.values() for example in rows.examples())
    unread = Counter(
        finding["source"] for finding in made.findings() if finding["check"] in ("unreadable", "overlong")
    )
    places = {f"rows.jsonl:{number}" for number, line in enumerate(lines, 1) if line.strip()}
    # in = out + refused + too long, each row once, each by its line
    assert max(kept.values()) == 1 and set(kept) | set(unread) == places and not set(kept) & set(unread)
    (source,) = report["sources"]
    assert source["rows"] == len(places) == kept.total() + source["refused"] + report["overlong"]["rows"]
    assert [report["splits"][name]["rows"] for name in made.splits] == list(map(len, made.splits.values()))
    assert (
        sum(check["rows"] for check in report["inspection"]["checks"] if check["name"].endswith("_leak")) == 0
    )
    # no prompt and no document on two sides
    for key in ("prompt", "document"):
        where: dict[Any, set[str]] = {}
        for name, rows in made.splits.items():
            for example in rows.examples():
                where.setdefault(getattr(example, key), set()).add(name)
        assert all(len(found) == 1 for found in where.values())
    # the same rows in another order
    other = list(lines)
    random.Random(0).shuffle(other)
    assert sides(made_of(folder / "other", other)) == sides(made)
    # the same file again: the same bytes
    again = made_of(folder / "again", lines)
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == {
        path.name: path.read_bytes() for path in made.folder.iterdir()
    }


@settings(max_examples=15, deadline=None)
@given(files())
def test_any_rows(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder), lines)


def test_a_split_by_the_order_of_rows_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: units take their places by their number."""
    right = split_module.units_of

    def wrong(*given: Any) -> Any:
        units = right(*given)
        units.place[:] = range(len(units.place))
        return units

    monkeypatch.setattr(split_module, "units_of", wrong)
    lines = [_line("sound", random.Random(number), number) for number in range(60)]
    with pytest.raises(AssertionError):
        check(tmp_path, lines)
