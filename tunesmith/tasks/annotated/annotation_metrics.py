"""Metrics of entities and relations, from the counts that entities.py and relations.py beside this file make."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from tunesmith.tasks.sums import Metric, Share, Sums, ratio


def _precision(level: str, sums: Sums) -> NDArray[np.float64]:
    return ratio(sums[f"{level}_hits"], sums[f"{level}_given"])


def _recall(level: str, sums: Sums, side: str = "") -> NDArray[np.float64]:
    return ratio(sums[f"{level}_hits{side}"], sums[f"{level}_gold{side}"])


def _f1(level: str, sums: Sums) -> NDArray[np.float64]:
    return ratio(2 * sums[f"{level}_hits"], sums[f"{level}_gold"] + sums[f"{level}_given"])


def _of_level(level: str) -> dict[str, Metric]:
    return {
        f"{level}_f1": Share(partial(_f1, level)),
        f"{level}_precision": Share(partial(_precision, level)),
        f"{level}_recall": Share(partial(_recall, level)),
    }


def _share(*over: str, under: tuple[str, ...]) -> Metric:
    def of(sums: Sums) -> NDArray[np.float64]:
        return ratio(np.asarray(sum(sums[one] for one in over)), np.asarray(sum(sums[one] for one in under)))

    return Share(of)


_GOLD_ENTITIES = ("entity_match", "entity_boundary", "entity_type", "entity_missed")
_SAID_ENTITIES = ("entity_match", "entity_boundary", "entity_type", "entity_hallucinated")
_SAID_PAIRS = ("relation_given",)

ENTITY_METRICS: dict[str, Metric] = {
    **_of_level("mention"),
    **_of_level("string"),
    **_of_level("concept"),
    **{
        f"{level}_recall_{side}": Share(partial(_recall, level, side=f"_{side}"))
        for level in ("mention", "string")
        for side in ("seen", "unseen")
    },
    "list_ceiling_f1": Share(partial(_f1, "list")),
    "entities_missed": _share("entity_missed", under=_GOLD_ENTITIES),
    "entities_boundary": _share("entity_boundary", under=_SAID_ENTITIES),
    "entities_type": _share("entity_type", under=_SAID_ENTITIES),
    "entities_spurious": _share("entity_hallucinated", under=_SAID_ENTITIES),
    "forms_in_text": _share("forms_in_text", under=("forms",)),
    "spans_annotated": _share("spans_annotated", under=("entity_rows",)),
}
RELATION_METRICS: dict[str, Metric] = {
    **_of_level("relation"),
    **_of_level("pair"),
    "pairs_reversed": _share("relation_reversed", under=_SAID_PAIRS),
    "pairs_wrong": _share("relation_wrong_pair", under=_SAID_PAIRS),
    "pairs_spurious": _share("relation_hallucinated", under=_SAID_PAIRS),
    "pairs_unmapped": _share("relation_unmapped", under=_SAID_PAIRS),
    "pairs_missed": _share("relation_missed", under=("relation_gold",)),
    "pairs_missed_upstream": _share("relation_missed_upstream", under=("relation_gold",)),
    "relation_entities_given": _share("entities_given", under=("relation_rows",)),
}
LOWER = frozenset(
    {
        "entities_missed",
        "entities_boundary",
        "entities_type",
        "entities_spurious",
        "pairs_reversed",
        "pairs_wrong",
        "pairs_spurious",
        "pairs_unmapped",
        "pairs_missed",
        "pairs_missed_upstream",
    }
)

_PREDICTED = "entities predicted by the system itself unless relation_entities_given is 1"
MEANING = {
    "mention_f1": "F1 of exact span and type; a listed form stands for all its whole-word occurrences in the article",
    "mention_precision": "share of predicted spans that are gold spans of that type",
    "mention_recall": "share of gold spans that were predicted with their type",
    "string_f1": "F1 of the set of forms in each row, case aside",
    "string_precision": "share of predicted forms that the gold list has",
    "string_recall": "share of gold forms that were predicted",
    "concept_f1": "F1 of the set of ids in each row; a listed form has the ids of this document's gold mentions",
    "concept_precision": "share of predicted ids that are gold; a form that no gold mention has counts as a wrong id",
    "concept_recall": "share of gold ids that were predicted; mentions without an id (-1) are left out",
    "mention_recall_seen": "mention_recall of spans whose form stands in a training answer",
    "mention_recall_unseen": "mention_recall of spans whose form stands in none: what was learned beyond names",
    "string_recall_seen": "string_recall of forms that stand in a training answer",
    "string_recall_unseen": "string_recall of forms that stand in none",
    "list_ceiling_f1": "mention_f1 of the gold lists themselves: the best that an answer without spans reaches",
    "entities_missed": "share of gold entities that nothing in the answer touches; lower is better",
    "entities_boundary": "share of predicted entities that overlap a gold one of their type; lower is better",
    "entities_type": "share of predicted entities that the gold has as another type; lower is better",
    "entities_spurious": "share of predicted entities that the gold has nothing of; lower is better",
    "forms_in_text": "share of listed forms that stand in the article",
    "spans_annotated": "share of rows whose spans people annotated; elsewhere they are where the gold list stands",
    "relation_f1": f"F1 of the set of id pairs in each document, in their order; {_PREDICTED}",
    "relation_precision": f"share of predicted id pairs that are gold; {_PREDICTED}",
    "relation_recall": f"share of gold id pairs that were predicted; {_PREDICTED}",
    "pair_f1": "F1 of pairs of strings: a right pair by another name counts as wrong; see relation_f1",
    "pair_precision": "share of predicted pairs of strings that the gold list has",
    "pair_recall": "share of gold pairs of strings that were predicted",
    "pairs_reversed": "share of predicted pairs that are gold with their sides exchanged; lower is better",
    "pairs_wrong": "share of predicted pairs of two right entities that the gold does not join; lower is better",
    "pairs_spurious": "share of predicted pairs with a side that is no entity of the document; lower is better",
    "pairs_unmapped": "share of predicted pairs with a side that no gold mention has; lower is better",
    "pairs_missed": "share of gold pairs that were left out though both entities were named; lower is better",
    "pairs_missed_upstream": "share of gold pairs left out, one of their entities never named; lower is better",
    "relation_entities_given": "share of relation rows whose prompt names the gold entities",
    "row_exact": "share of rows with every entity (or pair) and none more",
    "parse_rate": "share of answers that are a list, PubTator lines or tags",
}  # fmt: skip
