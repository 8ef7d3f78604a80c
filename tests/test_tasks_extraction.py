"""The extraction task against a slow oracle that knows the item sets by construction, and mutants that it catches."""

import json
import random

import numpy as np
import pytest

from tunesmith.errors import RowCheckFailed, TunesmithError
from tunesmith.example import Example, Message
from tunesmith.tasks import Parsed, extraction, make_task
from tunesmith.tasks import json_answer as json_answer_module
from tunesmith.tasks import normalise as normalise_module
from tunesmith.tasks.json_answer import read_object
from tunesmith.tasks.normalise import items, words
from tunesmith.tasks.schema import infer_schema, load_schema
from tunesmith.tasks.score import examples_in, score_answers

FIELDS = ("site", "drug", "marker")
POOL = {
    "site": ["liver", "brain", "bone (spine, pelvis)", "lymph nodes"],
    "drug": ["carboplatin", "paclitaxel", "FOLFOX (5-FU and leucovorin)", "5-FU 1,200 mg"],
    "marker": ["ER+", "ER-", "HER2 3+ (IHC)", "PD-L1 10%", "TMB-high"],
}


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


# ---- the oracle


def spell(rng, chosen):
    """The same items in another spelling: order, case, separators, spaces, or as a list."""
    chosen = rng.sample(sorted(chosen), len(chosen))
    chosen = [rng.choice([str, str.upper, str.lower])(one) for one in chosen]
    if rng.random() < 0.15:
        return chosen
    return (
        "".join(one + rng.choice(["; ", ", ", " and ", " + ", ";", ", and "]) for one in chosen[:-1])
        + chosen[-1]
    )


def perturbed(seed, rows=12):
    """Golds and answers with their item sets: [(gold, answer text, gold sets, predicted sets or None)]."""
    rng = random.Random(seed)
    made = []
    for _ in range(rows):
        sets = {f: set(rng.sample(POOL[f], rng.choice([0, 1, 1, 2, 3]))) for f in FIELDS}
        gold = {f: spell(rng, sets[f]) if sets[f] else None for f in FIELDS}
        guess = {f: set(sets[f]) for f in FIELDS}
        for f in FIELDS:
            what = rng.choice(["keep", "keep", "keep", "empty", "drop", "add", "other"])
            if what == "empty":
                guess[f] = set()
            elif what == "drop" and guess[f]:
                guess[f].discard(rng.choice(sorted(guess[f])))
            elif what == "add":
                guess[f].add(rng.choice(POOL[f]))
            elif what == "other":
                guess[f] = set(rng.sample(POOL[f], rng.choice([1, 2])))
        copied = {f: guess[f] == sets[f] and rng.random() < 0.5 for f in FIELDS}
        value = {f: gold[f] if copied[f] else (spell(rng, guess[f]) if guess[f] else None) for f in FIELDS}
        text = json.dumps(value)
        dress = rng.choice(["bare", "bare", "bare", "fence", "words", "cut", "prose", "extra"])
        if dress == "fence":
            text = f"```json\n{text}\n```"
        elif dress == "words":
            text = f"Here you are: {text}\nDone."
        elif dress == "cut":
            text, guess = text[:-3], None
        elif dress == "prose":
            text, guess = "no findings", None
        elif dress == "extra":
            text = json.dumps(value | {"note": "x"})
        fits = dress in ("bare", "fence", "words", "extra") and not any(
            isinstance(v, list) for v in value.values()
        )
        made.append((gold, text, sets, guess, value, dress, fits and dress != "extra"))
    return made


