"""JSON files: an array of objects, or one object with the array under `data`; read piece by piece."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from tunesmith.data.read.batch import LinesBatch, ParsedBatch, RawBatch
from tunesmith.errors import RowError

PIECE = 1 << 20  # bytes read at once
_BLANK = " \t\n\r"
_decode = json.JSONDecoder().raw_decode


def read_json(file: IO[bytes], name: str, size: int) -> Iterator[RawBatch]:
    """Rows are numbered from 1. A broken file ends the reading: nothing after the break can be trusted.

    JSON Lines under the name .json, as many data sets have it, are read as such.
    """
    if _is_lines(file):
        return _lines(file, name, size)
    return _batches(_items(_Window(file, name)), name, size)


def _is_lines(file: IO[bytes]) -> bool:
    """Whether the first line is a whole object and something comes after it."""
    first = file.readline(1 << 24).removeprefix(b"\xef\xbb\xbf").strip()
    more = file.read(1 << 10).strip()
    file.seek(0)
    if not (first.startswith(b"{") and more):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(file: IO[bytes], name: str, size: int) -> Iterator[RawBatch]:
    number, some = 1, []
    for line in file:
        some.append(line)
        if len(some) == size:
            yield LinesBatch(name, number, b"".join(some))
            number, some = number + len(some), []
    if some:
        yield LinesBatch(name, number, b"".join(some))


def _batches(items: Iterator[Any], name: str, size: int) -> Iterator[RawBatch]:
    some: list[tuple[int, Any]] = []
    for number, item in enumerate(items, 1):
        some.append((number, item))
        if len(some) == size:
            yield ParsedBatch(name, some)
            some = []
    if some:
        yield ParsedBatch(name, some)


class _Window:
    """A stretch of the text that moves on over the file."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self.name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._read = 0  # bytes
        self._line, self._before = (
            1,
            0,
        )  # of the first character of `text`: its line, and what stands before it there
        self.text, self.at, self.ended = "", 0, False

    def more(self) -> None:
        """Lets go of what was read and takes as much again as is held, one PIECE at least."""
        self._line, self._before = self._place(self.at)
        self.text = self.text[self.at :]
        self.at = 0
        piece = self._file.read(max(PIECE, len(self.text)))
        self.ended = not piece
        try:
            self.text += self._decoder.decode(piece, final=self.ended)
        except UnicodeDecodeError as error:
            raise RowError(
                f"{self.name} is not UTF-8 (near byte {self._read + error.start})",
                where=self.name,
                fix="save the file as UTF-8",
            ) from None
        self._read += len(piece)

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _BLANK:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.more()

    def take(self, wanted: str, among: str) -> str:
        """Steps over one of the `wanted` characters."""
        found = self.peek()
        if not found or found not in wanted:
            self.refuse(f"{among} is expected" + (f", not {found!r}" if found else ", but the file ends"))
        self.at += 1
        return found

    def value(self) -> Any:
        """The JSON value that begins here."""
        self.peek()
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if not self.ended and _may_be_cut(error, len(self.text)):
                    self.more()
                    continue
                self.at = error.pos
                self.refuse(f"broken JSON: {error.msg}")
            except (ValueError, RecursionError) as error:
                self.refuse(f"JSON that can't be read: {str(error).split(';')[0]}")
            if end == len(self.text) and not self.ended:
                self.more()  # a number may go on
                continue
            self.at = end
            return value

    def _place(self, at: int) -> tuple[int, int]:
        """The line of a character of `text`, and how many stand before it there."""
        breaks = self.text.count("\n", 0, at)
        if breaks:
            return self._line + breaks, at - self.text.rfind("\n", 0, at) - 1
        return self._line, self._before + at

    def refuse(self, what: str) -> NoReturn:
        """Raises the RowError that says where reading ended."""
        line, before = self._place(min(self.at, len(self.text)))
        raise RowError(
            f"{self.name} can't be read as JSON: {what} (line {line}, character {before + 1})",
            where=f"{self.name}:{line}",
            fix="mend the file, or write one JSON object a line (.jsonl): then only the broken rows are named",
        )


def _may_be_cut(error: json.JSONDecodeError, length: int) -> bool:
    """Whether the text may have ended in the middle of what can't be read: not where the break is well before."""
    return error.pos > length - 16 or error.msg.startswith("Unterminated string")


def _items(window: _Window) -> Iterator[Any]:
    opening = window.peek()
    if opening == "{":
        _enter_data(window)
    elif opening != "[":
        if opening:
            window.refuse("an array of objects is expected")
        return
    window.take("[", "an array of objects")
    if window.peek() == "]":
        window.take("]", "the array's end")
    else:
        while True:
            yield window.value()
            if window.take(",]", "a comma or the array's end") == "]":
                break
            if window.peek() == "]":
                window.refuse("a comma before the array's end")
    if opening == "{":
        _leave_data(window)
    if found := window.peek():
        window.refuse(f"nothing may follow the rows, but there is {found!r}")


def _enter_data(window: _Window) -> None:
    """Steps over what stands before the array under `data`."""
    window.take("{", "an object")
    others: list[str] = []
    while window.peek() != "}":
        key = window.value()
        window.take(":", "a colon")
        if key == "data" and window.peek() == "[":
            return
        window.value()
        others.append(str(key))
        if window.take(",}", "a comma or the object's end") == "}":
            break
    raise RowError(
        f"{window.name} is one object without an array under 'data' (it has {', '.join(others[:8]) or 'nothing'})",
        where=window.name,
        fix="write an array of objects, or one object a line (.jsonl)",
    )


def _leave_data(window: _Window) -> None:
    """Steps over what stands behind the array under `data`; rows that would be lost there are refused."""
    while window.take(",}", "a comma or the object's end") == ",":
        if window.peek() != '"':
            window.refuse("a key is expected")
        if window.value() == "data":
            window.refuse("there is a second 'data'")
        window.take(":", "a colon")
        window.value()
