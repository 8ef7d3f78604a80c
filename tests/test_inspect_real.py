"""The inspection on real data, figure beside figure with what others measured on the same files (docs/data-checks.md).

The bands are small: they hold our own figures. hh_rlhf rows are offensive: only counted, never shown.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_pool import pool_of

from tunesmith.data.alike.near import near_pairs
from tunesmith.data.formats.examples import BadRow, Manner, row_examples
from tunesmith.data.inspect import Inspection, inspect
from tunesmith.data.read.files import read_rows
from tunesmith.example import Example, Message
from tunesmith.recipe import Data
from tunesmith.tasks import make_task

pytestmark = pytest.mark.realdata


def read(
    path: Path, format: str, columns: dict[str, str] | None = None, group: str | None = None
) -> list[Example]:
    """Rows of a file that can be used."""
    found: list[Example] = []
    for place, row in read_rows(path):
        try:
            found += row_examples(row, place, Manner(format=format, columns=columns, group=group))
        except BadRow:
            continue
    return found


def looked_at(folder: Path, format: str, *splits: list[Example], task: str = "text") -> Inspection:
    """As prepare calls it, the splits being given."""
    rows = [row for split in splits for row in split]
    pool = pool_of(folder, rows, [side for side, split in enumerate(splits) for _ in split])
    pairs, similarity = near_pairs(pool.signatures, pool.compared)
    golds = [row.answer for row in splits[0] if row.answer]
    return inspect(
        pool, pool.facts["given"], pairs, similarity, data=Data(train="rows.jsonl"), task=make_task(task, None, golds),
        schema=None, row_format=format,
    )  # fmt: skip


def named(report: dict[str, Any]) -> dict[str, int]:
    """Rows by check, those that found any."""
    return {check["name"]: check["rows"] for check in report["checks"] if check["rows"]}


def near(value: float, band: float = 0.005) -> Any:
    return pytest.approx(value, abs=band)


def test_cancer_reports(realdata: Path, tmp_path: Path) -> None:
    folder = realdata / "cancer_ie"
    train, held = (read(folder / name, "instruction") for name in ("train.jsonl", "validation_a.jsonl"))
    report = looked_at(tmp_path, "instruction", train, held, task="extraction").report
    fields = {one["name"]: one for one in report["fields"]}
    # words of the values that the text has
    coverage = {name: one["coverage"] for name, one in fields.items()}
    assert coverage["treatment"] == near(0.914) and coverage["biomarker"] == near(0.917)
    assert coverage["cancer_type"] == near(0.979)
    # whole values in the text, normalised
    whole = {"cancer_type": 0.723, "gene_mutation": 0.866, "response": 0.573, "metastasis_site": 0.417,
             "treatment": 0.267, "biomarker": 0.204}  # fmt: skip
    assert {name: fields[name]["normalised"] for name in whole} == {
        name: near(share) for name, share in whole.items()
    }
    stage = fields["stage"]
    assert stage["nothing"] == near(0.368) and stage["off_list"] == near(72, 5)
    assert fields["metastasis_site"]["separators"] | {"/": 0} == {",": 827, ";": 310, " and ": 143, "/": 0}
    assert fields["treatment"]["separators"] | {"/": 0} == {
        " and ": 1901,
        ";": 1663,
        "+": 691,
        ",": 662,
        "/": 0,
    }
    assert sum(one["null"] for one in fields.values()) == near(3694, 20)
    leak = report["leaks"]["validation in train"]
    assert leak["exact"]["rows"] == leak["near"]["rows"] == leak["group"]["rows"] == 0
    assert leak["similarity"]["max"] == near(0.405) and leak["similarity"]["at_least"]["0.3"] == 7
    assert report["parse"]["share"] == report["schema"]["share"] == 1.0
    assert report["phi"] == {} and report["duplicates"]["repeats"] == 0
    # what inferred stages must not set off; genes that stand in biomarker
    assert set(named(report)) <= {"grounding", "swapped_field"}
    assert named(report)["grounding"] <= 0.025 * 4750 and 5 <= named(report)["swapped_field"] <= 30


def test_questions_of_health_sites(realdata: Path, tmp_path: Path) -> None:
    columns = {"instruction": "question", "output": "answer"}
    rows = read(realdata / "medquad" / "medquad_qa.jsonl", "instruction", columns, group="focus")
    report = looked_at(tmp_path, "instruction", rows).report
    folded = report["duplicates"]["folded"]
    assert (folded["repeats"], folded["prompts_with_different_answers"]) == (431, 282)
    assert report["duplicates"]["repeats"] == 383 and report["duplicates"]["exact"] == 11
    assert report["phi"]["mail"] == 5 and report["phi"]["phone"] == near(24, 2)
    assert report["boilerplate"]["share"] == near(0.24, 0.02)
    assert report["boilerplate"]["phrases"][0][1] > 1000
    assert named(report)["contradiction"] == 706 and "grounding" not in named(report)


def test_diagnosis_and_treatment(realdata: Path, tmp_path: Path) -> None:
    rows = read(realdata / "medquad" / "medquad_diagnosis_treatment.jsonl", "instruction", group="focus")
    report = looked_at(tmp_path, "instruction", rows).report
    assert report["prompt"]["with_cue"] == report["prompt"]["of"] == 462
    assert report["prompt"]["cue"].endswith("how is it treated?")
    assert report["duplicates"]["folded"]["prompts_with_different_answers"] == 14
    assert set(named(report)) <= {"near_duplicate", "contradiction", "phi"}


def articles(realdata: Path) -> list[Example]:
    """Two official sets of 500 abstracts, three tasks each."""
    folder = realdata / "bc5cdr"
    return [
        row
        for name in ("train", "dev")
        for row in read(folder / f"cdr_instruct_{name}.jsonl", "prompt_completion")
    ]


def test_abstracts_as_they_were_split(realdata: Path, tmp_path: Path) -> None:
    rows = articles(realdata)
    report = looked_at(tmp_path, "prompt_completion", rows[:1500], rows[1500:]).report
    leak = report["leaks"]["validation in train"]
    assert leak["exact"]["rows"] == leak["near"]["rows"] == leak["group"]["rows"] == 0
    # every entity of the gold lists stands in its article; lines of relations are "a | b", so not as a whole
    assert report["grounding"]["coverage"] > 0.999
    assert sum(named(report).values()) <= 15


def test_abstracts_split_by_row_leak(realdata: Path, tmp_path: Path) -> None:
    """What the seed of this mission did: each abstract stands in three rows, and rows were drawn."""
    rows = articles(realdata)
    random.Random(0).shuffle(rows)
    report = looked_at(tmp_path, "prompt_completion", rows[300:], rows[:300]).report
    leak = report["leaks"]["validation in train"]
    assert leak["group"]["rows"] >= 285 and leak["exact"]["rows"] == 0
    assert named(report)["group_leak"] >= 450


def test_abstracts_cut_at_2048_characters(realdata: Path, tmp_path: Path) -> None:
    """The same seed's cleaning step: prompts are cut, and those that were lose their cue."""
    cut: list[Example] = []
    for row in articles(realdata):
        order, _, article = row.prompt[-1].content.partition("\n\n")
        kind = next(kind for kind in ("chemical", "disease", "") if kind in order.split("mentioned")[0])
        prompt = f"{article.partition(chr(10))[2]}\n\nList of extracted {kind or 'influence'}s:"[:2048]
        cut.append(replace(row, messages=(Message("user", prompt), row.messages[-1])))
    short = {row.id for row in cut if len(row.prompt[-1].content) == 2048}
    found = looked_at(tmp_path, "prompt_completion", cut)
    assert len(short) > 100 and 2048 in found.report["prompt"]["cut_lengths"]
    ids = {"missing_cue": set(), "cut_prompt": set()}  # type: dict[str, set[str]]
    for finding in found.findings:
        if finding.check in ids:
            ids[finding.check].add(cut[finding.row].id)
    assert ids["missing_cue"] == short and short <= ids["cut_prompt"]


