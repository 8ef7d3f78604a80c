"""`init`: what it decides for rows of every format, and that `check` takes what it writes, at once and offline."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mission_rows import SHAPES, cancer, kannada, pair, question, word, write_rows

from tunesmith.cli import main
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import load_recipe

ROWS = 60


def texts(seed: int = 0) -> list[tuple[str, str]]:
    """Questions with answers."""
    draw = random.Random(seed)
    return [(one["input"], one["output"]) for one in (question(draw, n) for n in range(ROWS))]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def generated(make: Callable[[random.Random, int], dict[str, Any]]) -> list[dict[str, Any]]:
    draw = random.Random(1)
    return [make(draw, number) for number in range(ROWS)]


def comma(folder: Path) -> Path:
    path = folder / "faq.csv"
    path.write_text("question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in texts()))
    return path


def semicolon(folder: Path) -> Path:
    path = folder / "faq.csv"
    path.write_text("Patient Question;Doctor's Reply\n" + "".join(f'"{q}";"{a}"\n' for q, a in texts()))
    return path


def nested(folder: Path) -> Path:
    path = folder / "export.json"
    rows = [{"meta": {"id": n}, "turn": {"query": q, "response": a}} for n, (q, a) in enumerate(texts())]
    path.write_text(json.dumps({"data": rows}))
    return path


def plain_text(folder: Path) -> Path:
    draw = random.Random(3)
    path = folder / "book.txt"
    lines = (" ".join(word(draw) for _ in range(30)) for _ in range(ROWS))
    path.write_text("\n\n".join(lines) + "\n")
    return path


def tabs(folder: Path) -> Path:
    path = folder / "notes.tsv"
    path.write_text(
        "context\tsummary\tcase_id\n" + "".join(f"{q}\t{a}\t{n // 3}\n" for n, (q, a) in enumerate(texts()))
    )
    return path


def parquet(folder: Path) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    path = folder / "pairs.parquet"
    asked, said = zip(*texts(), strict=True)
    write_table(pyarrow.table({"prompt": list(asked), "completion": list(said)}), path)
    return path


def messages(folder: Path) -> Path:
    def chat(asked: str, said: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}

    return jsonl(folder / "chat.jsonl", [chat(*one) for one in texts()])


# what init has to see: format, columns, and other keys of the data section
CASES: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "comma": (
        comma,
        {"format": "prompt_completion", "columns": {"prompt": "question", "completion": "answer"}},
    ),
    "semicolon": (
        semicolon,
        {
            "format": "prompt_completion",
            "columns": {"prompt": "Patient Question", "completion": "Doctor's Reply"},
        },
    ),
    "nested": (
        nested,
        {"format": "prompt_completion", "columns": {"prompt": "turn.query", "completion": "turn.response"}},
    ),
    "preference": (lambda folder: jsonl(folder / "pairs.jsonl", generated(pair)), {"format": "preference"}),
    "sharegpt": (lambda folder: jsonl(folder / "talk.jsonl", generated(kannada)), {"format": "sharegpt"}),
    "text": (plain_text, {"format": "text"}),
    "tabs": (
        tabs,
        {"format": "prompt_completion", "columns": {"prompt": "context", "completion": "summary"}},
    ),
    "parquet": (parquet, {"format": "prompt_completion", "columns": None}),
    "messages": (messages, {"format": "messages"}),
    "extraction": (
        lambda folder: jsonl(folder / "reports.jsonl", generated(cancer)),
        {"format": "instruction", "instruction_role": "system"},
    ),
    "pubtator": (
        lambda folder: write_rows("chemical-disease", folder, 20),
        {"processor": "annotated_abstract", "format": "auto"},
    ),
}


def written(rows: Path, *words: str) -> Recipe:
    """The recipe that init writes for these rows."""
    out = rows.parent / "written.yaml"
    out.unlink(missing_ok=True)
    assert main(["init", str(rows), "--out", str(out), *words]) == 0
    return load_recipe(out)


@pytest.mark.parametrize("case", CASES)
def test_what_it_sees_is_what_check_takes(case: str, tmp_path: Path) -> None:
    make, expected = CASES[case]
    rows = make(tmp_path)
    recipe = written(rows)
    assert {key: getattr(recipe.data, key) for key in expected} == expected
    task = {"extraction": "extraction", "pubtator": "annotations"}.get(case, "text")
    assert recipe.model.base == "starter" and recipe.evaluate.task == task
    assert main(["check", str(tmp_path / "written.yaml"), "--runs-dir", str(tmp_path / "runs")]) == 0


def test_split_and_checks_follow_the_rows(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert written(tabs(tmp_path)).data.split.group == "case_id"
    abstracts = written(write_rows("chemical-disease", tmp_path / "a", 20)).data.split
    assert (abstracts.group, abstracts.stratify, abstracts.test) == ("document", "task", 0.1)
    talk = written(jsonl(tmp_path / "talk.jsonl", generated(kannada)))
    assert talk.data.checks.script == "error"
    assert written(comma(tmp_path)).data.checks.script == "warn"


def test_the_same_rows_give_the_same_recipe(tmp_path: Path) -> None:
    rows = comma(tmp_path)
    written(rows)
    first = (tmp_path / "written.yaml").read_text()
    assert main(["init", str(rows), "--out", str(tmp_path / "written.yaml"), "--force"]) == 0
    assert (tmp_path / "written.yaml").read_text() == first
    assert str(rows) in first and "# " in first


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = comma(tmp_path)
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    assert main(["init", str(rows), "--out", str(out)]) == 2
    assert out.read_text() == "mine" and "--force" in capsys.readouterr().err
    assert main(["init", str(rows), "--out", str(out), "--force"]) == 0
    assert main(["init", str(rows), "--out", str(tmp_path / "none" / "x.yaml")]) == 2


def test_a_name_comes_from_the_file_or_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "Lung reports"
    folder.mkdir()
    monkeypatch.chdir(folder)
    comma(folder).rename(folder / "train.csv")
    assert main(["init", "train.csv"]) == 0
    assert load_recipe("lung-reports.yaml").data.train == "train.csv"
    assert "tunesmith check lung-reports.yaml" in capsys.readouterr().out


def test_files_beside_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = jsonl(tmp_path / "ward_train.jsonl", [{"question": q, "answer": a} for q, a in texts()])
    held_out = [{"question": q, "answer": a} for q, a in texts(seed=9)[:12]]
    jsonl(tmp_path / "ward_dev.jsonl", held_out)
    jsonl(tmp_path / "ward_test.jsonl", [{"what": "rows of another shape"}])
    recipe = written(rows)
    assert recipe.data.validation == str(tmp_path / "ward_dev.jsonl") and recipe.data.test is None
    assert recipe.data.split.validation == 0
    first = texts()[0]
    jsonl(tmp_path / "ward_dev.jsonl", [*held_out, {"question": first[0], "answer": "another"}])
    capsys.readouterr()
    written(rows)
    assert "1 validation prompts stand in ward_train.jsonl" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "written.yaml"), "--runs-dir", str(tmp_path / "runs")]) == 3


FAULTS: dict[str, tuple[dict[str, Any], str, int]] = {
    "empty answer": (
        {"instruction": "Extract.", "input": "A tumour of the lung.", "output": ""},
        "empty_answer",
        3,
    ),
    "no object": (
        {"instruction": "Extract.", "input": "A tumour of the hip.", "output": "none"},
        "unparsable",
        3,
    ),
    "no row": ({"instruction": "Extract.", "input": 7, "output": {}}, "can't be used", 2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_check_will_stop_at_is_said_before(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, said, code = FAULTS[fault]
    rows = jsonl(tmp_path / "reports.jsonl", [*generated(cancer), row])
    written(rows)
    assert said in capsys.readouterr().err
    assert main(["check", str(tmp_path / "written.yaml"), "--runs-dir", str(tmp_path / "runs")]) == code


def test_a_real_base_gets_quantised_weights(tmp_path: Path) -> None:
    from tunesmith import starter

    recipe = written(comma(tmp_path), "--base", str(starter.base_folder()))
    assert (recipe.model.quantize, recipe.model.dtype, recipe.train.learning_rate) == (
        "nf4",
        "bfloat16",
        2e-4,
    )


def test_long_rows_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": q, "answer": a} for q, a in texts()]
    rows[0]["question"] = " ".join(word(random.Random(n)) for n in range(6000))
    recipe = written(jsonl(tmp_path / "long.jsonl", rows))
    assert recipe.data.max_length == 4096 and recipe.data.overlong == "drop"
    assert "leaves out 1 of 60 rows" in (tmp_path / "written.yaml").read_text()


STRANGE: dict[str, tuple[str, str, str]] = {
    "numbers": ("scores.csv", "precision,recall\n" + "0.1,0.9\n" * 30, "an answer called output"),
    "tags": ("iob.tsv", "word\tB-Disease\n" + "of\tO\n" * 30, "which one answers"),
    "kind": ("rows.docx", "x", "known are .jsonl"),
    "empty": ("rows.jsonl", "", "holds no rows"),
    "broken": ("rows.jsonl", "{\n{\n", "can be read"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_makes_no_sense_is_refused_with_what_was_looked_for(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content, said = STRANGE[case]
    (tmp_path / name).write_text(content)
    out = tmp_path / "x.yaml"
    assert main(["init", str(tmp_path / name), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert said in told and "fix:" in told and not out.exists()


@pytest.mark.parametrize("mission", SHAPES)
def test_every_mission_is_recognised(mission: str, tmp_path: Path) -> None:
    recipe = written(write_rows(mission, tmp_path, 40))
    expected = {"cancer-extraction": "instruction", "chemical-disease": "auto", "kannada": "sharegpt"}
    expected["visit-notes"] = "auto"
    expected |= {
        "medical-qa": "instruction",
        "discharge-records": "instruction",
        "safe-answers": "preference",
    }
    assert recipe.data.format == expected[mission]


@pytest.mark.parametrize("name", ["doc", "Doc", "sample_id", "meta.chunkId"])
def test_rows_of_one_document_are_seen(name: str, tmp_path: Path) -> None:
    def named(value: str) -> dict[str, Any]:
        return {"meta": {name[5:]: value}} if "." in name else {name: value}

    made = [{"question": q, "answer": a} | named(f"D{n // 4}") for n, (q, a) in enumerate(texts())]
    assert written(jsonl(tmp_path / "rows.jsonl", made)).data.split.group == name
    for values in (range(ROWS), [n // 12 for n in range(ROWS)]):  # an id for each row; a handful of kinds
        made = [row | named(f"D{value}") for row, value in zip(made, values, strict=True)]
        assert written(jsonl(tmp_path / "rows.jsonl", made)).data.split.group is None


def test_what_asks_and_what_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [(f"Which {q[:20]} is it in case {n}?", a) for n, (q, a) in enumerate(texts())]
    rows = jsonl(tmp_path / "rows.jsonl", [{"meta": {"q": q, "a": {"text": a}}} for q, a in asked])
    assert written(rows).data.columns == {"prompt": "meta.q", "completion": "meta.a.text"}
    rows = jsonl(tmp_path / "rows.jsonl", [{"left": a, "right": q} for q, a in asked])
    assert written(rows).data.columns == {"prompt": "right", "completion": "left"}
    jsonl(tmp_path / "rows.jsonl", [{"passage": a, "right": q} for q, a in asked])
    assert main(["init", str(rows), "--out", str(tmp_path / "none.yaml")]) == 2
    assert "which column asks" in capsys.readouterr().err and not (tmp_path / "none.yaml").exists()


def test_long_text_counts_by_its_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    book = tmp_path / "book.txt"
    book.write_text(" ".join(word(draw) for _ in range(15_000)))
    recipe = written(book)
    said = capsys.readouterr().out
    assert main(["check", str(tmp_path / "written.yaml"), "--runs-dir", str(tmp_path / "runs")]) == 0
    pieces = int(re.findall(r"proved +train, ([\d,]+) rows", capsys.readouterr().out)[0].replace(",", ""))
    assert pieces > 10 and f"book.txt: 1, in some {pieces:,} pieces" in " ".join(said.split())
    text = (tmp_path / "written.yaml").read_text()
    assert f"{pieces} rows: some {round(recipe.train.epochs * pieces / 8)} steps" in text
    assert "too few documents" in text


def test_many_rows_are_sampled_the_same_way(tmp_path: Path) -> None:
    from tunesmith.data.look import look

    rows = jsonl(
        tmp_path / "many.jsonl",
        [{"question": f"what is {n} of {n}?", "answer": f"it is {n}"} for n in range(500)],
    )
    first, second = (look(rows, most=100) for _ in range(2))
    assert first.rows == 500 and len(first.examples) == 100
    assert [one.id for one in first.examples] == [one.id for one in second.examples]
    assert (
        len({(int(one.id.split(":")[1]) - 1) // 100 for one in first.examples}) == 5
    )  # from all over the file


def test_what_it_says_fits_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    rows = generated(cancer) * 20  # 1,200: the same ones again
    rows[3] |= {"output": ""}
    jsonl(Path("reports.jsonl"), rows)
    assert main(["init", "reports.jsonl"]) == 0
    said = capsys.readouterr()
    assert max(map(len, (said.out + said.err).splitlines())) <= 80
    assert "rows      reports.jsonl: 1,200" in said.out and "warning: 20 rows" in said.err
    assert "# 1,200 rows" in Path("reports.yaml").read_text()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder in which nobody may write")
def test_a_place_where_nobody_may_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(comma(tmp_path)), "--out", "/proc/x.yaml"]) == 2
    assert "fix:   --out FILE" in capsys.readouterr().err
