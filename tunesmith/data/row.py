"""One raw row: how it is to be read, its cells, and what is said of a row that can't be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tunesmith.lookup import nearest

if TYPE_CHECKING:
    from tunesmith.recipe import Data

Row = Mapping[str, Any]
_ABSENT = object()


class BadRow(Exception):
    """What is wrong with one row. `hint`: the place in the user's own code where it went wrong."""

    def __init__(self, text: str, hint: str | None = None) -> None:
        text = text.encode("utf-8", "backslashreplace").decode()  # it may quote what no file takes
        super().__init__(text, hint)
        self.text, self.hint = text, hint

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Manner:
    """How rows become conversations: the keys of the recipe's data section that say so."""

    format: str = "auto"
    system: str | None = None
    instruction_role: str = "user"
    labelled: bool = True
    """Whether each row has to bring its answer; False: an answer that is there is left away."""
    columns: Mapping[str, str] | None = None
    """The format's column: the user's column, dotted (`answer.text`) where it lies inside another."""
    processor: str | None = None
    """A name in processors.PROCESSORS, or module:function; takes the place of the format."""
    group: str | None = None
    """Column that names a row's document."""
    stratify: str | None = None
    """Column that becomes a slice."""

    @classmethod
    def of(cls, data: Data) -> Manner:
        """The manner of the recipe's labelled rows."""
        return cls(
            data.format,
            data.system,
            data.instruction_role,
            columns=data.columns,
            processor=data.processor,
            group=data.split.group,
            stratify=data.split.stratify,
        )


def dig(row: Any, column: str) -> Any:
    """The value of a column, or of `a.b.0` inside it; raises KeyError where there is none."""
    if isinstance(row, Mapping) and column in row:
        return row[column]
    inner = row
    for part in column.split("."):
        if isinstance(inner, Mapping) and part in inner:
            inner = inner[part]
        elif isinstance(inner, list) and part.isdecimal() and int(part) < len(inner):
            inner = inner[int(part)]
        else:
            raise KeyError(column)
    return inner


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with the format's names. A mapped column that the row lacks is absent, whatever else has that name."""
    view = dict(row)
    for name, column in columns.items():
        try:
            view[name] = dig(row, column)
        except KeyError:
            view.pop(name, None)
    return view


def cell(row: Row, name: str, manner: Manner) -> Any:
    """The value of a column that must be there."""
    value = row.get(name, _ABSENT)
    if value is not _ABSENT:
        return value
    if manner.columns and name in manner.columns:
        raise BadRow(f"there is no column {manner.columns[name]!r} (data.columns: {name})")
    raise BadRow(missing(name, tuple(row)))


@lru_cache(maxsize=256)
def missing(name: str, columns: tuple[str, ...]) -> str:
    """What is said where a row has no column of this name."""
    guess = nearest(name, columns)
    there = ", ".join(columns) or "none"
    return f"there is no column {name!r}" + (f"; is {guess!r} meant?" if guess else f" (there are {there})")


def text_cell(row: Row, name: str, manner: Manner, empty: bool = False) -> str:
    """The text of a column that must be there, and hold some unless `empty`."""
    value = cell(row, name, manner)
    if not isinstance(value, str):
        raise BadRow(f"{name} has to be text, not {kind(value)}")
    if not empty and not value.strip():
        raise BadRow(f"{name} is empty")
    return value


def kind(value: object) -> str:
    """The type of a JSON value, in words."""
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null" if value is None else type(value).__name__)


def name_of(value: object) -> str:
    """The value as a name. Null, NaN and empty text name nothing: rows without a name are not all of one."""
    return "" if value is None or value != value else str(value)


def first_text(row: Row, *names: str, blank: bool = False) -> str | None:
    """The first of these columns that holds text (null and, unless `blank`, empty text are passed over)."""
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise BadRow(f"{name} has to be text, not {type(value).__name__}")
        if blank or value.strip():
            return value
    return None


TORN = "a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"


def torn(texts: Sequence[str]) -> bool:
    """Whether one of the texts holds half of a surrogate pair, which no tokenizer and no file takes."""
    if all(map(str.isascii, texts)):
        return False
    for text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                return True
    return False