def test_dialogues_to_notes(realdata: Path, tmp_path: Path) -> None:
    columns = {"instruction": "dialogue", "output": "section_text"}
    names = ("TrainingSet", "ValidationSet", "TestSet-1-MEDIQA-Chat-2023")
    splits = [
        read(realdata / "mts_dialog" / f"MTS-Dialog-{name}.csv", "instruction", columns) for name in names
    ]
    report = looked_at(tmp_path, "instruction", *splits).report
    for name, *rows in (("validation in train", 2, 0, 15), ("test in train", 1, 1, 29)):
        leak = report["leaks"][name]
        assert [leak[kind]["rows"] for kind in ("exact", "near", "answer")] == rows
    assert report["phi"] == {"birth_date": 1}


def test_pairs_of_answers(realdata: Path, tmp_path: Path) -> None:
    path = realdata / "hh_rlhf_harmless" / "pairs.jsonl"
    rows = read(path, "preference")
    assert len(list(read_rows(path))) - len(rows) == 5  # chosen and rejected answer different prompts
    report = looked_at(tmp_path, "preference", rows).report
    pairs, found = report["pairs"], named(report)
    assert pairs["rows"] == 1755 and pairs["chosen_longer"] / 1755 == near(0.434)
    assert found["empty_answer"] == 3 and report["duplicates"]["repeats"] == 1
    assert report["phi"] == {"address": near(14, 1), "phone": 1}
    assert next(check["level"] for check in report["checks"] if check["name"] == "phi") == "error"


def test_kannada(realdata: Path, tmp_path: Path) -> None:
    rows = read(
        realdata / "kannada" / "udhr_kan_eng.jsonl", "instruction", {"instruction": "en", "output": "kn"}
    )
    report = looked_at(tmp_path / "udhr", "instruction", rows).report
    assert report["scripts"]["answer"] == {"Kannada": 1.0} and report["scripts"]["prompt"] == {"Latin": 1.0}
    assert "not_nfc" not in report["scripts"]["strays"] and named(report) == {}
    verse = read(realdata / "kannada" / "old_kannada_santipurana.txt", "text")
    report = looked_at(tmp_path / "verse", "text", verse).report
    assert report["scripts"]["answer"]["Kannada"] > 0.999 and report["parse"]["rows"] == 0
    assert set(named(report)) <= {"duplicate", "near_duplicate"}
