"""The text by which rows are alike: one for signatures, near-duplicates and the nearest rows.

What all texts of a source begin or end with says nothing about how alike two of them are: it is cut off, from every
row that has it, whatever source the row is of. So equal texts stay equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tunesmith.data.alike.shingles import fold
from tunesmith.example import Example

_FEW = 20  # fewer different texts say nothing about what all of them share


class Affixes(NamedTuple):
    """Beginnings and ends that are cut off, the longest that fits; folded, like the texts."""

    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()

    @classmethod
    def of(cls, sources: Iterable[list[Example]]) -> Affixes:
        """What the first rows of each source share at both ends, cut at words."""
        prefixes, suffixes = set(), set()
        for first in sources:
            texts = sorted({compared_text(example) for example in first})
            if len(texts) >= _FEW:
                prefix = _shared(texts[0], texts[-1])
                backwards = sorted(text[len(prefix) :][::-1] for text in texts)
                prefixes.add(prefix)
                suffixes.add(_shared(backwards[0], backwards[-1])[::-1])
        return cls(
            *(tuple(sorted(found - {""}, key=lambda one: (-len(one), one))) for found in (prefixes, suffixes))
        )

    @classmethod
    def read(cls, path: Path) -> Affixes:
        """Those that `write` wrote."""
        return cls(*(tuple(found) for found in json.loads(path.read_text("utf-8"))))

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(self), "utf-8")


NO_AFFIXES = Affixes()


def compared_text(example: Example, affixes: Affixes = NO_AFFIXES) -> str:
    """What the user's turns give to work on, folded, without an instruction before it; of plain text all."""
    turns = [turn for turn in example.messages if turn.role not in ("system", "assistant")]
    text = fold("\n".join(turn.content[turn.context :].strip() or turn.content for turn in turns))
    prefix = next((prefix for prefix in affixes.prefixes if text.startswith(prefix)), "")
    text = text.removeprefix(prefix)
    suffix = next((suffix for suffix in affixes.suffixes if text.endswith(suffix)), "")
    return text.removesuffix(suffix)


def _shared(first: str, last: str) -> str:
    """What the first and the last of sorted texts begin with, and so all between: whole words."""
    shorter = min(len(first), len(last))
    same = next((i for i in range(shorter) if first[i] != last[i]), shorter)
    return first[: first.rfind(" ", 0, same) + 1]
