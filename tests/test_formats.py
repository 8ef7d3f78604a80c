"""Rows to Examples: the three formats, and every bad row listed by file and line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tunesmith.data.formats.examples import Manner, read_file
from tunesmith.errors import AccessError, RowError

ROW = {"instruction": "Extract.", "input": "Stage IV.", "output": {"stage": "IV", "gene": None}}


def write(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def refused(path: Path, manner: Manner | None = None) -> str:
    with pytest.raises((RowError, AccessError)) as caught:
        read_file(path, manner or Manner())
    return str(caught.value)


def test_instruction_rows(tmp_path: Path) -> None:
    one = read_file(write(tmp_path, ROW), Manner())[0]
    assert [(m.role, m.content, m.learned) for m in one.messages] == [
        ("user", "Extract.\n\nStage IV.", False),
        ("assistant", '{"stage": "IV", "gene": null}', True),
    ]
    assert (one.id, one.source) == ("rows.jsonl:1", "rows.jsonl:1")


def test_instruction_as_system_prompt(tmp_path: Path) -> None:
    one = read_file(write(tmp_path, ROW), Manner(system="Be brief.", instruction_role="system"))[0]
    assert [(m.role, m.content) for m in one.prompt] == [
        ("system", "Be brief.\n\nExtract."),
        ("user", "Stage IV."),
    ]


def test_prompt_completion_and_messages(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    (one,) = read_file(write(tmp_path, {"prompt": "p", "completion": "c", "doc_id": "d"}), Manner(system="S"))
    assert [m.role for m in one.messages] == ["system", "user", "assistant"] and one.document == "d"
    (one,) = read_file(write(tmp_path, {"messages": chat}), Manner(system="S"))
    assert [m.learned for m in one.messages] == [False, False, True, False, True]


def test_one_file_has_one_format(tmp_path: Path) -> None:
    mixed = write(tmp_path, {"prompt": "p", "completion": "c"}, ROW)
    assert "rows.jsonl:2: there is no column 'prompt'" in refused(mixed)
    both = write(tmp_path, {"prompt": "p", "completion": "c", **ROW})
    assert "it fits prompt_completion and instruction: say which in data.format" in refused(both)
    assert "one JSON array" in refused(write(tmp_path, [ROW]))


def test_new_rows_are_read_as_training_rows_were(tmp_path: Path) -> None:
    """The mutant is a row that fits two formats: only the one of training may make its prompt."""
    path = write(tmp_path, {"instruction": "Extract.", "prompt": "other", "input": "Stage IV."})
    (one,) = read_file(path, Manner("instruction", labelled=False))
    assert one.messages[0].content == "Extract.\n\nStage IV."
    assert "it fits" in refused(path, Manner(labelled=False))


def test_unlabelled_rows_for_predict(tmp_path: Path) -> None:
    rows = read_file(write(tmp_path, {"instruction": "Do."}, ROW), Manner(labelled=False))
    assert [row.answer for row in rows] == [None, None]


def test_a_file_saved_in_another_way_is_told_with_its_fix(tmp_path: Path) -> None:
    sound = "".join(
        json.dumps({"prompt": f"é {i}", "completion": "b"}, ensure_ascii=False) + "\n" for i in "12"
    )
    path = tmp_path / "rows.jsonl"
    told = {
        sound.encode("utf-16"): ("is UTF-16, not UTF-8", "save the file as UTF-8: iconv -f UTF-16"),
        b"\xfe\xff" + sound.encode("utf-16-be"): (
            "is UTF-16",
            "save the file as UTF-8: iconv",
        ),
        sound.encode("latin-1"): ("2 of 2 rows can't be used", "save the file as UTF-8"),
        sound.replace("\n", "\r").encode(): ("parted by a bare carriage return", "save the file with \\n"),
        b'{"prompt": "caf\xe9"}\n{broken\n': ("2 of 2 rows", "mend or remove these rows"),
    }
    for content, (what, fix) in told.items():
        path.write_bytes(content)
        with pytest.raises(RowError) as caught:
            read_file(path, Manner())
        assert what in caught.value.what and str(caught.value.fix).startswith(fix)
    path = tmp_path / "rows.csv"
    for content, fix in {
        b"prompt,r\xe9ponse\na,b\n": "save the file as UTF-8",
        b"prompt,completion\ra,b\r": "save the file with",
        b'prompt,"completion\n': "mend the first line",
    }.items():
        path.write_bytes(content)
        with pytest.raises(RowError, match="column names") as caught:
            read_file(path, Manner())
        assert str(caught.value.fix).startswith(fix)


def test_every_bad_row_is_listed(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        ROW,
        '{"instruction": ',
        ["list"],
        {"instruction": "x", "ouput": "y"},
        ROW | {"output": 5},
        ROW | {"instruction": " "},
    )
    with path.open("ab") as file:
        file.write(b'{"instruction": "caf\xe9", "output": "x"}\n')
    said = refused(path, Manner(format="instruction"))
    assert "6 of 7 rows can't be used" in said
    assert "rows.jsonl:2: broken JSON at character 16" in said
    assert "rows.jsonl:3: a JSON object is needed, not a list" in said
    assert "rows.jsonl:4: there is no column 'output'; is 'ouput' meant?" in said
    assert "rows.jsonl:5: output has to be text or a JSON object, not a number" in said
    assert "rows.jsonl:6: instruction is empty" in said
    assert "rows.jsonl:7: not UTF-8" in said


def test_a_format_that_is_nobodys(tmp_path: Path) -> None:
    assert "no known format has the columns question, reply" in refused(
        write(tmp_path, {"question": "a", "reply": "b"})
    )


def test_bad_turns(tmp_path: Path) -> None:
    user = {"role": "user", "content": "a"}
    assert "the last turn is not the assistant's" in refused(write(tmp_path, {"messages": [user]}))
    assert "turn 1 has the role 'human'" in refused(
        write(tmp_path, {"messages": [{"role": "human", "content": "a"}]})
    )


def test_the_same_id_twice_is_renamed_as_prepare_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, *(ROW | {"id": identity} for identity in ("x", "y", "x", 7, "7", "x")))
    assert [row.id for row in read_file(path, Manner())] == ["x", "y", "x~2", "7", "7~2", "x~3"]
    assert "3 rows have the id of another row" in capsys.readouterr().err


def test_null_names_no_row_and_no_document(tmp_path: Path) -> None:
    nameless = ROW | {"id": None, "document": None}
    rows = read_file(write(tmp_path, nameless, nameless, nameless | {"doc_id": 7}), Manner())
    assert [row.id for row in rows] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
    assert [row.document for row in rows] == ["rows.jsonl:1", "rows.jsonl:2", "7"]


def test_nan_names_no_row_and_no_document(tmp_path: Path) -> None:
    nan = float("nan")
    row = ROW | {"id": nan, "document": nan, "kind": nan}
    manner = Manner(stratify="kind")
    rows = read_file(write(tmp_path, row, row, row | {"doc_id": 7}), manner)
    assert [one.id for one in rows] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
    assert [one.document for one in rows] == ["rows.jsonl:1", "rows.jsonl:2", "7"]
    assert rows[0].slices == {"kind": "(none)"}
    grouped = read_file(write(tmp_path, row, row), Manner(group="kind"))
    assert [one.document for one in grouped] == ["rows.jsonl:1", "rows.jsonl:2"]


@pytest.mark.parametrize(
    "odd",
    [
        {"id": "\ud800"},
        {"doc_id": "\ud800"},
        {"slices": {"other": "\ud800"}},
        {"slices": {"\ud800": "kind"}},
        {"group": "\ud800"},
        {"kind": "\ud800"},
    ],
)
def test_names_that_no_file_takes_are_bad_rows(tmp_path: Path, odd: dict[str, object]) -> None:
    good = ROW | {"group": "g", "kind": "k"}
    manner = Manner(group="group" if "group" in odd else None, stratify="kind")
    said = refused(write(tmp_path, good, good | odd), manner)
    assert "1 of 2 rows" in said and "rows.jsonl:2: a text holds half of a surrogate pair" in said
    said = refused(write(tmp_path, ROW, {"reply\ud800": "y"}))
    assert "there are reply\\ud800" in said and said.encode()


def test_answers_that_are_no_json_are_bad_rows(tmp_path: Path) -> None:
    import datetime
    from decimal import Decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    nan = write(tmp_path, *(ROW | {"output": {"dose": dose}} for dose in (1.5, float("nan"), float("inf"))))
    said = refused(nan)
    assert "2 of 3 rows can't be used" in said and "output can't be written as JSON" in said
    odd = [datetime.date(2020, 1, 1), Decimal("1.5"), b"ab", float("nan")]
    for value in odd:
        table = pa.table({"prompt": ["a", "b"], "completion": [{"x": value}, None]})
        pq.write_table(table, tmp_path / "rows.parquet")
        said = refused(tmp_path / "rows.parquet")
        assert "1 of 2 rows" in said and "rows.parquet:1: completion can't be written as JSON" in said


def test_json_that_python_reads_half(tmp_path: Path) -> None:
    huge, deep = '{"instruction": "x", "output": {"n": %s}}' % ("9" * 5000), "[" * 100_000
    said = refused(write(tmp_path, ROW, huge, deep, '{"instruction": "a\\ud83d", "output": "b"}'))
    assert "3 of 4 rows can't be used" in said
    assert "rows.jsonl:2: JSON that can't be read: Exceeds the limit (4300 digits)" in said
    assert "rows.jsonl:3: JSON that can't be read: maximum recursion depth" in said
    assert "rows.jsonl:4: a text holds half of a surrogate pair" in said


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "holds no rows" in refused(write(tmp_path))
    write(tmp_path, ROW)
    assert "did you mean" in refused(tmp_path / "row.jsonl")
    assert "is a folder" in refused(tmp_path)
    if os.geteuid():  # root reads everything
        path = write(tmp_path, ROW)
        path.chmod(0)
        assert "may not be read" in refused(path)
