"""Some rows of a file, not parsed yet: cheap to send to another process, which parses them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.data.row import Row, kind

Placed = tuple[str, Row | str]
"""("train.jsonl:12", the row, or what is wrong with it)."""


class RawBatch(Protocol):
    """Picklable; parses where it is read."""

    def rows(self) -> Iterator[Placed]:
        """Each row with its place, in the order of the file; a str says why a row can't be parsed."""
        ...


@dataclass(frozen=True, slots=True)
class LinesBatch:
    """Lines of JSON, as bytes. Blank ones are no rows, but count as lines."""

    name: str
    first: int
    """Number of the first line."""
    lines: bytes

    def rows(self) -> Iterator[Placed]:
        """Splits on b"\\n" alone: U+0085, U+2028 and form feeds are text."""
        lines = self.lines.split(b"\n")
        for number, line in enumerate(lines, self.first):
            if line and not line.isspace():
                yield f"{self.name}:{number}", json_row(line, first=number == 1)


@dataclass(frozen=True, slots=True)
class ParsedBatch:
    """Rows whose reader had to parse them to find where they end."""

    name: str
    parsed: list[tuple[int, Any]]
    """Number of the row, and what stands there."""

    def rows(self) -> Iterator[Placed]:
        """Those that are objects."""
        for number, row in self.parsed:
            yield f"{self.name}:{number}", row if isinstance(row, dict) else no_object(row)


def json_row(line: bytes, first: bool = False) -> Row | str:
    """The object that a line of JSON holds, or what is wrong with the line."""
    try:
        row = json.loads(line.rstrip().decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte {error.start} of the line); save the file as UTF-8"
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and b"\r" in line.rstrip():
            return "rows parted by a bare carriage return; save the file with \\n at the ends of lines"
        return f"broken JSON at character {error.colno}: {error.msg}"
    except (ValueError, RecursionError) as error:
        # a number of thousands of digits; brackets thousands deep
        return f"JSON that can't be read: {str(error).split(';')[0]}"
    return row if isinstance(row, dict) else no_object(row)


def no_object(value: object) -> str:
    """What is said of a row that is something else."""
    return f"a JSON object is needed, not {kind(value)}"
