"""PubTator files: abstracts with annotated mentions and relations (the BioCreative V CDR corpus's form).

9000001|t|Zoral and rash …
9000001|a|We saw rash after …
9000001<TAB>0<TAB>5<TAB>Zoral<TAB>Chemical<TAB>C000001
9000001<TAB>CID<TAB>C000001<TAB>D000002
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from tunesmith.data.read.batch import Placed, RawBatch
from tunesmith.data.read.plain_text import paragraphs
from tunesmith.tasks.annotated.mentions import concept_id, concept_ids

_TITLE = re.compile(rb"(?:\xef\xbb\xbf)?\s*[\w.:-]+\|t\|")


@dataclass(frozen=True, slots=True)
class DocumentsBatch:
    """Documents as bytes, each with the number of its first line."""

    name: str
    documents: list[tuple[int, bytes]]

    def rows(self) -> Iterator[Placed]:
        """pmid, title, abstract, mentions [{start, end, text, type, ids}], relations [{type, arguments}]."""
        for number, document in self.documents:
            yield f"{self.name}:{number}", parse_document(document, number)


def looks_annotated(head: bytes) -> bool:
    """Whether a text file begins as a PubTator file does."""
    return _TITLE.match(head) is not None


def read_pubtator(file: IO[bytes], name: str, size: int) -> Iterator[RawBatch]:
    """Documents are parted by blank lines."""
    size = max(1, size // 8)  # a document is as long as several rows
    some: list[tuple[int, bytes]] = []
    for document in paragraphs(file, name):
        some.append(document)
        if len(some) == size:
            yield DocumentsBatch(name, some)
            some = []
    if some:
        yield DocumentsBatch(name, some)


class _Broken(Exception):
    """What is wrong with a document."""


def parse_document(document: bytes, first: int) -> dict[str, Any] | str:
    """One document, or what is wrong with it: an offset that does not hold its text makes all of it worthless.

    Offsets count characters of title, one space, abstract. A composite mention ("A|B") has several ids; one that is
    in no vocabulary (-1) has none.
    """
    try:
        text = document.decode("utf-8-sig" if first == 1 else "utf-8")
    except UnicodeDecodeError as error:
        torn = first + document[: error.start].count(b"\n")
        return f"not UTF-8 (line {torn}); save the file as UTF-8"
    row: dict[str, Any] = {"pmid": "", "title": "", "abstract": "", "mentions": [], "relations": []}
    whole = None
    try:
        for number, whole_line in enumerate(text.rstrip("\n").split("\n"), first):
            line = whole_line.rstrip("\r")
            head = line.split("|", 2)
            if len(head) == 3 and head[1] in ("t", "a") and "\t" not in head[0]:
                _text(row, head, number)
                continue
            if whole is None:
                whole = f"{row['title']} {row['abstract']}"
            _annotation(row, line.split("\t"), whole, number)
    except _Broken as error:
        return str(error)
    if not row["title"] and not row["abstract"]:
        return "a document without title (…|t|…) and abstract (…|a|…)"
    return row


def _text(row: dict[str, Any], head: list[str], number: int) -> None:
    pmid, part, content = head
    name = "title" if part == "t" else "abstract"
    if row["mentions"] or row["relations"]:
        raise _Broken(f"line {number}: the {name} has to stand before the annotations")
    if row["pmid"] not in ("", pmid):
        raise _Broken(
            f"line {number} is of document {pmid}, not {row['pmid']}: part documents by a blank line"
        )
    if row[name]:
        raise _Broken(f"line {number}: a second {name}")
    row["pmid"], row[name] = pmid, content


def _annotation(row: dict[str, Any], cells: list[str], whole: str, number: int) -> None:
    if cells[0] != row["pmid"]:
        raise _Broken(f"line {number} is of document {cells[0]!r}, not {row['pmid']!r}")
    if len(cells) >= 5 and cells[1].isdecimal() and cells[2].isdecimal():
        start, end, text, kind = int(cells[1]), int(cells[2]), cells[3], cells[4]
        found = whole[start:end]
        if found != text:
            raise _Broken(f"line {number}: {text!r} is not at {start} to {end}; there is {found!r}")
        ids = concept_ids(cells[5]) if len(cells) > 5 else []
        row["mentions"].append({"start": start, "end": end, "text": text, "type": kind, "ids": ids})
    elif len(cells) >= 4 and not cells[1].isdecimal():  # predictions add a score
        row["relations"].append({"type": cells[1], "arguments": [concept_id(cells[2]), concept_id(cells[3])]})
    else:
        raise _Broken(
            f"line {number} is neither a mention (document, start, end, text, type, ids) "
            "nor a relation (document, type, id, id), parted by tabs"
        )
