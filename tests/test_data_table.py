"""The inspection in the terminal: what stops the run stands first, all of it fits, nothing of a row acts on it."""

from __future__ import annotations

import inspection_report as made
import pytest
from rich.cells import cell_len

from tunesmith.data.shown.table import report_lines, say_report
from tunesmith.data.shown.words import one_line, percent

SHAPES = ["cancer", "questions", "clean", "hostile", "one_row"]


def lines(shape: str, width: int = 80, **more: object) -> list[str]:
    return report_lines(made.whole(getattr(made, shape)()), max_length=2048, width=width, **more)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [60, 80, 110])
def test_no_line_is_wider_than_the_terminal(shape, width):
    wide = [line for line in lines(shape, width) if cell_len(line) > max(80, width)]
    assert wide == []
    assert all(line == line.rstrip() and "\n" not in line for line in lines(shape, width))
    assert lines(shape, width) == lines(shape, width)


def test_every_check_is_somewhere_and_errors_come_first():
    said = lines("cancer")
    text = "\n".join(said)
    levels = [line.split()[1] for line in said if line.split()[1:2] in (["ERROR"], ["warn"])]
    assert levels == ["ERROR"] * 3 + ["warn"] * 4
    for name in made.CHECKS:
        assert name in text
    assert "exact_leak          ERROR       12      500   2.4 %  validation_a.jsonl:3" in text
    assert "nothing found by 8 others: group_leak, duplicate" in text
    assert "ignored, as the recipe says: script (3 rows)" in text


def test_errors_say_what_to_type():
    text = "\n".join(lines("cancer", recipe="'my recipe.yaml'"))
    assert "3 checks stop the run: exact_leak, empty_answer, schema. 4 checks warn." in text
    assert "tunesmith check 'my recipe.yaml' --reject-to rejected.jsonl" in text
    passed = text.partition("or let them pass")[2].split()
    assert " ".join(passed) == "data: {checks: {exact_leak: warn, empty_answer: warn, schema: warn}}"


def test_nothing_found_is_calm():
    text = "\n".join(lines("clean"))
    assert text.endswith("0 findings in 5,000 rows: 16 checks found nothing to say.")
    assert "ERROR" not in text and "warn" not in text and "--reject-to" not in text


def test_warnings_alone_ask_for_nothing():
    text = "\n".join(lines("questions"))
    assert "Nothing stops the run. 6 checks warn:" in text and "--reject-to" not in text
    assert "2,048  max_length          48    0.9 %" in text


def test_rows_that_cannot_be_used_stop_the_run():
    report = made.whole(made.clean(), refused=3)
    text = "\n".join(report_lines(report, max_length=2048))
    assert "6 rows can't be used." in text and "--reject-to rejected.jsonl" in text
    assert "let them pass" not in text


def test_hostile_rows_write_no_control_characters():
    text = "\n".join(lines("hostile"))
    assert all(character.isprintable() or character == "\n" for character in text)
    text.encode()
    assert one_line("\x1b[31m\u202e\u2028a\ud800b\nc\xa0d") == "␛[31m��a�b␊c d"
    assert one_line("ಕ್\u200dಷ") == "ಕ್\u200dಷ"
    assert one_line("x" * 500, 10) == "xxxxxxxxxx … (500 characters)"


def test_numbers_of_persons_are_never_shown():
    report = made.questions()
    for check in report["checks"]:
        if check["name"] == "phi":
            check["examples"] = [made.place(5, "phone: 020 7946 0958, mail x@example.org")]
    text = "\n".join(report_lines(made.whole(report), max_length=2048))
    assert "7946" not in text and "example.org" not in text and "  phone, mail" in text


def test_percent_never_rounds_to_nothing_or_all():
    assert [percent(share) for share in (0, 1 / 390_000, 0.0005, 0.024, 0.9994, 1 - 1e-6, 1, None)] == [
        "0 %", "< 0.1 %", "0.1 %", "2.4 %", "99.9 %", "> 99.9 %", "100 %", "–",
    ]  # fmt: skip


def test_it_is_printed_as_wide_as_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "64")
    say_report(made.whole(made.hostile()))
    narrow = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "200")
    say_report(made.whole(made.hostile()))
    assert len(capsys.readouterr().out.splitlines()) < len(narrow.splitlines())


def test_rows_over_the_limit_stop_the_run_where_they_are_not_left_out():
    report = made.whole(made.clean())
    long = {"rows": 34, "of": 5000, "longest": 2100, "first": [["train.jsonl:7", 2100]]}
    text = "\n".join(report_lines(report | {"overlong": long | {"stops": True}}))
    assert "34 rows are over data.max_length." in text and "0 findings" not in text and "--reject-to" in text
    left_out = "\n".join(report_lines(report | {"overlong": long | {"stops": False}}))
    assert "0 findings" in left_out and "--reject-to" not in left_out


def test_a_long_file_name_keeps_its_line():
    inspection = made.clean()
    name = f"{'CDR_TrainingSet.PubTator' * 3}.txt"
    check = made.check("cut_prompt", 3, 1500, [made.place(1234, "ends with a word", name)])
    inspection["checks"] = [check, *inspection["checks"][1:]]
    found = next(line for line in report_lines(made.whole(inspection)) if line.startswith("cut_prompt"))
    assert found.endswith("…:1234") and cell_len(found) <= 80


def test_a_birth_date_is_called_one():
    inspection = made.clean() | {"phi": {"birth_date": 2}}
    phi = made.check("phi", 2, 1500, [made.place(3, "birth date in the answer")])
    inspection["checks"] = [phi, *inspection["checks"][1:]]
    assert "birth date" in "\n".join(report_lines(made.whole(inspection)))


def test_weights_are_told():
    report = made.whole(made.clean())
    report["splits"]["train"]["rows"] += 100
    assert "an epoch reads" in "\n".join(report_lines(report)) and "an epoch reads" not in "\n".join(
        lines("clean")
    )
