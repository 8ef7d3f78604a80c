"""Relations by id pairs of a document, from lists and PubTator lines; invented sentences; mutants that must fail."""

from __future__ import annotations

import math
from typing import Any

import pytest
from annotated_rows import values

from tunesmith.example import Example
from tunesmith.tasks import make_task
from tunesmith.tasks.annotated import relations
from tunesmith.tasks.answered import answered, faults_of, study_of
from tunesmith.tasks.score import score_answers

ARTICLE = "Zoral or ZRL and pindol gave rash (exanthema), fever and colic in sheep on tabrine and velmide."
IDS = {
    "Zoral": ("Chemical", ["C1"]),
    "ZRL": ("Chemical", ["C1"]),
    "pindol": ("Chemical", ["C2"]),
    "rash": ("Disease", ["D1"]),
    "exanthema": ("Disease", ["D1"]),
    "fever": ("Disease", ["D2"]),
    "colic": ("Disease", []),  # -1
    "tabrine and velmide": ("Chemical", ["C3", "C4"]),  # a composite
}
GOLD = [["CID", "C1", "D1"], ["CID", "C2", "D2"], ["CID", "C4", "D2"], ["treats", "C3", "D1"]]
LIST = "- Zoral | rash\n- pindol | fever\n- tabrine and velmide | fever"


def row(answer: str = LIST, **facts: Any) -> Example:
    told = {
        "kind": "relations",
        "relation": "CID",
        "types": ["Chemical", "Disease"],
        "article": [0, len(ARTICLE), len(ARTICLE)],
        "mentions": [
            [ARTICLE.index(text), ARTICLE.index(text) + len(text), text, kind, ids]
            for text, (kind, ids) in IDS.items()
        ],
        "relations": GOLD,
    }
    return Example.make(ARTICLE, answer, id="r", facts=told | facts)


def scores(answer: str, example: Example | None = None) -> dict[str, float]:
    task = make_task("relations")
    return values(task, score_answers([{"id": "r", "answer": answer}], [example or row()], task))


def kinds(answer: str, example: Example | None = None) -> list[str]:
    task = make_task("relations")
    return [one.kind for one in faults_of(task, answered(task, example or row(), {"answer": answer}))]


def test_a_perfect_list_and_its_synonyms() -> None:
    made = scores(LIST)
    assert made["relation_f1"] == made["pair_f1"] == made["row_exact"] == 1.0 and kinds(LIST) == []
    made = scores("- zrl | exanthema\n- Zoral -> rash\n- pindol | FEVER\n- tabrine and velmide | fever")
    assert made["relation_f1"] == 1.0 and made["pair_recall"] == 1.0 and made["pair_precision"] == 3 / 4
    made = scores(LIST.replace("Zoral | rash", "ZRL | exanthema"))
    assert made["relation_f1"] == 1.0 and made["pair_f1"] == 2 / 3  # strings punish a right synonym


def test_a_composite_counts_for_the_ids_that_are_right_and_once_where_none_is() -> None:
    assert scores("- tabrine and velmide | fever")["relation_precision"] == 1.0
    made = scores("- tabrine and velmide | rash")
    assert (made["relation_precision"], made["pairs_wrong"]) == (0.0, 1.0)
    task = make_task("relations")
    one = answered(task, row(), {"answer": "- tabrine and velmide | rash"})
    assert task.counts("", one.gold, one.predicted)["relation_given"] == 1


def test_each_kind_of_error_is_named() -> None:
    rest = "\n- pindol | fever\n- tabrine and velmide | fever"
    assert kinds("- rash | Zoral" + rest) == ["reversed"]
    assert kinds("- Zoral | fever\n- Zoral | rash" + rest) == ["wrong_pair"]
    assert kinds("- Zoral | rash\n- sheep | rash" + rest) == ["hallucinated"]
    assert kinds("- Zoral | rash\n- velmide | rash" + rest) == [
        "hallucinated"
    ]  # a part of a mention is no mention
    assert kinds("- Zoral | rash\n- just words" + rest) == ["hallucinated"]
    assert kinds("- Zoral | rash\n- Zoral | colic" + rest) == ["wrong_pair"]  # colic has no id
    assert kinds("- pindol | fever\n- tabrine and velmide | fever\n- Zoral | fever\n- pindol | rash") == [
        "wrong_pair", "wrong_pair", "missed"
    ]  # fmt: skip
    assert kinds("- pindol | fever\n- tabrine and velmide | fever") == ["missed_upstream"]
    assert kinds("- none") == ["missed_upstream"] * 3
    assert kinds("Sheep.") == ["unparsable"]


