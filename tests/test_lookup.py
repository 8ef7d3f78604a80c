"""A plug-in of the user's own: found, or told what keeps it from being loaded, with file and line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tunesmith.errors import TunesmithError
from tunesmith.lookup import find


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "text, says, line",
    [
        ("def f(:\n", "SyntaxError", 1),
        ("x = 1\nraise ValueError('no licence')\n", "ValueError: no licence", 2),
        ("x = 1\n\nraise SystemExit(5)\n", "SystemExit: 5", 3),
        ("import no_such_thing_at_all\n", "imports 'no_such_thing_at_all', which isn't there", 1),
    ],
)
def test_a_module_that_fails_is_told(folder: Path, text: str, says: str, line: int) -> None:
    name = f"broken_{abs(hash(text))}"
    (folder / f"{name}.py").write_text(text)
    with pytest.raises(TunesmithError) as error:
        find(f"{name}:f", {}, "processor")
    assert says in error.value.what and error.value.where == f"{folder / name}.py:{line}"
    assert error.value.exit_code == 2 and name not in sys.modules


def test_what_is_there_is_found_and_misspellings_are_guessed(folder: Path) -> None:
    (folder / "mine_alone.py").write_text("def shorten(row):\n    return row\n")
    assert find("mine_alone:shorten", {}, "processor")("row") == "row"
    assert find("text", {"text": 1}, "task") == 1
    with pytest.raises(TunesmithError, match="did you mean 'shorten'"):
        find("mine_alone:shortn", {}, "processor")
    with pytest.raises(TunesmithError, match="there is no module 'mine_alon'"):
        find("mine_alon:shorten", {}, "processor")
    with pytest.raises(TunesmithError, match="did you mean 'text'"):
        find("txt", {"text": 1}, "task")
