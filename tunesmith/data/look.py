"""A look at unknown rows: how they can be read, and what else in them a recipe has to know. Decides, and says why."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tunesmith.data.formats.columns import (
    ANSWERS,
    CONTEXTS,
    DOCUMENTS,
    LABELS,
    ORDERS,
    Column,
    called,
    columns_of,
    is_document,
    is_identity,
    is_label,
)
from tunesmith.data.formats.examples import BadRow, Manner, format_of, row_examples
from tunesmith.data.read.files import read_rows
from tunesmith.data.row import Row
from tunesmith.errors import RowError
from tunesmith.example import Example

MOST = 20_000  # rows that are looked at; of more, a fixed random part
_MEND = "mend its rows, or give another file"
_FEW = 20  # fewer rows don't show that something is always so


@dataclass(frozen=True)
class Choice:
    """One thing that was decided, and why."""

    value: str
    why: str


@dataclass
class Look:
    """What was seen in a file."""

    path: Path
    rows: int = 0
    """All of them, readable or not."""
    looked: int = 0
    """Those that were looked at."""
    columns: list[Column] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    """`place: what is wrong` of rows that can't be used, of those looked at."""
    examples: list[Example] = field(default_factory=list)
    """Of the rows looked at."""
    manner: Manner = field(default_factory=Manner)
    format: Choice = field(default_factory=lambda: Choice("auto", ""))
    role: Choice | None = None
    group: Choice | None = None
    stratify: Choice | None = None
    guessed: str = ""
    """What the user should look at with their own eyes."""

    @property
    def whole(self) -> bool:
        """Whether every row was looked at."""
        return self.rows == self.looked


def look(path: Path, most: int = MOST) -> Look:
    """Reads a file of rows of unknown shape. RowError where it can't be told what asks and what answers."""
    seen = Look(path)
    rows, seen.rows = _some(path, most)
    sound = [row for _, row in rows if not isinstance(row, str)]
    if not sound:
        first = rows[0] if rows else ("", "there are none")
        what, _, fix = str(first[1]).partition("; ")
        raise RowError(
            f"no row of {path.name} can be read: {what}", where=first[0] or str(path), fix=fix or _MEND
        )
    seen.columns = columns_of(sound)
    _how(seen, sound)
    _role(seen, sound)
    _sides(seen)
    seen.manner = replace(
        seen.manner,
        instruction_role=seen.role.value if seen.role else "user",
        group=seen.group.value if seen.group else None,
        stratify=seen.stratify.value if seen.stratify else None,
    )
    examples_of(seen, rows)
    if not seen.examples:
        raise RowError(f"no row of {path.name} can be used: {seen.bad[0]}", where=str(path), fix=_MEND)
    return seen


def examples_of(seen: Look, rows: Sequence[tuple[str, Row | str]]) -> None:
    """Fills in examples and bad rows."""
    seen.looked = len(rows)
    for place, row in rows:
        try:
            if isinstance(row, str):
                raise BadRow(row)
            seen.examples += row_examples(row, place, seen.manner)
        except BadRow as error:
            seen.bad.append(f"{place}: {error}")


def same_way(path: Path, seen: Look) -> Look | None:
    """Another file read as `seen` was; None where its rows can't be."""
    other = Look(path, manner=seen.manner)
    try:
        rows, other.rows = _some(path, MOST)
    except RowError:
        return None
    examples_of(other, rows)
    return other if len(other.examples) > len(other.bad) else None


def _some(path: Path, most: int) -> tuple[list[tuple[str, Row | str]], int]:
    """At most `most` rows, every row as likely as any other and the same ones every time; and the number of all."""
    draw = random.Random(0)
    kept: list[tuple[int, tuple[str, Row | str]]] = []
    total = 0
    for placed in read_rows(path):
        if total < most:
            kept.append((total, placed))
        elif (slot := draw.randrange(total + 1)) < most:
            kept[slot] = (total, placed)
        total += 1
    return [placed for _, placed in sorted(kept, key=lambda one: one[0])], total