def test_shares_of_errors() -> None:
    made = scores("- rash | Zoral\n- pindol | rash\n- sheep | rash\n- pindol | fever")
    assert [made[f"pairs_{one}"] for one in ("reversed", "wrong", "spurious", "unmapped")] == [1 / 4] * 4
    assert made["relation_recall"] == 1 / 3 and made["pairs_missed_upstream"] == 1 / 3
    assert (
        made["relation_entities_given"] == 0.0
        and scores(LIST, row(given=True))["relation_entities_given"] == 1.0
    )
    made = scores("Sheep.")
    assert made["relation_recall"] == made["parse_rate"] == 0.0 and made["pairs_missed"] == 1.0
    assert math.isnan(made["relation_precision"])


def test_two_names_of_a_wrong_pair_are_one_wrong_pair() -> None:
    assert scores("- pindol | rash\n- pindol | exanthema\n- pindol | fever")["relation_precision"] == 1 / 2


def test_strings_that_no_mention_has_are_listed() -> None:
    task = make_task("relations")
    one = answered(task, row(), {"answer": "- sheep | rash\n- sheep | fever\n- Zoral | rash"})
    (table,) = study_of(task, [one])
    assert table.rows == (("sheep", 2),) and table.quotes
    assert "predicted by the system itself" in task.tables(task.counts("", one.gold, one.predicted))[0].note
    given = answered(task, row(given=True), {"answer": LIST})
    assert "named in the prompt" in task.tables(task.counts("", given.gold, given.predicted))[0].note


def test_lines_of_a_pubtator_file() -> None:
    lines = "7\tCID\tC1\tMESH:D1\t0.9\n7\tCID\tD2\tC2\n7\ttreats\tC3\tD1\n7\tCID\tC9\tD2"
    made = scores(lines)
    assert (made["relation_precision"], made["relation_recall"]) == (1 / 3, 1 / 3)
    assert kinds(lines) == ["reversed", "hallucinated", "missed_upstream"]
    assert math.isnan(made["pair_f1"])


def test_rows_without_ids_are_scored_by_their_names() -> None:
    plain = Example.make(ARTICLE, LIST, id="r")
    made = scores("- zoral | RASH\n- ZRL | rash", plain)
    assert (made["relation_precision"], made["relation_recall"]) == (1 / 2, 1 / 3)


def pair_without_order(made: pytest.MonkeyPatch) -> None:
    read = relations._Lookup.read

    def mutant(self: Any, first: str, second: str) -> Any:
        one = read(self, first, second)
        return one._replace(pairs=one.pairs + one.turned)

    made.setattr(relations._Lookup, "read", mutant)


def by_string(made: pytest.MonkeyPatch) -> None:
    """Ids are only those of the first name."""
    made.setattr(relations._Lookup, "ids", lambda self, form, kind: list(IDS.get(form, ("", []))[1][:1]))


def dropping_unknown(made: pytest.MonkeyPatch) -> None:
    """What can't be looked up is passed over."""
    old = relations._said_pairs
    made.setattr(
        relations, "_said_pairs", lambda gold, said: [one for one in old(gold, said) if not one.unmapped]
    )


@pytest.mark.parametrize("mutant", [pair_without_order, by_string, dropping_unknown])
def test_mutants_are_seen(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        test_each_kind_of_error_is_named()


def test_floors_of_relations() -> None:
    entities = [
        Example.make(ARTICLE, f"- {text}", id=text, facts=row().facts | {"kind": "entities", "types": [kind]})
        for text, (kind, _) in IDS.items()
    ]
    task = make_task("annotations")
    floors = task.floors(entities, [row(), *entities[:1]])
    assert set(floors) == {"dictionary", "gold_pairs"}
    scored = {name: scores(answers[0]) for name, answers in floors.items()}
    assert (
        scored["gold_pairs"]["relation_recall"] == 1.0 and scored["gold_pairs"]["relation_precision"] == 3 / 8
    )
    assert scored["dictionary"]["relation_recall"] == 1.0  # every name of the article is known here
    assert floors["gold_pairs"][1] == floors["dictionary"][1]
