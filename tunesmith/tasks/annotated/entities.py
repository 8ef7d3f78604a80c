"""Entities of one row, counted at three levels that are never mixed: strings, spans in the text, concepts.

string    the set of forms of a document, as `form_key` writes them, with their type
mention   exact span and type. A list has no spans: each form stands for all its occurrences in the article; one that
          stands nowhere is one wrong span, or an invented name would cost nothing
concept   the set of ids of a document. A list has no ids: a form has those that this document's own gold mentions give
          it, so the naming of things is given and only their finding is scored; a form that no gold mention has is one
          wrong concept

Types that a row doesn't ask for are left out of what was predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tunesmith.tasks.annotated.alignment import Forms, form_key
from tunesmith.tasks.annotated.mentions import Gold, Mention, Said, typed

LEVELS = ("string", "mention", "concept")
CLASSES = ("match", "boundary", "type", "missed", "hallucinated")
NAMES = (
    *(f"{level}_{part}" for level in LEVELS for part in ("gold", "given", "hits")),
    *(f"{level}_{part}_{side}" for level in LEVELS[:2] for part in ("gold", "hits") for side in ("seen", "unseen")),
    *(f"list_{part}" for part in ("gold", "given", "hits")),
    *(f"entity_{one}" for one in CLASSES),
    "forms", "forms_in_text", "spans_annotated",
)  # fmt: skip

Span = tuple[int, int, str]
Form = tuple[str, str]  # key, type


class Outcome(NamedTuple):
    """What became of one entity: one of CLASSES, its gold type, gold and predicted words."""

    kind: str
    type: str
    gold: str | None
    predicted: str | None
    said_type: str = ""


class _Unit(NamedTuple):
    """What is compared to find the kind of an error: a form with its places in a list, one span elsewhere."""

    name: object
    type: str
    shown: str
    places: frozenset[tuple[int, int]]


class Level(NamedTuple):
    """One side of a row at each level."""

    string: frozenset[Form]
    mention: frozenset[Span]
    concept: frozenset[tuple[str, str]]
    nowhere: int = 0
    """Forms of a list that the article doesn't have."""


NOTHING = Level(frozenset(), frozenset(), frozenset())


def gold_level(gold: Gold) -> Level:
    """The gold at each level. Without annotated spans, those where its list stands in the text."""
    if not gold.annotated:
        return said_level(gold, gold.said)
    asked = [one for one in gold.mentions if gold.asks(one.type)]
    return _of_mentions(asked)


def said_level(gold: Gold, said: Said) -> Level:
    """An answer at each level."""
    if said.form != "list":
        return _of_mentions([one for one in said.mentions if gold.asks(one.type)])
    forms = listed(gold, said)
    ids = _ids_by_form(gold)
    concepts: set[tuple[str, str]] = set()
    for key, kind in forms:
        if (key, kind) in ids:
            concepts |= {(kind, one) for one in ids[key, kind]}
        elif gold.annotated:
            concepts.add((kind, f"no id: {key}"))
    return Level(
        frozenset(forms),
        frozenset(spans_of(gold, forms)),
        frozenset(concepts),
        len(forms) - len(there(gold, forms)),
    )


def listed(gold: Gold, said: Said) -> dict[Form, str]:
    """Forms of a list as they were written, each once. Where a row asks for several types: "form | type"."""
    made: dict[Form, str] = {}
    for item in said.items:
        text, kind = item, gold.types[0] if len(gold.types) == 1 else ""
        if len(gold.types) > 1:
            text, kind = typed(item, gold.types) or (item, "")
        if key := form_key(text):
            made.setdefault((key, kind), text)
    return made


def there(gold: Gold, forms: Iterable[Form]) -> list[Form]:
    """Those of the forms that stand in the article, be it within others."""
    forms = list(forms)
    found = Forms(key for key, _ in forms).find_each(gold.article)
    return [form for form in forms if form[0] in found]


def spans_of(gold: Gold, forms: Iterable[Form]) -> set[Span]:
    """Every place of these forms in the article."""
    types: dict[str, list[str]] = {}
    for key, kind in forms:
        types.setdefault(key, []).append(kind)
    found = Forms(types).find(gold.article)
    return {(one.start, one.end, kind) for one in found for kind in types[one.key]}


def counts_of(gold: Gold, said: Said | None, seen: frozenset[str]) -> dict[str, float]:
    """NAMES of one row. `said` None: an answer that can't be read, all missed. `seen`: forms of the training golds."""
    made = dict.fromkeys(NAMES, 0.0)
    right = gold_level(gold)
    given = NOTHING if said is None else said_level(gold, said)
    tags = gold.said.form == "tags"
    for level, golds, says in zip(LEVELS, right[:3], given[:3], strict=True):
        if tags and level != "mention":
            continue  # tags know neither words nor ids
        made |= {
            f"{level}_gold": float(len(golds)),
            f"{level}_given": float(len(says)),
            f"{level}_hits": float(len(golds & says)),
        }
    made["mention_given"] += given.nowhere
    if right.nowhere:  # a gold list alone may name what the article doesn't: such a form is a span of its own
        lost = right.string - set(there(gold, right.string))
        made["mention_gold"] += len(lost)
        made["mention_hits"] += len(lost & given.string)
    if seen and not tags:
        made |= _by_novelty(gold, right, given, seen)
    if gold.annotated and gold.said.form == "list":  # what the gold's own list reaches once it is aligned
        best = said_level(gold, gold.said)
        made["list_gold"], made["list_given"] = (
            float(len(right.mention)),
            float(len(best.mention) + best.nowhere),
        )
        made["list_hits"] = float(len(right.mention & best.mention))
    if said is not None and said.form == "list":
        made["forms"], made["forms_in_text"] = (
            float(len(given.string)),
            float(len(given.string) - given.nowhere),
        )
    made["spans_annotated"] = float(gold.annotated)
    for one in outcomes(gold, said):
        made[f"entity_{one.kind}"] += 1
    return made


