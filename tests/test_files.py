"""Files of rows: every kind gives back what was written, whatever characters it holds, and says where it is broken."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.read.batch import LinesBatch
from tunesmith.data.read.files import KINDS, read_batches, read_rows
from tunesmith.data.read.json_array import PIECE
from tunesmith.errors import AccessError, RowError

Rows = list[dict[str, str]]
# what `str.splitlines` takes for the end of a line, and what a careless reader trips over
TRAPS = [
    "\x85",
    "\u2028",
    "\u2029",
    "\x0c",
    "\x0b",
    "\x1c",
    "\r",
    "\r\n",
    "\n",
    "\t",
    '"',
    ",",
    "\\",
    "\ufeff",
    "ಕ",
]
TEXTS = st.lists(
    st.one_of(st.sampled_from(TRAPS), st.text(st.characters(exclude_categories=["Cs"]), max_size=4)),
    max_size=6,
).map("".join)
ROWS = st.lists(st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS}), min_size=1, max_size=8)


def write_jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_json(rows: Rows) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def write_data(rows: Rows) -> bytes:
    return json.dumps({"version": [1, {"data": 2}], "data": rows, "more": None}).encode()


def write_csv(rows: Rows, dialect: str = "excel") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["prompt", "completion"], dialect=dialect)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_parquet(rows: Rows) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3)
    content: bytes = sink.getvalue().to_pybytes()
    return content


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    "rows.jsonl": write_jsonl,
    "rows.json": write_json,
    "data.json": write_data,
    "lines.json": write_jsonl,
    "rows.csv": write_csv,
    "rows.tsv": lambda rows: write_csv(rows, "excel-tab"),
    "rows.parquet": write_parquet,
}


def refused(path: Path) -> str:
    with pytest.raises((RowError, AccessError)) as caught:
        list(read_rows(path))
    return str(caught.value)


def save(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_what_is_written_comes_back(tmp_path: Path, name: str, packed: bool, rows: Rows) -> None:
    if (packed and name.endswith(".parquet")) or (name == "lines.json" and len(rows) < 2):
        return  # a .json file of one object is no list of rows
    content = WRITERS[name](rows)
    path = save(tmp_path, name + ".gz" * packed, gzip.compress(content) if packed else content)
    read = list(read_rows(path))
    assert [row for _, row in read] == rows
    assert len({place for place, _ in read}) == len(rows)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, size=st.integers(1, 4))
def test_batches_travel_and_hold_every_row_once(tmp_path: Path, rows: Rows, size: int) -> None:
    for name, write in WRITERS.items():
        if name == "lines.json" and len(rows) < 2:
            continue
        path = save(tmp_path, name, write(rows))
        batches = [pickle.loads(pickle.dumps(batch)) for batch in read_batches(path, size)]
        assert [row for batch in batches for _, row in batch.rows()] == rows
        assert [place for batch in batches for place, _ in batch.rows()] == [
            place for place, _ in read_rows(path)
        ]
        assert all(len(list(batch.rows())) <= size for batch in batches)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), min_size=1, max_size=12)
)
def test_any_bytes_in_every_line_is_a_row_a_bad_row_or_blank(tmp_path: Path, lines: list[bytes]) -> None:
    sound = [json.dumps({"line": number}).encode() for number in range(len(lines))]
    mixed = [line for pair in zip(sound, lines, strict=True) for line in pair]
    read = list(read_rows(save(tmp_path, "rows.jsonl", b"\n".join(mixed))))
    blank = sum(1 for line in mixed if not line.strip())
    assert len(read) + blank == len(mixed)
    assert [row["line"] for _, row in read if isinstance(row, dict) and "line" in row] == list(
        range(len(lines))
    )
    numbers = [int(place.split(":")[1]) for place, _ in read]
    assert numbers == [number for number, line in enumerate(mixed, 1) if line.strip()]


def test_mutant_a_reader_that_uses_splitlines_loses_rows(tmp_path: Path) -> None:
    class Mutant(LinesBatch):
        def rows(self) -> Any:
            for number, line in enumerate(self.lines.decode().splitlines(), self.first):
                try:
                    yield f"{self.name}:{number}", json.loads(line)
                except ValueError:
                    yield f"{self.name}:{number}", "broken"

    rows = [{"prompt": f"a{trap}b", "completion": "c"} for trap in ("\x85", "\u2028", "\u2029")]
    (batch,) = read_batches(save(tmp_path, "rows.jsonl", write_jsonl(rows)))
    assert isinstance(batch, LinesBatch)
    assert [row for _, row in batch.rows()] == rows
    assert [row for _, row in Mutant(batch.name, batch.first, batch.lines).rows()] != rows


def test_blank_lines_are_no_rows_but_lines(tmp_path: Path) -> None:
    path = save(tmp_path, "rows.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert list(read_rows(path)) == [("rows.jsonl:1", {"a": 1}), ("rows.jsonl:4", {"a": 2})]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "txt", "pubtator", "json.gz"])
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf\n"])
def test_files_without_rows(tmp_path: Path, kind: str, content: bytes) -> None:
    content = gzip.compress(content) if kind.endswith(".gz") else content
    assert "holds no rows" in refused(save(tmp_path, f"rows.{kind}", content))


def test_headers_alone_and_empty_arrays_hold_no_rows(tmp_path: Path) -> None:
    assert "holds no rows" in refused(save(tmp_path, "rows.csv", b"a,b\n"))
    assert "holds no rows" in refused(save(tmp_path, "rows.json", b" [ ] "))
    assert "holds no rows" in refused(save(tmp_path, "rows.json", b'{"data": []}'))
    assert "no sound Parquet file" in refused(save(tmp_path, "rows.parquet", b""))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = save(tmp_path, "rows.jsonl", b"{}\n")
    assert f"did you mean {path}" in refused(tmp_path / "row.jsonl")
    assert f"did you mean {path}" in refused(tmp_path / "rows.jsnl")
    assert "is a folder" in refused(tmp_path)
    said = refused(save(tmp_path, "rows.xlsx", b"PK"))
    assert "of no known kind" in said and all(kind in said for kind in KINDS)
    assert "is no whole gzip file" in refused(save(tmp_path, "rows.jsonl.gz", b"{}"))
    whole = gzip.compress(os.urandom(5000).hex().encode())
    assert "is no whole gzip file" in refused(save(tmp_path, "half.txt.gz", whole[:3000]))
    assert "no sound Parquet file" in refused(
        save(tmp_path, "rows.parquet", write_parquet([{"a": "b"}])[:-20])
    )
    if os.geteuid():  # root reads everything
        path.chmod(0)
        assert "may not be read" in refused(path)


# ---- JSON


def test_a_json_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    rows = [{"prompt": f"{number} " + "x" * 3000, "completion": "y"} for number in range(5000)]
    path = save(tmp_path, "rows.json", json.dumps(rows, indent=1).encode())
    assert path.stat().st_size > 14 * PIECE
    tracemalloc.start()
    number = 0
    for batch in read_batches(path):
        for _, row in batch.rows():
            assert isinstance(row, dict) and row["prompt"].startswith(f"{number} ")
            number += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 5000 and peak < 10 * PIECE


def test_values_cut_by_the_window_are_whole(tmp_path: Path) -> None:
    for shift in range(24):  # every cut inside `{"n": 1234567, "s": "\\u00e9\\n"}`
        row = {"n": 1234567, "s": "é\n😀"}
        head = b"[" + b" " * (PIECE - 12 - shift)
        path = save(tmp_path, "rows.json", head + json.dumps([row] * 3).encode()[1:])
        assert [one for _, one in read_rows(path)] == [row] * 3
    numbers = save(tmp_path, "rows.json", b"[" + b" " * (PIECE - 4) + b"123456, 7]")
    assert [one for _, one in read_rows(numbers)] == ["a JSON object is needed, not a number"] * 2
    big = [{"text": "z" * (3 * PIECE)}, {"text": "é" * PIECE}]
    assert [one for _, one in read_rows(save(tmp_path, "big.json", json.dumps(big).encode()))] == big


def test_broken_json_says_where(tmp_path: Path) -> None:
    said = refused(save(tmp_path, "rows.json", b'[\n {"a": 1},\n {"a": }\n]'))
    assert "rows.json can't be read as JSON: broken JSON: Expecting value (line 3, character 8)" in said
    assert "rows.json:3" in said
    cut = [b'[{"a": 1}', b'[{"a": 1},', b'[{"a": "', b'[{"a": 1}, {"a"']
    for content in cut:
        assert "can't be read as JSON" in refused(save(tmp_path, "rows.json", content))
    assert "a comma before the array's end" in refused(save(tmp_path, "rows.json", b'[{"a": 1},]'))
    assert "an array of objects is expected" in refused(save(tmp_path, "rows.json", b'"text"'))
    said = refused(save(tmp_path, "rows.json", b'{"rows": [{"a": 1}], "version": 1}'))
    assert "one object without an array under 'data' (it has rows, version)" in said
    assert "not UTF-8" in refused(save(tmp_path, "rows.json", b'[{"a": "caf\xe9"}]'))
    assert "can't be read" in refused(save(tmp_path, "rows.json", b"[" * 100_000))
    assert "one JSON array" in refused(save(tmp_path, "rows.jsonl", b'[{"a": 1}]'))


@pytest.mark.parametrize(
    "content",
    [
        b'[{"a": 1}]\n[{"a": 2}]',
        b'[{"a": 1}] {"a": 2}',
        b"[] []",
        b'[{"a": 1}]' + b" " * PIECE + b"x",
        b'{"data": [{"a": 1}]',
        b'{"data": [{"a": 1}], }',
        b'{"data": [{"a": 1}], "n": 1} {}',
        b'{"data": [{"a": 1}], "data": [{"a": 2}]}',
        b'{"data": [] "n"}',
    ],
)
def test_what_follows_a_json_array_is_not_lost(tmp_path: Path, content: bytes) -> None:
    assert "can't be read as JSON" in refused(save(tmp_path, "rows.json", content))
    whole = b'{"n": 1, "data": [{"a": 1}], "m": {"data": [2]}} \n'
    assert list(read_rows(save(tmp_path, "rows.json", whole))) == [("rows.json:1", {"a": 1})]


# ---- Parquet, plain text


def test_parquet_values_are_plain_python(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"turns": [{"role": "user", "content": "a"}], "n": None}, {"turns": [], "n": 2}] * 700
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=1000)
    read = list(read_rows(tmp_path / "rows.parquet"))
    assert [row for _, row in read] == rows
    assert [place for place, _ in read] == [f"rows.parquet:{number}" for number in range(1, 1401)]
    assert sum(len(pickle.dumps(batch)) for batch in read_batches(tmp_path / "rows.parquet", 10)) < 300_000


def test_blank_lines_part_plain_text(tmp_path: Path) -> None:
    content = "\ufeffone\r\ntwo\x0c\u2028 still\r\n\r\n \n\nthree\n".encode() + b"\ncaf\xe9\n"
    assert list(read_rows(save(tmp_path, "book.txt", content))) == [
        ("book.txt:1", {"text": "one\ntwo\x0c\u2028 still"}),
        ("book.txt:6", {"text": "three"}),
        ("book.txt:8", "not UTF-8 (line 8); save the file as UTF-8"),
    ]


def test_a_text_without_blank_lines_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.data.read import plain_text

    monkeypatch.setattr(plain_text, "LONGEST", 100)
    assert "a paragraph of book.txt is over" in refused(save(tmp_path, "book.txt", b"word word\n" * 50))
