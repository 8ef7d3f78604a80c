"""Entities from lists and spans: levels, kinds of errors, novelty; invented sentences; mutants that must fail."""

from __future__ import annotations

import json
import math
import pickle
import random
from itertools import pairwise
from typing import Any

import pytest
from annotated_rows import values

from tunesmith.errors import RowCheckFailed
from tunesmith.example import Example
from tunesmith.tasks import make_task
from tunesmith.tasks.annotated import alignment, entities
from tunesmith.tasks.annotated.alignment import Forms, form_key, tokens
from tunesmith.tasks.annotated.mentions import read_answer
from tunesmith.tasks.answered import answered, faults_of, study_of
from tunesmith.tasks.score import examples_in, score_answers

ARTICLE = (
    "Zoral and lead poisoning\nLead acetate, not zoral, led to severe colic. "
    "ZORAL-treated sheep with colic had tabrinex."
)
ASK = "List.\n\n"


def mention(text: str, nth: int, kind: str, ids: list[str]) -> list[Any]:
    """The nth occurrence of a text in the article, as facts have it."""
    at = -1
    for _ in range(nth + 1):
        at = ARTICLE.index(text, at + 1)
    return [at, at + len(text), text, kind, ids]


MENTIONS = [
    mention("Zoral", 0, "Chemical", ["D1"]),
    mention("lead poisoning", 0, "Disease", ["D7"]),
    mention("Lead acetate", 0, "Chemical", ["D2", "D3"]),  # a composite
    mention("zoral", 0, "Chemical", ["D1"]),
    mention("severe colic", 0, "Disease", ["D8"]),
    mention("ZORAL", 0, "Chemical", ["D1"]),
    mention("colic", 1, "Disease", []),  # -1
]


def row(
    answer: str = "- Zoral\n- Lead acetate", asks: str = "Chemical", id: str = "r", **facts: Any
) -> Example:
    asked = f"{ASK}{ARTICLE}\n\nHere:"
    place = [len(ASK), len(ASK) + len(ARTICLE), len(asked)]
    told = {"kind": "entities", "types": [asks], "article": place, "mentions": MENTIONS} | facts
    return Example.make(asked, answer, id=id, facts=told)


def scores(answer: str, example: Example | None = None, golds: tuple[str, ...] = ()) -> dict[str, float]:
    task = make_task("entities", None, golds)
    return values(task, score_answers([{"id": "r", "answer": answer}], [example or row()], task))


def kinds(answer: str, example: Example | None = None) -> list[tuple[str, str | None, str | None]]:
    task = make_task("entities")
    found = faults_of(task, answered(task, example or row(), {"answer": answer, "stopped": True}))
    return [(one.kind, one.gold, one.predicted) for one in found]


# ---- alignment


def test_forms_stand_as_whole_words_whatever_their_case_the_longest_first() -> None:
    found = Forms([form_key(one) for one in ("zoral", "Lead", "lead acetate", "tabrine", "colic")]).find(
        ARTICLE
    )
    assert [ARTICLE[a:b] for a, b, _ in found] == [
        "Zoral",
        "lead",
        "Lead acetate",
        "zoral",
        "colic",
        "ZORAL",
        "colic",
    ]
    assert Forms(["lead"]).find_each("Lead acetate, leaden lead-acid") == {"lead": [(0, 4), (21, 25)]}


def test_words_of_scripts_with_vowel_signs_stay_whole() -> None:
    """ಜ್ವರ is a word, and no part of ಜ್ವರದ or of the same word with a vowel sign behind it."""
    assert [token.key for token in tokens("ಜ್ವರ, ಜ್ವರದ")] == ["ಜ್ವರ", ",", "ಜ್ವರದ"]
    assert [a for a, _, _ in Forms([form_key("ಜ್ವರ")]).find("ಜ್ವರ ಜ್ವರಾ ಜ್ವರದ ಜ್ವರ.")] == [0, 17]


def test_a_mutant_that_parts_words_at_vowel_signs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    alignment.tokens.cache_clear()
    monkeypatch.setattr(alignment, "_glued", lambda text, places: places)
    with pytest.raises(AssertionError):
        test_words_of_scripts_with_vowel_signs_stay_whole()
    alignment.tokens.cache_clear()


