"""Tag sequences of tokens → entities, by strict IOB2.

An entity begins with B- and goes on with I- of the same type. An I- that follows nothing of its type is no entity. The
lenient reading of conlleval, seqeval's default, makes one of it: gold "B-D I-D O B-C" against "I-D I-D O B-C" is then
1.0, where strict reading finds one of two entities, F1 0.667.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_TAG = re.compile(r"O|[BI]-\S+")


def read_tags(text: str) -> list[str] | None:
    """The tags of an answer: parted by spaces, or the last cell of lines parted by tabs; None where it isn't tags."""
    lines = [line for line in text.split("\n") if line.strip()]
    tags = [line.split("\t")[-1].strip() for line in lines] if "\t" in text else text.split()
    return tags if tags and all(_TAG.fullmatch(tag) for tag in tags) else None


def entities_of(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first token, token behind the last, type) of each entity."""
    made: list[tuple[int, int, str]] = []
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix == "B":
            made.append((place, place + 1, kind))
        elif prefix == "I" and made and made[-1][1:] == (place, kind):
            made[-1] = (made[-1][0], place + 1, kind)
    return made
