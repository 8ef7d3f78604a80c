"""The report of a made-up run: what it says, what it must never say, and that planted errors are found in it."""

import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from tiny_run import guess, recipe, reports, write_curves, write_predictions, write_run

from tunesmith.errors import RowCheckFailed
from tunesmith.evaluate import floors
from tunesmith.evaluate.build import build
from tunesmith.evaluate.file_report import systems_of
from tunesmith.evaluate.report import write_report
from tunesmith.evaluate.score import load_systems
from tunesmith.evaluate.shown.examples import quote
from tunesmith.evaluate.shown.wording import range_of
from tunesmith.proof import Proof
from tunesmith.tasks import make_task
from tunesmith.verbs.score import score
from tunesmith.view.page_script import SCRIPT

TRAIN, TEST = reports(60, seed=1, name="train"), reports(45, seed=2, name="test")


@pytest.fixture
def run(tmp_path):
    """A run whose 45 test rows have been answered by a good tuned and a bad base model."""
    made = write_run(tmp_path / "tiny", TRAIN, test=TEST)
    fill(made, TEST)
    made.prove(Proof("terminator_learned", True, 1.0, 1.0, "share of <rows> in which it is a target"))
    return made


def fill(run, rows):
    rng = random.Random(3)
    write_predictions(run.predictions / "tuned.jsonl", rows, [guess(row, rng, 0.85) for row in rows])
    write_predictions(run.predictions / "base.jsonl", rows, [guess(row, rng, 0.2) for row in rows])
    task = make_task("auto", None, [row.answer for row in TRAIN])
    for name, answers in (
        ("majority", floors.majority(task, TRAIN, rows)),
        ("nearest", floors.nearest(TRAIN, rows)),
    ):
        lines = "".join(line + "\n" for line in floors.as_lines(answers, rows))
        (run.predictions / f"{name}.jsonl").write_text(lines)


