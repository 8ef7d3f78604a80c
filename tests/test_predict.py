"""predict, whatever MODEL is: the run, its merged folder and its GGUF file give the same answers; resumable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from exported_run import make_exported_run, write_run_gguf

from tunesmith.cli import main
from tunesmith.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_exported_run(tmp_path_factory.mktemp("predicted"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    words = ["tumour node", "stage grade biopsy", "left cell 🩺 ಕನ್ನಡ", "margin", "lung colon right small"]
    path.write_text("".join(json.dumps({"prompt": one, "id": str(i)}) + "\n" for i, one in enumerate(words)))
    return path


def answers(model: object, rows: Path, *more: str) -> list[dict[str, Any]]:
    out = rows.with_name(f"{abs(hash(str(model)))}.jsonl")
    assert main(["predict", str(model), str(rows), "--out", str(out), "--max-tokens", "12", *more]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def texts(lines: list[dict[str, Any]]) -> list[str]:
    return [line["answer"] for line in sorted(lines, key=lambda line: line["id"])]


def test_run_merged_and_gguf_agree(run: Run, rows: Path, llama_cpp: Any) -> None:
    live = answers(run.path, rows)
    file = write_run_gguf(run)
    assert len(live) == 5 and all(line["answer"] for line in live)
    for model in (run.merged, file):
        found = answers(model, rows)
        assert texts(found) == texts(live)
        # fp32 throughout: only the order of sums differs
        assert [line["logprob"] for line in found] == pytest.approx(
            [line["logprob"] for line in live], abs=1e-3
        )
    assert texts(answers("starter", rows)) != texts(live)  # what would agree if the adapter were left out


def test_a_gguf_file_is_gone_on_with(
    run: Run, rows: Path, llama_cpp: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write_run_gguf(run, "Q8_0"), rows.with_name("out.jsonl")
    words = ["predict", str(file), str(rows), "--out", str(out), "--max-tokens", "12", "--batch", "2"]
    assert main(words) == 0
    whole = sorted(out.read_text().splitlines())
    out.write_text("\n".join(whole[:2]) + "\n")
    assert main(words) == 0
    assert sorted(out.read_text().splitlines()) == whole


def test_an_overlong_prompt_names_its_row(
    run: Run, rows: Path, llama_cpp: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with rows.open("a") as file:
        file.write(json.dumps({"prompt": "lung " * 9000, "id": "long"}) + "\n")
    for model in (run.path, write_run_gguf(run)):
        assert main(["predict", str(model), str(rows), "--out", str(rows.with_name("o.jsonl"))]) == 2
        assert "long" in capsys.readouterr().err


def test_rows_are_read_as_the_run_read_them(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that names code is answered from, but its code is not run."""
    import shutil

    copied = Path(shutil.copytree(run.merged, tmp_path / "copied"))
    contract = json.loads((copied / "contract.json").read_text())
    contract["reading"]["processor"] = "evil:run"
    (copied / "contract.json").write_text(json.dumps(contract))
    (tmp_path / "evil.py").write_text("raise SystemExit('code ran')")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "lung"}\n')
    assert main(["predict", str(copied), str(rows), "--out", str(tmp_path / "o")]) == 2
    assert "evil:run, whose code would run here" in capsys.readouterr().err
