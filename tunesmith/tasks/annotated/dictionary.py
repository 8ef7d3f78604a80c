"""Floors of entities and relations: answers that need no model.

dictionary   entities: the forms that training rows annotate, where they stand in the article, longest first; relations:
             every pair of such entities (predicted entities)
gold_pairs   entities: as above; relations: every pair of the row's own gold entities (gold entities: an upper bound of
             recall, and of no use to anybody who has no annotators)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

from tunesmith.tasks.annotated.alignment import Forms, form_key
from tunesmith.tasks.annotated.entities import gold_level, listed
from tunesmith.tasks.annotated.mentions import Gold


class Dictionary:
    """Forms of the training rows with the type that each has most often."""

    def __init__(self, train: Sequence[Gold]) -> None:
        counted: dict[str, Counter[str]] = {}
        for gold in train:
            for key, kind in _annotated(gold):
                counted.setdefault(key, Counter())[kind] += 1
        self.types = {
            key: min(kinds, key=lambda one: (-kinds[one], one)) for key, kinds in counted.items() if key
        }
        self._forms = Forms(self.types)

    def find(self, article: str) -> list[tuple[int, int, str]]:
        """(start, end, type) of the forms that stand in the article."""
        return [(one.start, one.end, self.types[one.key]) for one in self._forms.find(article)]


def floor_answers(train: Sequence[Gold], golds: Sequence[Gold]) -> dict[str, list[str]]:
    """name → an answer for each of `golds`, of which only the article and what is asked are read by `dictionary`."""
    if any(gold.said.form == "tags" for gold in golds):
        return {}  # tags have no words to look for
    known = Dictionary(train)
    found = [known.find(gold.article) for gold in golds]
    made = {"dictionary": [_from_text(gold, one) for gold, one in zip(golds, found, strict=True)]}
    if any(gold.kind == "relations" and gold.annotated for gold in golds):
        made["gold_pairs"] = [
            _every_gold_pair(gold) if gold.kind == "relations" else answer
            for gold, answer in zip(golds, made["dictionary"], strict=True)
        ]
    return made


def _annotated(gold: Gold) -> list[tuple[str, str]]:
    """Each asked mention; where none is annotated, each listed form."""
    if gold.kind != "entities":
        return []
    if gold.mentions:
        return [(form_key(one.text), one.type) for one in gold.mentions if gold.asks(one.type)]
    return list(listed(gold, gold.said)) if gold.said.form == "list" else list(gold_level(gold).string)


def _from_text(gold: Gold, found: Sequence[tuple[int, int, str]]) -> str:
    if gold.kind == "entities":
        some = [(gold.article[a:b], kind) for a, b, kind in found if gold.asks(kind)]
        several = len(gold.types) > 1
        return _lines([f"{text} | {kind}" if several else text for text, kind in some])
    left, right = gold.types if len(gold.types) == 2 else ("", "")
    sides = [
        [gold.article[a:b] for a, b, kind in found if not side or kind == side] for side in (left, right)
    ]
    pairs = product(*(_once(side) for side in sides))
    return _lines([f"{a} | {b}" for a, b in pairs if form_key(a) != form_key(b)])


def _every_gold_pair(gold: Gold) -> str:
    """As lines of a PubTator file, so that no id is lost on the way through its name."""
    left, right = gold.types if len(gold.types) == 2 else ("", "")
    sides = [
        dict.fromkeys(id for one in gold.mentions if not side or one.type == side for id in one.ids)
        for side in (left, right)
    ]
    lines = [f"0\t{gold.relation or 'pair'}\t{a}\t{b}" for a, b in product(*sides) if a != b]
    return "\n".join(lines) or "- none"


def _once(texts: Sequence[str]) -> list[str]:
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(form_key(text), text)
    return list(first.values())


def _lines(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in _once(items)) or "- none"