def outcomes(gold: Gold, said: Said | None) -> list[Outcome]:
    """Each gold and each predicted entity once: forms of a list, spans elsewhere."""
    golds = _gold_units(gold, as_list=said is None or said.form == "list")
    says = [] if said is None else _said_units(gold, said)
    asked = {(one.name, one.type): one for one in golds if gold.asks(one.type)}
    right = [(one.name, one.type) for one in says if (one.name, one.type) in asked]
    made = [Outcome("match", key[1], asked[key].shown, asked[key].shown, key[1]) for key in right]
    used = set(right)
    for one in says:
        if (one.name, one.type) in asked:
            continue
        other = next((g for g in golds if g.name == one.name and g.type != one.type), None)
        if other is not None:
            made.append(Outcome("type", other.type, other.shown, one.shown, one.type))
        else:
            other = _overlapping(one, [g for g in asked.values() if g.type == one.type], used)
            if other is None:
                made.append(Outcome("hallucinated", one.type, None, one.shown, one.type))
                continue
            made.append(Outcome("boundary", one.type, other.shown, one.shown, one.type))
        used.add((other.name, other.type))
    missed = [one for key, one in asked.items() if key not in used]
    return [*made, *(Outcome("missed", one.type, one.shown, None) for one in missed)]


def _of_mentions(mentions: Sequence[Mention]) -> Level:
    return Level(
        frozenset((form_key(one.text), one.type) for one in mentions if one.text),
        frozenset((one.start, one.end, one.type) for one in mentions),
        frozenset((one.type, id) for one in mentions for id in one.ids),
    )


def _ids_by_form(gold: Gold) -> dict[Form, set[str]]:
    made: dict[Form, set[str]] = {}
    for one in gold.mentions:
        made.setdefault((form_key(one.text), one.type), set()).update(one.ids)
    return made


def _by_novelty(gold: Gold, right: Level, given: Level, seen: frozenset[str]) -> dict[str, float]:
    """Recall is split by whether the gold form stands in a training gold."""
    made: dict[str, float] = {}
    written = {(one.start, one.end, one.type): one.text for one in gold.mentions}
    key_at = {one: form_key(written.get(one) or gold.article[one[0] : one[1]]) for one in right.mention}
    for side, is_seen in (("seen", True), ("unseen", False)):
        strings = {one for one in right.string if (one[0] in seen) == is_seen}
        spans = {one for one in right.mention if (key_at[one] in seen) == is_seen}
        made |= {
            f"string_gold_{side}": float(len(strings)),
            f"string_hits_{side}": float(len(strings & given.string)),
            f"mention_gold_{side}": float(len(spans)),
            f"mention_hits_{side}": float(len(spans & given.mention)),
        }
    return made


def _gold_units(gold: Gold, as_list: bool) -> list[_Unit]:
    """Of all types: a right form of a type that isn't asked is an error of type."""
    if not gold.annotated:
        return _list_units(gold, gold.said)
    if not as_list or gold.said.form == "tags":
        return [_span_unit(one) for one in gold.mentions]
    made: dict[Form, _Unit] = {}
    for one in gold.mentions:
        name = form_key(one.text), one.type
        old = made.get(name, _Unit(name[0], one.type, one.text, frozenset()))
        made[name] = old._replace(places=old.places | {(one.start, one.end)})
    return list(made.values())


def _said_units(gold: Gold, said: Said) -> list[_Unit]:
    if said.form == "list":
        return _list_units(gold, said)
    return list(
        {one[:2]: one for one in (_span_unit(m) for m in said.mentions if gold.asks(m.type))}.values()
    )


def _list_units(gold: Gold, said: Said) -> list[_Unit]:
    forms = listed(gold, said)
    there = Forms(key for key, _ in forms).find_each(gold.article)
    return [_Unit(key, kind, text, frozenset(there.get(key, ()))) for (key, kind), text in forms.items()]


def _span_unit(one: Mention) -> _Unit:
    place = one.start, one.end
    return _Unit(place, one.type, one.text or f"{one.start}–{one.end}", frozenset({place}))


def _overlapping(one: _Unit, golds: Sequence[_Unit], used: set[tuple[object, str]]) -> _Unit | None:
    """A gold entity of the same type that shares a word with this one; first those that nothing has found yet."""
    touching = [gold for gold in golds if _touch(one, gold)]
    return next((gold for gold in touching if (gold.name, gold.type) not in used), next(iter(touching), None))


def _touch(one: _Unit, gold: _Unit) -> bool:
    if any(a < d and c < b for a, b in one.places for c, d in gold.places):
        return True
    if isinstance(one.name, str) and isinstance(gold.name, str):  # of a form that stands nowhere in the text
        return f" {one.name} " in f" {gold.name} " or f" {gold.name} " in f" {one.name} "
    return False