def test_places_are_the_texts_own() -> None:
    rng = random.Random(5)
    for _ in range(200):
        text = "".join(rng.choices("ab ಕ್ರಾé́İß-5,\n\u200dﬁ", k=40))
        places = [(one.start, one.end) for one in tokens(text)]
        assert all(a < b <= c for (a, b), (c, _) in pairwise(places))
        assert "".join(text[a:b] for a, b in places) == "".join(text.split())


# ---- levels


def test_a_perfect_list_is_perfect_at_each_level() -> None:
    made = scores("- lead ACETATE\n- zoral")
    assert {made[f"{level}_f1"] for level in entities.LEVELS} == {1.0}
    assert (
        made["row_exact"] == made["parse_rate"] == made["spans_annotated"] == made["list_ceiling_f1"] == 1.0
    )


def test_levels_differ() -> None:
    """zoral has three spans and one id; lead acetate one span and two ids."""
    made = scores("- zoral")
    assert (made["string_recall"], made["mention_recall"], made["concept_recall"]) == (1 / 2, 3 / 4, 1 / 3)
    assert made["mention_precision"] == 1.0
    made = scores("- lead acetate\n- sheep\n- velmide")
    assert (made["string_precision"], made["mention_precision"], made["concept_precision"]) == (
        1 / 3,
        1 / 3,
        2 / 4,
    )
    assert made["forms_in_text"] == 2 / 3


