"""`init` on every file of rows that lies in the real data sets, and `check` on what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.cli import main
from tunesmith.recipe_file import load_recipe

pytestmark = pytest.mark.realdata

# file: the exit code of `check`, and what init warns of beforehand; "": of nothing
SOUND = (0, "")
QUICK = {
    "aci_bench/train.csv": (0, "59 of 87 rows are longer than the 4,096 tokens"),
    "aci_bench/valid.csv": (0, "left out"),
    "bc5cdr_official_eval_sample/CDR_sample.gold.PubTator": SOUND,
    "cancer_ie/validation_a.jsonl": SOUND,
    "kannada/udhr_kan_eng.jsonl": SOUND,
    "kannada/old_kannada_santipurana.txt": SOUND,
    "mts_dialog/MTS-Dialog-ValidationSet.csv": SOUND,
    "hh_rlhf_harmless/pairs.jsonl": (2, "5 rows of pairs.jsonl can't be used"),
}
LONG = {
    "bc5cdr/CDR_TrainingSet.PubTator.txt": SOUND,
    "bc5cdr/CDR_DevelopmentSet.PubTator.txt": SOUND,
    "bc5cdr/cdr_instruct_train.jsonl": SOUND,
    "bc5cdr/cdr_instruct_dev.jsonl": SOUND,
    "bc5cdr_official_eval_sample/CDR_sample.test.CID.PubTator": SOUND,
    "bc5cdr_official_eval_sample/CDR_sample.test.DNER.PubTator": SOUND,
    "cancer_ie/train.jsonl": SOUND,
    "medquad/medquad_diagnosis_treatment.jsonl": (0, "longer than the 4,096 tokens"),
    "medquad/medquad_qa.jsonl": SOUND,
    "mts_dialog/MTS-Dialog-TrainingSet.csv": SOUND,
    "mts_dialog/MTS-Dialog-TestSet-1-MEDIQA-Chat-2023.csv": SOUND,
    "mts_dialog/MTS-Dialog-Automatic-Summaries-ValidationSet.csv": SOUND,
}
# no rows to train on: tables of scores, metadata, one token a line, licences
REFUSED = (
    "aci_bench/train_metadata.csv",
    "aci_bench/valid_metadata.csv",
    "bc5cdr/iob_train.tsv",
    "bc5cdr/iob_devel.tsv",
    "bc5cdr_official_eval_sample/expected.json",
    "mts_dialog/MTS-Dialog-Manual-Scores4CorrelationStudy.csv",
)


def init(rows: Path, folder: Path) -> int:
    return main(["init", str(rows), "--out", str(folder / "written.yaml")])


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in LONG)])
def test_check_does_what_init_says(
    name: str, realdata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = {**QUICK, **LONG}[name]
    assert init(realdata / name, tmp_path) == 0
    warned = capsys.readouterr().err.replace("warning: a guess", "")
    assert said in warned if said else "warning" not in warned
    assert main(["check", str(tmp_path / "written.yaml"), "--runs-dir", str(tmp_path / "runs")]) == code


@pytest.mark.parametrize("name", REFUSED)
def test_tables_that_are_no_rows_to_train_on(
    name: str, realdata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(realdata / name, tmp_path) == 2
    assert not (tmp_path / "written.yaml").exists()
    assert "fix:" in capsys.readouterr().err


def test_every_file_has_its_place_here(realdata: Path) -> None:
    there = {str(path.relative_to(realdata)) for path in realdata.rglob("*") if path.is_file()}
    texts = {name for name in there if name.endswith((".md", "LICENSE", "LICENSE.txt"))}
    assert there - texts == {*QUICK, *LONG, *REFUSED}


def test_what_is_seen_in_them(realdata: Path, tmp_path: Path) -> None:
    seen = {}
    for number, name in enumerate(
        ("bc5cdr/cdr_instruct_train.jsonl", "medquad/medquad_qa.jsonl", "cancer_ie/train.jsonl")
    ):
        out = tmp_path / f"{number}.yaml"
        assert main(["init", str(realdata / name), "--out", str(out)]) == 0
        seen[name.split("/")[0]] = load_recipe(out)
    assert (seen["bc5cdr"].data.split.group, seen["bc5cdr"].data.split.stratify) == ("doc_id", "task")
    assert seen["bc5cdr"].data.validation is not None  # cdr_instruct_dev.jsonl lies beside it
    assert seen["medquad"].data.columns == {"prompt": "question", "completion": "answer"}
    assert (seen["medquad"].data.split.group, seen["medquad"].data.split.stratify) == ("url", "qtype")
    assert seen["cancer_ie"].evaluate.task == "extraction"