# ---- how a row is read


def _how(seen: Look, rows: list[Row]) -> None:
    names = {column.name for column in seen.columns}
    if {"pmid", "title", "abstract", "mentions"} <= names:
        seen.manner = Manner(processor="annotated_abstract")
        seen.format = Choice("annotated_abstract", "annotated abstracts (PubTator): three rows each")
        return
    if {"sex", "service"} <= names and names & {"record", "note", "text"} and "instruction" not in names:
        seen.manner = Manner(processor="record_request")
        seen.format = Choice(
            "record_request", "records with sex and service: the request is written from them"
        )
        return
    if {"dialogue", "section_header", "section_text"} <= names:
        seen.manner = Manner(processor="visit_note")
        seen.format = Choice("visit_note", "conversations with a section of their note: heading and text")
        return
    known = format_of([("", row) for row in rows], Manner())
    if known != "auto":
        seen.manner = Manner(format=known)
        seen.format = Choice(known, _KNOWN[known])
        return
    name, mapping = _mapped(seen)
    seen.manner = Manner(format=name, columns=mapping)
    told = ", ".join(f"{key} is your {column!r}" for key, column in mapping.items())
    seen.format = Choice(name, told)


_KNOWN = {
    "instruction": "the columns instruction and output",
    "prompt_completion": "the columns prompt and completion",
    "messages": "the column messages: turns with role and content; each answer in them is learned",
    "sharegpt": "the column conversations (ShareGPT): each answer in them is learned",
    "preference": "the columns chosen and rejected: the chosen answer is learned, the other one kept beside it",
    "text": "plain text, all of it learned",
}


def _mapped(seen: Look) -> tuple[str, dict[str, str]]:
    """A format and data.columns, from names that are near misses, or by what is left."""
    texts = [one for one in seen.columns if one.is_text]
    sides = [one.name for one in _documents(seen) + _labels(seen)]
    answers = [one for one in called(seen.columns, ANSWERS) if one.rows > 0.5 * one.of]
    answer = next((one for one in answers if one.is_text or _holds_objects(seen, one)), None)
    asks = [one for one in called(texts, ORDERS) if one is not answer]
    contexts = [one for one in called(texts, CONTEXTS) if one is not answer and one not in asks]
    contexts = [one for one in contexts if one.is_prose or one.name not in sides]
    order, context = next(iter(asks), None), next(iter(contexts), None)
    if not order and not answer and (both := _q_and_a(texts)):
        order, answer = both
        context = None
    if answer and order and context:
        return "instruction", {"instruction": order.name, "input": context.name, "output": answer.name}
    ask = order or context
    left = [one for one in texts if one.is_prose and one not in (ask, answer) and one.name not in sides]
    if ask and not answer and len(left) == 1:
        answer = left[0]
        if answer.asks and ask is context and not ask.asks:
            raise _unclear(seen)  # a question, and beside it its answer or what it is about
        seen.guessed = f"no column is called an answer; {answer.name!r} is the only other one with sentences"
    elif answer and not ask and len(left) == 1:
        ask = left[0]
        seen.guessed = f"no column is called a question; {ask.name!r} is the only other one with sentences"
    elif not ask and not answer and len(left) == 2:
        ask, answer = sorted(left, key=lambda one: not one.asks)
        which = (
            f"{ask.name!r} holds questions"
            if ask.asks and not answer.asks
            else "which of them answers the other can't be seen"
        )
        seen.guessed = (
            f"{ask.name!r} and {answer.name!r} are the columns with sentences; {which}: "
            f"swap them in data.columns if {ask.name!r} answers"
        )
    if ask and answer:
        return "prompt_completion", {"prompt": ask.name, "completion": answer.name}
    only = ask or (left[0] if len(left) == 1 else None)
    if only and not answer and len(texts) == 1:
        return "text", {"text": only.name}
    raise _unclear(seen)


