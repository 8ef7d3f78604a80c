"""`--reject-to`: every row ends in exactly one of two files, as it stood; nothing is overwritten or half-written."""

from __future__ import annotations

import csv
import gzip
import json
import shlex
from datetime import UTC, datetime, time
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.cli import main
from tunesmith.data import reject
from tunesmith.data.read.files import read_rows
from tunesmith.data.reject import UNREADABLE, set_aside
from tunesmith.data.sources import resolve_sources
from tunesmith.errors import AccessError, OutOfRoom, RowError
from tunesmith.recipe import Data
from tunesmith.recipe_file import load_recipe

TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["a\u2028b\x85c\x0cd", "ಕನ್ನಡ", '"],[', "x\r"]
)
LINE = st.one_of(
    st.tuples(TEXT, TEXT).map(lambda pair: json.dumps({"prompt": pair[0], "completion": pair[1]}).encode()),
    st.tuples(TEXT, TEXT).map(
        lambda pair: json.dumps({"prompt": pair[0], "completion": pair[1]}, ensure_ascii=False).encode() + b"\r"
    ),
    st.sampled_from([b"{broken", b"\xff\xfe{}", b"3", b"[1]", b"null", b'"\xe2\x80\xa8"']),
    st.sampled_from([b"", b"  \t", b"\r"]),
)  # fmt: skip
GOOD = [{"prompt": f"ask {i}", "completion": f"say {i}"} for i in range(6)]
NONE: list[tuple[str, str, str]] = []


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def aside(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(LINE, min_size=1, max_size=30),
    ends=st.booleans(),
    bom=st.booleans(),
    chosen=st.sets(st.integers(0, 29)),
    seed=st.randoms(use_true_random=False),
)
def test_any_rows_any_findings_add_up(tmp_path_factory, lines, ends, bom, chosen, seed):
    folder = tmp_path_factory.mktemp("any")
    content = (b"\xef\xbb\xbf" if bom else b"") + b"\n".join(lines) + (b"\n" if ends else b"")
    (folder / "rows.jsonl").write_bytes(content)
    whole = content.split(b"\n")
    rows = {place: (row, whole[int(place.split(":")[1]) - 1]) for place, row in _read(folder / "rows.jsonl")}
    if not rows:
        return
    found = [place for i, place in enumerate(rows) if i in chosen]
    broken = [place for place, (row, _) in rows.items() if isinstance(row, str)]
    findings = [(place, seed.choice(["schema", "empty_answer"]), "why") for place in found for _ in "ab"]
    seed.shuffle(findings)
    data = Data(train=str(folder / "rows.jsonl"))
    bad = set(found) | set(broken)
    out = folder / "bad.jsonl"
    if len(bad) == len(rows):
        with pytest.raises(RowError, match="would be set aside"):
            set_aside(data, findings, out)
        assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]
        return
    made = set_aside(data, findings + [(place, UNREADABLE, rows[place][0]) for place in broken[:1]], out)
    assert (made["rows"], made["rejected"]) == (len(rows), len(bad))
    assert made["kept"] + made["rejected"] == made["rows"]
    if not bad:
        assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]
        return
    kept = (folder / "rows.kept.jsonl").read_bytes().split(b"\n")
    assert kept.pop() == b""
    said = aside(out)
    assert kept == [raw for place, (_, raw) in rows.items() if place not in bad]
    assert [one["source"] for one in said] == [place for place in rows if place in bad]
    # kept and set aside, put together in the order of their places, are the file
    merged, left = [], iter(kept)
    for place, (_, raw) in rows.items():
        merged.append(raw if place in bad else next(left))
    assert merged == [raw for _, raw in rows.values()]
    for one in said:
        row, raw = rows[one["source"]]
        if isinstance(row, str):
            text = raw.removeprefix(b"\xef\xbb\xbf").strip().decode("utf-8", "backslashreplace")
            assert one["row"] == (text or None)
            assert UNREADABLE in one["checks"] and row in one["details"]
        else:
            assert one["row"] == row
    assert all(not isinstance(row, str) for _, row in read_rows(folder / "rows.kept.jsonl"))


