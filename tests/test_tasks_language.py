"""Language adaptation: the right script, bits per byte as the headline, what a second source shows as forgotten."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu

from tunesmith.base import resolve
from tunesmith.data.prepare import build as prepare
from tunesmith.data.sources import resolve_sources
from tunesmith.evaluate.build import build
from tunesmith.evaluate.score import Systems, with_likelihood
from tunesmith.evaluate.shown.findings import sentences
from tunesmith.example import Example
from tunesmith.recipe import Recipe
from tunesmith.tasks import make_task
from tunesmith.tasks.answered import answered, faults_of, study_of
from tunesmith.tasks.prose.language import LanguageTask
from tunesmith.tasks.prose.script import main_script, script_letters
from tunesmith.tasks.score import score_answers

KANNADA = "ನೀರು ಮರ ಮನೆ ಹಣ್ಣು ಊರು ದಾರಿ ಬೆಟ್ಟ ನದಿ ಹಕ್ಕಿ ಹೂವು ಮಳೆ ಸೂರ್ಯ ಚಂದ್ರ ಪುಸ್ತಕ ಶಾಲೆ ಗುರು ಕಥೆ ಹಾಡು".split()
ENGLISH = (
    "water tree house fruit town road hill river bird flower rain sun moon book school teacher story".split()
)


def texts(known: list[str], count: int, seed: int = 0) -> list[str]:
    """Sentences of words that follow nothing."""
    draw = random.Random(seed)
    return [". ".join(" ".join(draw.choices(known, k=6)) for _ in range(3)) + "." for _ in range(count)]


@pytest.fixture(scope="module")
def task() -> LanguageTask:
    """Made from Kannada."""
    made = make_task("language", None, texts(KANNADA, 40))
    assert isinstance(made, LanguageTask)
    return made


def scored(task: Any, golds: list[str], answers: list[str], slices: list[str] | None = None) -> Any:
    rows = [
        Example.make("?", gold, id=str(i), slices={"source": slices[i]} if slices else {})
        for i, gold in enumerate(golds)
    ]
    lines = [{"id": str(i), "answer": answer} for i, answer in enumerate(answers)]
    return rows, score_answers(lines, rows, task)


def values(task: Any, golds: list[str], answers: list[str]) -> dict[str, float]:
    _, one = scored(task, golds, answers)
    sums = {name: counts.sum(keepdims=True) for name, counts in one.counts.items()}
    return {name: float(metric(sums)[0]) for name, metric in task.metrics().items()}


def test_gold_itself(task: LanguageTask) -> None:
    golds = texts(KANNADA, 20, 1)
    found = values(task, golds, golds)
    assert found["chrf++"] == pytest.approx(100) and found["rouge1"] == found["right_script"] == 1
    assert found["lost_letters"] == 0
    others = texts(KANNADA, 20, 2)
    assert values(task, golds, others)["chrf++"] == sacrebleu.corpus_chrf(others, [golds], word_order=2).score


def test_the_script_is_the_golds_own(task: LanguageTask) -> None:
    golds = [*texts(KANNADA, 10), *texts(ENGLISH, 10)]
    kannada = texts(KANNADA, 20, 1)
    found = values(task, golds, kannada)
    assert found["right_script_rows"] == 0.5 and 0.4 < found["right_script"] < 0.6
    assert values(task, golds, [""] * 20)["right_script_rows"] == 0  # an empty answer is in no script
    # the mutant: letters outside ASCII for Kannada takes Hindi for it
    hindi = "पानी पेड़ घर फल नगर"
    assert main_script(script_letters(hindi)) == "Devanagari"
    assert values(task, golds[:10], [hindi] * 10)["right_script"] == 0


@pytest.mark.parametrize(
    "said, kind",
    [
        ("The answer is water and rest.", "wrong_script"),
        ("पानी पीजिए और आराम कीजिए।", "wrong_script"),
        ("", "empty"),
        ("ನೀರು ಮರ\ufffd", "lost_letters"),
    ],
)
def test_faults(task: LanguageTask, said: str, kind: str) -> None:
    for gold in texts(KANNADA, 50, 3):
        row = answered(task, Example.make("?", gold), {"answer": said})
        assert kind in {fault.kind for fault in faults_of(task, row)}


def test_gold_has_no_fault_and_a_foreign_word_is_none(task: LanguageTask) -> None:
    for gold in [*texts(KANNADA, 50, 3), *texts(ENGLISH, 50, 3), "12", "ನೀರು (H2O)"]:
        assert not faults_of(task, answered(task, Example.make("?", gold), {"answer": gold}))
    gold = texts(KANNADA, 1)[0]
    assert not faults_of(task, answered(task, Example.make("?", gold), {"answer": f"{gold} (water)."}))


def test_a_cut_answer_is_truncated(task: LanguageTask) -> None:
    draw, golds = random.Random(5), texts(KANNADA, 100, 5)
    cut = [gold[: draw.randrange(len(gold) // 2, len(gold) - 3)] for gold in golds]
    rows = [answered(task, Example.make("?", g), {"answer": c}) for g, c in zip(golds, cut, strict=True)]
    assert sum("truncated" in {fault.kind for fault in faults_of(task, row)} for row in rows) >= 95


def test_tokens_a_word_come_from_the_predictions(task: LanguageTask) -> None:
    rows = [
        answered(task, Example.make("?", gold), {"answer": gold, "tokens": 181, "stopped": True})
        for gold in texts(KANNADA, 4)  # 18 words each
    ]
    _, table = study_of(task, rows)
    assert table.rows[0][:3] == ("Kannada", 4, 10.0)
    assert len(study_of(task, [row._replace(line={"answer": "ನೀರು"}) for row in rows])) == 1


def systems(task: LanguageTask, nll: dict[str, list[float]], sources: list[str]) -> Systems:
    golds = [texts(KANNADA if source == "kannada" else ENGLISH, 1, i)[0] for i, source in enumerate(sources)]
    rows, one = scored(task, golds, golds, sources)
    made = Systems(task, rows, dict.fromkeys(("tuned", "base"), one))
    lines = [
        {"id": row.id, "bytes": 100, "tokens": 50, "nll": {name: nll[name][i] for name in nll}}
        for i, row in enumerate(rows)
    ]
    return with_likelihood(made, lines)


def test_the_headline_is_bits_per_byte_where_it_was_measured(task: LanguageTask) -> None:
    content = build(systems(task, {"tuned": [69.3] * 40, "base": [138.6] * 40}, ["kannada"] * 40), draws=50)
    assert content["headline"]["metric"] == "bits_per_byte" and content["headline"]["better"] == "lower"
    assert content["headline"]["from"] == "likelihood"
    assert content["headline"]["tuned"] == pytest.approx(69.3 / 100 / np.log(2))
    assert build(systems(task, {}, ["kannada"] * 4), draws=50)["headline"]["metric"] == "chrf++"


@pytest.mark.parametrize("english, forgotten", [(200.0, True), (138.0, False), (60.0, False)])
def test_what_was_forgotten_is_said(task: LanguageTask, english: float, forgotten: bool) -> None:
    draw = np.random.default_rng(0)
    sources = ["kannada"] * 40 + ["english"] * 40
    base = draw.normal(138, 3, 80)
    tuned = np.where(np.arange(80) < 40, base - 60, base + (english - 138)) + draw.normal(0, 3, 80)
    nll = {"tuned": tuned.tolist(), "base": base.tolist()}
    content = build(systems(task, nll, sources), draws=200) | {"answers_stop": {}}
    told = [one for one in sentences(content) if "forgotten" in one]
    assert bool(told) == forgotten
    if forgotten:
        assert "40 rows of english" in told[0] and "bits_per_byte" in told[0]


def test_rows_of_several_sources_know_theirs(tmp_path: Path) -> None:
    for name, known in (("train", KANNADA), ("kannada", KANNADA), ("english", ENGLISH)):
        lines: list[dict[str, Any]] = [
            {"instruction": f"Write {i}.", "output": text}
            for i, text in enumerate(texts(known, 5, len(name)))
        ]
        if name == "english":
            lines[0]["slices"] = {"source": "own"}
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    test = [{"path": str(tmp_path / f"{name}.jsonl")} for name in ("kannada", "english")]
    data = {"train": str(tmp_path / "train.jsonl"), "test": test}
    recipe = Recipe.model_validate({"name": "one", "model": {"base": "starter"}, "data": data})
    made = prepare(recipe, resolve(recipe.model), tmp_path / ".rows")
    found = [dict(example.slices) for example in made.splits["test"].examples()]
    assert found == [{"source": "kannada"}] * 5 + [{"source": "own"}] + [{"source": "english"}] * 4
    assert all(not example.slices for example in made.splits["train"].examples())


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text("{}\n")
    test = [{"path": str(tmp_path / folder / "test.jsonl")} for folder in ("a", "b")]
    data = {"train": "starter", "test": [*test, {"path": "starter"}]}
    recipe = Recipe.model_validate({"name": "one", "model": {"base": "starter"}, "data": data})
    parts = [source.part for source in resolve_sources(recipe.data)]
    assert parts == ["", str(tmp_path / "a/test"), str(tmp_path / "b/test"), "starter"]


@pytest.mark.realdata
def test_real_kannada(realdata: Path) -> None:
    lines = (realdata / "kannada" / "udhr_kan_eng.jsonl").read_text().split("\n")
    rows = [json.loads(line) for line in lines if line]
    kannada, english = ([row[key] for row in rows] for key in ("kn", "en"))
    task = make_task("language", None, kannada)
    found = values(task, kannada, kannada)
    assert found["rougeL"] == found["right_script"] == 1 and found["chrf++"] == pytest.approx(100)
    rows_of = [(g, a) for g, a in zip(kannada, english, strict=True)]
    for gold, other in rows_of:
        kinds = {f.kind for f in faults_of(task, answered(task, Example.make("?", gold), {"answer": other}))}
        assert "wrong_script" in kinds
        assert not faults_of(task, answered(task, Example.make("?", gold), {"answer": gold}))
