"""Tables of the report about entities and relations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tunesmith.tasks.annotated import entities, relations
from tunesmith.tasks.annotated.mentions import Gold, Said
from tunesmith.tasks.protocol import Table

_SHOWN = 30  # strings that could not be looked up
_LEVELS = {
    "string": "forms in a row",
    "mention": "spans",
    "concept": "ids in a row",
    "relation": "pairs of ids",
    "pair": "pairs of strings",
}
_ERRORS = {
    "entity_match": "right",
    "entity_boundary": "boundary",
    "entity_type": "type",
    "entity_hallucinated": "spurious",
    "entity_missed": "missed",
    "relation_match": "right",
    "relation_reversed": "reversed",
    "relation_wrong_pair": "wrong pair of right entities",
    "relation_hallucinated": "a side is no entity here",
    "relation_missed": "missed",
    "relation_missed_upstream": "missed, an entity was never named",
}
_Row = tuple[str | float | int | None, ...]
_NO_TYPE = "nothing"


def level_tables(sums: Mapping[str, float], kinds: Sequence[str]) -> list[Table]:
    """From counts summed over rows."""
    levels = [
        *(entities.LEVELS if "entities" in kinds else ()),
        *(("relation", "pair") if "relations" in kinds else ()),
    ]
    given = "named in the prompt" if sums.get("entities_given") else "predicted by the system itself"
    note = "The levels are never added up."
    if "relations" in kinds:
        note += f" Entities of relations: {given}; ids are those that the document's gold mentions give their forms."
    errors = [
        (f"{kind}: {said}", int(sums[name]) if sums[name].is_integer() else round(sums[name], 3))
        for name, said in _ERRORS.items()
        if name in sums
        for kind in [name.partition("_")[0]]
    ]
    return [
        Table(
            "Levels",
            ("level", "gold", "predicted", "right", "precision", "recall", "F1"),
            tuple(_level(f"{level}: {_LEVELS[level]}", *_sums(sums, level)) for level in levels),
            note,
        ),
        Table("Kinds of errors", ("what became of it", "times"), tuple(errors)),
    ]


def study_tables(rows: Sequence[tuple[Gold, Said | None, str]]) -> list[Table]:
    """By type; gold types against predicted ones; pairs that could not be looked up."""
    about = [(gold, said) for gold, said, _ in rows if gold.kind == "entities"]
    made = [*_types(about), *_confusion(about)] if about else []
    return [*made, *_unmapped([(gold, said) for gold, said, _ in rows if gold.kind == "relations"])]


def _types(rows: Sequence[tuple[Gold, Said | None]]) -> list[Table]:
    count: dict[str, Counter[str]] = {}
    for gold, said in rows:
        right = entities.gold_level(gold).mention
        given = entities.NOTHING if said is None else entities.said_level(gold, said)
        for part, spans in (("gold", right), ("given", given.mention), ("hits", right & given.mention)):
            for _, _, kind in spans:
                count.setdefault(kind or "entity", Counter())[part] += 1
        for _, kind in given.string - set(entities.there(gold, given.string)) if given.nowhere else ():
            count.setdefault(kind or "entity", Counter())["given"] += 1
    lines = [_level(kind, one["gold"], one["given"], one["hits"]) for kind, one in sorted(count.items())]
    columns = ("type", "gold", "predicted", "right", "precision", "recall", "F1")
    return [Table("Spans by type", columns, tuple(lines))]


def _confusion(rows: Sequence[tuple[Gold, Said | None]]) -> list[Table]:
    times: Counter[tuple[str, str]] = Counter()
    for gold, said in rows:
        for one in entities.outcomes(gold, said):
            kind = one.type or "entity"
            gold_kind = _NO_TYPE if one.kind == "hallucinated" else kind
            said_kind = _NO_TYPE if one.kind == "missed" else (one.said_type or kind)
            times[gold_kind, said_kind] += 1
    lines = tuple((gold, said, number) for (gold, said), number in sorted(times.items()))
    note = f"Forms of lists, spans elsewhere; boundaries may differ. {_NO_TYPE}: not in the gold, or not answered."
    return [Table("Types", ("gold", "answered", "times"), lines, note, kind="confusion")]


def _unmapped(rows: Sequence[tuple[Gold, Said | None]]) -> list[Table]:
    times: Counter[str] = Counter()
    for gold, said in rows:
        for one in relations.outcomes(gold, said):
            times.update(one.unmapped)
    if not times:
        return []
    note = f"{sum(times.values())} sides of predicted pairs; the commonest {_SHOWN} at most. Each makes its pair wrong."
    lines = tuple(sorted(times.items(), key=lambda one: (-one[1], one[0]))[:_SHOWN])
    return [Table("No entity of the document", ("written", "times"), lines, note, quotes=True)]


def _sums(sums: Mapping[str, float], level: str) -> tuple[float, float, float]:
    return sums[f"{level}_gold"], sums[f"{level}_given"], sums[f"{level}_hits"]


def _level(name: str, gold: float, given: float, hits: float) -> _Row:
    return (
        name,
        round(gold, 3),
        round(given, 3),
        round(hits, 3),
        hits / given if given else None,
        hits / gold if gold else None,
        2 * hits / (gold + given) if gold + given else None,
    )