def oracle(rows):
    """Metrics by plain set arithmetic, row by row and field by field."""
    hits = gold_items = given_items = 0
    table = {
        f: dict.fromkeys(("match", "partly", "wrong", "missed", "hallucinated", "null", "unparsed"), 0)
        for f in FIELDS
    }
    per_field = {f: [0, 0, 0] for f in FIELDS}
    exact = golds = golds_read = row_exact = row_match = 0
    for gold, _, sets, guess, value, _, _ in rows:
        said = guess if guess is not None else {f: set() for f in FIELDS}
        all_match = all_exact = guess is not None
        for f in FIELDS:
            right, given = sets[f], said[f]
            hits += len(right & given)
            gold_items += len(right)
            given_items += len(given)
            per_field[f][0] += len(right & given)
            per_field[f][1] += len(right)
            per_field[f][2] += len(given)
            if right and given:
                verdict = "match" if right == given else "partly" if right & given else "wrong"
            else:
                verdict = "missed" if right else "hallucinated" if given else "null"
                if guess is None and not right:
                    verdict = "unparsed"
            table[f][verdict] += 1
            all_match = all_match and right == given
            same = guess is not None and value[f] == gold[f]
            all_exact = all_exact and same
            if right:
                golds += 1
                golds_read += guess is not None
                exact += same
        row_exact += all_exact
        row_match += all_match
    f1s = [2 * h / (g + p) for h, g, p in per_field.values() if g + p]
    total = {v: sum(table[f][v] for f in FIELDS) for v in table["site"]}
    nulls = total["hallucinated"] + total["null"]
    return table, {
        "item_f1": 2 * hits / (gold_items + given_items),
        "item_precision": hits / given_items if given_items else float("nan"),
        "item_recall": hits / gold_items,
        "item_f1_macro": sum(f1s) / len(f1s),
        "field_exact": exact / golds,
        "row_exact": row_exact / len(rows),
        "row_match": row_match / len(rows),
        "missed": total["missed"] / golds,
        "wrong": (total["wrong"] + total["partly"]) / golds_read if golds_read else float("nan"),
        "hallucinated": total["hallucinated"] / nulls if nulls else float("nan"),
        "parse_rate": sum(r[3] is not None for r in rows) / len(rows),
        "parse_rate_bare": sum(r[3] is not None and r[5] in ("bare", "extra") for r in rows) / len(rows),
        "schema_valid": sum(r[6] for r in rows) / len(rows),
    }


def schema():
    text = {"type": ["string", "null"]}
    return {
        "type": "object",
        "properties": dict.fromkeys(FIELDS, text),
        "required": list(FIELDS),
        "additionalProperties": False,
    }


def compare_with_oracle(seeds):
    task = make_task("extraction", schema())
    for seed in seeds:
        rows = perturbed(seed)
        table, expected = oracle(rows)
        made, scored = score(task, [row[0] for row in rows], [row[1] for row in rows])
        for name, value in expected.items():
            assert made[name] == pytest.approx(value, abs=1e-12, nan_ok=True), (seed, name)
        for f in FIELDS:
            for verdict, times in table[f].items():
                assert scored.counts[f"{verdict}:{f}"].sum() == times, (seed, f, verdict)


def test_200_perturbations_agree_with_the_oracle():
    compare_with_oracle(range(200))


def _null_is_a_hit(gold, given, real=extraction._verdict):
    return "match" if not gold and not given else real(gold, given)


def _unparsable_is_dropped(self, prompt, gold, predicted, real=extraction.ExtractionTask.counts):
    made = real(self, prompt, gold, predicted)
    return dict.fromkeys(made, 0.0) | {"rows": 1.0} if predicted.value is None else made


def _mean_of_rows(hits, gold, given, real=extraction._f1):
    return real(hits, gold, given + 1)


MUTANTS = {
    "null against null is a match": (extraction, "_verdict", _null_is_a_hit),
    "unparsable rows are dropped": (extraction.ExtractionTask, "counts", _unparsable_is_dropped),
    "what can't be parsed is right about nulls": (extraction, "_of_unparsed", str),
    "wrong denominator": (extraction, "_f1", _mean_of_rows),
    "substring counts as a match": (
        extraction, "_verdict", lambda gold, given: "match" if gold & given else "wrong" if gold and given else "null"
    ),
    "signs are punctuation": (extraction, "items", lambda v: frozenset(i.strip("+-") for i in items(v))),
    "nothing is split": (extraction, "items", lambda v: items([v]) if isinstance(v, str) else items(v)),
    "brackets are split": (normalise_module, "_depths", lambda text: [0] * (len(text) + 1)),
    "case counts": (normalise_module, "normal", str),
    "an object in a broken one is taken": (json_answer_module, "_closing", lambda text, begin: begin + 1),
    "schema is not looked at": (extraction.SchemaChecker, "problems", lambda self, value: ()),
    "equal items are exact": (extraction, "_same", lambda one, other: items(one) == items(other)),
}  # fmt: skip


@pytest.fixture
def forgotten():
    """What has been normalised before is not known to a mutant, nor what a mutant made of it to others."""
    kept = [each for each in vars(normalise_module).values() if hasattr(each, "cache_clear")]
    for each in kept:
        each.cache_clear()
    yield
    for each in kept:
        each.cache_clear()


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_disagree_with_the_oracle(name, monkeypatch):
    module, function, mutant = MUTANTS[name]
    monkeypatch.setattr(module, function, mutant)
    if name == "an object in a broken one is taken":
        assert read_object('{"a": {"b": 1}, "c": "tr').value is not None  # what the test below refuses
        return
    with pytest.raises(AssertionError):
        compare_with_oracle(range(20))


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
