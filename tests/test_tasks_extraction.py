"""The extraction task: reading answers, schema and fields, loud failures, which task a run gets."""

import json

import numpy as np
import pytest

from tunesmith.errors import RowCheckFailed, TunesmithError
from tunesmith.example import Example, Message
from tunesmith.tasks import Parsed, make_task
from tunesmith.tasks.json_answer import read_object
from tunesmith.tasks.normalise import items, words
from tunesmith.tasks.schema import infer_schema, load_schema
from tunesmith.tasks.score import examples_in, score_answers

FIELDS = ("site", "drug", "marker")


def example(gold, text="nothing", row=0, document=""):
    gold = gold if isinstance(gold, str) else json.dumps(gold)
    return Example(
        f"r{row}", (Message("user", text), Message("assistant", gold, True)), document, source=f"f:{row + 1}"
    )


def score(task, golds, answers, text="nothing"):
    rows = [example(gold, text, i) for i, gold in enumerate(golds)]
    lines = [
        {"id": f"r{i}", "answer": answer if isinstance(answer, str) else json.dumps(answer)}
        for i, answer in enumerate(answers)
    ]
    scored = score_answers(lines, rows, task)
    sums = {name: values.sum(keepdims=True) for name, values in scored.counts.items()}
    return {name: float(metric(sums)[0]) for name, metric in task.metrics().items()}, scored


def schema():
    text = {"type": ["string", "null"]}
    return {
        "type": "object",
        "properties": dict.fromkeys(FIELDS, text),
        "required": list(FIELDS),
        "additionalProperties": False,
    }


# ---- reading


@pytest.mark.parametrize(
    "answer, value, kinds",
    [
        ('{"a": 1}', {"a": 1}, ()),
        (' {"a": null}\n', {"a": None}, ()),
        ('```json\n{"a": 1}\n```', {"a": 1}, ("wrapped",)),
        ('Sure {here}: {"a": "}{"} ok', {"a": "}{"}, ("wrapped",)),
        ('{"a": 1} {"a": 2}', {"a": 1}, ("wrapped",)),
        ('{"a": 1, "a": 2}', {"a": 2}, ("schema",)),
        ('{"a": {"b": 1}, "c": "tr', None, ("unparsable",)),
        ('x {"a": {"b": 1}, "c": "tr', None, ("unparsable",)),
        ("", None, ("unparsable",)),
        ("[1, 2]", None, ("unparsable",)),
        ("null", None, ("unparsable",)),
        ('{"a": NaN}', None, ("unparsable",)),
        ('{"a": "\\ud83d\\ud83d\\ude00"}', {"a": "?\U0001f600"}, ()),
        ('{"a": 1e999}', None, ("unparsable",)),
        ("{" * 100_000, None, ("unparsable",)),
        ('{"a":' * 100_000, None, ("unparsable",)),
        ("{'a': 1}", None, ("unparsable",)),
    ],
)
def test_reads_the_object_or_says_why_not(answer, value, kinds):
    parsed = read_object(answer)
    assert parsed.value == value
    assert tuple(problem.split(":")[0] for problem in parsed.problems) == kinds


def test_words_keep_signs_numbers_and_scripts():
    assert words("ER-positive, HER2−; PSA 1,200.5 ng/mL.") == [
        "er",
        "positive",
        "her2-",
        "psa",
        "1200.5",
        "ng",
        "ml",
    ]
    assert words("-5 °C (mild)") == ["-5", "c", "mild"]
    assert words("ಮಾನವ ಕುಟುಂಬದ, ಎಲ್ಲಾ") == ["ಮಾನವ", "ಕುಟುಂಬದ", "ಎಲ್ಲಾ"]
    assert words("ER+/PR+ > 10%") == ["er+", "pr+", ">", "10%"]


def test_items_split_flatten_and_tell_null():
    assert items("Liver; bone, and BRAIN + lung") == items(["lung", "brain", "bone", "liver"])
    assert items(None) == items("") == items([]) == items({}) == items([None, ""]) == frozenset()
    assert items("none") == {"none"}
    assert items("ER+") != items("ER-")
    assert items("1,200 mg") == items("1200 mg") == {"1200 mg"}
    assert items("-") == {"-"}  # a value that is all punctuation is still a value
    assert items(5) == items(5.0) == items("5")
    assert items(True) == {"true"}
    assert items([{"name": "A", "dose": "5 mg"}]) == items([{"dose": "5 mg", "name": "a"}])


