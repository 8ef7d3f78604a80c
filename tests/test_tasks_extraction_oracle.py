"""Extraction's counts and scores against an oracle written apart from them, and mutants that must disagree with it."""

import json
import random

import pytest
from test_tasks_extraction import FIELDS, schema, score

from tunesmith.tasks import extraction, make_task
from tunesmith.tasks import json_answer as json_answer_module
from tunesmith.tasks import normalise as normalise_module
from tunesmith.tasks.json_answer import read_object
from tunesmith.tasks.normalise import items

POOL = {
    "site": ["liver", "brain", "bone (spine, pelvis)", "lymph nodes"],
    "drug": ["carboplatin", "paclitaxel", "FOLFOX (5-FU and leucovorin)", "5-FU 1,200 mg"],
    "marker": ["ER+", "ER-", "HER2 3+ (IHC)", "PD-L1 10%", "TMB-high"],
}


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