class Tags(HTMLParser):
    """Counts of open tags, and every address."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.seen = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in ("meta", "br", "img", "link", "input", "path", "use", "rect"):
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag


# ---- report.json


def test_report_json_is_as_documented(run):
    write_report(recipe(), run)
    content = json.loads((run.report / "report.json").read_text())
    headline = content["headline"]
    assert headline["metric"] == "item_f1"
    assert headline["n"] == content["rows"] == 45
    assert content["documents"] == 23
    assert headline["difference"]["value"] == pytest.approx(headline["tuned"] - headline["base"])
    assert headline["difference"]["low"] < headline["difference"]["value"] < headline["difference"]["high"]
    assert list(content["scores"]) == ["tuned", "base", "majority", "nearest"]
    tuned = content["scores"]["tuned"]["item_f1"]
    assert tuned["value"] == headline["tuned"]
    assert tuned["low"] < tuned["value"] < tuned["high"]
    assert tuned["n"] == 45
    assert content["selected_on_scored_rows"] is False
    assert content["schema_version"] == 1
    assert content["overlap"] == {"train": 0, "validation": 0}
    assert "mcnemar" not in content  # two rows to a document
    signs = content["sign_test"]
    assert signs["tuned_better"] > signs["base_better"]
    assert signs["tuned_better"] + signs["base_better"] + signs["equal"] == 23
    assert "sign test over documents" in (run.report / "report.md").read_text()
    seen, unseen = sorted(content["slices"], key=lambda one: one["value"])
    assert (seen["rows"], seen["small"], unseen["rows"], unseen["small"]) == (30, False, 15, True)
    assert "NaN" not in (run.report / "report.json").read_text()


def test_same_run_gives_the_same_bytes(run):
    write_curves(run)
    write_report(recipe(), run)
    before = {path.name: path.read_bytes() for path in run.report.iterdir()}
    write_report(recipe(), run)
    assert before == {path.name: path.read_bytes() for path in run.report.iterdir()}


def test_slices_and_fields_add_up(run):
    content = write_report(recipe(), run)
    for field in ("site", "treatment", "stage"):
        assert f"item_f1:{field}" in content["scores"]["tuned"]
    table = content["tables"]["tuned"][0]
    at = {name: i for i, name in enumerate(table["columns"])}
    for row in table["rows"]:
        assert row[at["gold values"]] == sum(row[at[name]] for name in ("match", "partly", "wrong", "missed"))
        assert row[at["gold values"]] + row[at["gold nulls"]] == (135 if row[0] == "all fields" else 45)


@pytest.mark.parametrize(
    "split, says", [("validation", "also chose the checkpoint"), ("test", "chose nothing")]
)
def test_first_line_says_whether_the_rows_chose_the_checkpoint(tmp_path, split, says):
    made = write_run(tmp_path / "tiny", TRAIN, **{split: TEST})
    fill(made, TEST)
    content = write_report(recipe(), made)
    assert content["selected_on_scored_rows"] is (split == "validation")
    assert says in (made.report / "report.md").read_text().split("\n")[0]
    body = (made.report / "report.html").read_text().split("<main>")[1]
    first = re.sub(r"<[^>]+>", "", body.split("</p>")[0]) if split == "validation" else body.split("</p>")[0]
    assert says in first


@pytest.mark.parametrize(
    "train, validation, says",
    [
        (TEST[:12], (), "12 of 45 scored rows stand in the training rows too: scores are too high"),
        ((), TEST[:7], "7 of 45 scored rows stand in the validation rows too, which chose the checkpoint"),
    ],
)
def test_first_line_says_that_scored_rows_stand_elsewhere(tmp_path, train, validation, says):
    made = write_run(tmp_path / "tiny", [*renamed(train), *TRAIN], test=TEST, validation=renamed(validation))
    fill(made, TEST)
    content = write_report(recipe(), made)
    assert content["overlap"] == {"train": len(train), "validation": len(validation)}
    assert content["selected_on_scored_rows"] is bool(validation)
    first = (made.report / "report.md").read_text().split("\n")[0]
    assert says in first and "chose nothing" not in first
    body = (made.report / "report.html").read_text().split("<main>")[1]
    assert body.strip().startswith('<p class="warning">') and says in body.split("</p>")[0]


def renamed(rows):
    """The same texts under other ids."""
    return [replace(row, id=f"again-{row.id}", document=f"again {row.document}") for row in rows]


def test_rows_that_are_their_own_documents_get_mcnemar(tmp_path):
    rows = [replace(row, document=row.id) for row in TEST]
    made = write_run(tmp_path / "tiny", TRAIN, test=rows)
    fill(made, rows)
    content = write_report(recipe(), made)
    assert content["mcnemar"]["only_tuned"] > content["mcnemar"]["only_base"]
    assert "sign_test" not in content
    assert "McNemar" in (made.report / "report.md").read_text()


@pytest.mark.parametrize("rows, documents, claims", [(12, 12, False), (20, 20, True), (45, 1, False)])
def test_few_documents_claim_nothing(tmp_path, rows, documents, claims):
    chosen_rows = [replace(row, document=f"d{i % documents}") for i, row in enumerate(TEST[:rows])]
    made = write_run(tmp_path / "tiny", TRAIN, test=chosen_rows)
    write_predictions(made.predictions / "tuned.jsonl", chosen_rows, [row.answer for row in chosen_rows])
    write_predictions(made.predictions / "base.jsonl", chosen_rows, ["{}"] * rows)
    content = write_report(recipe(), made)
    text = (made.report / "report.md").read_text()
    assert ("the interval excludes 0" in text) is claims
    assert ("Too few documents to tell" in text) is not claims
    assert set(content["headline"]["difference"]) == {"value", "low", "high"}
    if documents == 1:
        assert content["headline"]["difference"]["low"] is None
        assert content["scores"]["tuned"]["item_f1"]["high"] is None
        assert "1.000 (–)" in text and "nan" not in text.lower()
        assert "NaN" not in (made.report / "report.json").read_text()


def test_a_perfect_share_still_has_an_interval(run):
    write_predictions(run.predictions / "tuned.jsonl", TEST, [row.answer for row in TEST])
    scores = write_report(recipe(), run)["scores"]["tuned"]
    assert scores["schema_valid"]["low"] == pytest.approx(0.025 ** (1 / 23))  # 23 documents
    assert scores["schema_valid"]["high"] == 1


def test_a_base_that_misses_the_format_is_called_that(run):
    write_predictions(run.predictions / "base.jsonl", TEST, ["Stage IV, I think."] * 45)
    content = write_report(recipe(), run)
    text = (run.report / "report.md").read_text()
    fit = 100 * content["scores"]["tuned"]["schema_valid"]["value"]
    assert "The base's item_f1 of 0.000 is one of format" in text
    assert f"answers that fit the schema: tuned {fit:.1f} %, base 0.0 %." in text
    assert content["scores"]["base"]["hallucinated"]["value"] is None
    assert content["scores"]["base"]["wrong"]["value"] is None
    assert content["scores"]["base"]["missed"]["value"] == 1
    write_predictions(run.predictions / "base.jsonl", TEST, [row.answer for row in TEST])
    write_report(recipe(), run)
    assert "one of format" not in (run.report / "report.md").read_text()


@pytest.mark.parametrize(
    "low, high, sign, says",
    [
        (0.0006274, 0.002, False, "0.00063 to 0.00200"),
        (0.0006274, 0.4, False, "0.001 to 0.400"),
        (-0.01, 0.25, True, "−0.010 to +0.250"),
        (99.5, 123.45, False, "99.5 to 123.5"),
        (0.0, 0.0, True, "+0.000 to +0.000"),
        (-4.4e-16, 2.2e-16, True, "+0.000 to +0.000"),
        (None, None, False, "–"),
    ],
)
def test_both_ends_of_an_interval_have_as_many_digits(low, high, sign, says):
    assert range_of({"low": low, "high": high}, sign) == says


def test_exported_systems_are_scored_and_stale_ones_left_out(run, capsys):
    rng = random.Random(0)
    write_predictions(run.predictions / "merged.jsonl", TEST, [guess(row, rng, 0.85) for row in TEST])
    write_predictions(run.predictions / "old.jsonl", TEST[:7], [guess(row, rng, 0.85) for row in TEST[:7]])
    content = write_report(recipe(), run)
    assert list(content["scores"])[-1] == "merged"
    assert "item_f1" in content["differences"]["merged"]
    value = {name: content["scores"][name]["item_f1"]["value"] for name in ("merged", "tuned")}
    assert content["exported"]["merged"]["value"] == pytest.approx(value["merged"] - value["tuned"])
    assert "against the live adapter" in (run.report / "report.md").read_text()
    assert "old is left out" in capsys.readouterr().err


def test_missing_predictions_of_tuned_stop_the_report(run):
    write_predictions(run.predictions / "tuned.jsonl", TEST[1:], [row.answer for row in TEST[1:]])
    with pytest.raises(RowCheckFailed, match="test-0"):
        write_report(recipe(), run)
    assert not (run.report / "report.json").exists()


def test_likelihood_is_summed_first_and_divided_once(run):
    run.report.mkdir()
    nll = [float(i + 1) for i in range(45)]
    lines = [
        {"id": row.id, "bytes": 10 * (i + 1), "tokens": i + 1, "nll": {"base": 2 * nll[i], "tuned": nll[i]}}
        for i, row in enumerate(TEST)
    ]
    (run.report / "likelihood.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = write_report(recipe(), run)["scores"]
    assert scores["tuned"]["bits_per_byte"]["value"] == pytest.approx(0.1 / np.log(2))
    assert scores["base"]["perplexity"]["value"] == pytest.approx(np.exp(2))
    assert "perplexity" not in scores["nearest"]


# ---- report.html and report.md


def test_html_needs_no_network_is_well_formed_and_escapes_texts(run):
    answers = [row.answer for row in TEST]
    answers[0] = '{"stage": "<script>alert(1)</script> \\ud83d & <img src=x>"}'
    write_predictions(run.predictions / "tuned.jsonl", TEST, answers)
    write_report(recipe(), run)
    text = (run.report / "report.html").read_text()
    tags = Tags(text)
    assert tags.open == []
    assert text.count("<script") == 1 and SCRIPT in text  # ours, the only one
    assert "img" not in tags.seen and "link" not in tags.seen
    assert all(address.startswith("#") for address in tags.addresses)
    assert not re.search(r"url\((?!#)|@import", text)
    assert "&lt;script&gt;alert(1)" in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "width=device-width" in text


def test_redacted_page_and_json_and_md_quote_no_row(run):
    write_report(recipe(), run, redact=True)
    page = (run.report / "report.html").read_text()
    for name in ("report.html", "report.json", "report.md"):
        text = (run.report / name).read_text()
        assert "osimertinib" not in text and "Metastasis" not in text, name
    assert "Scores" in page
    write_report(recipe(), run)  # made again after export: still redacted
    assert "osimertinib" not in (run.report / "report.html").read_text()
    write_report(recipe(), run, redact=False)
    assert "osimertinib" in (run.report / "report.html").read_text()


def test_planted_errors_are_found(run):
    answers = [json.loads(row.answer) for row in TEST]
    planted = [i for i, answer in enumerate(answers) if answer["stage"] == "IV"][:4]
    for i in planted:
        answers[i]["stage"] = "IB"
    worst_row = next(i for i, answer in enumerate(answers) if answer["site"] is None and i not in planted)
    answers[worst_row] = {"site": "pancreas", "treatment": "aspirin", "stage": "0"}
    write_predictions(run.predictions / "tuned.jsonl", TEST, [json.dumps(answer) for answer in answers])
    task = make_task("auto", None, [row.answer for row in TRAIN])
    systems = load_systems(run.predictions, TEST, task)
    shown, mistakes = quote(systems)
    assert shown[0].id == f"test-{worst_row}"
    assert {row.id for row in shown[1:5]} == {f"test-{i}" for i in planted}
    verdicts = {detail.field: detail.verdict for detail in shown[0].details["tuned"]}
    assert verdicts == {"site": "hallucinated", "treatment": "wrong", "stage": "wrong"}
    found = [(one.field, one.gold, one.predicted, one.times) for one in mistakes]
    assert found == [("stage", "IV", "IB", 4)]


def test_proofs_and_curves_are_shown(run):
    write_curves(run)
    write_report(recipe(), run)
    page = (run.report / "report.html").read_text()
    assert "terminator_learned" in page and "share of &lt;rows&gt;" in page
    assert page.count("<svg") == 5
    assert "training and validation loss" in page
    assert "terminator_learned" in (run.report / "report.md").read_text()


def test_text_rows_have_a_report_too(tmp_path):
    rows = [type(row)(row.id, row.messages, row.document) for row in TEST]
    made = write_run(tmp_path / "tiny", TRAIN, test=rows)
    fill(made, rows)
    content = write_report(recipe(evaluate={"task": "text"}), made)
    assert content["headline"]["metric"] == "word_f1"
    assert Tags((made.report / "report.html").read_text()).open == []


def test_one_predictions_file_can_be_scored_alone(run):
    task = make_task("auto", None, [row.answer for row in TRAIN])
    whole = build(load_systems(run.predictions, TEST, task))
    alone = build(systems_of(run.predictions / "tuned.jsonl", lambda rows: task))
    assert alone["headline"]["tuned"] == whole["headline"]["tuned"]


def test_a_file_of_one_document_is_scored_without_interval(tmp_path, capsys):
    write_predictions(tmp_path / "one.jsonl", TEST[:1], [row.answer for row in TEST[:1]])
    made = score(recipe(), tmp_path / "one.jsonl")
    assert made["scores"]["item_f1"] == {"value": 1.0, "low": None, "high": None, "n": 1}
    assert "–" in capsys.readouterr().out


def test_scoring_and_report_need_no_torch(tmp_path):
    code = (
        "import sys, tunesmith.evaluate.report, tunesmith.view.figures, tunesmith.view.scored\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