# ---- schema and fields


def test_schema_is_inferred_from_training_answers():
    made = infer_schema(
        [{"a": "x", "b": None, "n": {"c": 1}}, {"a": None, "b": [1], "n": {"c": 2.5, "d": True}}]
    )
    assert made["required"] == ["a", "b", "n"]
    assert made["properties"]["a"] == {"type": ["string", "null"]}
    assert made["properties"]["b"] == {"type": ["array", "null"]}
    assert made["properties"]["n"]["properties"]["c"] == {"type": ["number", "null"]}
    assert made["properties"]["n"]["required"] == ["c"]


def test_nested_objects_are_fields_of_their_own():
    golds = [{"who": {"age": 5, "sex": "F"}, "drugs": ["a", "b"]}]
    task = make_task("auto", None, [json.dumps(gold) for gold in golds])
    assert task.fields == ("who.age", "who.sex", "drugs")
    made, _ = score(task, golds, [{"who": {"age": 5.0, "sex": "M"}, "drugs": ["B"]}])
    assert made["item_f1"] == pytest.approx(2 * 2 / (4 + 3))
    assert made["schema_valid"] == 1
    assert made["exact:who.age"] == 0  # 5.0 is not 5 as JSON


def test_given_schema_wins_and_breaks_are_named(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema()))
    task = make_task("auto", load_schema(file))
    parsed = task.parse('{"site": 5, "drug": null, "extra": 1}')
    assert parsed.value is not None
    assert any("site" in problem for problem in parsed.problems)
    assert any("marker" in problem for problem in parsed.problems)
    assert any("extra" in problem for problem in parsed.problems)


@pytest.mark.parametrize(
    "content, says", [("{", "can't be read"), ('{"type": "strnig"}', "not a JSON schema")]
)
def test_broken_schema_files_are_named(tmp_path, content, says):
    file = tmp_path / "schema.json"
    file.write_text(content)
    with pytest.raises(TunesmithError, match=says) as error:
        load_schema(file)
    assert "schema.json" in str(error.value)


def test_a_schema_never_reaches_for_the_network():
    task = make_task("extraction", {"properties": {"a": {"$ref": "http://localhost:9/none.json"}}})
    with pytest.raises(TunesmithError, match="refers to"):
        task.parse('{"a": 1}')


def test_grounding_counts_words_and_whole_values():
    golds = [{"drug": "carboplatin and paclitaxel"}]
    task = make_task("auto", None, [json.dumps(gold) for gold in golds])
    made, _ = score(task, golds, [{"drug": "paclitaxel weekly carboplatin"}], "Carboplatin with Paclitaxel.")
    assert made["grounded_words"] == pytest.approx(2 / 3)
    assert made["grounded_values"] == 0  # one item, and not so in the text
    assert made["gold_grounded_values"] == 1
    assert made["gold_grounded_words"] == 1
    made, _ = score(task, golds, [{"drug": "platin"}], "Carboplatin with Paclitaxel.")
    assert made["grounded_values"] == 0  # part of a word is not in the text


# ---- loud failures


def lines(answers):
    return [{"id": f"r{i}", "answer": json.dumps(answer)} for i, answer in enumerate(answers)]


A = {"site": "liver", "drug": None, "marker": None}
EMPTY = {"site": None, "drug": None, "marker": None}


@pytest.mark.parametrize(
    "rows, answers, says",
    [
        ([A, A], [A], "1 without a prediction (r1)"),
        ([A], [A, A], "1 predictions for other rows (r1)"),
        ([A, "{broken"], [A, A], "1 of 2 gold answers can't be parsed"),
        ([A, '["a"]'], [A, A], "1 of 2 gold answers can't be parsed"),
        ([EMPTY, EMPTY], [A, A], "gold count is 0"),
        ([A, A | {"new": "x"}], [A, A], "keys that neither"),
        ([], [], "no rows"),
    ],
)
def test_refuses_to_score_less_than_it_was_given(rows, answers, says):
    task = make_task("extraction", schema())
    with pytest.raises(RowCheckFailed) as error:
        score_answers(lines(answers), [example(gold, row=i) for i, gold in enumerate(rows)], task)
    assert says in str(error.value)
    assert error.value.exit_code == 3


