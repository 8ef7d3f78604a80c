"""The inspection's edges: plain text, rows without answers, one row, no rows, a schema, several processes."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_rows import translations
from small_pool import pool_of

from tunesmith.data.alike.near import near_pairs
from tunesmith.data.inspect import CHECKS, Inspection, inspect
from tunesmith.data.inspect.answer_shape import ShapeChecker, ShapeNorms, shape_of
from tunesmith.data.inspect.field_values import flatten
from tunesmith.data.inspect.finding import levels
from tunesmith.data.inspect.grounding import Ground, GroundingNorms
from tunesmith.data.inspect.phi import personal
from tunesmith.data.inspect.prompt_shape import PromptNorms
from tunesmith.data.inspect.row_view import RowView
from tunesmith.data.inspect.scripts import ScriptNorms
from tunesmith.data.inspect.tally import MOST_VALUES, Tally
from tunesmith.example import TEXT, Example, Message
from tunesmith.recipe import Checks, Data
from tunesmith.tasks import make_task
from tunesmith.tasks.prose.script import main_script, script_letters, strays
from tunesmith.tasks.schema import SchemaChecker


def row(prompt: str, answer: str | None, **more: Any) -> Example:
    return Example.make(prompt, answer, **more)


def looked_at(folder: Path, rows: list[Example], given: list[int] | None = None, **more: Any) -> Inspection:
    pool = pool_of(folder, rows, given)
    pairs = np.zeros((0, 2), np.int32), np.zeros(0, np.float32)
    if rows:
        pairs = near_pairs(pool.signatures, pool.compared)
    settings = {"data": Data(train="rows.jsonl"), "task": make_task("text"), "schema": None} | more
    return inspect(pool, pool.facts["given"], *pairs, **settings)


def rows_of(found: Inspection, check: str) -> set[int]:
    return {finding.row for finding in found.findings if finding.check == check}


def test_the_report_has_every_check_and_is_json(tmp_path: Path) -> None:
    report = looked_at(tmp_path, [row("How are you?", "Well.")]).report
    assert [check["name"] for check in report["checks"]] == list(CHECKS)
    assert all(check["rows"] == 0 and check["meaning"] for check in report["checks"])
    assert json.loads(json.dumps(report)) == report


def test_no_rows_are_no_error(tmp_path: Path) -> None:
    found = looked_at(tmp_path, [])
    assert len(found.findings) == 0 and found.report["lengths"] == {}


def test_plain_text_is_looked_at_as_text(tmp_path: Path) -> None:
    texts = [
        f"The {word} of the house, part {n}." for n, word in enumerate(("roof", "door", "lamp", "yard") * 10)
    ]
    texts += ["Write to me: someone@clinic.org", texts[3]]
    rows = [Example(f"t{n}", (Message(TEXT, text, True),), f"t{n}") for n, text in enumerate(texts)]
    found = looked_at(tmp_path, rows)
    assert rows_of(found, "phi") == {40} and rows_of(found, "duplicate") == {41}
    assert {finding.check for finding in found.findings} <= {"phi", "duplicate", "near_duplicate"}
    assert "text" in next(one.detail for one in found.findings if one.check == "phi")
    assert found.report["scripts"]["answer"] == {"Latin": 1.0} and found.report["parse"]["rows"] == 0


def test_rows_without_answers_pass(tmp_path: Path) -> None:
    found = looked_at(tmp_path, [row(f"Question number {word}?", None) for word in ("one", "two", "three")])
    assert len(found.findings) == 0 and found.report["parse"]["rows"] == 0


def test_an_empty_turn_in_the_middle_is_an_empty_answer(tmp_path: Path) -> None:
    turns = [
        Message("user", "a"),
        Message("assistant", " ", True),
        Message("user", "b"),
        Message("assistant", "c", True),
    ]
    found = looked_at(tmp_path, [Example("x", tuple(turns), "x"), row("d", "e")])
    assert [(one.check, one.row, one.detail) for one in found.findings] == [
        ("empty_answer", 0, "turn 2 is empty")
    ]


def test_several_processes_say_what_one_says(tmp_path: Path) -> None:
    planted = translations(random.Random(5))
    rows = [example for copy in range(4) for example in planted.rows]  # more than one range of rows
    one = looked_at(tmp_path / "one", rows)
    two = looked_at(tmp_path / "two", rows, workers=2)
    assert one.report == two.report
    assert list(one.findings) == list(two.findings) and len(one.findings)


def test_ignored_checks_are_silent_and_levels_follow_the_recipe(tmp_path: Path) -> None:
    rows = [row("Call 212-555-0142.", "")] * 2
    checks = Checks.model_validate({"phi": "ignore", "duplicate": "error"})
    found = looked_at(tmp_path, rows, data=Data(train="rows.jsonl", checks=checks))
    assert {finding.check for finding in found.findings} == {"duplicate", "empty_answer"}
    level = {check["name"]: check["level"] for check in found.report["checks"]}
    assert (level["phi"], level["duplicate"], level["schema"]) == ("ignore", "error", "error")
    assert levels(Checks(), chat=True)["phi"] == "error" and levels(Checks(), chat=False)["phi"] == "warn"


def test_numbers_of_persons_are_errors_in_pairs_and_never_shown(tmp_path: Path) -> None:
    rows = [
        row("Hello there", "Call 212-555-0142 now", rejected="Or john@clinic.org"),
        row("b", "c", rejected="d"),
    ]
    found = looked_at(tmp_path, rows)
    phi = next(check for check in found.report["checks"] if check["name"] == "phi")
    assert (
        phi["level"] == "error"
        and phi["examples"][0]["detail"] == "phone in the answer; mail in the rejected answer"
    )
    assert "0142" not in json.dumps(found.report["checks"]) and found.report["pairs"]["rows"] == 2


def test_leaks_name_the_training_row_and_tell_the_other(tmp_path: Path) -> None:
    rows = [row("What is it?", "A", document="one"), row("And this?", "B", document="two")]
    rows += [
        row("What is it?", "A", document="three", id="held"),
        row("Which?", "C", document="two", id="other"),
    ]
    found = looked_at(tmp_path, rows, [0, 0, 1, 2])
    told = {(finding.check, finding.row): finding.detail for finding in found.findings}
    assert told["exact_leak", 0] == "its prompt stands in validation too: held"
    assert told["group_leak", 1] == "its document stands in test too: other"
    assert found.report["leaks"]["validation in train"]["exact"] == {"rows": 1, "share": 1.0, "named": 1}
    assert found.report["leaks"]["test in train"]["group"]["rows"] == 1


def test_near_leaks_count_rows_that_hang_together(tmp_path: Path) -> None:
    """Of many rows that are alike not every two are a pair: train 0 and held 2 are so by way of train 1."""
    rows = [row(f"prompt {n}", "x") for n in range(4)]
    pool = pool_of(tmp_path, rows, [0, 0, 1, 0])
    pairs, similarity = np.array([[0, 1], [1, 2]], np.int32), np.array([0.9, 0.85], np.float32)
    found = inspect(
        pool,
        pool.facts["given"],
        pairs,
        similarity,
        data=Data(train="x"),
        task=make_task("text"),
        schema=None,
    )
    told = {finding.row: finding.detail for finding in found.findings if finding.check == "near_leak"}
    assert set(told) == {0, 1} and "(0.85)" in told[1] and "(" not in told[0]
    assert found.report["leaks"]["validation in train"]["near"]["rows"] == 1


@pytest.mark.parametrize("values", [True, False])
def test_a_given_schema_is_what_counts(tmp_path: Path, values: bool) -> None:
    """Once a schema of types alone, of which answers of one shape are checked once; once with values in it."""
    stage = {"type": "string", "enum": ["I", "II"]} if values else {"type": "string"}
    schema = {"type": "object", "properties": {"stage": stage}, "required": ["stage"]}
    answers = ['{"stage": "I"}'] * 30 + ['{"stage": "V"}', '{"stage": 3}', "{}", '{"stage": "II", "more": 1}']
    rows = [row(f"Report {n} says stage I or II or V.", answer) for n, answer in enumerate(answers)]
    found = looked_at(tmp_path, rows, task=make_task("extraction", schema), schema=schema)
    assert rows_of(found, "schema") == ({30, 31, 32} if values else {31, 32})
    schema_report = found.report["schema"]
    assert (schema_report["rows"], schema_report["valid"], schema_report["inferred"]) == (
        34,
        31 + (not values),
        False,
    )


def test_the_inferred_shape_knows_nested_and_optional_keys() -> None:
    usual = [{"a": "x", "b": {"c": 1.5}, **({"d": ["y"]} if n % 2 else {})} for n in range(100)]
    norms = ShapeNorms.learn([*usual, {"a": None, "b": None}])
    assert norms.problem(shape_of({"a": "z", "b": {"c": 2}})) is None  # 2 is a number too
    assert norms.problem(shape_of({"a": "z", "b": None})) is None
    assert "'b.c'" in (norms.problem(shape_of({"a": "z", "b": {}})) or "")
    assert "'a'" in (norms.problem(shape_of({"b": {"c": 1}})) or "")
    assert "'e'" in (norms.problem(shape_of({"a": "z", "b": {"c": 1}, "e": 1})) or "")
    assert "array" in (norms.problem(shape_of({"a": ["z"], "b": {"c": 1}})) or "")


def test_values_of_nested_answers() -> None:
    value = {"a": "x", "b": {"c": 5, "d": None}, "e": ["y", "z"], "f": [{"g": True}], "h": [], "i": " "}
    assert flatten(value) == [
        ("a", "x"), ("b.c", "5"), ("b.d", None), ("e", "y"), ("e", "z"), ("f.g", "true"), ("h", None), ("i", None),
    ]  # fmt: skip


def test_tallies_stay_small_and_say_so() -> None:
    whole = Tally()
    for start in range(0, 3 * MOST_VALUES, 4096):
        part = Tally()
        for number in range(start, start + 4096):
            part.field("name").texts["often" if number % 2 else f"value {number}"] += 1  # type: ignore[union-attr]
        part.close()
        whole.add(pickle.loads(pickle.dumps(part)))
    found = whole.fields["name"]
    assert found.forgotten and len(found.texts) <= MOST_VALUES and found.texts["often"] > MOST_VALUES


def test_a_schema_checker_travels_to_other_processes() -> None:
    checker = SchemaChecker({"type": "object", "required": ["a"]})
    assert pickle.loads(pickle.dumps(checker)).problems({}) == checker.problems({}) != ()


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Call (212) 555-0142 or 1-800-QUITNOW", ["phone", "phone"]),
        ("mobile: 9845012345", ["phone"]), ("+44 20 7946 0958", ["phone"]), ("+91 98450 12345", ["phone"]),
        ("mail a.b@clinic.org", ["mail"]), ("see https://example.org/x and www.nih.gov", ["url", "url"]),
        ("123-45-6789", ["social_security"]), ("MRN: 4456721", ["record"]), ("Unit No: 123-45-67", ["record"]),
        ("DOB: 03/04/1956", ["birth_date"]), ("born on October 31, 2008", ["birth_date"]),
        ("12 Main Street, Boston, MA 02134", ["address"]), ("P.O. Box 1234", ["address"]),
        ("from 192.168.10.21", ["ip"]),
        ("5-10 mg daily, 120/80, 1998-2004, 2 x 500 mg", []), ("PMID 12345678; doi 10.1016/j.123.4567", []),
        ("NCT01234567, CAS 50-78-2, EC 1.14.13.39, v1.2.3.4", []), ("p.R175H c.524G>A rs28934578", []),
        ("ISBN 978-0-306-40615-7; the antagonist, CP 93129", []), ("born in 1956, stage IIIB 4 Days Dr. Smith", []),
        ("1 2 3 4 5 6 7 8 and 1990 1991 1992 1993", []), ("no 12 patients", []),
    ],
)  # fmt: skip
def test_numbers_of_persons_and_other_numbers(text: str, kinds: list[str]) -> None:
    assert sorted(kind for kind, _ in personal(text)) == sorted(kinds)


def test_scripts_and_strays() -> None:
    assert main_script(script_letters("ಕನ್ನಡ ನುಡಿ, one")) == "Kannada"
    assert script_letters("naïve 12 µ") == {"Latin": 6} and script_letters("漢字とかな") == {
        "Han": 2,
        "Kana": 3,
    }
    assert main_script(script_letters("12, 3")) is None
    assert strays("a\ufffdb\u200bc e\u0301") == {"replacement": 1, "zero_width": 1, "not_nfc": 1}


@pytest.mark.parametrize(("times", "a_label"), [(4, False), (9, False), (40, True)])
def test_a_value_is_no_label_because_it_was_invented_a_few_times(times: int, a_label: bool) -> None:
    """Of 2,000 stages nearly all stand in their texts; one is in no text: a few faults, or a habit of the rows."""
    there, absent = Ground(True, True, 1, 1), Ground(False, False, 0, 1)
    values = [("stage", f"I{n % 5}", there) for n in range(2000)] + [("stage", "IVB", absent)] * times
    norms = GroundingNorms.learn(values)
    assert (norms.finding("stage", "IVB", absent) is None) == a_label


def test_a_limit_says_what_it_cuts(tmp_path: Path) -> None:
    rows = [row("w " * words, "a " * 9) for words in (10, 500, 507, 600)]  # an answer is 10 long here
    half = next(one for one in looked_at(tmp_path, rows).report["limits"] if one["limit"] == 512)
    assert half == {
        "limit": 512, "over": 2, "share": 0.5, "answer_lost": 1, "cue_cut": 1, "answer_cut": 1,
        "answer_tokens_share": pytest.approx(15 / 40),
    }  # fmt: skip


def test_an_answer_in_its_prompts_script_is_right_in_a_set_of_several_languages() -> None:
    several = ScriptNorms.learn([("Latin", "Latin")] * 90 + [("Kannada", "Kannada")] * 8)
    assert several.finding({"Kannada": 9}, {"Kannada": 9}, {}) is None
    assert several.finding({"Kannada": 9}, {"Latin": 9}, {}) is not None
    # a translation: answers never follow their prompts, so what was not translated is told at 8 % too
    one_way = ScriptNorms.learn([("Latin", "Kannada")] * 90 + [("Latin", "Latin")] * 8)
    assert one_way.finding({"Latin": 9}, {"Latin": 9}, {}) is not None


def test_keys_are_optional_where_rows_leave_out_some() -> None:
    whole = {"a": "x", "b": "y", "c": "z"}
    damaged = ShapeNorms.learn([whole] * 95 + [{"a": "x", "b": "y"}] * 5)
    assert damaged.problem(shape_of({"a": "x", "b": "y"})) is not None
    chosen = ShapeNorms.learn([whole] * 50 + [{"a": "x", "b": "y"}] * 45 + [{"a": "x"}] * 5)
    assert chosen.problem(shape_of({"a": "x"})) is None and chosen.problem(shape_of({"b": "y"})) is not None
    odd = ShapeNorms.learn([whole] * 98 + [whole | {"a": [1]}] * 2)
    assert odd.problem(shape_of(whole | {"a": [1]})) is not None and odd.problem(shape_of(whole)) is None


def _ends(*endings: tuple[str, int]) -> tuple[PromptNorms, list[RowView]]:
    rng = random.Random(1)
    words = (
        "the scan of a liver shows new lesions in both lobes and no sign of fever or pain was seen".split()
    )
    nouns = [f"{a}{b}itis" for a in "bcdfgh" for b in "aeiou"]
    rows: list[RowView] = []
    for ending, times in endings:
        for _ in range(times):
            said = [*(rng.choice(words) for _ in range(rng.randrange(20, 40))), rng.choice(nouns)]
            half = "".join(rng.choice("abcdefghij") for _ in range(8))
            prompt = " ".join(said[::-1]) + ending.format(noun=rng.choice(nouns), half=half)
            rows.append(RowView(len(rows), row(prompt, "yes"), make_task("text").parse))
    return PromptNorms.learn(rows), rows


def test_prompts_that_are_cut_are_told_from_prompts_without_a_full_stop() -> None:
    cut, rows = _ends((".", 180), (" {half}", 20))
    assert cut.cut(rows[-1], None) is not None and cut.cut(rows[0], None) is None
    habit, rows = _ends((".", 180), (" {noun}", 20))
    assert habit.cut(rows[-1], None) is None
    spaced, rows = _ends((".", 198), (". ", 2))
    assert spaced.cut(rows[-1], None) is not None
    heading, rows = _ends((".", 190), (" {noun}:", 10))
    assert heading.cut(rows[-1], None) is None


def test_answers_that_differ_in_writing_only_contradict_nothing(tmp_path: Path) -> None:
    task = make_task("extraction", None, ['{"a": 1, "b": 2}'])
    written = ('{"b":2,  "a":1}\n', '{"a": 1, "b": 2}')
    same = [row(f"question {i // 2} of many", written[i % 2]) for i in range(40)]
    assert rows_of(looked_at(tmp_path / "same", same, task=task), "contradiction") == set()
    pairs = [row("the same question", "chosen", rejected=f"rejected {i}") for i in range(3)]
    assert rows_of(looked_at(tmp_path / "pairs", pairs), "duplicate") == set()


def test_a_finding_of_the_schema_is_about_its_own_row() -> None:
    checker = ShapeChecker(ShapeNorms(), {"type": "object", "properties": {"age": {"type": "string"}}})
    assert "100" in (checker.problem({"age": 100}) or "") and "103" in (checker.problem({"age": 103}) or "")
    assert checker.problem({"age": "x"}) is None


def test_lists_count_their_row_once_and_long_values_keep_their_separators(tmp_path: Path) -> None:
    value = json.dumps({"drugs": [{"name": "a"}, {"name": "b"}], "note": "x" * 150 + "; y"})
    rows = [row(f"prompt {i}", value) for i in range(30)]
    report = looked_at(tmp_path, rows, task=make_task("extraction", None, [value])).report
    fields = {one["name"]: one for one in report["fields"]}
    assert fields["drugs.name"]["rows"] == 30 and fields["note"]["separators"] == {";": 30}


def test_norms_hang_on_no_hash_seed() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_inspect as t; "
        "print(sorted(t.many_words().hanging))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)], env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert said[0] == said[1] and len(said[0]) > 100


def many_words() -> PromptNorms:
    """Of prompts with 300 words that are all equally frequent."""
    words = [f"{a}{b}{c}" for a in "bcdfgh" for b in "aeiou" for c in "klmnprstvz"]
    prompts = [" ".join(words) + "."] * 300
    return PromptNorms.learn(
        [RowView(i, row(text, "yes"), make_task("text").parse) for i, text in enumerate(prompts)]
    )
