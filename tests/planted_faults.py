"""Faults planted into gold answers, with what a detector has to say of each: for the tests that count its misses.

`plant(family, seed)` makes rows of a family of tasks and one answer for each: the gold answer, the same told otherwise,
or one that is spoiled in exactly one way. EXTRACTION is here, the other families are in planted_texts.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tunesmith.example import Example, Message
from tunesmith.starter import reports
from tunesmith.starter.values import FIELDS, draw


class Spoiled(NamedTuple):
    """An answer, the place of the fault ("" where none is asked for), whether it ended by itself (None: not told)."""

    answer: str
    where: str = ""
    stopped: bool | None = True


Plant = Callable[[Example, random.Random], "Spoiled | None"]
"""None where this row has nothing to spoil so."""


@dataclass(frozen=True)
class Family:
    """Rows of one kind of task and the ways to spoil their answers."""

    task: str
    rows: Callable[[int, int], list[Example]]
    """(count, seed) → rows with gold answers."""
    plants: Mapping[str, tuple[str, Plant]]
    """Name of a fault → the kind in FAULTS that has to be found (or one of several: a|b), and how it is planted."""
    told_otherwise: Callable[[Example, random.Random], str]
    """The gold answer in another form that is as good: no fault may be found in it."""
    train: Callable[[int, int], list[Example]]
    """(count, seed) → training rows, from which the task is made."""


class Planted(NamedTuple):
    """One row, one answer, and what is wrong with it (None: nothing)."""

    example: Example
    line: dict[str, Any]
    plant: str | None
    where: str


def plant(family: Family, seed: int, per_plant: int = 60) -> list[Planted]:
    """`per_plant` rows of each plant and twice as many untouched ones, shuffled. Fewer where rows run out."""
    rng = random.Random(f"{family.task}/{seed}")
    rows = family.rows(per_plant * (2 * len(family.plants) + 4), seed)
    rng.shuffle(rows)
    made: list[Planted] = []
    wanted = dict.fromkeys(family.plants, per_plant)
    clean = 2 * per_plant
    for example in rows:
        left = [name for name, count in wanted.items() if count]
        rng.shuffle(left)
        for name in left:
            spoiled = family.plants[name][1](example, rng)
            if spoiled is not None:
                wanted[name] -= 1
                made.append(Planted(example, _line(example, spoiled), name, spoiled.where))
                break
        else:
            if clean:
                clean -= 1
                same = example.answer or "" if clean % 2 else family.told_otherwise(example, rng)
                made.append(Planted(example, _line(example, Spoiled(same)), None, ""))
    assert not clean and not any(wanted.values()), f"too few rows to plant into: {wanted}, {clean} clean"
    return made


def _line(example: Example, spoiled: Spoiled) -> dict[str, Any]:
    told = {} if spoiled.stopped is None else {"stopped": spoiled.stopped}
    return {"id": example.id, "answer": spoiled.answer, "gold": example.answer, **told}


def empty(example: Example, rng: random.Random) -> Spoiled:
    """Nothing, or white space."""
    return Spoiled(rng.choice(("", " ", "\n\n")))


def cut(example: Example, rng: random.Random) -> Spoiled | None:
    """Without its last third to half: the limit came first."""
    answer = example.answer or ""
    end = int(len(answer) * rng.uniform(0.5, 0.67))
    return Spoiled(answer[:end], stopped=False) if answer[:end].strip() else None


def cut_and_not_told(example: Example, rng: random.Random) -> Spoiled | None:
    """The same in a file that doesn't say how answers ended."""
    spoiled = cut(example, rng)
    return spoiled and spoiled._replace(stopped=None)


# ---- extraction: reports of the starter's generator


def _reports(count: int, seed: int, split: str = "test") -> list[Example]:
    made = []
    for row in reports.rows(split, count, seed):
        asked = Message("user", f"{row['instruction']}\n\n{row['input']}")
        said = Message("assistant", json.dumps(row["output"]), learned=True)
        made.append(Example(row["id"], (asked, said), row["document"], row["slices"]))
    return made


def _training_reports(count: int, seed: int) -> list[Example]:
    return _reports(count, seed, "train")


def _gold(example: Example) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(example.answer or "")
    return made


def _other(name: str, value: str | None, rng: random.Random) -> str:
    """A value of the field that shares no word with `value`."""
    known = set((value or "").casefold().replace(";", " ").split())
    while True:
        made = draw(name, rng.choice(("seen", "unseen")), rng)
        if not known & set(made.casefold().split()):
            return made


def invented_treatment(example: Example, rng: random.Random) -> Spoiled | None:
    """A treatment where the gold has none, or one more than it has."""
    gold = _gold(example)
    other = _other("treatment", gold["treatment"], rng)
    gold["treatment"] = f"{gold['treatment']}; {other}" if gold["treatment"] else other
    return Spoiled(json.dumps(gold), "treatment")


def flipped_stage(example: Example, rng: random.Random) -> Spoiled | None:
    """Another stage."""
    gold = _gold(example)
    if gold["stage"] is None:
        return None
    stages = sorted({draw("stage", "seen", random.Random(i)) for i in range(60)})
    gold["stage"] = rng.choice([one for one in stages if one.casefold() != gold["stage"].casefold()])
    return Spoiled(json.dumps(gold), "stage")


def lost_value(example: Example, rng: random.Random) -> Spoiled | None:
    """A value of any field left out."""
    gold = _gold(example)
    there = [name for name in FIELDS if gold[name] is not None]
    name = rng.choice(there)
    gold[name] = None
    return Spoiled(json.dumps(gold), name)


def prose(example: Example, rng: random.Random) -> Spoiled:
    """No JSON."""
    return Spoiled(rng.choice(("The patient has cancer.", "I can't tell.", "{stage: II}")))


def respelled(example: Example, rng: random.Random) -> str:
    """Keys, items and letters in another order or case, other separators, spaces."""
    gold = _gold(example)
    for name, value in gold.items():
        if value is not None:
            parts = value.split("; ")
            rng.shuffle(parts)
            gold[name] = rng.choice((str.upper, str.lower, str))(
                rng.choice(("; ", " and ", ", ")).join(parts)
            )
    names = list(gold)
    rng.shuffle(names)
    return json.dumps({name: gold[name] for name in names}, indent=rng.choice((None, 1)))


EXTRACTION = Family(
    "extraction",
    _reports,
    {
        "hallucinated treatment": ("hallucinated", invented_treatment),
        "flipped stage": ("wrong", flipped_stage),
        "lost value": ("missed", lost_value),
        "empty": ("empty", empty),
        "truncated": ("truncated", cut),
        "truncated, not told": ("truncated", cut_and_not_told),
        "prose": ("unparsable", prose),
    },
    respelled,
    _training_reports,
)
