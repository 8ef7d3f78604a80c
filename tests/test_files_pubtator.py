"""PubTator files: documents with mentions and relations, whose offsets hold or the document is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.read.files import read_rows

GOOD = """12|t|Zoral and the rash.
12|a|Zoral with pindol gave rash, then fever.
12\t0\t5\tZoral\tChemical\tD01
12\t14\t18\trash\tDisease\tMESH:D02
12\t20\t37\tZoral with pindol\tChemical\tD01|D03
12\t31\t37\tpindol\tChemical\t-1
12\t54\t59\tfever\tDisease\tD04
12\tCID\tD01\tD02
"""


def read(tmp_path: Path, text: str, name: str = "some.PubTator.txt") -> list[Any]:
    (tmp_path / name).write_text(text)
    return list(read_rows(tmp_path / name))


def test_a_document(tmp_path: Path) -> None:
    ((place, row), (second, _)) = read(tmp_path, GOOD + "\n\n" + GOOD)
    assert (place, second) == ("some.PubTator.txt:1", "some.PubTator.txt:11")
    assert (row["pmid"], row["title"]) == ("12", "Zoral and the rash.")
    whole = f"{row['title']} {row['abstract']}"
    assert all(whole[one["start"] : one["end"]] == one["text"] for one in row["mentions"])
    assert [one["ids"] for one in row["mentions"]] == [["D01"], ["D02"], ["D01", "D03"], [], ["D04"]]
    assert row["relations"] == [{"type": "CID", "arguments": ["D01", "D02"]}]
    assert read(tmp_path, GOOD, "x.pubtator")[0][1] == row == read(tmp_path, "\ufeff" + GOOD, "x.txt")[0][1]


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("12\t14\t18\trash", "12\t13\t17\trash", "line 4: 'rash' is not at 13 to 17; there is ' ras'"),
        ("12\t0\t5\tZoral", "12\t0\t5\tzoral", "line 3: 'zoral' is not at 0 to 5; there is 'Zoral'"),
        ("12\tCID\tD01\tD02", "12\tCID\tD01", "line 8 is neither a mention"),
        ("12\t54", "13\t54", "line 7 is of document '13', not '12'"),
        ("12|a|", "13|a|", "line 2 is of document 13, not 12"),
        ("12|a|", "12|t|", "line 2: a second title"),
    ],
)
def test_a_wrong_line_is_a_bad_row(tmp_path: Path, old: str, new: str, said: str) -> None:
    ((_, wrong), (_, sound)) = read(tmp_path, GOOD.replace(old, new) + "\n" + GOOD)
    assert isinstance(wrong, str) and wrong.startswith(said)
    assert isinstance(sound, dict)


@pytest.mark.realdata
def test_the_corpus(realdata: Path) -> None:
    """Composite mentions, mentions without an id and relations, as others counted them."""
    for name, mentions, composite, without, relations in (
        ("CDR_TrainingSet", 9385, 98, 76, 1038),
        ("CDR_DevelopmentSet", 9591, 99, 59, 1012),  # the hundredth composite holds "-1" beside one id
    ):
        rows = [row for _, row in read_rows(realdata / "bc5cdr" / f"{name}.PubTator.txt")]
        assert len(rows) == 500 and all(isinstance(row, dict) for row in rows)
        found = [one["ids"] for row in rows if isinstance(row, dict) for one in row["mentions"]]
        assert (len(found), sum(len(ids) > 1 for ids in found), found.count([])) == (
            mentions,
            composite,
            without,
        )
        assert sum(len(row["relations"]) for row in rows if isinstance(row, dict)) == relations
    for name in ("gold", "test.CID", "test.DNER"):
        rows = [
            row
            for _, row in read_rows(realdata / "bc5cdr_official_eval_sample" / f"CDR_sample.{name}.PubTator")
        ]
        assert len(rows) == 50 and all(isinstance(row, dict) for row in rows)
