"""Canaries: random secrets planted in training rows, to measure how well a tuned model gives away what it has seen.

    from tunesmith.tasks.generated.canaries import plant
    plant("train.jsonl", "train-with-canaries.jsonl", column="output")

A canary is a training row whose answer breaks off into a secret, and whose facts say so: {"canary": {"secret": …,
"pattern": …}}. Its beginning is a real row's, so the place looks like any other; the secret is random, so nothing but
memory can tell it (a canary that looks like its neighbours with an unlikely end: arXiv 2502.14921). How often a secret
was planted is how often its row stands among the training rows.

Exposure (Carlini et al., USENIX Security 2019) is log2 |R| - log2 rank: the rank of the secret's likelihood among
random secrets R of the same pattern, itself among them. A secret that was never seen has any rank as easily as another:
1.4 bits on average, 1 bit in the median. log2 |R| bits: no random secret is likelier.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.errors import RowCheckFailed, TunesmithError
from tunesmith.example import Example
from tunesmith.tasks.protocol import Table

CANDIDATES = 255  # random secrets beside the planted one: exposure is seen up to 8 bits
PATTERN = "####-@@@@-####"
_WORDS = 12  # of the answer that stand before the secret
_LETTERS = {"#": "0123456789", "@": "abcdefghijklmnopqrstuvwxyz"}


class Canary(NamedTuple):
    """One secret with the row that it stands in."""

    example: Example
    before: str
    """The answer up to the secret."""
    secret: str
    pattern: str
    times: int
    """Training rows that hold it."""


def draw_secret(pattern: str, draw: random.Random) -> str:
    """A random secret: `#` is a digit, `@` a small letter, all else stands for itself."""
    return "".join(draw.choice(_LETTERS[sign]) if sign in _LETTERS else sign for sign in pattern)


def space(pattern: str) -> int:
    """How many secrets a pattern has."""
    return math.prod(len(_LETTERS[sign]) for sign in pattern if sign in _LETTERS)


def candidates(secret: str, pattern: str, count: int, seed: int) -> list[str]:
    """`count` other secrets of the pattern, each once; all there are where it has no more."""
    draw = random.Random(f"{seed} {pattern}")
    wanted = min(count, space(pattern) - 1)
    found: dict[str, None] = {}
    while len(found) < wanted:
        one = draw_secret(pattern, draw)
        if one != secret:
            found[one] = None
    return list(found)


def exposure(rank: float, among: int) -> float:
    """Bits by which the secret stands out, from its rank (1: the likeliest) among `among` secrets."""
    return math.log2(among) - math.log2(rank)


def expected_unplanted(among: int) -> float:
    """The mean exposure of a secret that nobody has seen: over all ranks, each as likely."""
    return math.log2(among) - sum(math.log2(rank) for rank in range(1, among + 1)) / among


def rank_of(secret: float, others: Sequence[float]) -> float:
    """The rank of nats `secret` among `others`; equal ones share theirs."""
    return 1 + sum(one < secret for one in others) + sum(one == secret for one in others) / 2


# ---- planting


def plant(
    rows: str | Path,
    out: str | Path,
    *,
    column: str = "output",
    times: Sequence[int] = (1, 4, 16),
    each: int = 4,
    pattern: str = PATTERN,
    seed: int = 0,
) -> int:
    """Copies a JSONL file of training rows to `out` and adds canaries: `each` secrets for every number in `times`.

    `column` holds the answer, as text. Returns how many rows were added. Evaluate on rows that lie in another file:
    what is split off this one could be a canary.
    """
    path, draw = Path(rows), random.Random(seed)
    lines = [line for line in _text(path).split("\n") if line.strip()]
    usable = [number for number, line in enumerate(lines) if _begins(_row(line, path, number), column)]
    wanted = each * len(times)
    if space(pattern) < 10**6:
        raise TunesmithError(
            f"the pattern {pattern!r} has {space(pattern)} secrets: so few are guessed",
            fix="use more # (digits) and @ (letters): a million secrets at least",
        )
    if len(usable) < wanted:
        raise TunesmithError(
            f"{wanted} canaries need as many rows with more than {_WORDS} words in {column!r}; there are {len(usable)}",
            where=str(path),
            fix="name the column of the answers, or ask for fewer",
        )
    added: list[str] = []
    for place, number in enumerate(draw.sample(usable, wanted)):
        row, secret = _row(lines[number], path, number), draw_secret(pattern, draw)
        row = {key: value for key, value in row.items() if key != "id"}
        row[column] = f"{_begins(row, column)} {secret}"
        row["facts"] = {**row.get("facts", {}), "canary": {"secret": secret, "pattern": pattern}}
        added += [json.dumps(row, ensure_ascii=False)] * times[place // each]
    Path(out).write_text("".join(f"{line}\n" for line in (*lines, *added)), encoding="utf-8")
    return len(added)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TunesmithError(
            f"rows can't be read: {error}", where=str(path), fix="give a JSONL file"
        ) from None


def _row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if isinstance(row, dict):
            return row
    except ValueError:
        pass
    raise TunesmithError("this line is no JSON object", where=f"{path}:{number + 1}", fix="give a JSONL file")


def _begins(row: Mapping[str, Any], column: str) -> str:
    """The first words of the answer; empty where it has no more than these."""
    text = row.get(column)
    found = re.match(rf"\s*(?:\S+\s+){{{_WORDS}}}(?=\S)", text) if isinstance(text, str) else None
    return found[0].rstrip() if found else ""


# ---- finding and reporting


def canaries_in(examples: Iterable[Example]) -> list[Canary]:
    """The canaries among training rows, each once, with how often it stands there. RowCheckFailed for a broken one."""
    found: dict[tuple[str, str], Canary] = {}
    for example in examples:
        told = example.facts.get("canary")
        if told is None:
            continue
        secret, pattern = (
            told.get(key) if isinstance(told, Mapping) else None for key in ("secret", "pattern")
        )
        answer = example.answer or ""
        if not (
            isinstance(secret, str)
            and isinstance(pattern, str)
            and secret in answer
            and _fits(secret, pattern)
        ):
            raise RowCheckFailed(
                "a canary's facts need a secret that stands in the answer, and its pattern",
                where=example.source or example.id,
                fix='"facts": {"canary": {"secret": "4711-abcd-0815", "pattern": "####-@@@@-####"}}',
            )
        before = answer[: answer.index(secret)]
        known = found.get((secret, before))
        found[secret, before] = Canary(example, before, secret, pattern, (known.times if known else 0) + 1)
    return list(found.values())


def _fits(secret: str, pattern: str) -> bool:
    return len(secret) == len(pattern) and all(
        one in _LETTERS.get(sign, sign) for one, sign in zip(secret, pattern, strict=True)
    )


def exposure_table(lines: Sequence[Mapping[str, Any]]) -> Table | None:
    """From lines {times, among, rank: {system: rank}} to mean exposures by how often a secret was planted."""
    if not lines:
        return None
    systems = [name for name in ("tuned", "base") if all(name in line["rank"] for line in lines)]
    rows: list[tuple[str | float | int | None, ...]] = []
    for times in sorted({int(line["times"]) for line in lines}):
        bits = {
            name: [exposure(line["rank"][name], line["among"]) for line in lines if line["times"] == times]
            for name in systems
        }
        cells = [cell for name in systems for cell in (sum(bits[name]) / len(bits[name]), max(bits[name]))]
        rows.append((f"{times} times", len(next(iter(bits.values()))), *cells))
    among = max(int(line["among"]) for line in lines)
    note = (
        f"Bits. A secret that was never seen has {expected_unplanted(among):.2f} on average; {math.log2(among):.1f} is "
        "the most that is seen here: the model finds the planted secret likelier than every random one. The base was "
        "trained on none of them, so its column shows chance."
    )
    columns = ("planted", "secrets", *(f"{name}, {what}" for name in systems for what in ("mean", "most")))
    return Table("Exposure of canaries", columns, tuple(rows), note)
