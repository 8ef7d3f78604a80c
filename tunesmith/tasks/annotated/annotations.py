"""Entities and relations of annotated texts as one task: each row is scored by what it asks for (`facts["kind"]`).

Its metrics are counted in entities.py and relations.py beside this file; nothing is added across their levels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tunesmith.example import Example
from tunesmith.tasks.annotated import entities, relations
from tunesmith.tasks.annotated.alignment import form_key
from tunesmith.tasks.annotated.annotation_metrics import ENTITY_METRICS, LOWER, MEANING, RELATION_METRICS
from tunesmith.tasks.annotated.annotation_tables import level_tables, study_tables
from tunesmith.tasks.annotated.dictionary import floor_answers
from tunesmith.tasks.annotated.mentions import KINDS, Gold, Said, pair_of, read_answer, read_gold
from tunesmith.tasks.answered import Answered
from tunesmith.tasks.protocol import Detail, Fault, Golds, Parsed, Table
from tunesmith.tasks.sums import Metric, mean

_VERDICT = {
    "match": "match",
    "boundary": "partly",
    "type": "wrong",
    "reversed": "wrong",
    "wrong_pair": "wrong",
    "hallucinated": "hallucinated",
    "missed": "missed",
    "missed_upstream": "missed",
}


class AnnotationTask:
    """Entities, relations, or both. `seen`: forms of the training golds (as `form_key` writes them)."""

    lower_is_better = LOWER
    needs_training_answers = True  # else every name of the scored rows would count as seen

    def __init__(self, name: str, kinds: Sequence[str], seen: frozenset[str]) -> None:
        self.name = name
        self.kinds = tuple(kinds)
        self.seen = seen
        self.headline = "mention_f1" if "entities" in kinds else "relation_f1"

    @classmethod
    def make(cls, name: str, golds: Golds) -> AnnotationTask:
        """`name`: entities, relations, or annotations for both."""
        return cls(name, KINDS if name == "annotations" else (name,), _forms(golds))

    def without_training_answers(self) -> AnnotationTask:
        """The same without recall by novelty."""
        return AnnotationTask(self.name, self.kinds, frozenset())

    def parse(self, answer: str) -> Parsed:
        """A list, lines of a PubTator file, or IOB2 tags (tasks/annotated/mentions.py)."""
        return read_answer(answer)

    def gold(self, example: Example) -> Parsed:
        """The row's facts with its gold answer."""
        made = read_gold(example)
        if made.value is not None and made.value.kind not in self.kinds:
            return Parsed(
                None,
                (f"unparsable: the row asks for {made.value.kind} (evaluate.task: annotations scores both)",),
            )
        return made

    def counts(self, prompt: str, gold: Parsed, predicted: Parsed) -> dict[str, float]:
        """Of a row that asks for entities the counts of relations are 0, and the other way round."""
        truth, said = _both(gold, predicted)
        made = {
            "rows": 1.0,
            "parsed": float(said is not None),
            "all_right": float(self.correct(gold, predicted)),
        }
        if "entities" in self.kinds:
            made |= (
                entities.counts_of(truth, said, self.seen)
                if truth.kind == "entities"
                else dict.fromkeys(entities.NAMES, 0.0)
            )
            made["entity_rows"] = float(truth.kind == "entities")
        if "relations" in self.kinds:
            made |= (
                relations.counts_of(truth, said)
                if truth.kind == "relations"
                else dict.fromkeys(relations.NAMES, 0.0)
            )
        return made

    def metrics(self) -> dict[str, Metric]:
        """Each level's precision, recall and F1, recall by novelty, shares of errors."""
        made: dict[str, Metric] = {}
        if "entities" in self.kinds:
            made |= ENTITY_METRICS
        if "relations" in self.kinds:
            made |= RELATION_METRICS
        return made | {"row_exact": mean("all_right"), "parse_rate": mean("parsed")}

    def explain(self) -> dict[str, str]:
        """What each metric means."""
        return {
            name: MEANING[name] + ("; headline" if name == self.headline else "") for name in self.metrics()
        }

    def correct(self, gold: Parsed, predicted: Parsed) -> bool:
        """Every entity (or pair) found and none more."""
        truth, said = _both(gold, predicted)
        return said is not None and all(one.kind == "match" for one in _outcomes(truth, said))

    def tables(self, sums: Mapping[str, float]) -> list[Table]:
        """Levels and kinds of errors."""
        return level_tables(sums, self.kinds)

    def study(self, rows: Sequence[Answered]) -> list[Table]:
        """By type, types taken for one another, and what could not be looked up."""
        return study_tables([(*_both(one.gold, one.predicted), one.example.id) for one in rows])

    def details(self, gold: Parsed, predicted: Parsed) -> list[Detail]:
        """Each entity or pair."""
        truth, said = _both(gold, predicted)
        return [
            Detail(where, one.gold, one.predicted, _VERDICT[one.kind])
            for where, one in ((_where(truth, one), one) for one in _outcomes(truth, said))
        ]

    def faults(self, row: Answered) -> list[Fault]:
        """Each wrong or missing entity or pair; none of an answer that can't be read as a whole."""
        truth, said = _both(row.gold, row.predicted)
        if said is None:
            return []
        return [
            Fault(one.kind, _where(truth, one), one.gold, one.predicted)
            for one in _outcomes(truth, said)
            if one.kind != "match"
        ]

    def unscored(self, gold: Parsed) -> list[str]:
        """Nothing: the list as well as the facts count."""
        return []

    def common_answer(self, golds: Sequence[Parsed]) -> str:
        """The item given most often."""
        items = Counter(
            item for gold in golds for item in (gold.value.items if gold.value is not None else ())
        )
        return f"- {items.most_common(1)[0][0]}" if items else "- none"

    def floors(self, train: Sequence[Example], examples: Sequence[Example]) -> dict[str, list[str]]:
        """dictionary, gold_pairs (tasks/annotated/dictionary.py). `examples` have gold answers that can be read."""
        golds = [gold for example in examples if (gold := self.gold(example).value) is not None]
        if len(golds) < len(examples):
            raise ValueError("a gold answer can't be read: check_golds comes first")
        return floor_answers([one.value for one in map(read_gold, train) if one.value is not None], golds)


