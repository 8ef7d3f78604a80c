"""Faults planted into real rows, which have habits of their own: one row in twenty of each kind, from a fresh seed.

The rows' own findings are counted before; what the planted faults add to the clean rows are false alarms.
TUNESMITH_SEED=… repeats a run. Where one seed's rows miss the mark, those of four more are counted with them.
"""

from __future__ import annotations

import json
import os
import random
import secrets
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_pool import pool_of
from test_inspect_real import read

from tunesmith.data.alike.near import near_pairs
from tunesmith.data.inspect import inspect
from tunesmith.example import Example
from tunesmith.recipe import Data
from tunesmith.tasks import make_task

pytestmark = pytest.mark.realdata

SEED = int(os.environ.get("TUNESMITH_SEED", secrets.randbits(32)))
RECALL, FALSE_ALARMS, MORE = 0.95, 0.01, 4
ONE_IN = 20
PHONES = (
    "(617) 555-0143",
    "617-555-0143",
    "617.555.0143",
    "+1 617 555 0143",
    "+91 98765 43210",
    "1-800-555-0199",
)
KANNADA = "ರೋಗಿಗೆ ಜ್ವರ ಇದೆ ಮತ್ತು ಚಿಕಿತ್ಸೆ ನೀಡಲಾಗಿದೆ"
Rows = list[Example]


def asked(row: Example, change: Callable[[str], str]) -> Example:
    *before, prompt, answer = row.messages
    return replace(row, messages=(*before, replace(prompt, content=change(prompt.content)), answer))


def answered(row: Example, answer: str) -> Example:
    return replace(row, messages=(*row.messages[:-1], replace(row.messages[-1], content=answer)))


def edited(text: str, rng: random.Random) -> str:
    """One word in forty is another."""
    words = text.split(" ")
    for _ in range(max(1, len(words) // 40)):
        words[rng.randrange(len(words))] = rng.choice(("the", "noted", "patient"))
    return " ".join(words)


def cut(text: str, rng: random.Random) -> str:
    """Cut somewhere within a sentence: behind its full stop a cut can't be seen."""
    while True:
        short = text[: int(len(text) * rng.uniform(0.3, 0.8))]
        if short.rstrip()[-1] not in ".?!":
            return short


def with_phone(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    words.insert(rng.randrange(1, len(words)), f"call {rng.choice(PHONES)}")
    return " ".join(words)


def swapped(answer: str, rng: random.Random) -> str:
    value = json.loads(answer)
    while True:
        one, other = rng.sample([name for name in value if value[name]], 2)
        if str(value[one]).lower() != str(value[other]).lower():
            return json.dumps(value | {one: value[other], other: value[one]})


def without_a_key(answer: str, rng: random.Random) -> str:
    value = json.loads(answer)
    value.pop(rng.choice(list(value)))
    return json.dumps(value)


SPOIL: dict[str, Callable[[Example, random.Random], Example]] = {
    "empty_answer": lambda row, rng: answered(row, ""),
    "cut_prompt": lambda row, rng: asked(row, lambda text: cut(text, rng)),
    "phi": lambda row, rng: asked(row, lambda text: with_phone(text, rng)),
    "script": lambda row, rng: answered(row, KANNADA),
}
SPOIL_JSON: dict[str, Callable[[Example, random.Random], Example]] = {
    "swapped_field": lambda row, rng: answered(row, swapped(row.answer or "", rng)),
    "unparsable": lambda row, rng: answered(row, (row.answer or "")[: -len(row.answer or "") // 3]),
    "schema": lambda row, rng: answered(row, without_a_key(row.answer or "", rng)),
}


def planted(
    rows: Rows, rng: random.Random, kinds: dict
) -> tuple[Rows, list[int], dict[str, set[int]], set[int]]:
    """Rows with their faults, the split of each, rows that each check has to name, rows that were touched."""
    rng.shuffle(rows)
    sides = [1] * (len(rows) // 10) + [0] * (len(rows) - len(rows) // 10)
    free = [number for number, side in enumerate(sides) if side == 0]
    faults: dict[str, set[int]] = defaultdict(set)
    touched: set[int] = set()

    def add(row: Example, side: int) -> None:
        touched.add(len(rows))
        rows.append(replace(row, document=f"copy {len(rows)}"))
        sides.append(side)

    for _ in range(len(rows) // ONE_IN):
        for check in ("exact_leak", "near_leak", "contradiction", *kinds):
            number = free.pop()
            faults[check].add(number)
            touched.add(number)
            if check == "exact_leak":
                add(rows[number], 1)
            elif check == "near_leak":
                add(asked(rows[number], lambda text: edited(text, rng)), 1)
            elif check == "contradiction":
                add(answered(rows[number], rows[free[0]].answer or ""), 0)
            else:
                rows[number] = kinds[check](rows[number], rng)
    return rows, sides, faults, touched


class Tried:
    """Real rows with the faults of one seed, inspected."""

    def __init__(self, realdata: Path, folder: Path, name: str, seed: object) -> None:
        if name == "reports":
            rows = read(realdata / "cancer_ie" / "train.jsonl", "instruction")[:3000]
            kinds, task = SPOIL | SPOIL_JSON, "extraction"
        else:  # one task of each article
            rows = read(realdata / "bc5cdr" / "cdr_instruct_train.jsonl", "prompt_completion")[::3]
            rows += read(realdata / "bc5cdr" / "cdr_instruct_dev.jsonl", "prompt_completion")[::3]
            kinds, task = SPOIL, "text"
        golds = [row.answer or "" for row in rows]
        found_in = {check: set() for check in kinds}  # type: dict[str, set[int]]
        rows, sides, faults, touched = planted(rows, random.Random(f"{seed}"), kinds)
        pool = pool_of(folder, rows, sides)
        pairs, similarity = near_pairs(pool.signatures, pool.compared)
        found = inspect(
            pool, pool.facts["given"], pairs, similarity, data=Data(train="rows.jsonl"),
            task=make_task(task, None, golds), schema=None,
        )  # fmt: skip
        for finding in found.findings:
            found_in.setdefault(finding.check, set()).add(finding.row)
        self.hits = {check: (len(rows & found_in[check]), len(rows)) for check, rows in faults.items()}
        self.alarms = {check: len(rows - touched) for check, rows in found_in.items()}
        self.clean = len(rows) - len(touched)
        print(f"seed {seed}", name, self.hits, self.alarms, f"of {self.clean}")


@pytest.mark.parametrize("name", ["reports", "articles"])
def test_faults_planted_into_real_rows_are_found(realdata: Path, tmp_path: Path, name: str) -> None:
    tried = Tried(realdata, tmp_path, name, SEED)
    if missed := {check for check, (hits, of) in tried.hits.items() if hits < RECALL * of}:
        further = [Tried(realdata, tmp_path / str(n), name, f"{SEED}+{n}") for n in range(MORE)]
        for check in missed:
            hits, of = (sum(two) for two in zip(*(one.hits[check] for one in (tried, *further)), strict=True))
            assert hits >= RECALL * of, (f"TUNESMITH_SEED={SEED}", check, hits, of)
    # grounding and swapped_field are these rows' own (docs/data-checks.md)
    for check, alarms in tried.alarms.items():
        if check not in ("grounding", "swapped_field"):
            assert alarms <= FALSE_ALARMS * tried.clean, (f"TUNESMITH_SEED={SEED}", check)
