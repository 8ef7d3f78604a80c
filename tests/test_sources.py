"""Sources: files, the starter and lists of them by split; which files of a data set belong to which split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.sources import choose_files, resolve_sources, source_files
from tunesmith.errors import AccessError, RecipeError, RowError
from tunesmith.recipe import Data

SHARDS = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]


def data(**keys: Any) -> Data:
    return Data.model_validate(keys)


def test_a_path_the_starter_and_a_list(tmp_path: Path) -> None:
    a, b = tmp_path / "a" / "rows.jsonl", tmp_path / "b" / "rows.jsonl"
    for path in (a, b):
        path.parent.mkdir()
        path.write_text("{}\n")
    mixed = [
        {"path": str(a), "weight": 2},
        {"path": str(b)},
        {"path": "starter", "weight": 0.5},
        {"path": str(a)},
    ]
    found = resolve_sources(data(train=mixed, validation="starter", test=str(b)))
    assert [(one.split, one.name, one.path, one.weight) for one in found] == [
        ("train", "a/rows.jsonl", a, 2.0),
        ("train", "b/rows.jsonl", b, 1.0),
        ("train", "starter", None, 0.5),
        ("train", "a/rows.jsonl(2)", a, 1.0),
        ("validation", "starter(2)", None, 1.0),
        ("test", "b/rows.jsonl(2)", b, 1.0),
    ]
    stamped = source_files(data(train=mixed, test=str(b), schema="s.json"))
    assert sorted(map(str, stamped.values())) == sorted(map(str, (a, b, a, b, "s.json")))
    assert source_files(data(train=str(a))) == {"train": a}


def test_weights_are_for_training_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    for split in ("validation", "test"):
        with pytest.raises(RecipeError) as caught:
            resolve_sources(
                data(train=str(path), **{split: [{"path": str(path)}, {"path": str(path), "weight": 2}]})
            )
        assert f"a weight of 2 on {split} rows" in str(caught.value)
        assert caught.value.where == f"data.{split}.1.weight"


def test_files_of_no_kind_are_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="is a folder"):
        resolve_sources(data(train=str(tmp_path)))
    (tmp_path / "rows.docx").write_text("x")
    with pytest.raises(RowError, match="of no known kind"):
        resolve_sources(data(train=str(tmp_path / "rows.docx")))


@pytest.mark.parametrize(
    "files, split, wanted",
    [
        ([*SHARDS, "data/test-00000-of-00001.parquet", "README.md"], "train", SHARDS),
        ([*SHARDS, "data/test-00000-of-00001.parquet"], "test", ["data/test-00000-of-00001.parquet"]),
        (["train.jsonl", "valid.jsonl", "test.jsonl"], "validation", ["valid.jsonl"]),
        (["train.csv", "dev.csv"], "validation", ["dev.csv"]),
        (
            ["val/part-1.json", "val/part-2.json", "train/part-1.json"],
            "validation",
            ["val/part-1.json", "val/part-2.json"],
        ),
        (["train.jsonl", "train.parquet", "train.csv"], "train", ["train.parquet"]),
        (["alpaca.json", "README.md", "dataset_infos.json", ".cache/train.json"], "train", ["alpaca.json"]),
        (["train-1f3b7a2c9d8e4f50.parquet"], "train", ["train-1f3b7a2c9d8e4f50.parquet"]),
        (["test/train.jsonl", "test/test.jsonl"], "train", ["test/train.jsonl"]),
        (
            ["harmless-base/train.jsonl.gz", "harmless-base/test.jsonl.gz"],
            "train",
            ["harmless-base/train.jsonl.gz"],
        ),
        (["contrain.json", "train_1.json"], "train", ["train_1.json"]),
    ],
)
def test_files_are_told_by_their_names(files: list[str], split: str, wanted: list[str]) -> None:
    assert choose_files(files, split, None, "o/d", "data.train") == wanted


@pytest.mark.parametrize(
    "files, split, pattern, told",
    [
        (
            ["a/train.jsonl", "b/train.jsonl"],
            "train",
            None,
            "may be any of 2 sets of files: a/train.jsonl, b/train.jsonl",
        ),
        (["one.json", "two.json"], "train", None, "may be any of 2 sets"),
        (["train.jsonl"], "test", None, "no file of o/d is named after test: it has train.jsonl"),
        (["alpaca.json"], "validation", None, "is named after validation"),
        (["README.md", "model.bin"], "train", None, "holds no files of rows that can be read here"),
        (SHARDS, "train", "data/valid-*", "no file of o/d fits 'data/valid-*'"),
        (SHARDS[:1], "train", None, "are 2 files, of which 1 are there"),
        (["train_test.json", "other.json"], "train", None, "may be any of 2 sets"),
    ],
)
def test_what_cannot_be_told_is_asked(files: list[str], split: str, pattern: str | None, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        choose_files(files, split, pattern, "o/d", f"data.{split}")
    assert told in str(caught.value)


def test_a_pattern_chooses(tmp_path: Path) -> None:
    files = ["a/train.jsonl", "b/train.jsonl", *SHARDS]
    assert choose_files(files, "train", "b/*", "o/d", "w") == ["b/train.jsonl"]
    assert choose_files(files, "train", "data/train-*.parquet", "o/d", "w") == SHARDS
    assert choose_files(files, "test", "data/train-00000*", "o/d", "w") == SHARDS[:1]