def _read(path: Path) -> list[tuple[str, object]]:
    try:
        return list(read_rows(path))
    except RowError:  # no rows at all, or an array
        return []


def test_the_line_that_is_printed_goes_on(tmp_path, capsys):
    train, test = write(tmp_path / "my rows.jsonl", GOOD), write(tmp_path / "test.jsonl", GOOD)
    found = [("my rows.jsonl:2", "schema", "no stage"), ("my rows.jsonl:2", "empty_answer", "empty"),
             ("test.jsonl:6", "exact_leak", "as my rows.jsonl:6")]  # fmt: skip
    data = Data(train=str(train), test=str(test))
    made = set_aside(
        data, [*found, ("my rows.jsonl:4", UNREADABLE, "prompt is empty")], tmp_path / "bad.jsonl"
    )
    said = aside(tmp_path / "bad.jsonl")
    assert said[0] == {"source": "my rows.jsonl:2", "checks": ["schema", "empty_answer"],
                       "details": ["no stage", "empty"], "row": GOOD[1]}  # fmt: skip
    assert said[1]["checks"] == [UNREADABLE] and said[1]["row"] == GOOD[3]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"6 rows = 4 kept + 2 set aside, kept in {tmp_path / 'my rows.kept.jsonl'}")
    assert "6 rows = 5 kept + 1 set aside" in lines[1]
    assert "may have findings of their own" in lines[-1]
    words = shlex.split(" ".join(lines[3:-1]))
    assert words[::2] == ["--set", "--set"] and words[1::2] == [shlex.split(one)[0] for one in made["set"]]
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\nmodel: {base: starter}\ndata: {train: x.jsonl, test: y.jsonl}\n")
    loaded = load_recipe(recipe, words[1::2]).data
    assert [row for _, row in read_rows(Path(str(loaded.train)))] == [GOOD[i] for i in (0, 2, 4, 5)]
    assert [row for _, row in read_rows(Path(str(loaded.test)))] == GOOD[:5]