def _q_and_a(texts: list[Column]) -> tuple[Column, Column] | None:
    """`q` and, beside it, `a`, which may be an object with one text in it."""
    for one in texts:
        before, _, name = one.name.rpartition(".")
        beside = f"{before}.a" if before else "a"
        answers = [other for other in texts if other.name == beside or other.name.startswith(f"{beside}.")]
        if name == "q" and len(answers) == 1:
            return one, answers[0]
    return None


def _unclear(seen: Look) -> RowError:
    return RowError(
        f"{seen.path.name}: it can't be told which column asks and which one answers\n"
        f"  there are: {'; '.join(one.told for one in seen.columns[:20])}\n"
        "  looked for: instruction/output, prompt/completion, messages, conversations, chosen/rejected, text;\n"
        f"  a question or text called {', '.join(ORDERS[:6])}, {', '.join(CONTEXTS[:8])} …;\n"
        f"  an answer called {', '.join(ANSWERS[:8])} …; or exactly two columns with sentences",
        where=str(seen.path),
        fix="rename the columns, or copy a recipe from recipes/ and map yours in data.columns "
        "(data.processor takes a function of your own)",
    )


def _holds_objects(seen: Look, column: Column) -> bool:
    inside = f"{column.name}."
    return any(one.name.startswith(inside) for one in seen.columns)


# ---- what stands beside question and answer


def _role(seen: Look, rows: list[Row]) -> None:
    if seen.manner.format != "instruction":
        return
    mapping = seen.manner.columns or {}
    order, context = (mapping.get(key, key) for key in ("instruction", "input"))
    found = {one.name: one for one in seen.columns}
    asked, given = found.get(order), found.get(context)
    if asked is None or asked.distinct != 1 or len(rows) < _FEW:
        seen.role = Choice("user", "the instructions differ: each stands in its own turn")
    elif given is None or given.rows < len(rows):
        seen.role = Choice(
            "user", "the instruction is always the same, but some rows have no input beside it"
        )
    else:
        seen.role = Choice("system", "the instruction is the same in all rows: it becomes the system prompt")


def _documents(seen: Look) -> list[Column]:
    named = [one for one in called(seen.columns, DOCUMENTS) if is_document(one) and not one.is_prose]
    return named + [one for one in seen.columns if one not in named and is_identity(one)]


def _labels(seen: Look) -> list[Column]:
    return [one for one in called(seen.columns, LABELS) if is_label(one)]


def _sides(seen: Look) -> None:
    """Columns for data.split: what names a document, and what has shares to keep."""
    if seen.manner.processor == "annotated_abstract":
        seen.group = Choice("document", "the rows of one abstract stand on one side")
        seen.stratify = Choice("task", "each task has its share on both sides")
        return
    used = set((seen.manner.columns or {}).values()) | {
        "instruction",
        "input",
        "output",
        "prompt",
        "completion",
    }
    documents = [one for one in _documents(seen) if one.name not in used]
    if documents:
        one = documents[0]
        seen.group = Choice(
            one.name, f"{one.distinct} values in {one.rows} rows: rows of one {one.name} stand on one side"
        )
    labels = [one for one in _labels(seen) if one.name not in used and one not in documents[:1]]
    if labels:
        one = labels[0]
        seen.stratify = Choice(
            one.name, f"{one.distinct} kinds: each keeps its share, and has its own scores"
        )


def answers_of(seen: Look) -> list[str]:
    """The answers of the examples, empty ones too."""
    return [one.answer for one in seen.examples if one.answer is not None]


def repeated_prompts(first: Look, other: Look) -> int:
    """Rows of `other` whose prompt stands in `first`, to the letter."""
    known = Counter(one.prompt for one in first.examples if not one.is_text)
    return sum(one.prompt in known for one in other.examples if not one.is_text)