def test_a_name_that_stands_nowhere_costs_a_span(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scores("- zoral\n- velmide")["mention_precision"] == 3 / 4
    old = entities.said_level
    monkeypatch.setattr(entities, "said_level", lambda gold, said: old(gold, said)._replace(nowhere=0))
    assert scores("- zoral\n- velmide")["mention_precision"] == 1.0  # the mutant: an invented name is free


def test_mentions_without_an_id_count_as_strings_and_spans_alone() -> None:
    gold = row("- lead poisoning\n- severe colic\n- colic", "Disease")
    made = scores("- lead poisoning\n- severe colic\n- colic", gold)
    assert {made[f"{level}_f1"] for level in entities.LEVELS} == {1.0}
    made = scores("- lead poisoning\n- severe colic", gold)
    assert (made["string_recall"], made["concept_recall"]) == (2 / 3, 1.0)
    assert made["mention_recall"] == 2 / 3


def test_unreadable_answers_count_as_all_missed() -> None:
    for answer in ("", "The article is about sheep.", "{}", "O O O"):
        made = scores(answer)
        assert (made["string_recall"], made["mention_recall"], made["concept_recall"]) == (0, 0, 0), answer
        assert made["parse_rate"] == 0 and made["entities_missed"] == 1
        assert math.isnan(made["mention_precision"])
    assert scores("- none")["parse_rate"] == 1


def test_answers_in_other_forms_are_read() -> None:
    perfect = ["1. zoral\n2. Lead acetate", '["zoral", "Lead acetate"]', "Sure:\n* zoral.\n• Lead acetate"]
    perfect.append(
        "\n".join("7\t{}\t{}\t{}\t{}\t{}".format(*m[:4], "|".join(m[4]) or "-1") for m in MENTIONS)
    )
    for answer in perfect:
        assert scores(answer)["mention_f1"] == 1.0, answer
    assert read_answer("- a | b").value.items == ("a | b",)
    assert json.loads(json.dumps(read_answer("- a\n- b").value)) == ["list", ["a", "b"], [], []]


def test_no_answer_breaks_the_reader() -> None:
    rng = random.Random(3)
    bits = [
        "- ",
        "\n",
        "\t",
        "|",
        "O",
        " B-X",
        "1",
        "-1",
        "a|t|",
        "[",
        '"',
        "zoral",
        ".",
        "\u2028",
        "->",
        "]",
        "{}",
    ]
    task = make_task("annotations")
    for _ in range(2000):
        answer = "".join(rng.choices(bits, k=rng.randint(0, 12)))
        one = answered(task, row(), {"answer": answer})
        made = task.counts("", one.gold, one.predicted)
        assert made["string_hits"] <= min(made["string_gold"], made["string_given"])
        faults_of(task, one), task.details(one.gold, one.predicted), task.correct(one.gold, one.predicted)


def test_several_types_in_one_row() -> None:
    gold = (
        "- Zoral | chemical\n- Lead acetate | chemical\n- lead poisoning | disease\n- severe colic | disease"
    )
    both = row(gold + "\n- colic | disease", types=["Chemical", "Disease"])
    assert scores(both.answer or "", both)["mention_f1"] == 1.0
    assert kinds((both.answer or "").replace("poisoning | disease", "poisoning | chemical"), both) == [
        ("type", "lead poisoning", "lead poisoning")
    ]
    spans = "\n".join("7\t{}\t{}\t{}\tChemical\t-1".format(*m[:3]) for m in MENTIONS)
    assert scores(spans, both)["mention_f1"] == 4 / 7
    assert [one[0] for one in kinds(spans, both)] == ["type"] * 3


def test_rows_without_annotated_spans_are_said_to_be_so() -> None:
    plain = Example.make(f"{ASK}{ARTICLE}", "- Zoral\n- Lead acetate", id="r")
    made = scores("- zoral", plain)
    assert made["spans_annotated"] == 0 and made["mention_recall"] == 3 / 4 and math.isnan(made["concept_f1"])


# ---- kinds of errors


def test_each_kind_of_error_is_named() -> None:
    assert kinds("- Zoral\n- Lead acetate") == []
    assert kinds("- Zoral") == [("missed", "Lead acetate", None)]
    assert kinds("- Zoral\n- lead acetate\n- velmide") == [("hallucinated", None, "velmide")]
    assert kinds("- Zoral\n- acetate") == [("boundary", "Lead acetate", "acetate")]
    assert kinds("- Zoral\n- Lead acetate, not zoral") == [
        ("boundary", "Lead acetate", "Lead acetate, not zoral")
    ]
    assert kinds("- Zoral\n- Lead acetate\n- severe colic") == [("type", "severe colic", "severe colic")]
    assert kinds("- Zoral\n- Lead acetate\n- zoral sulphate") == [("boundary", "Zoral", "zoral sulphate")]
    assert kinds("Sheep.") == [("unparsable", None, 'unparsable: no line begins with "- "')]
    assert kinds("- severe\n- colic", row("- severe colic\n- colic\n- lead poisoning", "Disease")) == [
        ("boundary", "severe colic", "severe"),
        ("missed", "lead poisoning", None),
    ]


def test_counts_of_errors_and_tables() -> None:
    made = scores("- acetate\n- velmide\n- severe colic\n- zoral")
    assert (made["entities_boundary"], made["entities_spurious"], made["entities_type"]) == (
        1 / 4,
        1 / 4,
        1 / 4,
    )
    assert scores("- zoral")["entities_missed"] == 1 / 2
    task = make_task("entities")
    one = answered(task, row(), {"answer": "- zoral\n- velmide\n- severe colic"})
    types, confusion = study_of(task, [one])
    assert types.rows == (("chemical", 4, 5, 3, 3 / 5, 3 / 4, 2 / 3),)
    assert confusion.kind == "confusion" and set(confusion.rows) == {
        ("chemical", "chemical", 1), ("nothing", "chemical", 1), ("disease", "chemical", 1), ("chemical", "nothing", 1)
    }  # fmt: skip
    levels, errors = task.tables(task.counts("", one.gold, one.predicted))
    assert all(isinstance(times, int) for _, times in errors.rows)  # counts are shown as 7, not as 7.000
    assert [line[:4] for line in levels.rows] == [
        ("string: forms in a row", 2, 3, 1),
        ("mention: spans", 4, 5, 3),
        ("concept: ids in a row", 3, 3, 1),
    ]


# ---- novelty


def test_recall_is_split_by_what_training_answers_name() -> None:
    made = scores("- zoral", golds=("- ZORAL\n- Lead", "- tabrine | colic"))
    assert (made["mention_recall_seen"], made["mention_recall_unseen"]) == (1.0, 0.0)
    made = scores("- lead acetate", golds=("- ZORAL\n- Lead", "- tabrine | colic"))
    assert (made["string_recall_seen"], made["string_recall_unseen"]) == (0.0, 1.0)
    assert math.isnan(scores("- zoral")["mention_recall_seen"])  # nothing is known of the training rows
    task = make_task("entities", None, ["- zoral"])
    assert task.needs_training_answers and task.seen == {"zoral"} and not task.without_training_answers().seen


# ---- rows


def test_a_context_that_was_cut_keeps_its_places() -> None:
    whole = row()
    cut = ARTICLE.index("Lead acetate")
    asked = f"{ASK}{ARTICLE[cut:]}\n\nHere:"
    shorter = Example.make(asked, whole.answer, id="r", facts=whole.facts)
    made = scores("- zoral\n- lead acetate", shorter)
    assert (
        made["mention_precision"] == 1.0 and made["mention_recall"] == 3 / 4
    )  # the first Zoral is out of sight


@pytest.mark.parametrize(
    "facts, says",
    [
        (
            {"mentions": [[0, 4, "Zora", "Chemical", []], [3, 9, "velmid", "Chemical", []]]},
            "is not at 3 to 9",
        ),
        ({"mentions": [[0, 4, "Zora"]]}, "not as they should be"),
        ({"kind": "events"}, "kind is 'events'"),
        ({"types": "Chemical"}, "types is a list"),
        ({"types": [5]}, "not as they should be"),
        ({"article": [5]}, "not as they should be"),
        ({"mentions": [[-3, 2, "Zora", "Chemical", []]]}, "is not at -3 to 2"),
        ({"mentions": 5}, "not as they should be"),
        ({"kind": "relations", "types": ["Chemical"]}, "two sides"),
        ({"kind": "relations", "types": ["Chemical", "Disease"]}, "evaluate.task: annotations scores both"),
    ],
)
def test_facts_that_cannot_be_right_are_refused(facts: dict[str, Any], says: str) -> None:
    with pytest.raises(RowCheckFailed, match=says):
        scores("- zoral", row(**facts))


def test_a_file_alone_scores_the_same_and_the_task_travels() -> None:
    task = pickle.loads(pickle.dumps(make_task("annotations", None, ["- zoral"])))
    one = row()
    line = {"id": "r", "prompt": one.asked, "gold": one.answer, "answer": "- zoral", "facts": dict(one.facts)}
    lines = [json.loads(json.dumps(line))]
    direct = score_answers(lines, [one], task)
    alone = score_answers(lines, examples_in(lines, "p.jsonl"), task)
    assert {k: v.tolist() for k, v in direct.counts.items()} == {
        k: v.tolist() for k, v in alone.counts.items()
    }


def test_every_metric_is_explained_and_majority_and_floors_answer() -> None:
    for name in ("entities", "relations", "annotations"):
        task = make_task(name)
        assert set(task.explain()) == set(task.metrics()) and task.headline in task.metrics()
        assert task.lower_is_better <= set(make_task("annotations").metrics())
    task = make_task("entities")
    assert task.common_answer([read_answer("- a\n- b"), read_answer("- b")]) == "- b"
    floors = task.floors([row()], [row("- Zoral", id="other")])
    assert floors == {"dictionary": ["- Zoral\n- Lead acetate"]}
    assert task.floors([row()], [row("- colic", "Disease")]) == {"dictionary": ["- none"]}


def test_a_gold_list_of_several_types_that_says_none_is_no_fault_of_itself() -> None:
    """Types are then not asked for in the answer: forms and spans count, whatever their type."""
    gold = "- Zoral\n- lead poisoning\n- Lead acetate\n- severe colic\n- colic"
    both = row(gold, types=["Chemical", "Disease"])
    assert kinds(gold, both) == []
    found = scores(gold, both)
    assert found["string_f1"] == found["mention_f1"] == found["list_ceiling_f1"] == found["concept_f1"] == 1.0
    some = [kind for kind, *_ in kinds("- Zoral\n- colic\n- sheep", both)]
    assert some == ["hallucinated", "missed", "missed", "missed"]
    spans = "".join(f"0\t{a}\t{b}\t{text}\t{kind}\tD1\n" for a, b, text, kind, _ in MENTIONS)
    assert kinds(spans, both) == []
    with_types = row("- Zoral | Chemical\n- colic | Disease", types=["Chemical", "Disease"])
    assert ("type", "colic", "colic") in kinds("- Zoral | Chemical\n- colic | Chemical", with_types)


def test_a_gold_list_without_annotations_is_a_perfect_answer_though_the_article_lacks_a_form() -> None:
    listed = "- Zoral\n- nowhere named"
    alone = Example.make(ARTICLE, listed, id="r")
    assert scores(listed, alone)["mention_f1"] == 1.0
    assert scores("- Zoral", alone)["mention_recall"] == pytest.approx(
        3 / 4
    )  # three places and the one that is none
    assert scores("- Zoral\n- nowhere else", alone)["mention_precision"] == pytest.approx(3 / 4)