def test_several_sources_keep_their_weights_and_names(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rows.jsonl", GOOD)
    parts = [{"path": str(tmp_path / "a/rows.jsonl"), "weight": 2.0}, {"path": str(tmp_path / "b/rows.jsonl")},
             {"path": "starter"}]  # fmt: skip
    data = Data.model_validate({"train": parts})
    made = set_aside(data, [("b/rows.jsonl:1", "schema", "")], tmp_path / "bad.jsonl")
    assert not (tmp_path / "rows.kept.jsonl").exists()  # of a, which had nothing to lose
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\nmodel: {base: starter}\ndata: {train: starter}\n")
    loaded = load_recipe(recipe, [shlex.split(made["set"][0])[0]]).data.train
    assert [(one.path, one.weight) for one in loaded] == [
        (parts[0]["path"], 2.0), (str(tmp_path / "rows-2.kept.jsonl"), 1.0), ("starter", 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "parquet", "jsonl.gz", "txt"])
def test_other_kinds_of_files_become_lines_of_the_same_rows(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    rows = [row | {"note": 'a "quoted"\nline, ಕನ್ನಡ'} for row in GOOD]
    if kind in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "txt":
        path.write_text("one\nline more\n\n\ntwo\n\nthree\x85 \u2028\n\nfour\n")
    else:
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    before = list(read_rows(path))
    bad = [before[1][0], before[3][0]]
    made = set_aside(Data(train=str(path)), [(place, "schema", "x") for place in bad], tmp_path / "bad.jsonl")
    assert made["rejected"] == 2
    kept = [row for _, row in read_rows(tmp_path / "rows.kept.jsonl")]
    assert kept == [row for place, row in before if place not in bad]
    assert [one["row"] for one in aside(tmp_path / "bad.jsonl")] == [
        row for place, row in before if place in bad
    ]


def test_bad_rows_of_tables_and_arrays_keep_their_text(tmp_path):
    table = tmp_path / "rows.csv"
    fine = ["4,5"] * 5
    lines = ["prompt,completion", "1,2", '3,"x', *fine, '"he said "no" then","one', 'two, end"', "6", "7,8"]
    table.write_text("\n".join(lines) + "\n")
    made = set_aside(Data(train=str(table)), NONE, tmp_path / "bad.jsonl")
    assert (made["rows"], made["kept"], made["rejected"]) == (10, 7, 3)
    assert [(one["source"], one["row"]) for one in aside(tmp_path / "bad.jsonl")] == [
        ("rows.csv:3", '3,"x'),
        ("rows.csv:9", '"he said "no" then","one\ntwo, end"'),
        ("rows.csv:11", "6"),
    ]
    kept = [row for _, row in read_rows(tmp_path / "rows.kept.jsonl")]
    assert [list(row.values()) for row in kept] == [["1", "2"], *[["4", "5"]] * 5, ["7", "8"]]
    array = tmp_path / "array.json"
    array.write_text(json.dumps([GOOD[0], 3, ["ಕ", None], None, "\ud800", GOOD[1]]))
    set_aside(Data(train=str(array)), NONE, tmp_path / "bad2.jsonl")
    texts = ["3", '["ಕ", null]', "null", '"\\ud800"']
    assert [one["row"] for one in aside(tmp_path / "bad2.jsonl")] == texts


def test_nothing_is_overwritten(tmp_path):
    train = write(tmp_path / "train.jsonl", GOOD)
    found = [("train.jsonl:1", "schema", "x")]
    for there in ("bad.jsonl", "train.kept.jsonl"):
        (tmp_path / there).write_text("mine")
        with pytest.raises(AccessError, match=there) as error:
            set_aside(Data(train=str(train)), found, tmp_path / "bad.jsonl")
        kind = "another name" if there == "bad.jsonl" else "another folder"
        assert kind in (error.value.fix or "") and "rm " not in str(error.value)
        assert (tmp_path / there).read_text() == "mine"
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["train.jsonl", there])
        (tmp_path / there).unlink()
    (tmp_path / "link.jsonl").symlink_to(train)
    for own in (train, tmp_path / "link.jsonl"):
        with pytest.raises(AccessError, match=r"your own rows \(data.train\)") as error:
            set_aside(Data(train=str(train)), found, own)
        assert "rm " not in str(error.value)
    with pytest.raises(AccessError, match="is a folder") as error:
        set_aside(Data(train=str(train)), found, tmp_path)
    assert "rm " not in str(error.value)


def test_what_is_in_the_way_is_told_before_any_work(tmp_path, monkeypatch, capsys):
    train = write(tmp_path / "train.jsonl", GOOD)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: r\nmodel: {{base: starter}}\ndata: {{train: {train}}}\n")
    monkeypatch.setattr("tunesmith.verbs.check.build", lambda *_: pytest.fail("rows were prepared"))
    words = ["check", str(recipe), "--runs-dir", str(tmp_path / "runs"), "--reject-to"]
    assert main([*words, str(train)]) == 2
    assert "your own rows" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "none" / "bad.jsonl")]) == 2
    assert "mkdir -p" in capsys.readouterr().err


