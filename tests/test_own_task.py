"""A user's own task: called as it is meant to be, and told where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.tasks import make_task
from tunesmith.tasks.schema import load_schema

OWN = """
from tunesmith.errors import RowError
from tunesmith.tasks.text import TextTask

def sound(schema, golds):
    return TextTask()

def one(row):
    return TextTask()

def nothing(schema, golds):
    return None

def broken(schema, golds):
    return schema["type"] + golds

def told(schema, golds):
    raise RowError("these rows are no prose")

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_task_of_a_user.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_task_of_a_user"


def test_a_users_task(own: str) -> None:
    assert make_task(f"{own}:sound", None, ["a"]).name == "text"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("one", "can't be called with a schema and the training answers: too many positional"),
        ("number", "is no function"),
        ("nothing", "made a NoneType, which has no common_answer, correct"),
        ("broken", "fails: TypeError: 'NoneType'"),
    ],
)
def test_what_is_wrong_with_it_is_told(own: str, function: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_task(f"{own}:{function}", None, ["a"])
    assert told in str(caught.value) and caught.value.fix
    if function == "broken":
        assert caught.value.where is not None and caught.value.where.endswith("own_task_of_a_user.py:15")


def test_what_it_tells_itself_is_kept(own: str) -> None:
    with pytest.raises(TunesmithError, match="these rows are no prose"):
        make_task(f"{own}:told", None, ["a"])


def test_a_schema_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TunesmithError, match=r"data\.schema can't be read: No such file or directory"):
        load_schema(tmp_path / "schema.json")