def test_refuses_predictions_for_another_gold_and_repeated_ids():
    task = make_task("extraction", schema())
    stale = [lines([A])[0] | {"gold": json.dumps(EMPTY)}]
    with pytest.raises(RowCheckFailed, match="another gold"):
        score_answers(stale, [example(A)], task)
    with pytest.raises(RowCheckFailed, match="not unique"):
        score_answers(lines([A]), [example(A), example(A)], task)


def test_samples_are_averaged_and_uneven_ones_refused():
    task = make_task("extraction", schema())
    wrong = A | {"site": "bone"}
    two = [{"id": "r0", "answer": json.dumps(answer), "sample": i} for i, answer in enumerate([A, wrong])]
    scored = score_answers(two, [example(A)], task)
    assert scored.counts["hits:site"][0] == 0.5
    assert not scored.correct[0]
    with pytest.raises(RowCheckFailed, match="stand more than once"):
        score_answers([*two, {"id": "r1", "answer": "{}"}], [example(A), example(A, row=1)], task)


def test_predictions_file_alone_can_be_scored():
    task = make_task("extraction", schema())
    rows = [{"id": "r0", "prompt": "liver", "answer": json.dumps(A), "gold": json.dumps(A), "document": "d"}]
    found = examples_in(rows, "p.jsonl")
    assert score_answers(rows, found, task).documents == ("d",)
    with pytest.raises(RowCheckFailed, match="no gold"):
        examples_in([{"id": "r0", "answer": "{}"}], "p.jsonl")


# ---- which task


def test_auto_chooses_by_the_training_answers():
    assert make_task("auto", None, ['{"a": 1}', '{"a": null}']).name == "extraction"
    assert make_task("auto", None, ['{"a": 1}', "free text", "more text"]).name == "text"
    assert make_task("auto", None, []).name == "text"
    with pytest.raises(TunesmithError, match="extraction"):
        make_task("extractoin", None, [])


def test_auto_is_extraction_where_most_answers_are_objects():
    golds = ['{"a": 1}'] * 6 + ["", "no idea", '{"a": ', "n/a"]
    task = make_task("auto", None, golds)
    assert task.name == "extraction" and "a" in task.common_answer([task.parse(golds[0])])
    assert all(task.parse(gold).value is None for gold in golds[6:])  # what the data check `unparsable` names
    assert make_task("auto", None, golds[4:]).name == "text"  # a third of them: the other way round


def test_answers_that_cannot_be_parsed_do_not_look_perfect():
    task = make_task("extraction", schema())
    made, scored = score(task, [A, A], ["no idea", "none"])
    assert np.isnan(made["hallucinated"]) and np.isnan(made["wrong"])
    assert made["missed"] == 1
    table, _ = task.tables({name: values.sum() for name, values in scored.counts.items()})
    total = dict(zip(table.columns, table.rows[-1], strict=True))
    assert (total["gold nulls"], total["hallucinated"], total["unparsed"]) == (4, 0, 4)
    assert [one.verdict for one in task.details(task.parse(json.dumps(A)), task.parse("none"))] == [
        "missed", "unparsed", "unparsed"
    ]  # fmt: skip
    made, _ = score(task, [A, A], ["no idea", {"site": "bone", "drug": "aspirin", "marker": None}])
    assert (made["hallucinated"], made["wrong"], made["missed"]) == (0.5, 1.0, 0.5)
    assert "can be parsed" in task.explain()["hallucinated"]


def test_majority_takes_the_most_common_value_that_is_not_null():
    task = make_task("extraction", schema())
    golds = [task.parse(json.dumps(A | {"site": s})) for s in ("liver", "bone", "bone", None, None, None)]
    assert json.loads(task.common_answer(golds)) == {"site": "bone", "drug": None, "marker": None}


def test_text_task():
    task = make_task("text")
    rows = [example("The cat sat.", row=0), example("A dog", row=1)]
    made = score_answers([{"id": "r0", "answer": "the CAT sat"}, {"id": "r1", "answer": "  "}], rows, task)
    sums = {name: np.array([values.sum()]) for name, values in made.counts.items()}
    values = {name: float(metric(sums)[0]) for name, metric in task.metrics().items()}
    assert values == {
        "word_f1": 0.5,
        "match": 0.5,
        "exact_match": 0.0,
        "answered": 0.5,
        "length_ratio": 3 / 5,
    }
    assert task.counts("", Parsed("a b c d"), Parsed("a b x"))["word_f1"] == pytest.approx(4 / 7)
