"""Processors of the user's own: what they may return, and what is said of one that goes wrong."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_processors import ABSTRACT, HEADED, made

from tunesmith.data.formats.examples import BadRow, Manner, format_of, read_file, row_examples
from tunesmith.errors import RecipeError, RowError
from tunesmith.example import Example, Message

OWN = """
import json
from tunesmith.example import Example, Message
def good(row): return Example.make(row["q"], row["a"], slices={"kind": "k"}, document="d")
def two(row): return [Example.make(row["q"], row["a"]), Example.make("again " + row["q"], row["a"])]
def some(row): return [] if row["q"] == "out" else Example.make(row["q"], row["a"])
def popping(row): return Example.make(row.pop("q"), row.pop("a"))
def none(row): return None
def text(row): return "text"
def mixed(row): return [Example.make("q", "a"), {"q": "a"}]
def unanswered(row): return Example.make(row["q"], None)
def fails(row): return row["missing"]
def deep(row): return inner(row)
def inner(row): return json.loads("{")
def role(row): return Example("", (Message("human", "q"), Message("assistant", "a", True)))
def plain(row): return Example("", (Message("text", row["q"], True),))
number = 5
def numbered(row): return Example.make(row["q"], row["a"], id=5)
def sliced(row): return Example.make(row["q"], row["a"], slices={"n": None})
def torn(row): return Example.make(row["q"], row["a"], document="\\ud800")
def leaves(row): raise SystemExit(5)
def knowing(row): return Example.make(row["q"], row["a"], facts={"kind": "entities", "spans": [[0, 3]]})
def unsaid(row): return Example.make(row["q"], row["a"], facts={"seen": {1, 2}})
def infinite(row): return Example.make(row["q"], row["a"], facts={"share": float("nan")})
def listing(row): return Example.make(row["q"], row["a"], facts=[1])
def torn_slice(row): return Example.make(row["q"], row["a"], slices={"kind": "\\ud800"})
"""
ROW = {"q": "ask", "a": "reply", "side": "left"}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_users_processor(own: str) -> None:
    (one,) = made(ROW, f"{own}:good", stratify="side", group="side", system="S")
    assert (one.id, one.source, one.document) == ("f:1", "f:1", "left")
    assert one.slices == {"kind": "k", "side": "left"} and one.messages[0] == Message("system", "S")
    (one,) = made(ROW, f"{own}:good", stratify="kind", group="document")
    assert (one.document, one.slices) == ("d", {"kind": "k"})
    assert [two.id for two in made(ROW, f"{own}:two")] == ["f:1#1", "f:1#2"]
    assert made(ROW | {"q": "out"}, f"{own}:some") == []
    assert made(ROW, f"{own}:knowing")[0].facts == {"kind": "entities", "spans": [[0, 3]]}
    assert made(ROW, f"{own}:popping", group="q")[0].document == "ask"
    assert made(ROW, f"{own}:plain")[0].is_text
    (renamed,) = made({"x": {"y": "ask"}, "a": "b"}, f"{own}:good", columns={"q": "x.y"})
    assert renamed.messages[0].content == "ask"
    (new,) = made(ROW, f"{own}:good", labelled=False)
    assert new.answer is None and len(new.messages) == 1


@pytest.mark.parametrize(
    "function, told",
    [
        ("none", "returned None; it has to return an Example, a list of them, or an empty list"),
        ("text", "returned a str"),
        ("mixed", "returned a list that holds dict"),
        ("unanswered", "made an Example without an answer"),
        ("fails", "KeyError: 'missing'"),
        ("deep", "JSONDecodeError: Expecting"),
        ("leaves", "SystemExit: 5"),
        ("role", "made a turn with the role 'human'"),
        ("numbered", "gave an id, document, slice or rejected that is no text"),
        ("unsaid", "gave facts that are no JSON object: Object of type set"),
        ("infinite", "gave facts that are no JSON object"),
        ("listing", "gave facts that are no JSON object: it is a list"),
        ("sliced", "gave an id, document, slice or rejected that is no text"),
    ],
)
def test_what_a_processor_does_wrong_is_told(own: str, function: str, told: str) -> None:
    with pytest.raises(BadRow) as caught:
        made(ROW, f"{own}:{function}")
    assert told in str(caught.value) and f"{own}:{function}" in str(caught.value)
    hints = {
        "fails": f"{own}.py:12, in fails",
        "deep": f"{own}.py:14, in inner",
        "leaves": f"{own}.py:21, in leaves",
    }
    assert caught.value.hint == hints.get(function)


@pytest.mark.parametrize("function", ["torn", "torn_slice"])
def test_names_that_no_file_takes(own: str, function: str) -> None:
    with pytest.raises(BadRow, match="half of a surrogate pair"):
        made(ROW, f"{own}:{function}")
    with pytest.raises(BadRow, match="half of a surrogate pair"):
        made(ROW | {"side": "\ud800"}, f"{own}:good", stratify="side")
    nan = float("nan")
    (one,) = made(ROW | {"side": nan}, f"{own}:good", stratify="side", group="side")
    assert (one.document, one.slices["side"]) == ("d", "(none)")
    (one,) = made({"question": "q", "answer": HEADED[0][0], "id": nan, "doc_id": nan}, "diagnosis_treatment")
    assert (one.id, one.document) == ("f:1", "f:1")


def test_a_processor_that_always_fails_ends_the_reading(own: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROW) + "\n" for _ in range(250)))
    with pytest.raises(RowError) as caught:
        read_file(path, Manner(processor=f"{own}:fails"))
    said = str(caught.value)
    assert "the first 100 rows all fail for one reason" in said and "KeyError: 'missing'" in said
    assert f"where: {own}.py:12, in fails" in said


def test_columns_of_a_processor_have_to_be_there() -> None:
    rows = [("f:1", {"q": "ask", "reply": "x"})]
    manner = Manner(processor="diagnosis_treatment", columns={"question": "q", "answer": "reply"})
    assert format_of(rows, manner) == "auto"
    with pytest.raises(RecipeError, match=r"no column 'replay'; is 'reply' meant"):
        format_of(rows, Manner(processor="diagnosis_treatment", columns={"answer": "replay"}))
    with pytest.raises(BadRow, match=r"data\.processor: annotated_abstract"):
        row_examples(ABSTRACT, "f:1", Manner())


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.sampled_from(["keep", "out", "fail", "two", "none"]), max_size=40))
def test_rows_in_are_kept_left_out_or_bad(rows: list[str]) -> None:
    manner = Manner(processor="test_processors_own:scripted")
    counts = Counter[str]()
    sources = []
    for number, what in enumerate(rows):
        try:
            some = row_examples({"what": what}, f"f:{number}", manner)
        except BadRow as error:
            travelled = pickle.loads(pickle.dumps(error))  # back from a worker
            counts["bad" if travelled.args == error.args else "changed"] += 1
            continue
        counts["kept" if some else "out"] += 1
        sources += [one.source for one in some]
    assert counts.total() == len(rows) and counts["out"] == rows.count("out")
    assert counts["bad"] == rows.count("fail") + rows.count("none")
    wanted = [f"f:{i}" for i, what in enumerate(rows) for _ in range({"keep": 1, "two": 2}.get(what, 0))]
    assert sources == wanted


def scripted(row: Any) -> Any:
    made = Example.make("q", "a")
    if row["what"] == "fail":
        raise ValueError("as told")
    return {"keep": made, "out": [], "two": (made, made), "none": None}[row["what"]]


def test_processors_that_are_none(own: str) -> None:
    for name, told in (
        ("diagnosis_treatmnt", "did you mean 'diagnosis_treatment'?"),
        (f"{own}:goood", "did you mean 'good'?"),
        (f"{own}:number", "is no function"),
        ("no_such_module:f", "there is no module"),
    ):
        with pytest.raises(RecipeError) as caught:
            made(ROW, name)
        assert told in str(caught.value) and caught.value.where == "data.processor"


def test_rows_left_out_are_told(own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROW | {"q": q}) + "\n" for q in ("out", "in", "out")))
    manner = Manner(processor=f"{own}:some", labelled=False)
    assert len(read_file(path, manner)) == 1
    assert f"{own}:some left out 2 of 3 rows" in capsys.readouterr().err
    path.write_text(json.dumps(ROW | {"q": "out"}))
    with pytest.raises(RowError, match=r"no rows of rows\.jsonl are left"):
        read_file(path, manner)
