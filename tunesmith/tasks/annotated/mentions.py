"""Entities and relations as a row's facts and as answers tell of them.

An answer may be a list ("- aspirin", "- aspirin | nausea"), lines of a PubTator file (spans, ids, id pairs) or a
sequence of IOB2 tags. What a row's annotators wrote stands in `Example.facts`:

    kind       entities or relations: what is asked
    types      types of entities that are asked; of a relation, the types of its two sides in order. A list of several
               types says them ("- aspirin | chemical"); where a gold list says none, types are not scored in that row
    relation   name of the relation asked ("CID")
    article    [begin, end, length]: the article's characters in what the user said, and how long that was as a whole;
               without it the article is all that the user said
    mentions   [[start, end, text, type, [ids]], …], counted in the article; of all types
    relations  [[name, id, id], …]
    given      true where the prompt itself names the gold entities of a relation

A composite mention ("A|B") has several ids. An id of -1 (in no vocabulary) is no id: such a mention counts as a string
and as a span, and neither for nor against anybody as a concept. This is what BioCreative's own program counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tunesmith.example import Example
from tunesmith.tasks.annotated.tag_sequence import entities_of, read_tags
from tunesmith.tasks.protocol import Parsed

KINDS = ("entities", "relations")
_BULLET = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+(.*\S)")
_HEADED = re.compile(r"\S+\|[ta]\|")
_PAIR = re.compile(r"\s*\|\s*|\s+(?:->|→)\s+")
_NONE = ("none", "none.", "(none)", "[]")


class Mention(NamedTuple):
    """An entity at a place: characters of the article, or tokens where it came from tags."""

    start: int
    end: int
    text: str
    type: str
    """Case folded."""
    ids: tuple[str, ...]


class Relation(NamedTuple):
    """A pair of ids, in its order. `name` is case folded."""

    name: str
    first: str
    second: str


class Said(NamedTuple):
    """An answer as it was read. `form`: list, spans or tags."""

    form: str
    items: tuple[str, ...] = ()
    """Of a list: each as it was written, without its bullet."""
    mentions: tuple[Mention, ...] = ()
    relations: tuple[Relation, ...] = ()


@dataclass(frozen=True, slots=True)
class Gold:
    """What the annotators of a row say."""

    kind: str
    types: tuple[str, ...]
    relation: str
    article: str
    mentions: tuple[Mention, ...]
    relations: tuple[Relation, ...]
    said: Said
    """The gold answer itself."""
    annotated: bool
    """Spans and ids were annotated; else all that is known is the list."""
    given: bool

    def asks(self, kind: str) -> bool:
        """Whether entities of this type are asked for."""
        return not self.types or kind in self.types


def read_answer(answer: str) -> Parsed:
    """Any of the three forms; never raises."""
    text = answer.strip()
    if not text:
        return Parsed(None, ("unparsable: the answer is empty",))
    tags = read_tags(text)
    if tags is not None:
        return Parsed(
            Said("tags", mentions=tuple(Mention(a, b, "", _fold(t), ()) for a, b, t in entities_of(tags)))
        )
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    spans = [one for line in lines if (one := annotation(line.split("\t"))) is not None]
    if spans or any(_HEADED.match(line) for line in lines):
        return Parsed(
            Said(
                "spans",
                mentions=tuple(one for one in spans if isinstance(one, Mention)),
                relations=tuple(one for one in spans if isinstance(one, Relation)),
            )
        )
    return _read_list(text, lines)


def annotation(cells: Sequence[str]) -> Mention | Relation | None:
    """A line of a PubTator file, parted by tabs: a mention, a relation (a score behind them is left), or neither."""
    if len(cells) >= 5 and cells[1].isdecimal() and cells[2].isdecimal():
        ids = concept_ids(cells[5]) if len(cells) > 5 else []
        return Mention(int(cells[1]), int(cells[2]), cells[3], _fold(cells[4]), tuple(ids))
    if len(cells) >= 4 and cells[1] and not cells[1].isdecimal():
        return Relation(_fold(cells[1]), concept_id(cells[2]), concept_id(cells[3]))
    return None


def concept_ids(cell: str) -> list[str]:
    """The ids of a cell: "A|B" has two, "-1" none."""
    return [concept_id(one) for one in cell.split("|") if one and one != "-1"]


def concept_id(one: str) -> str:
    """Some tools name the vocabulary, the corpus does not."""
    return one.removeprefix("MESH:")


def pair_of(item: str) -> tuple[str, str] | None:
    """The two sides of "a | b" or "a -> b"; None where it isn't two."""
    sides = [side for side in _PAIR.split(item) if side]
    return (sides[0], sides[1]) if len(sides) == 2 else None