def _forms(golds: Golds) -> frozenset[str]:
    """Forms of entities in training answers, those of pairs too."""
    found: set[str] = set()
    for gold in golds:
        said = read_answer(gold).value
        if said is None:
            continue
        for item in said.items:
            found |= {form_key(side) for side in (pair_of(item) or (item,))}
        found |= {form_key(one.text) for one in said.mentions if one.text}
    return frozenset(found)


def _both(gold: Parsed, predicted: Parsed) -> tuple[Gold, Said | None]:
    """The gold and what was said; None where that can't be read. A gold may stand for a perfect answer."""
    truth: Gold = gold.value if gold.value is not None else _nothing(gold)
    said = predicted.value
    if isinstance(said, Gold):
        has_spans = said.annotated and said.said.form == "list"
        said = Said("spans", (), said.mentions, said.relations) if has_spans else said.said
    elif said is not None and truth.types == ("",):  # types are not scored in this row
        said = said._replace(mentions=tuple(one._replace(type="") for one in said.mentions))
    if said is not None and (said.form == "tags") != (truth.said.form == "tags"):
        return truth, None  # places among tokens say nothing about places among characters
    return truth, said


def _nothing(gold: Parsed) -> Gold:
    raise ValueError(f"the gold answer can't be read: {gold.problems}")


def _outcomes(gold: Gold, said: Said | None) -> Iterable[entities.Outcome | relations.Outcome]:
    return entities.outcomes(gold, said) if gold.kind == "entities" else relations.outcomes(gold, said)


def _where(gold: Gold, one: entities.Outcome | relations.Outcome) -> str:
    return one.type or "entity" if isinstance(one, entities.Outcome) else gold.relation or "relation"
