"""Other prompts for the base: what stands in them, what never does, and what is told when they don't fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_run import recipe, reports, write_byte_tokenizer

from tunesmith.contract import Contract
from tunesmith.errors import RecipeError
from tunesmith.evaluate import prompts
from tunesmith.evaluate.prompts import Turns, asked_by, drawn_order, instructions, require
from tunesmith.example import Example, Message
from tunesmith.recipe import Data, Recipe
from tunesmith.tasks import make_task
from tunesmith.verbs.check import check
from tunesmith.verbs.run import run as run_verb

TRAIN = reports(30, seed=1, name="train")
TEST = [dataclasses.replace(row, document=f"test {row.document}") for row in reports(6, seed=2, name="test")]
TASK = make_task("auto", None, [row.answer or "" for row in TRAIN])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_byte_tokenizer(tmp_path_factory.mktemp("base"))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 1024, "model_type": "llama"}))
    save_file({"a": np.zeros(2)}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def contract(base: Path) -> Contract:
    return Contract.make(base, template="llama3")


def given(base: Path, *names: str, **more: Any) -> Recipe:
    return recipe(model={"base": str(base)}, evaluate={"prompts": list(names)} | more)


def asked(
    base: Path, contract: Contract, name: str, rows: Sequence[Example] = TEST,
    train: Sequence[Example] = TRAIN, max_tokens: int = 20, **more: Any,
) -> list[Turns]:  # fmt: skip
    (found,) = asked_by(given(base, name, **more), max_tokens, contract, TASK, train, rows).values()
    assert len(found) == len(rows)
    return found


def shots(turns: Turns) -> list[tuple[str, str]]:
    """(question, answer) of each."""
    told = [turn for turn in turns if turn.role != "system"]
    return [(a.content, b.content) for a, b in zip(told[:-1:2], told[1::2], strict=True)]


def rows_of(turns: Turns) -> list[Example]:
    by_question = {row.asked: row for row in TRAIN}
    return [by_question[question] for question, _ in shots(turns)]


def test_shots_are_training_rows_with_their_answers_drawn_once(base: Path, contract: Contract) -> None:
    found = asked(base, contract, "3-shot")
    for row, turns in zip(TEST, found, strict=True):
        assert turns[-1] == row.prompt[-1]
        assert [(one.asked, one.answer) for one in rows_of(turns)] == shots(turns)
        assert not any(turn.learned for turn in turns)
    assert len({tuple(shots(turns)) for turns in found}) == 1 and len(set(shots(found[0]))) == 3
    again = asked(base, contract, "3-shot")
    assert again == found
    other = asked(base, contract, "3-shot", decoding={"seed": 7})
    assert shots(other[0]) != shots(found[0])


def test_the_draw_knows_nothing_of_the_order_of_rows() -> None:
    def ids(rows: Sequence[Example]) -> list[str]:
        return [rows[i].id for i in drawn_order(rows, 0)]

    assert ids(TRAIN) == ids(TRAIN[::-1]) != [row.id for row in TRAIN]
    assert [i for i in ids(TRAIN) if i != "train-3"] == ids([row for row in TRAIN if row.id != "train-3"])


@pytest.mark.parametrize("name", ["3-shot", "3-nearest"])
def test_neither_the_rows_own_document_nor_its_question_is_shown(
    base: Path, contract: Contract, name: str
) -> None:
    scored = [*TRAIN, *[dataclasses.replace(row, id="x", document="another") for row in TRAIN]]
    for row, turns in zip(scored, asked(base, contract, name, scored), strict=True):
        assert all(one.document != row.document and one.asked != row.asked for one in rows_of(turns))


def test_a_mutant_that_shows_them_is_seen(
    base: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "_may_show", lambda shot, example: True)
    for name in ("3-shot", "3-nearest"):
        with pytest.raises(AssertionError):
            test_neither_the_rows_own_document_nor_its_question_is_shown(base, contract, name)


def test_the_nearest_rows_stand_next_to_the_question(base: Path, contract: Contract) -> None:
    texts = ["lung cancer stage four brain", "lung cancer stage four", "lung cancer", "broken arm", "a cough"]
    train = [Example.make(text, "{}", id=f"t{i}") for i, text in enumerate(texts)]
    row = Example.make("lung cancer stage four brain liver", "{}", id="scored")
    (turns,) = asked(base, contract, "3-nearest", [row], train)
    assert [question for question, _ in shots(turns)] == [texts[2], texts[1], texts[0]]


def test_the_rows_own_system_prompt_stays(base: Path, contract: Contract) -> None:
    row = Example.make("what?", "{}", system="Be brief.", id="scored")
    train = [Example.make(f"question {i}", "{}", system="Other.", id=f"t{i}") for i in range(4)]
    (turns,) = asked(base, contract, "2-shot", [row], train)
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert turns[0].content == "Be brief."
    (turns,) = asked(base, contract, "zero-shot", [row])
    assert turns[0].content.startswith("Be brief.\n\nAnswer with one JSON object") and len(turns) == 2


def test_a_file_is_the_system_prompt(base: Path, contract: Contract, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("You read reports.\n")
    row = Example.make("what?", "{}", system="Be brief.", id="scored")
    (turns,) = asked(base, contract, str(tmp_path / "mine.txt"), [row])
    assert turns == (Message("system", "You read reports."), Message("user", "what?"))


def test_they_are_rendered_by_the_contract(base: Path, contract: Contract) -> None:
    (turns, *_) = asked(base, contract, "2-shot")
    text = contract.render(turns, answer_next=True)
    assert text.count("<|eot_id|>") == 5 and text.count("<|begin_of_text|>") == 1
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


# ---- what an answer has to look like


def test_instructions_hold_the_schema() -> None:
    said = instructions(TASK, [])
    schema = json.loads(said[said.index("{") :])
    assert schema == TASK.schema and "null" in said.split("{")[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["yes", "no", "yes"] * 10, ["The answer is one of: no; yes."]),
        ([f"- item {i}\n- other {i}" for i in range(40)], ["begins with '-'", "about 6 words"]),
        (
            [f"Diagnosis: illness {i}\nTreatment: rest for {i} days" for i in range(40)],
            ["Use these headings, each at the beginning of a line: Diagnosis: Treatment:", "about 8 words"],
        ),
        ([f"some {'more ' * (i % 9)}words {i}" for i in range(99)], ["about 7 words"]),
        ([], ["the answer alone"]),
    ],
)
def test_instructions_tell_the_form_of_the_training_answers(answers: list[str], said: list[str]) -> None:
    found = instructions(make_task("text"), answers)
    assert all(part in found for part in said)
    assert ("headings" in found) == ("Diagnosis" in found) and ("list" in found) == ("- item" in str(answers))


# ---- what doesn't fit


@pytest.mark.parametrize("how", ["shot", "nearest"])
def test_shots_that_leave_no_room_are_told_with_the_number_that_does(
    base: Path, contract: Contract, how: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        asked(base, contract, f"20-{how}")
    assert caught.value.where == "evaluate.prompts" and "1024 positions" in caught.value.what
    assert caught.value.fix is not None
    fits = int(caught.value.fix.split("write ")[1].split(f"-{how}")[0])
    assert 1 < fits < 20
    asked(base, contract, f"{fits}-{how}")
    with pytest.raises(RecipeError, match=f"write {fits}-{how}"):
        asked(base, contract, f"{fits + 1}-{how}")
    with pytest.raises(RecipeError, match="not one shot fits"):
        asked(base, contract, f"2-{how}", max_tokens=850)


def test_more_shots_than_rows_are_told(base: Path, contract: Contract) -> None:
    train = [Example.make(f"q{i}", "{}", id=f"t{i}") for i in range(3)]
    with pytest.raises(RecipeError, match="there are 3 labelled training rows") as caught:
        asked(base, contract, "4-shot", train=train)
    assert caught.value.fix == "ask for 3 at most"


@pytest.mark.parametrize(
    ("content", "told"), [(None, "can't be read"), (b" \n", "is empty"), (b"\xff", "is not UTF-8 text")]
)
def test_a_file_that_is_none_is_told_by_check_and_run(
    base: Path, tmp_path: Path, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "mine.txt").write_bytes(content)
    wrong = given(base, str(tmp_path / "mine.txt")).model_copy(
        update={"data": Data(train="starter", test="starter")}
    )
    for call in (
        lambda: require(wrong),
        lambda: check(wrong, tmp_path / "runs"),
        lambda: run_verb(wrong, "", tmp_path / "runs", "evaluate", False),
    ):
        with pytest.raises(RecipeError, match=told) as caught:
            call()
        assert caught.value.where == "evaluate.prompts" and caught.value.exit_code == 2
    assert not (tmp_path / "runs").exists()
