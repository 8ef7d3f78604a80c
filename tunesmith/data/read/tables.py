"""Tables as text: .csv and .tsv, with the csv module's quoting."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from tunesmith.data.read.batch import Placed, RawBatch
from tunesmith.data.read.table_lines import TableLines
from tunesmith.errors import RowError

LONGEST = 1 << 27  # characters of a cell; the csv module's own limit of 131,072 is below a long record


@dataclass(frozen=True, slots=True)
class CellsBatch:
    """Rows as lists of cells."""

    name: str
    columns: list[str]
    cells: list[tuple[int, list[str] | str]]
    """Number of the row's first line, and its cells or what is wrong with it."""
    broken: dict[int, bytes]
    """The lines of rows that can't be read, by that number."""

    def rows(self) -> Iterator[Placed]:
        """Every cell is text; an empty one is empty text."""
        for number, cells in self.cells:
            row = cells if isinstance(cells, str) else dict(zip(self.columns, cells, strict=True))
            yield f"{self.name}:{number}", row


def read_csv(file: IO[bytes], name: str, size: int) -> Iterator[RawBatch]:
    """Commas; a cell with commas, quotes or line breaks stands in double quotes.

    Semicolons where the column names have some and no comma: so spreadsheets write it wherever 1,5 is a number.
    """
    head = file.readline(1 << 20)
    file.seek(0)
    return _read(file, name, size, ";" if b";" in head and b"," not in head else ",")


def read_tsv(file: IO[bytes], name: str, size: int) -> Iterator[RawBatch]:
    """Tabs; a cell with tabs, quotes or line breaks stands in double quotes, as spreadsheets write it."""
    return _read(file, name, size, "\t")


def _read(file: IO[bytes], name: str, size: int, delimiter: str) -> Iterator[RawBatch]:
    lines = TableLines(file)
    if csv.field_size_limit() < LONGEST:
        csv.field_size_limit(LONGEST)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: list[str] = []
    some: list[tuple[int, list[str] | str]] = []
    broken: dict[int, bytes] = {}
    while True:
        before = lines.number + 1
        lines.held.clear()
        try:
            row: list[str] | str = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            row = _told(error, lines.number - before + 1)
            if columns:
                lines.go_on(delimiter, len(columns))
        if lines.torn:
            row = f"not UTF-8 (line {lines.torn}); save the file as UTF-8"
            lines.torn = 0
        if not row or (len(row) == 1 and row[0].isspace() and len(columns) != 1):  # a blank line
            continue
        if not columns:
            if isinstance(row, str):
                what, _, fix = row.partition("; ")
                raise RowError(
                    f"the column names of {name} can't be read: {what}",
                    where=f"{name}:{before}",
                    fix=fix or "mend the first line: it names the columns",
                )
            columns = _columns(row, f"{name}:{before}", delimiter)
            continue
        if len(row) != len(columns) and not isinstance(row, str):
            row = f"{len(row)} cells, but there are {len(columns)} columns"
        if isinstance(row, str):
            broken[before] = b"".join(lines.held)
        some.append((before, row))
        if len(some) == size:
            yield CellsBatch(name, columns, some, broken)
            some, broken = [], {}
    if some:
        yield CellsBatch(name, columns, some, broken)


def _columns(names: list[str], place: str, delimiter: str) -> list[str]:
    empty = [number for number, column in enumerate(names, 1) if not column.strip()]
    if empty:
        raise RowError(
            f"column {empty[0]} of {len(names)} has no name",
            where=place,
            fix="the first line names every column",
        )
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise RowError(f"there are two columns {twice[0]!r}", where=place, fix="rename one of them")
    other = "\t" if delimiter == "," else ","
    if len(names) == 1 and other in names[0]:
        raise RowError(
            f"the columns are parted by {'tabs' if other != ',' else 'commas'}, which is not what the file's name says",
            where=place,
            fix=f"name it {'.tsv' if other != ',' else '.csv'}",
        )
    return names


def _told(error: csv.Error, lines: int) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "a quote is opened here and never closed"
    if "new-line character" in text:
        return "a bare carriage return outside quotes; save the file with \\n or \\r\\n at the ends of lines"
    if "expected after" in text:
        return (
            f"a quoted cell goes on after its closing quote (line {lines} of the row); "
            'a quote inside a quoted cell is written twice: ""'
        )
    return f"{text} (line {lines} of the row)"
