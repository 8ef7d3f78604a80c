"""Lines of a .csv or .tsv file, and where reading goes on after a row whose quotes are broken.

The csv module goes on at the line after an error, or takes all that follows an open quote for one cell. Either would
make rows that nobody wrote, or lose some. Here the lines that may belong to the broken row stay with it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import IO

SOUND = 5  # lines in a row that are rows by themselves: no accident of a text with delimiters in it
AHEAD = 200  # lines that are looked at for the end of a broken row


class TableLines:
    """Lines as text, split on b"\\n" alone. Remembers those of the row that is read, and one that is not UTF-8."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._again: deque[bytes] = deque()
        self.number = 0
        self.torn = 0
        self.held: list[bytes] = []
        """Lines since `held` was last emptied."""

    def __iter__(self) -> TableLines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._file)
        self.held.append(line)
        self.number += 1
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError:
            self.torn = self.torn or self.number
            return line.decode("utf-8", "replace")  # the row is refused; the lines after it are still read

    def go_on(self, delimiter: str, columns: int) -> None:
        """After an error: `held` keeps the lines of the broken row, the others are read again."""
        first = self.number - len(self.held)
        while len(self.held) < AHEAD:
            line = self._again.popleft() if self._again else next(self._file, b"")
            if not line:
                break
            self.held.append(line)
        count = broken_lines(self.held[:AHEAD], delimiter, columns)
        self._again.extendleft(reversed(self.held[count:]))
        del self.held[count:]
        self.number = first + count
        if self.torn > self.number:
            self.torn = 0


def broken_lines(lines: Sequence[bytes], delimiter: str, columns: int) -> int:
    """How many of the lines belong to the broken row that begins with the first of them.

    A line with an odd number of quotes opens a cell, or closes one: then it is the broken row's last. One that does
    neither is broken too, and all before it. SOUND lines in a row that are rows by themselves end it for certain.
    """
    whole, opens, closes = _forms(delimiter, columns)
    broken, sound = 1, 0
    for number, line in enumerate(lines[1:], 1):
        if line.count(b'"') % 2:
            if opens.fullmatch(line) and line.strip() != b'"':
                return broken
            broken, sound = number + 1, 0
            if closes.fullmatch(line):
                return broken
            continue
        sound = sound + 1 if whole.fullmatch(line) else 0
        if sound == SOUND:
            return number + 1 - SOUND
    return broken


def _forms(delimiter: str, columns: int) -> tuple[re.Pattern[bytes], ...]:
    """A line that is a row with all its columns; one whose last cell is opened; one that closes a cell."""
    mark = re.escape(delimiter.encode())
    inside = rb'(?:[^"]++|"")*+'
    cell = rb'(?:"%b"|[^"\r\n%b]*+)' % (inside, mark)
    whole = rb"%b(?:%b%b){%d}\r?\n?" % (cell, mark, cell, columns - 1)
    if columns == 1:
        whole = rb'"%b"\r?\n?' % inside  # any line of a text would do
    opens = rb'(?:%b%b)*+"%b' % (cell, mark, inside)
    closes = rb'%b"(?:%b%b)*+\r?\n?' % (inside, mark, cell)
    return re.compile(whole), re.compile(opens), re.compile(closes)
