"""Rows over the limit: what trim_context may cut and what it never does; how short a piece of plain text may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tunesmith.base import resolve
from tunesmith.contract import Contract
from tunesmith.data.fit import LEAST_SHARE, LEAST_TOKENS, pieces, trimmed
from tunesmith.data.formats.examples import Manner, row_examples
from tunesmith.example import Example, Message
from tunesmith.recipe import Data, Model

ORDER = "List every drug in the note, one per line."
NOTE = " ".join(f"word{i} of note {i}." for i in range(40))


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract.make(resolve(Model(base="starter")).tokenizer_folder)


def one(row: dict[str, Any], **manner: Any) -> Example:
    return row_examples(row, "t:1", Manner(**manner))[0]


def cut(contract: Contract, example: Example, by: int) -> Example | None:
    encoded = contract.encode(example)
    made = trimmed(contract, example, encoded, len(encoded.ids) - by)
    if made is None:
        return None
    assert made[1] == contract.encode(made[0]) and len(made[1].ids) <= len(encoded.ids) - by
    return made[0]


WITH_CONTEXT = {
    "instruction": ({"instruction": ORDER, "input": NOTE, "output": "x"}, {}, ""),
    "instruction_role": (
        {"instruction": ORDER, "input": NOTE, "output": "x"}, {"instruction_role": "system"}, ""
    ),
    "sections": (
        {"instruction": ORDER, "question": NOTE, "answer": "Diagnosis: a cold.\nTreatment: rest."},
        {"processor": "diagnosis_treatment"}, "",
    ),
    "abstract": (
        {"pmid": "1", "title": "Zoral.", "abstract": NOTE, "relations": [],
         "mentions": [{"start": 0, "end": 5, "text": "Zoral", "type": "Chemical", "ids": []}]},
        {"processor": "annotated_abstract"}, "\n\nList of extracted chemicals:",
    ),
    "cue": (
        {"prompt": f"{ORDER}\n\n{NOTE}\n\nDrugs in one line:", "completion": "x", "task": "chemical_extraction"},
        {"processor": "annotated_abstract"}, "\n\nDrugs in one line:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_CONTEXT)
def test_only_the_context_is_cut(contract: Contract, name: str) -> None:
    row, manner, cue = WITH_CONTEXT[name]
    whole = one(row, **manner)
    turn = whole.prompt[-1]
    before, behind = turn.content[: turn.context], turn.content[turn.context_end :]
    assert behind == cue and NOTE in turn.content[turn.context : turn.context_end]
    count = len(contract.tokens_of(turn.content[turn.context : turn.context_end]))
    seen = 0
    for by in range(1, count + 5, 7):
        made = cut(contract, whole, by)
        if made is None:
            assert count - by < max(LEAST_SHARE * count, LEAST_TOKENS) + 12
            continue
        seen += 1
        left = made.prompt[-1].content
        assert left.startswith(before) and left.endswith("note 39." + cue) and len(left) < len(turn.content)
        assert made.answer == whole.answer and made.prompt[:-1] == whole.prompt[:-1]
        assert left[made.prompt[-1].context_end :] == cue
        kept = len(contract.tokens_of(left[len(before) : len(left) - len(cue)]))
        assert (
            kept >= max(LEAST_SHARE * count, LEAST_TOKENS) - 12
        )  # a word less, so as not to begin within one
    assert seen > 5 and cut(contract, whole, count - LEAST_TOKENS // 2) is None


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": f"{ORDER}\n\n{NOTE}\n\nDrugs:", "completion": "x"},
        {"messages": [{"role": "user", "content": f"{ORDER} {NOTE}"}, {"role": "assistant", "content": "x"}]},
        {"conversations": [{"from": "human", "value": NOTE}, {"from": "gpt", "value": "x"}]},
        {"prompt": NOTE, "chosen": "x", "rejected": "y"},
        {"instruction": NOTE, "output": "x"},
    ],
)
def test_where_the_instruction_ends_is_not_guessed(contract: Contract, row: dict[str, Any]) -> None:
    assert cut(contract, one(row), 1) is None


def test_a_prompt_without_an_order_of_its_own_is_all_compared_and_not_cut(contract: Contract) -> None:
    row = {"prompt": f"{NOTE}\n\nList of extracted chemicals:", "completion": "- x"}
    whole = one(row, processor="annotated_abstract")
    assert whole.messages[0].context == 0 and cut(contract, whole, 1) is None


def test_a_cut_row_that_cannot_be_encoded_is_overlong(contract: Contract) -> None:
    """Cut at a certain word, the context begins with the second half of a control token."""
    control = contract.terminator
    words = [f"word{i}" for i in range(60)]
    words[20] = control[2:]
    whole = Example(
        "1", (Message.asking(control[:2], " ".join(words)), Message("assistant", "x", learned=True))
    )
    made = [cut(contract, whole, by) for by in range(1, 150)]
    assert None in made[: made.index(next(one for one in reversed(made) if one))]


def test_context_bounds_are_stored() -> None:
    whole = one(*({"instruction": ORDER, "input": NOTE, "output": "x"},))
    assert Example.from_json(whole.to_json()) == whole
    assert "context_end" not in one({"prompt": "p", "completion": "c"}).to_json()["messages"][0]


def test_the_least_length_takes_a_token_of_text(contract: Contract, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        Data(train="x", max_length=1)
    text = one({"text": "Three words here"})
    made = list(pieces(contract, text, contract.encode(text), 2))
    assert {len(encoded.ids) for _, encoded in made} == {2} and len(made) > 3