def test_a_check_that_set_rows_aside_does_not_say_to_do_so(tmp_path, capsys):
    rows = [{"prompt": f"what is {i} of {i}?", "completion": f"it is {i}"} for i in range(20)]
    train = write(tmp_path / "train.jsonl", [*rows, {"prompt": "and?", "completion": ""}])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: r\nmodel: {{base: starter}}\ndata: {{train: {train}}}\n")
    words = ["check", str(recipe), "--runs-dir", str(tmp_path / "runs")]
    assert main(words) == 3
    assert "or set them aside" in capsys.readouterr().out
    assert main([*words, "--reject-to", str(tmp_path / "bad.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "1 check stops the run" in said and "20 kept + 1 set aside" in said
    assert "set them aside" not in said and "mend the rows" not in said


def test_dates_decimals_and_bytes_are_set_aside_as_text(tmp_path):
    import pyarrow.parquet

    when = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
    odd = {"at": when, "day": when.date(), "clock": time(9, 5), "dose": Decimal("1.50"), "raw": b"\xff a"}
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row | odd for row in GOOD]), path)
    set_aside(Data(train=str(path)), [("rows.parquet:2", "schema", "x")], tmp_path / "bad.jsonl")
    texts = {
        "at": when.isoformat(),
        "day": "2024-05-01",
        "clock": "09:05:00",
        "dose": "1.50",
        "raw": "\\xff a",
    }
    assert [one["row"] for one in aside(tmp_path / "bad.jsonl")] == [GOOD[1] | texts]
    assert next(read_rows(tmp_path / "rows.kept.jsonl"))[1] == GOOD[0] | texts


def test_nothing_is_half_written(tmp_path, monkeypatch):
    train = write(tmp_path / "train.jsonl", GOOD)
    found = [("train.jsonl:5", "schema", "x")]

    def full(self, path, content, write=reject._Whole.write):
        if path.name == "bad.jsonl":
            raise OSError(28, "No space left on device")
        write(self, path, content)

    with monkeypatch.context() as patch:
        patch.setattr(reject._Whole, "write", full)
        with pytest.raises(OutOfRoom):
            set_aside(Data(train=str(train)), found, tmp_path / "bad.jsonl")
    with pytest.raises(AccessError, match="no folder") as error:
        set_aside(Data(train=str(train)), found, tmp_path / "not" / "bad.jsonl")
    assert "mkdir -p" in (error.value.fix or "")
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_a_lost_row_is_a_bug_that_is_seen(tmp_path, monkeypatch):
    """The mutant: a writer that loses a line of either file."""
    train = write(tmp_path / "train.jsonl", GOOD)
    for loses in ("train.kept.jsonl", "bad.jsonl"):
        lost: list[Path] = []

        def forgets(self, path, content, write=reject._Whole.write, loses=loses, lost=lost):
            if path.name == loses and not lost:
                lost.append(path)
                content = b""
            write(self, path, content)

        with monkeypatch.context() as patch:
            patch.setattr(reject._Whole, "write", forgets)
            with pytest.raises(AssertionError, match="rejected"):
                set_aside(Data(train=str(train)), [("train.jsonl:5", "schema", "x")], tmp_path / "bad.jsonl")
        assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_a_finding_without_a_row_is_seen(tmp_path):
    train = write(tmp_path / "train.jsonl", GOOD)
    with pytest.raises(AssertionError, match=r"train.jsonl:77"):
        set_aside(Data(train=str(train)), [("train.jsonl:77", "schema", "x")], tmp_path / "bad.jsonl")
    with pytest.raises(RowError, match="starter") as error:
        set_aside(Data(train="starter"), [("starter:r-1", "grounding", "x")], tmp_path / "bad.jsonl")
    assert "grounding: warn" in (error.value.fix or "")
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_nothing_to_set_aside_writes_nothing(tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", GOOD)
    made = set_aside(Data(train=str(train)), NONE, tmp_path / "bad.jsonl")
    assert (made["rows"], made["kept"], made["rejected"], made["set"]) == (6, 6, 0, [])
    assert "no row has to be set aside" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_one_file_named_twice_is_written_once(tmp_path):
    train = write(tmp_path / "train.jsonl", GOOD)
    data = Data.model_validate({"train": [{"path": str(train)}, {"path": str(train), "weight": 3.0}]})
    place = f"{resolve_sources(data)[1].name}:3"
    made = set_aside(data, [(place, "schema", "x")], tmp_path / "bad.jsonl")
    assert made["rows"] == 6 and made["rejected"] == 1
    assert made["set"][0].count("train.kept.jsonl") == 2
