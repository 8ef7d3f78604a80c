"""Relations of one row: the set of id pairs of a document, as BioCreative counts them; and, apart, pairs of strings.

A list says "form | form". Each side is looked up among this document's own gold mentions of the side's type: naming is
given, finding and joining are scored. A form may stand for several ids (a composite "A|B", or two mentions written
alike): the pair then counts for each gold pair that it may stand for, and as one wrong pair where it is none. A side
that no gold mention has can't be looked up: the pair is wrong, and listed. Without annotated ids a form is its own id.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from tunesmith.tasks.annotated.alignment import form_key
from tunesmith.tasks.annotated.mentions import Gold, Said, pair_of

CLASSES = ("match", "reversed", "wrong_pair", "hallucinated", "missed", "missed_upstream")
NAMES = (
    *(f"{level}_{part}" for level in ("relation", "pair") for part in ("gold", "given", "hits")),
    *(f"relation_{one}" for one in CLASSES),
    "relation_unmapped", "relation_rows", "entities_given",
)  # fmt: skip

Pair = tuple[str, str]


class Outcome(NamedTuple):
    """What became of one pair: one of CLASSES, the gold and the predicted pair as written."""

    kind: str
    gold: str | None
    predicted: str | None
    unmapped: tuple[str, ...] = ()
    """Sides that no gold mention has."""


class _Said(NamedTuple):
    """A predicted pair: the id pairs that it may stand for; none where a side is unknown."""

    shown: str
    pairs: tuple[Pair, ...]
    turned: tuple[Pair, ...]
    """The same with its sides exchanged, where they can be looked up so."""
    unmapped: tuple[str, ...]
    named: frozenset[str]
    """Ids of all entities that it names, whatever the side."""


class _Lookup:
    """Forms of a document's gold mentions → ids, by type."""

    def __init__(self, gold: Gold) -> None:
        self.annotated = gold.annotated
        self.sides = gold.types if len(gold.types) == 2 else ("", "")
        self._ids: dict[tuple[str, str], dict[str, None]] = {}
        for one in gold.mentions:
            for kind in (one.type, ""):
                self._ids.setdefault((form_key(one.text), kind), {}).update(dict.fromkeys(one.ids))

    def ids(self, form: str, kind: str) -> list[str]:
        key = form_key(form)
        return list(self._ids.get((key, kind), ())) if self.annotated else [key]

    def known(self, form: str) -> bool:
        """Whether it is an entity of the document, be it one without an id."""
        return not self.annotated or (form_key(form), "") in self._ids

    def read(self, first: str, second: str) -> _Said:
        """A listed pair."""
        left, right = self.sides
        pairs = tuple(product(self.ids(first, left), self.ids(second, right)))
        turned = tuple(product(self.ids(second, left), self.ids(first, right)))
        unmapped = tuple(form for form in (first, second) if not self.known(form))
        named = frozenset([*self.ids(first, ""), *self.ids(second, "")])
        return _Said(f"{first} | {second}", pairs, turned, unmapped, named)


def gold_pairs(gold: Gold) -> dict[Pair, str]:
    """Id pairs of the relation that the row asks for, each as people may read it."""
    if not gold.annotated:
        lookup = _Lookup(gold)
        listed = [pair for item in gold.said.items if (pair := pair_of(item))]
        return {pair: one.shown for one in (lookup.read(*sides) for sides in listed) for pair in one.pairs}
    first: dict[str, str] = {}
    for one in gold.mentions:
        for id in one.ids:
            first.setdefault(id, one.text)
    return {
        (one.first, one.second): f"{first.get(one.first, one.first)} | {first.get(one.second, one.second)}"
        for one in gold.relations
        if not gold.relation or one.name == gold.relation
    }


def counts_of(gold: Gold, said: Said | None) -> dict[str, float]:
    """NAMES of one row. `said` None: an answer that can't be read, all missed."""
    made = dict.fromkeys(NAMES, 0.0)
    found = outcomes(gold, said)
    for one in found:
        made[f"relation_{one.kind}"] += 1
        made["relation_unmapped"] += bool(one.unmapped)
    right = gold_pairs(gold)
    made["relation_rows"], made["entities_given"] = 1.0, float(gold.given)
    made["relation_gold"], made["relation_hits"] = float(len(right)), made["relation_match"]
    made["relation_given"] = sum(
        made[f"relation_{one}"] for one in ("match", "reversed", "wrong_pair", "hallucinated")
    )
    if gold.said.form == "list" and (said is None or said.form == "list"):
        golds, says = _strings(gold.said), _strings(said) if said is not None else set()
        made["pair_gold"], made["pair_given"] = float(len(golds)), float(len(says))
        made["pair_hits"] = float(len(golds & says))
    return made


def outcomes(gold: Gold, said: Said | None) -> list[Outcome]:
    """Each predicted pair of ids once, then the gold pairs that none of them is."""
    right = gold_pairs(gold)
    says = [] if said is None else _said_pairs(gold, said)
    made: list[Outcome] = []
    wrong: dict[object, None] = {}  # two names of one wrong pair are one wrong pair
    found: set[Pair] = set()
    turned: set[Pair] = set()
    for one in says:
        hits = [pair for pair in one.pairs if pair in right]
        made += [Outcome("match", right[pair], one.shown) for pair in hits if pair not in found]
        found |= set(hits)
        name: object = one.shown.casefold() if not one.pairs else min(one.pairs)
        if hits or name in wrong:
            continue
        wrong[name] = None
        back = [pair for pair in one.turned if pair in right]
        turned |= set(back)
        kind = "reversed" if back else "hallucinated" if one.unmapped else "wrong_pair"
        made.append(Outcome(kind, right[back[0]] if back else None, one.shown, one.unmapped))
    named = {id for one in says for id in one.named}
    if said is not None:
        named |= {id for mention in said.mentions for id in mention.ids}
    for pair, shown in right.items():
        if pair not in found and pair not in turned:
            upstream = said is not None and not named.issuperset(pair)
            made.append(Outcome("missed_upstream" if upstream else "missed", shown, None))
    return made


def _said_pairs(gold: Gold, said: Said) -> list[_Said]:
    if said.form != "list":
        known_ids = {id for one in gold.mentions for id in one.ids}
        pairs = dict.fromkeys((one.first, one.second) for one in said.relations if _asked(gold, one.name))
        return [
            _Said(
                f"{a} | {b}",
                ((a, b),),
                ((b, a),),
                tuple(id for id in (a, b) if known_ids and id not in known_ids),
                frozenset((a, b)),
            )
            for a, b in pairs
        ]
    lookup = _Lookup(gold)
    made = []
    for item in said.items:
        sides = pair_of(item)
        if sides is None:
            known = frozenset(lookup.ids(item, "")) if lookup.annotated else frozenset[str]()
            made.append(_Said(item, (), (), (item,), known))
        else:
            made.append(lookup.read(*sides))
    return made


def _asked(gold: Gold, name: str) -> bool:
    return not gold.relation or name == gold.relation


def _strings(said: Said) -> set[object]:
    return {(form_key(pair[0]), form_key(pair[1])) if pair else item for item, pair in
            ((item, pair_of(item)) for item in said.items)}  # fmt: skip
