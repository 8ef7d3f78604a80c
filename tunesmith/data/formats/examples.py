"""From raw rows to Examples. Every bad row is listed, by file and line, before anything is thrown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

from tunesmith import console
from tunesmith.data.formats.preference import pair
from tunesmith.data.formats.refusals import SHOWN, Refusals
from tunesmith.data.formats.turns import Turns, instruction, messages, prompt_completion, sharegpt, text
from tunesmith.data.processors.process import processed
from tunesmith.data.read.files import read_rows
from tunesmith.data.row import TORN, BadRow, Manner, Row, dig, missing, name_of, renamed, torn
from tunesmith.errors import RecipeError, RowError
from tunesmith.example import TEXT, Example, Message
from tunesmith.lookup import nearest

__all__ = [
    "SHOWN",
    "BadRow",
    "Manner",
    "Row",
    "file_format",
    "format_of",
    "read_file",
    "row_examples",
    "to_examples",
]

PEEK = 100  # rows that are looked at to tell a file's format and columns

FORMATS: dict[str, Callable[[Row, Manner], Turns]] = {
    "messages": messages,
    "sharegpt": sharegpt,
    "prompt_completion": prompt_completion,
    "instruction": instruction,
    "text": text,
}
# columns of each format: what a row asks with first, what it must have besides when labelled, what it may have
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), (), ()),
    "sharegpt": (("conversations",), (), ()),
    "preference": (("chosen",), ("rejected",), ("prompt",)),
    "prompt_completion": (("prompt",), ("completion",), ()),
    "instruction": (("instruction",), ("output",), ("input",)),
    "text": (("text",), (), ()),
}
ABOUT = ("id", "document", "doc_id", "slices", "facts", "system")  # of a row of any format
_ANSWERS = {
    "answer",
    "label",
    "labels",
    "output",
    "response",
    "summary",
    "target",
}  # beside `text`: not plain text


def read_file(path: Path, manner: Manner) -> list[Example]:
    """All rows of a file. RowError lists every bad one; AccessError where the file can't be read."""
    return to_examples(read_rows(path), path.name, manner)


def to_examples(rows: Iterable[tuple[str, Row | str]], name: str, manner: Manner) -> list[Example]:
    """`rows` are (place, row) pairs, the row a str where it could not be parsed (what is wrong with it).

    An id that is an earlier row's too becomes `id~2`, `id~3` …, as `prepare` names it; rows that a processor leaves
    out are counted. Both are told.
    """
    examples: list[Example] = []
    refused = Refusals()
    times: Counter[str] = Counter()
    renamed_rows = left_out = 0
    rows = list(rows)
    manner = replace(manner, format=format_of(rows, manner))
    for number, (place, row) in enumerate(rows, 1):
        try:
            if isinstance(row, str):
                raise BadRow(row)
            made = row_examples(row, place, manner)
            left_out += not made
            for example in made:
                times[example.id] += 1
                again = times[example.id] > 1
                renamed_rows += again
                examples.append(
                    replace(example, id=f"{example.id}~{times[example.id]}") if again else example
                )
        except BadRow as error:
            refused.add(place, error)
            refused.end_if_alike(number)
    if not rows:
        raise RowError(f"{name} holds no rows", where=name, fix="one JSON object a line")
    if refused.count:
        raise refused.error(len(rows))
    if left_out:
        console.warn(f"{manner.processor} left out {left_out} of {len(rows)} rows")
    if not examples:
        raise RowError(f"no rows of {name} are left", where=name, fix="mend the processor")
    if renamed_rows:
        console.warn(f"{renamed_rows} rows have the id of another row: they go on as ID~2, ID~3 …")
    return examples


def file_format(path: Path, manner: Manner) -> str:
    """The format that `read_file` reads a file in: the manner's, or that of the file's first sound row."""
    return format_of(read_rows(path), manner)


def format_of(rows: Iterable[tuple[str, Row | str]], manner: Manner) -> str:
    """The manner's format; for auto that of the first row which has one (one file, one format); else auto.

    Looks at the first PEEK rows. RecipeError where data.columns names a column that none of them has.
    """
    if not manner.columns and (manner.processor or manner.format != "auto"):
        return manner.format
    first = [row for _, row in islice(rows, PEEK) if not isinstance(row, str)]
    if manner.columns:
        _check_columns(first, manner, manner.columns)
        first = [renamed(row, manner.columns) for row in first]
    if manner.processor or manner.format != "auto":
        return manner.format
    for row in first:
        try:
            return _guess(row, manner)
        except BadRow:
            continue
    return "auto"


