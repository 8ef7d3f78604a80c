"""Files of rows, streamed: what kind a file is, its rows in batches, and what is said where it can't be read.

    .jsonl       one JSON object a line
    .json        an array of objects, or {"data": [ … ]}
    .csv .tsv    a line of column names, then a row each
    .parquet     columns
    .txt         plain text; a PubTator file where its first line is one's
    .pubtator    annotated abstracts
All but .parquet may be compressed as .gz. Text is UTF-8.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, NoReturn, cast

from tunesmith.data.read.batch import LinesBatch, Placed, RawBatch
from tunesmith.data.read.json_array import read_json
from tunesmith.data.read.parquet import read_parquet
from tunesmith.data.read.plain_text import read_text
from tunesmith.data.read.pubtator import looks_annotated, read_pubtator
from tunesmith.data.read.tables import read_csv, read_tsv
from tunesmith.errors import AccessError, RowError
from tunesmith.lookup import nearest

__all__ = ["KINDS", "RawBatch", "file_kind", "read_batches", "read_rows"]

BATCH = 512  # rows that travel to a worker together

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # what such a file begins with; no UTF-8 does

Reader = Callable[[IO[bytes], str, int], Iterator[RawBatch]]


def read_lines(file: IO[bytes], name: str, size: int) -> Iterator[RawBatch]:
    """JSON Lines, split on b"\\n" alone."""
    first = 1
    while lines := list(islice(file, size)):
        if first == 1 and lines[0].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            raise RowError(
                f"{name} is one JSON array",
                where=f"{name}:1",
                fix="write one JSON object a line, or name it .json",
            )
        yield LinesBatch(name, first, b"".join(lines))
        first += len(lines)


def read_plain(file: IO[bytes], name: str, size: int) -> Iterator[RawBatch]:
    """A .txt file: PubTator where it looks like one."""
    head = file.read(1 << 12)
    file.seek(0)
    return (read_pubtator if looks_annotated(head) else read_text)(file, name, size)


KINDS: dict[str, Reader] = {
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".txt": read_plain,
    ".pubtator": read_pubtator,
}


def read_batches(path: Path, size: int = BATCH, name: str | None = None) -> Iterator[RawBatch]:
    """The rows of a file, about `size` at a time, in order. `name` stands for the file in places (`name:line`).

    AccessError where the file can't be read; RowError where it is no file of its kind, or holds no rows.
    """
    name = name or path.name
    reader = KINDS[file_kind(path)]
    some = False
    with _opened(path, name) as file:
        for batch in reader(file, name, size):
            if isinstance(batch, LinesBatch) and batch.lines.removeprefix(b"\xef\xbb\xbf").isspace():
                continue
            some = True
            yield batch
    if not some:
        raise RowError(f"{name} holds no rows", where=str(path), fix="check that it is the right file")


def read_rows(path: Path, name: str | None = None) -> Iterator[Placed]:
    """Each row of a file with its place; a str says why a row can't be parsed."""
    for batch in read_batches(path, name=name):
        yield from batch.rows()


def file_kind(path: Path) -> str:
    """The key of KINDS that the name ends with. RowError where it ends with none."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in KINDS and not (suffix == ".parquet" and path.name.lower().endswith(".gz")):
        return suffix
    if path.is_dir():
        raise AccessError(f"{path} is a folder", fix=f"give a file ({', '.join(KINDS)})")
    if not path.exists():
        _no_file(path)
    raise RowError(
        f"{path.name} is of no known kind: its name ends with {suffix or 'nothing'}",
        where=str(path),
        fix=f"known are {', '.join(KINDS)}, all but .parquet also with .gz; rename the file",
    )


@contextmanager
def _opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    if not path.exists():
        _no_file(path)
    if path.is_dir():
        raise AccessError(f"{path} is a folder", fix=f"give a file ({', '.join(KINDS)})")
    packed = path.name.lower().endswith(".gz")
    try:
        with cast(IO[bytes], gzip.open(path)) if packed else path.open("rb") as file:
            if file.read(2) in _UTF_16:
                raise RowError(
                    f"{name} is UTF-16, not UTF-8",
                    where=str(path),
                    fix="save the file as UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW",
                )
            file.seek(0)
            yield file
    except PermissionError:
        raise AccessError(f"{path} may not be read", fix=f"chmod u+r {path}") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise RowError(
            f"{name} is no whole gzip file: {error}", where=str(path), fix="copy or download it again"
        ) from None
    except OSError as error:
        raise AccessError(f"{path} can't be read: {error.strerror or error}", where=str(path)) from None


def _no_file(path: Path) -> NoReturn:
    near = nearest(path.name, [one.name for one in path.parent.glob("*")] if path.parent.is_dir() else [])
    raise AccessError(
        f"there is no file {path}" + (f"; did you mean {path.parent / near}?" if near else ""),
        fix="paths are relative to the folder that you run in",
    )
