"""Formats beyond the first three: ShareGPT, preference pairs, plain text; columns, groups, slices, what is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.formats.examples import BadRow, Manner, format_of, read_file, row_examples
from tunesmith.data.formats.refusals import ALIKE, SHOWN, Refusals
from tunesmith.errors import RecipeError, RowError
from tunesmith.example import Example

USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def one(row: Any, **manner: Any) -> Example:
    (example,) = row_examples(row, "f:1", Manner(**manner))
    return example


def bad(row: Any, **manner: Any) -> str:
    with pytest.raises(BadRow) as caught:
        row_examples(row, "f:1", Manner(**manner))
    return str(caught.value)


def turns(example: Example) -> list[tuple[str, str, bool]]:
    return [(turn.role, turn.content, turn.learned) for turn in example.messages]


def talk(*said: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in said]}


# ---- ShareGPT


def test_sharegpt_turns() -> None:
    row = talk(("system", "S"), ("human", "q"), ("gpt", "a"), ("user", "r"), ("assistant", "b"))
    assert turns(one(row)) == [
        ("system", "S", False),
        ("user", "q", False),
        ("assistant", "a", True),
        ("user", "r", False),
        ("assistant", "b", True),
    ]
    assert turns(one({"conversations": [USER, REPLY]})) == [("user", "q", False), ("assistant", "a", True)]
    assert turns(one(talk(("human", "q"), ("gpt", "a")) | {"system": "S"}, system="T"))[0][1] == "S"
    assert turns(one(talk(("human", "q"), ("gpt", "a")), system="T"))[0] == ("system", "T", False)


@pytest.mark.parametrize(
    "said, told",
    [
        ([("gpt", "a"), ("human", "q"), ("gpt", "a")], "the first turn, from 'gpt', is an answer to nothing"),
        ([("system", "S"), ("gpt", "a")], "the first turn, from 'gpt', is an answer to nothing"),
        (
            [("human", "q"), ("function_call", "{}"), ("gpt", "a")],
            "turn 2, from 'function_call', is a tool's",
        ),
        ([("human", "q"), ("nurse", "x")], "turn 2, from 'nurse', is nobody's"),
        ([("human", "q"), ("system", "S"), ("gpt", "a")], "turn 2 is the system's; only the first may be"),
        ([("human", "q")], "the last turn is not the assistant's"),
        ([("human", " "), ("gpt", "a")], "turn 1 is empty"),
        ([("human", "q"), ("gpt", ""), ("human", "q"), ("gpt", "a")], "turn 2 is empty"),
    ],
)
def test_sharegpt_rows_that_teach_nothing(said: list[tuple[str, str]], told: str) -> None:
    assert told in bad(talk(*said))
    assert "turn 1 has to be an object" in bad({"conversations": [{"from": "human", "value": 5}]})
    assert "has to be a list" in bad({"conversations": "q"}, format="sharegpt")


# ---- preference


def test_preference_as_text_and_as_turns() -> None:
    system = {"role": "system", "content": "S"}
    wanted = [("user", "q", False), ("assistant", "good", True)]
    good, poor = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "poor"}
    shapes: list[dict[str, Any]] = [
        {"prompt": "q", "chosen": "good", "rejected": "poor"},
        {"prompt": [USER], "chosen": "good", "rejected": "poor"},
        {"prompt": [USER], "chosen": [good], "rejected": [poor]},
        {"prompt": "q", "chosen": [good], "rejected": [poor]},
        {"chosen": [USER, good], "rejected": [USER, poor]},
        {"prompt": "q", "chosen": [USER, good], "rejected": [USER, poor]},
        {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: poor"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "good", "rejected": "poor"},
    ]
    for row in shapes:
        made = one(row)
        assert turns(made) == wanted, row
        assert made.rejected == "poor", row
        unlabelled = one(row, labelled=False, format="preference")
        assert turns(unlabelled) == wanted[:1] and unlabelled.rejected is None, row
    made = one({"chosen": [system, USER, good], "rejected": [system, USER, poor]}, system="T")
    assert turns(made)[0] == ("system", "S", False)


def test_only_the_last_chosen_answer_is_learned() -> None:
    talked = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r: Human: x\n\nAssistant: "
    made = one({"chosen": talked + "good\n\nlines ", "rejected": talked + "poor"})
    assert turns(made) == [
        ("user", "q", False),
        ("assistant", "a", False),
        ("user", "r: Human: x", False),
        ("assistant", "good\n\nlines ", True),
    ]
    assert one({"chosen": talked.rstrip(), "rejected": talked + "x"}).answer == ""  # the check empty_answer's


@pytest.mark.parametrize(
    "chosen, rejected, told",
    [
        (
            "\n\nHuman: q\n\nAssistant: a",
            "\n\nHuman: r\n\nAssistant: b",
            "different prompts (from turn 1 on)",
        ),
        (
            "\n\nHuman: q\n\nAssistant: a",
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: b",
            "different prompts (from turn 2 on)",
        ),
        (
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: r",
            "\n\nHuman: q\n\nAssistant: b",
            "the last turn of chosen",
        ),
        ("good", "poor", "chosen is an answer alone, and there is no column 'prompt'"),
        ("Human:hello\n\nAssistant:ok", "Human:hello\n\nAssistant:no", "chosen begins with no turn"),
        ("Human:q\n\nAssistant: a\n\nHuman: r\n\nAssistant: b", "x", "chosen begins with no turn"),
        ("\n\nHuman: q\n\nAssistant: a", None, "rejected is null"),
        ("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: a", "chosen and rejected are the same"),
        (5, "poor", "chosen has to be text or a list of turns, not a number"),
    ],
)
def test_pairs_that_are_none(chosen: Any, rejected: Any, told: str) -> None:
    assert told in bad({"chosen": chosen, "rejected": rejected})


def test_a_prompt_beside_the_dialogue_has_to_be_its_own() -> None:
    talked = [USER, REPLY, {"role": "user", "content": "r"}]
    poor = REPLY | {"content": "poor"}
    row = {"prompt": "q", "chosen": [*talked, REPLY], "rejected": [*talked, poor]}
    assert [turn.content for turn in one(row).prompt] == ["q", "a", "r"]
    assert "another prompt than the column" in bad(row | {"prompt": "other"})


@pytest.mark.realdata
def test_real_pairs(realdata: Path) -> None:
    """Five of the 1,760 pairs have two prompts, as others found; their text is not shown."""
    with pytest.raises(RowError) as caught:
        read_file(realdata / "hh_rlhf_harmless" / "pairs.jsonl", Manner())
    assert "5 of 1760 rows can't be used" in str(caught.value)
    assert str(caught.value).count("different prompts") == 3  # reasons, each with its rows


# ---- plain text, and which format a row has


def test_plain_text_is_learned_whole() -> None:
    made = one({"text": "All of it.\x85\u2028"}, system="S")
    assert made.is_text and turns(made) == [("text", "All of it.\x85\u2028", True)] and made.answer is None
    assert turns(one({"text": "Go on"}, labelled=False)) == [("text", "Go on", False)]
    assert "text is empty" in bad({"text": " "})


@pytest.mark.parametrize(
    "row, name",
    [
        ({"instruction": "i", "input": "", "output": "o", "text": "all"}, "instruction"),
        ({"prompt": "p", "completion": "c"}, "prompt_completion"),
        ({"messages": [USER, REPLY]}, "messages"),
        (talk(("human", "q"), ("gpt", "a")), "sharegpt"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "preference"),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            "preference",
        ),
        ({"text": "t", "url": "u"}, "text"),
    ],
)
def test_formats_are_told_from_the_columns(row: dict[str, Any], name: str) -> None:
    assert format_of([("f:1", "broken"), ("f:2", row)], Manner()) == name
    assert row_examples(row, "f:2", Manner()) == row_examples(row, "f:2", Manner(format=name))


def test_ambiguous_rows_ask() -> None:
    assert "it fits messages and prompt_completion: say which in data.format" in bad(
        {"messages": [USER, REPLY], "prompt": "p", "completion": "c"}
    )
    assert "it has text and label: say in data.format" in bad({"text": "t", "label": "l"})
    assert "map yours in data.columns" in bad({"question": "q", "reply": "a"})


# ---- columns


def test_columns_are_mapped_by_name_and_by_path() -> None:
    row = {"question": "q", "answer": {"text": ["a", "b"]}, "instruction": "another thing", "a.b": "c"}
    made = one(row, columns={"instruction": "question", "output": "answer.text.1", "input": "a.b"})
    assert turns(made) == [("user", "q\n\nc", False), ("assistant", "b", True)]
    # a mapped column that is not there is not taken from another of the format's name
    assert bad(row, format="instruction", columns={"instruction": "quest", "output": "answer"}) == (
        "there is no column 'quest' (data.columns: instruction)"
    )


def test_a_wrong_mapping_is_told_once() -> None:
    rows = [(f"f:{i}", {"question": "q", "answer": "a"}) for i in range(300)]
    with pytest.raises(RecipeError) as caught:
        format_of(rows, Manner("instruction", columns={"instruction": "qestion", "output": "answer"}))
    assert "no column 'qestion'; is 'question' meant?" in str(caught.value)
    assert caught.value.where == "data.columns.instruction"
    with pytest.raises(RecipeError, match="the format's column comes first"):
        format_of(rows, Manner("instruction", columns={"question": "instruction"}))
    mapped = Manner("auto", columns={"instruction": "question", "output": "answer"})
    assert format_of(rows, mapped) == "instruction"
    new = [("f:1", {"question": "q"})]
    unlabelled = Manner("instruction", columns=mapped.columns, labelled=False)
    assert format_of(new, unlabelled) == "instruction"
    assert turns(row_examples(new[0][1], "f:1", unlabelled)[0]) == [("user", "q", False)]


# ---- what may be cut, documents, slices, ids


def test_context_begins_where_the_input_does() -> None:
    made = one({"instruction": "Extract.", "input": "Stage IV.", "output": "x"}).messages[0]
    assert made.content[made.context :] == "Stage IV."
    alone = one({"instruction": "Extract.", "output": "x"}).messages[0]
    assert alone.content[alone.context :] == ""
    role = one({"instruction": "E", "input": "Stage", "output": "x"}, instruction_role="system").messages[1]
    assert role.content[role.context :] == "Stage"
    assert one({"prompt": "p", "completion": "c"}).messages[0].context == 0


def test_groups_and_slices_come_from_columns() -> None:
    row = {"prompt": "p", "completion": "c", "about": {"pmid": 7}, "site": None, "doc_id": "d"}
    made = one(row, group="about.pmid", stratify="site")
    assert (made.document, made.slices) == ("7", {"site": "(none)"})
    assert one(row).document == "d"
    assert one(row | {"doc_id": "", "id": ""}).document == "f:1"
    assert "no column 'pmid'" in bad(row, group="pmid") and "data.split.group" in bad(row, group="pmid")
    assert "data.split.stratify" in bad(row, stratify="task")
    # a column that is mapped to be read is no name of a document
    made = one(
        {"document": "long text", "summary": "s"}, columns={"instruction": "document", "output": "summary"}
    )
    assert made.document == "f:1"


def test_empty_answers_pass() -> None:
    for empty in ("", " ", None):
        assert not (one({"prompt": "p", "completion": empty}).answer or "").strip()
    assert "there is no column 'completion'" in bad({"prompt": "p"}, format="prompt_completion")
    assert one({"prompt": [USER], "completion": [REPLY]}).answer == "a"


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(
        st.one_of(
            st.fixed_dictionaries({"instruction": st.text(max_size=3), "output": st.text(max_size=3)}),
            st.dictionaries(
                st.sampled_from(["instruction", "input", "output", "id"]), st.none() | st.text(max_size=2)
            ),
            st.just("broken"),
        ),
        max_size=30,
    )
)
def test_rows_in_are_examples_and_bad_rows(rows: list[Any]) -> None:
    placed = [(f"f:{number}", row) for number, row in enumerate(rows, 1)]
    refused, made = Refusals(), []
    for place, row in placed:
        try:
            if isinstance(row, str):
                raise BadRow(row)
            made += row_examples(row, place, Manner("instruction"))
        except BadRow as error:
            refused.add(place, error)
    assert len(made) + refused.count == len(rows)
    order = [int(example.source.split(":")[1]) for example in made]
    assert order == sorted(set(order))
    if refused.count:
        assert f"{refused.count} of {len(rows)} rows" in str(refused.error(len(rows)))


def test_one_reason_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "p"}) + "\n" for _ in range(ALIKE * 3)))
    with pytest.raises(RowError) as caught:
        read_file(path, Manner("prompt_completion"))
    assert (
        f"the first {ALIKE} rows all fail for one reason:\n  rows.jsonl:1 and {ALIKE - 1} more: there is no"
        in str(caught.value)
    )
    refused = Refusals()
    for number in range(SHOWN + 5):
        refused.add(f"f:{number}", f"reason {number}")
    assert "… and 5 more" in str(refused.error(30)) and "25 of 30 rows" in str(refused.error(30))


def test_a_row_takes_few_calls() -> None:
    """5 to 8 µs on two cores. Counted, not timed: a busy machine makes no more calls."""
    row = {"instruction": "Extract.", "input": "Stage IV. " * 100, "output": '{"stage": "IV"}'}
    manner, calls = Manner("instruction"), list[str]()
    row_examples(row, "rows.jsonl:1", manner)
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: calls.append(event) if "call" in event else None)
    try:
        row_examples(row, "rows.jsonl:1", manner)
    finally:
        sys.setprofile(before)
    print(f"row_examples: {len(calls)} calls")
    assert len(calls) < 100