def row_examples(row: Row, place: str, manner: Manner) -> list[Example]:
    """The examples of one raw row: one, or what the processor makes of it (none: it leaves the row out).

    `place` is `file:line`. Raises BadRow. Ids, documents, slices and sources are filled in; ids are unique where
    the rows give none, else that is the caller's to check.
    """
    view = renamed(row, manner.columns) if manner.columns else row
    if manner.processor:
        return processed(row, view, place, manner)
    name = manner.format if manner.format != "auto" else _guess(view, manner)
    rejected = None
    if name == "preference":
        turns, rejected = pair(view, manner)
    else:
        turns = FORMATS[name](view, manner)
    if turns[0].role != TEXT:
        if "user" not in [turn.role for turn in turns]:
            raise BadRow("it asks nothing: there is no user's turn")
        if manner.system and turns[0].role != "system":
            turns.insert(0, Message("system", manner.system))
    slices = _slices(view)
    identity = name_of(view.get("id")) or place
    document = place  # not the id: files may number their rows alike
    if manner.group:
        document = _named(row, manner.group, "data.split.group") or place
    else:
        for key in ("document", "doc_id"):
            value = view.get(key)
            if value is not None and not (manner.columns and key in manner.columns.values()):
                document = name_of(value)
                if document:
                    break
        document = document or place
    if manner.stratify:
        slices = {**slices, manner.stratify: _named(row, manner.stratify, "data.split.stratify") or "(none)"}
    texts = [turn.content for turn in turns]
    texts += (identity, document, rejected or "")
    if slices:
        texts += (*slices, *slices.values())
    facts = view.get("facts")
    facts = facts if isinstance(facts, dict) else {}  # what a scorer needs; a column of text is just a column
    if facts:
        texts.append(json.dumps(facts, ensure_ascii=False))
    if torn(texts):
        raise BadRow(TORN)
    return [Example(identity, tuple(turns), document, slices, place, rejected, facts)]


def _slices(row: Row) -> Mapping[str, str]:
    slices = row.get("slices")
    if not slices:
        return {}
    if isinstance(slices, dict):
        slices = {name: value for name, value in slices.items() if value is not None}
        if all(isinstance(value, str) for value in slices.values()):
            return slices
    raise BadRow("slices has to be an object of strings")


def _named(row: Row, column: str, key: str) -> str:
    try:
        return name_of(dig(row, column))
    except KeyError:
        raise BadRow(f"{missing(column, tuple(row))} ({key})") from None


def _guess(row: Row, manner: Manner) -> str:
    fitting = [name for name, (asks, needs, _) in COLUMNS.items() if {*asks, *needs} <= row.keys()]
    if not fitting and not manner.labelled:
        fitting = [name for name, (asks, _, _) in COLUMNS.items() if row.keys() >= set(asks)]
    if len(fitting) > 1 and "text" in fitting:
        fitting.remove("text")  # many sets carry the whole row once more as `text`
    if len(fitting) > 1:
        raise BadRow(f"it fits {' and '.join(fitting)}: say which in data.format")
    if fitting == ["text"] and _ANSWERS & row.keys():
        other = ", ".join(sorted(_ANSWERS & row.keys()))
        raise BadRow(f"it has text and {other}: say in data.format and data.columns what is learned")
    if fitting:
        return fitting[0]
    columns = ", ".join(sorted(set(row) - set(ABOUT))) or "none"
    if {"title", "abstract", "mentions"} <= row.keys():
        raise BadRow("it is an annotated abstract: data.processor: annotated_abstract makes rows of it")
    raise BadRow(
        f"no known format has the columns {columns} (instruction/input/output, prompt/completion, messages, "
        "conversations, chosen/rejected, or text; map yours in data.columns)"
    )


def _check_columns(rows: list[Row], manner: Manner, columns: Mapping[str, str]) -> None:
    formats = [COLUMNS[manner.format]] if manner.format != "auto" else list(COLUMNS.values())
    known = {column for parts in formats for part in parts for column in part} | set(ABOUT)
    answers = {column for _, needs, _ in formats for column in needs} | {"chosen"}
    for name, column in columns.items():
        where = f"data.columns.{name}"
        if name not in known and not manner.processor:  # a processor has columns of its own
            raise RecipeError(
                f"{name!r} is no column of {'a known format' if manner.format == 'auto' else manner.format}"
                + (" (the format's column comes first, then yours)" if column in known else ""),
                where=where,
                fix=f"one of {', '.join(sorted(known))}",
            )
        if not rows or (not manner.labelled and (name in answers or manner.processor)):
            continue
        if not any(_has(row, column) for row in rows):
            there = list(dict.fromkeys(key for row in rows for key in row))
            guess = nearest(column, there)
            raise RecipeError(
                f"the rows have no column {column!r}" + (f"; is {guess!r} meant?" if guess else ""),
                where=where,
                fix=f"the columns are {', '.join(there)}",
            )


def _has(row: Row, column: str) -> bool:
    try:
        dig(row, column)
    except KeyError:
        return False
    return True