def read_gold(example: Example) -> Parsed:
    """A row's facts with its gold answer. A row without facts is read by its list: pairs, or entities of no type."""
    said = read_answer(example.answer or "")
    if said.value is None:
        return said
    try:
        return Parsed(_gold(example, said.value))
    except (TypeError, ValueError, AttributeError) as error:
        return Parsed(None, (f"unparsable: the row's facts are not as they should be: {error}",))


def _gold(example: Example, said: Said) -> Gold:
    """ValueError and its kin where the facts can't be right."""
    facts = example.facts
    kind = facts.get("kind") or _kind_of(said)
    types = facts.get("types") or []
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; known are {', '.join(KINDS)}")
    if not isinstance(types, list | tuple) or (kind == "relations" and len(types) not in (0, 2)):
        raise ValueError("types is a list of types; of a relation it has those of its two sides")
    article, cut = _article(example)
    mentions = tuple(_mention(one, cut) for one in facts.get("mentions") or ())
    relations = tuple(Relation(_fold(a), str(b), str(c)) for a, b, c in facts.get("relations") or ())
    for one in mentions:
        out_of_sight = cut > 0 > one.start  # its front was cut off with the article's
        if not out_of_sight and (one.start < 0 or article[one.start : one.end] != one.text):
            raise ValueError(f"the mention {one.text!r} is not at {one.start} to {one.end} of the article")
    if said.form == "tags":
        mentions = said.mentions  # places among tokens
    elif said.form == "spans":
        mentions, relations = mentions or said.mentions, relations or said.relations
    needed = ("mentions", "relations") if kind == "relations" else ("mentions",)
    asked = tuple(_fold(one) for one in types)
    if kind == "entities" and len(asked) > 1 and _untyped(said, asked):
        mentions = tuple(one._replace(type="") if one.type in asked else one for one in mentions)
        asked = ("",)
    return Gold(
        kind,
        asked,
        _fold(facts.get("relation") or ""),
        article,
        mentions,
        relations,
        said,
        annotated=said.form != "list" or all(name in facts for name in needed),
        given=bool(facts.get("given")),
    )


def typed(item: str, types: Sequence[str]) -> tuple[str, str] | None:
    """An item "form | type" as both; None where it has none of these types."""
    before, _, last = item.rpartition("|")
    kind = _fold(last)
    return (before.strip(), kind) if before.strip() and kind in types else None


def _untyped(said: Said, types: Sequence[str]) -> bool:
    """Whether a gold list of several types says them nowhere: then no answer is asked for them, and none is scored."""
    return said.form == "list" and bool(said.items) and not any(typed(item, types) for item in said.items)


def _fold(text: str) -> str:
    return text.strip().casefold()


def _kind_of(said: Said) -> str:
    pairs = said.relations if said.form == "spans" else [item for item in said.items if pair_of(item)]
    return "relations" if pairs and (said.form == "spans" or len(pairs) == len(said.items)) else "entities"


def _mention(one: Sequence[Any], cut: int) -> Mention:
    start, end, text, kind, ids = one
    return Mention(
        int(start) - cut, int(end) - cut, str(text), _fold(str(kind)), tuple(str(id) for id in ids)
    )


def _article(example: Example) -> tuple[str, int]:
    """The article, and how many characters `data.overlong: trim_context` took from its front."""
    asked, place = example.asked, example.facts.get("article")
    if not place:
        return asked, 0
    begin, end, length = place
    cut = max(0, length - len(asked))
    return asked[begin : end - cut], cut


def _read_list(text: str, lines: Sequence[str]) -> Parsed:
    if text.casefold() in _NONE:
        return Parsed(Said("list"))
    if text.startswith("["):
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, list) and (items := [_json_item(one) for one in value]) and None not in items:
            return Parsed(Said("list", tuple(str(one) for one in items)))
    found = [bullet[1] for line in lines if (bullet := _BULLET.fullmatch(line.rstrip()))]
    if not found:
        return Parsed(None, ('unparsable: no line begins with "- "',))
    around = ("wrapped: words around the list",) if len(found) < len(lines) else ()
    if len(found) == 1 and found[0].casefold() in _NONE:
        found = []
    return Parsed(Said("list", tuple(found)), around)


def _json_item(one: Any) -> str | None:
    if isinstance(one, str):
        return one
    if isinstance(one, Mapping):
        one = list(one.values())
    if isinstance(one, list) and one and all(isinstance(part, str) for part in one):
        return " | ".join(one)
    return None
