"""From a line of a file to an Example. Every bad row is listed, by file and line, before anything is thrown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.errors import AccessError, RowError
from tunesmith.example import ROLES, Example, Message
from tunesmith.lookup import nearest

SHOWN = 20  # bad rows printed; the count says how many more there are
_TORN = re.compile("[\ud800-\udfff]")
_OPTIONAL = {"id", "document", "doc_id", "slices", "system"}


class _BadRow(Exception):
    """What is wrong with one row."""


@dataclass(frozen=True)
class Manner:
    """How rows become conversations, beside their format."""

    format: str = "auto"
    system: str | None = None
    instruction_role: str = "user"
    labelled: bool = True
    """Whether each row has to bring its answer."""


Row = Mapping[str, Any]
Turns = list[Message]


def read_file(path: Path, manner: Manner) -> list[Example]:
    """All rows of a JSON Lines file. RowError lists every bad one; AccessError where the file can't be read."""
    return to_examples(_parsed(path), path.name, manner)


def to_examples(rows: Iterable[tuple[str, Row | str]], name: str, manner: Manner) -> list[Example]:
    """`rows` are (place, row) pairs, the row a str where it could not be parsed (what is wrong with it)."""
    examples: list[Example] = []
    bad: list[str] = []
    seen: dict[str, str] = {}
    total = 0
    rows = list(rows)
    manner = replace(manner, format=format_of(rows, manner))
    for place, row in rows:
        total += 1
        try:
            if isinstance(row, str):
                raise _BadRow(row)
            example = _example(row, place, manner)
            if example.id in seen:
                raise _BadRow(f"its id {example.id!r} is {seen[example.id]}'s too")
            seen[example.id] = place
            examples.append(example)
        except _BadRow as error:
            bad.append(f"{place}: {error}")
    if not total:
        raise RowError(f"{name} holds no rows", where=name, fix="one JSON object a line")
    if bad:
        more = f"\n  … and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        listing = "\n".join(f"  {line}" for line in bad[:SHOWN])
        raise RowError(
            f"{len(bad)} of {total} rows can't be used:\n{listing}{more}", fix="mend or remove these rows"
        )
    return examples


def file_format(path: Path, manner: Manner) -> str:
    """The format that `read_file` reads a file in: the manner's, or that of the file's first sound row."""
    return format_of(_parsed(path), manner)


def format_of(rows: Iterable[tuple[str, Row | str]], manner: Manner) -> str:
    """The manner's format; for auto that of the first row which has one (one file, one format); else auto."""
    if manner.format != "auto":
        return manner.format
    for _, row in rows:
        try:
            return "auto" if isinstance(row, str) else _guess(row, manner)
        except _BadRow:
            continue
    return "auto"


def _parsed(path: Path) -> Iterator[tuple[str, Row | str]]:
    for number, line in enumerate(map(bytes.rstrip, _lines(path)), 1):
        place = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if number == 1 and text.lstrip().startswith("["):
                raise RowError(
                    f"{path.name} is one JSON array", where=place, fix="write one JSON object a line"
                )
        except UnicodeDecodeError as error:
            yield place, f"not UTF-8 (byte {error.start} of the line); save the file as UTF-8"
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            yield place, f"broken JSON at character {error.colno}: {error.msg}"
            continue
        except (ValueError, RecursionError) as error:
            # a number of thousands of digits; brackets thousands deep
            yield place, f"JSON that can't be read: {str(error).split(';')[0]}"
            continue
        yield place, row if isinstance(row, dict) else f"a JSON object is needed, not {_kind(row)}"


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        near = nearest(path.name, [one.name for one in path.parent.glob("*")] if path.parent.is_dir() else [])
        raise AccessError(
            f"there is no file {path}" + (f"; did you mean {path.parent / near}?" if near else ""),
            fix="paths are relative to the folder that you run in",
        ) from None
    except IsADirectoryError:
        raise AccessError(f"{path} is a folder", fix="give a .jsonl file") from None
    except PermissionError:
        raise AccessError(f"{path} may not be read", fix=f"chmod u+r {path}") from None


# ---- one row


