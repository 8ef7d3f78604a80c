"""Plain text (.txt) for continued pre-training: a row a paragraph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from tunesmith.data.read.batch import Placed, RawBatch
from tunesmith.errors import RowError

LONGEST = 1 << 26  # bytes of a paragraph; more than that has no blank lines at all


@dataclass(frozen=True, slots=True)
class ParagraphsBatch:
    """Paragraphs as bytes, each with the number of its first line."""

    name: str
    paragraphs: list[tuple[int, bytes]]

    def rows(self) -> Iterator[Placed]:
        """{"text": paragraph}; line ends are \\n, blanks at both ends are gone."""
        for number, paragraph in self.paragraphs:
            place = f"{self.name}:{number}"
            try:
                text = paragraph.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                line = number + paragraph[: error.start].count(b"\n")
                yield place, f"not UTF-8 (line {line}); save the file as UTF-8"
                continue
            yield place, {"text": text.replace("\r\n", "\n").strip()}


def read_text(file: IO[bytes], name: str, size: int) -> Iterator[RawBatch]:
    """Blank lines part a text into rows, as paragraphs of a book: rows that a model's length can take.

    Lines inside a paragraph stay lines. A text whose documents hold blank lines goes into .jsonl, one
    {"text": …} a line. Nothing else parts: no form feed, no U+2028.
    """
    some: list[tuple[int, bytes]] = []
    for paragraph in paragraphs(file, name):
        some.append(paragraph)
        if len(some) == size:
            yield ParagraphsBatch(name, some)
            some = []
    if some:
        yield ParagraphsBatch(name, some)


def paragraphs(file: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Runs of lines that are not blank, each with the number of its first line."""
    lines: list[bytes] = []
    first = length = 0
    for number, line in enumerate(file, 1):
        if line.removeprefix(b"\xef\xbb\xbf").isspace():
            if lines:
                yield first, b"".join(lines)
                lines, length = [], 0
            continue
        if not lines:
            first = number
        lines.append(line)
        length += len(line)
        if length > LONGEST:
            raise RowError(
                f"a paragraph of {name} is over {LONGEST >> 20} MiB long",
                where=f"{name}:{first}",
                fix='part the text by blank lines, or write .jsonl with one {"text": …} a line',
            )
    if lines:
        yield first, b"".join(lines)