def _example(row: Row, place: str, manner: Manner) -> Example:
    name = manner.format if manner.format != "auto" else _guess(row, manner)
    turns = FORMATS[name](row, manner)
    if not any(turn.role == "user" for turn in turns):
        raise _BadRow("it asks nothing: there is no user's turn")
    if manner.system and turns[0].role != "system":
        turns.insert(0, Message("system", manner.system))
    slices = row.get("slices") or {}
    if not isinstance(slices, dict) or not all(isinstance(value, str) for value in slices.values()):
        raise _BadRow("slices has to be an object of strings")
    if any(_TORN.search(turn.content) for turn in turns):
        raise _BadRow("a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")
    # null is no name: rows without one are not all the same row, or of one document
    identity = place if row.get("id") is None else str(row["id"])
    document = next((str(row[key]) for key in ("document", "doc_id") if row.get(key) is not None), identity)
    return Example(identity, tuple(turns), document, slices, place)


def _guess(row: Row, manner: Manner) -> str:
    fitting = [
        name for name, needed in _NEEDED.items() if set(needed[: None if manner.labelled else 1]) <= set(row)
    ]
    if len(fitting) > 1:
        raise _BadRow(f"it fits {' and '.join(fitting)}: say which in data.format")
    if fitting:
        return fitting[0]
    columns = ", ".join(sorted(set(row) - _OPTIONAL)) or "none"
    raise _BadRow(
        f"no known format has the columns {columns} "
        "(instruction/input/output, prompt/completion, or messages; name it in data.format)"
    )


def _column(row: Row, name: str) -> Any:
    if name not in row:
        guess = nearest(name, row)
        raise _BadRow(
            f"there is no column {name!r}"
            + (f"; is {guess!r} meant?" if guess else f" (there are {', '.join(row)})")
        )
    return row[name]


def _text(row: Row, name: str, empty: bool = False) -> str:
    value = _column(row, name)
    if not isinstance(value, str):
        raise _BadRow(f"{name} has to be text, not {_kind(value)}")
    if not value.strip() and not empty:
        raise _BadRow(f"{name} is empty")
    return value


def _answer(row: Row, name: str, manner: Manner) -> Turns:
    if not manner.labelled:
        return []
    value = _column(row, name)
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        raise _BadRow(f"{name} has to be text or a JSON object, not {_kind(value)}")
    if not value.strip():
        raise _BadRow(f"{name} is empty: there would be nothing to learn")
    return [Message("assistant", value, learned=True)]


def _system(row: Row) -> Turns:
    return [Message("system", _text(row, "system"))] if row.get("system") else []


def _instruction(row: Row, manner: Manner) -> Turns:
    instruction = _text(row, "instruction")
    context = _text(row, "input", empty=True) if row.get("input") is not None else ""
    if manner.instruction_role == "system":
        if not context.strip():
            raise _BadRow(
                "input is empty, but data.instruction_role: system leaves nothing else for the user's turn"
            )
        system = row.get("system") or manner.system
        head = f"{system}\n\n{instruction}" if system else instruction
        turns = [Message("system", head), Message("user", context)]
    else:
        turns = [
            *_system(row),
            Message("user", f"{instruction}\n\n{context}" if context.strip() else instruction),
        ]
    return [*turns, *_answer(row, "output", manner)]


def _prompt_completion(row: Row, manner: Manner) -> Turns:
    return [*_system(row), Message("user", _text(row, "prompt")), *_answer(row, "completion", manner)]


def _messages(row: Row, manner: Manner) -> Turns:
    given = _column(row, "messages")
    if not isinstance(given, list) or not given:
        raise _BadRow("messages has to be a list of turns")
    turns: Turns = []
    for number, turn in enumerate(given, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise _BadRow(f"turn {number} has to be an object with role and content as text")
        role = turn.get("role")
        if role not in ROLES:
            raise _BadRow(f"turn {number} has the role {role!r}; known are {', '.join(ROLES)}")
        if not turn["content"].strip():
            raise _BadRow(f"turn {number} is empty")
        turns.append(Message(role, turn["content"], learned=role == "assistant"))
    if manner.labelled and turns[-1].role != "assistant":
        raise _BadRow("the last turn is not the assistant's: there would be nothing to learn")
    if not manner.labelled and turns[-1].role == "assistant":
        turns.pop()  # a labelled file may be given to predict
    return turns


FORMATS: dict[str, Callable[[Row, Manner], Turns]] = {
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "instruction": _instruction,
}
_NEEDED = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
}


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null" if value is None else type(value).__name__)
