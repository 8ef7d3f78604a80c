"""`check --reject-to FILE`: bad rows go into FILE, and each source file that had some gets a copy without them.

Nothing is changed in place and nothing is overwritten; every row of a source ends in exactly one of the two.
Dates, decimals and bytes of a Parquet file become text there: JSON has none.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from datetime import date, time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tunesmith import console
from tunesmith.data.read.batch import LinesBatch, ParsedBatch, RawBatch, json_row
from tunesmith.data.read.files import read_batches
from tunesmith.data.read.plain_text import ParagraphsBatch
from tunesmith.data.read.pubtator import DocumentsBatch
from tunesmith.data.read.tables import CellsBatch
from tunesmith.data.row import Row
from tunesmith.data.sources import SPLITS, STARTER, SourceFile, resolve_sources
from tunesmith.errors import AccessError, RowError
from tunesmith.recipe import Data
from tunesmith.run import beside, disk_error

UNREADABLE = "unreadable"  # stands among the checks of a row that can't be read
_BOM = b"\xef\xbb\xbf"
_AGAIN = "check the kept rows again: what is usual is learned anew from them, so they may have findings of their own"
Reasons = dict[str, list[tuple[str, str]]]


def set_aside(data: Data, findings: Iterable[tuple[str, str, str]], target: Path) -> dict[str, Any]:
    """Writes `target` and the copies beside it, says what it did, and returns the counts.

    `findings`: (place, check, detail) of rows to set aside; of rows that can't be read the check is `unreadable`.
    Places are `name:number` as `read_batches` gives them. A line of `target`: {source, checks, details, row}, the
    row as it stood in its file (its text where it is no row). RowError or AccessError before anything is in place.
    """
    reasons: Reasons = {}
    for place, check, why in findings:
        reasons.setdefault(place, []).append((check, why))
    sources = resolve_sources(data)
    paths = list(dict.fromkeys(one.path for one in sources if one.path is not None))
    copies = _copies(paths, target)
    require_free(data, target)
    files: list[dict[str, Any]] = []
    with _Whole(target) as out:
        for path in paths:
            names = [one.name for one in sources if one.path == path]
            counts = _part(path, names, reasons, copies[path], out)
            files.append({"source": str(path), **counts, "kept_file": str(copies[path])})
            if not counts["rejected"]:
                out.drop(copies[path])
                files[-1]["kept_file"] = None
        _refuse_strangers(reasons, sources)
        made = {key: sum(one[key] for one in files) for key in ("rows", "kept", "rejected")}
        _check_counts(files, made, target, out)
        if made["rejected"]:
            require_free(data, target)
            out.finish()
    result = {"file": str(target), **made, "files": files, "set": _settings(sources, files)}
    console.say("\n".join(told(result)))
    return result


def require_free(data: Data, target: Path) -> None:
    """AccessError where `target` or a copy that may lie beside it is there already: told before any work."""
    if not target.parent.is_dir():
        raise AccessError(
            f"there is no folder {target.parent}",
            where="--reject-to",
            fix=f"mkdir -p {shlex.quote(str(target.parent))}",
        )
    sources = {one.path: one for one in resolve_sources(data) if one.path is not None}
    for path, made_of in [
        (target, None),
        *((copy, one) for one, copy in _copies([*sources], target).items()),
    ]:
        if not (path.exists() or path.is_symlink()):
            continue
        own = next((one for one in sources.values() if one.path and _same(one.path, path)), None)
        if path.is_dir():
            what = f"{path} is a folder"
        elif own:
            what = f"{path} holds your own rows (data.{own.split}), and is not overwritten"
        else:
            what = f"{path} is there already, and is not overwritten"
        if made_of is None:
            fix = "give --reject-to another name: of a file that is not there yet"
        else:
            what += f"; the rows of {made_of.name} that are kept would be written there"
            fix = "give --reject-to a file in another folder"
        raise AccessError(what, where="--reject-to", fix=fix)


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def told(result: dict[str, Any]) -> list[str]:
    """What `set_aside` did, in lines: in = out + rejected, file by file, and the words to go on with."""
    if not result["rejected"]:
        return [f"no row has to be set aside: {result['file']} is not written"]
    lines = []
    for one in result["files"]:
        line = f"{one['source']}: {one['rows']:,} rows = {one['kept']:,} kept + {one['rejected']:,} set aside"
        lines.append(line + (f", kept in {one['kept_file']}" if one["kept_file"] else ""))
    lines.append(
        f"{result['file']} holds the {result['rejected']:,} set aside, each with its reasons; go on with"
    )
    lines += [f"  --set {one}" for one in result["set"]]
    return [*lines, _AGAIN]


def _part(path: Path, names: list[str], reasons: Reasons, copy: Path, out: _Whole) -> dict[str, int]:
    """Each row of one file goes to `copy` or to the target; `reasons` loses what was found."""
    counts = {"rows": 0, "kept": 0, "rejected": 0}
    for batch in read_batches(path, name=names[0]):
        for place, row, raw in _rows(batch):
            counts["rows"] += 1
            number = place.rpartition(":")[2]
            why = [one for name in names for one in reasons.pop(f"{name}:{number}", ())]
            if isinstance(row, str) and not any(check == UNREADABLE for check, _ in why):
                why.append((UNREADABLE, row))
            if why:
                counts["rejected"] += 1
                out.write(out.target, _told_apart(place, why, row, raw))
            else:
                counts["kept"] += 1
                out.write(copy, raw + b"\n")
    return counts


def _rows(batch: RawBatch) -> Iterator[tuple[str, Row | str, bytes]]:
    """(place, row or what is wrong with it, its bytes). Lines of JSON keep theirs; other rows become a line of JSON."""
    if isinstance(batch, LinesBatch):
        for number, line in enumerate(batch.lines.split(b"\n"), batch.first):
            if line and not line.isspace():
                yield f"{batch.name}:{number}", json_row(line, first=number == 1), line
        return
    texts: dict[int, bytes] = {}
    if isinstance(batch, ParagraphsBatch):
        texts = dict(batch.paragraphs)
    elif isinstance(batch, DocumentsBatch):
        texts = dict(batch.documents)
    elif isinstance(batch, CellsBatch):
        texts = batch.broken
    elif isinstance(batch, ParsedBatch):
        texts = {number: _json(item) for number, item in batch.parsed if not isinstance(item, dict)}
    for place, row in batch.rows():
        raw = texts.get(int(place.rpartition(":")[2]), b"") if isinstance(row, str) else _json(row)
        yield place, row, raw


def _told_apart(place: str, why: list[tuple[str, str]], row: Row | str, raw: bytes) -> bytes:
    head = {
        "source": place,
        "checks": list(dict.fromkeys(check for check, _ in why)),
        "details": list(dict.fromkeys(detail for _, detail in why)),
    }
    text = raw.removeprefix(_BOM).strip()
    if isinstance(row, str):
        text = _json(text.decode("utf-8", "backslashreplace")) if text else b"null"
    return _json(head)[:-1] + b', "row": ' + text + b"}\n"


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, default=_text).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(value, default=_text).encode()


def _text(value: Any) -> str:
    """What a Parquet file holds and JSON does not."""
    if isinstance(value, date | time):
        return value.isoformat()
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


# ---- files


class _Whole:
    """Files that appear together at the end, or not at all."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self._open: dict[Path, tuple[Path, IO[bytes]]] = {}

    def __enter__(self) -> _Whole:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in list(self._open):
            self.drop(path)
        if isinstance(error, PermissionError):
            raise AccessError(
                "may not be written", where=str(self.target.parent), fix="give --reject-to another folder"
            ) from None
        if isinstance(error, OSError) and (told := disk_error(error, self.target)):
            raise told from None

    def write(self, path: Path, content: bytes) -> None:
        """Adds to what `path` will hold."""
        if path not in self._open:
            temporary = beside(path)
            self._open[path] = temporary, temporary.open("xb")
        self._open[path][1].write(content)

    def lines(self, path: Path) -> int:
        """Lines that `path` will hold, counted on the disk."""
        if path not in self._open:
            return 0
        temporary, file = self._open[path]
        file.flush()
        with temporary.open("rb") as written:
            return sum(block.count(b"\n") for block in iter(lambda: written.read(1 << 20), b""))

    def drop(self, path: Path) -> None:
        """Forgets a file that was to be written."""
        if path in self._open:
            temporary, file = self._open.pop(path)
            file.close()
            temporary.unlink(missing_ok=True)

    def finish(self) -> None:
        """Puts every file in its place, the target last."""
        for path in sorted(self._open, key=lambda path: path == self.target):
            temporary, file = self._open[path]
            file.flush()
            os.fsync(file.fileno())
            file.close()
            temporary.replace(path)
            del self._open[path]


def _copies(paths: list[Path], target: Path) -> dict[Path, Path]:
    """Where the kept rows of each source go: `train.csv` → `train.kept.jsonl` in the target's folder."""
    copies: dict[Path, Path] = {}
    for path in paths:
        stem = Path(path.name.removesuffix(".gz")).stem
        number, copy = 1, target.with_name(f"{stem}.kept.jsonl")
        while copy in (*copies.values(), target):
            number += 1
            copy = target.with_name(f"{stem}-{number}.kept.jsonl")
        copies[path] = copy
    return copies


def _refuse_strangers(reasons: Reasons, sources: list[SourceFile]) -> None:
    """Every finding has met its row, or is told: generated rows have no file to take them out of."""
    if not reasons:
        return
    starters = {one.name for one in sources if one.path is None}
    place = next(iter(reasons))
    if place.rpartition(":")[0] in starters:
        raise RowError(
            f"{len(reasons)} rows of the starter can't be set aside: they are generated, in no file",
            where=place,
            fix=f"data.checks: {{{reasons[place][0][0]}: warn}}",
        )
    raise AssertionError(f"{len(reasons)} findings name rows that no source has, the first {place!r}")


def _check_counts(files: list[dict[str, Any]], made: dict[str, int], target: Path, out: _Whole) -> None:
    for one in files:
        if not one["kept"]:
            raise RowError(
                f"all {one['rows']:,} rows of {one['source']} would be set aside: nothing is written",
                where=one["source"],
                fix="it is rather the recipe that has to change: look at data.format, data.columns, data.checks",
            )
        kept = out.lines(Path(one["kept_file"])) if one["kept_file"] else one["kept"]
        if one["rows"] != kept + one["rejected"] or kept != one["kept"]:
            raise AssertionError(
                f"{one['source']}: {one['rows']} rows, but {kept} kept + {one['rejected']} rejected"
            )
    if out.lines(target) != made["rejected"]:
        raise AssertionError(f"{out.lines(target)} rows written, {made['rejected']} rejected")


# ---- what to type next


def _settings(sources: list[SourceFile], files: list[dict[str, Any]]) -> list[str]:
    """`data.train=…` for each split with a file that has a copy now, ready for a shell."""
    copies = {one["source"]: one["kept_file"] for one in files if one["kept_file"]}
    made = []
    for split in SPLITS:
        own = [one for one in sources if one.split == split]
        if not any(str(one.path) in copies for one in own):
            continue
        named = [(copies.get(str(one.path), str(one.path or STARTER)), one.weight) for one in own]
        if len(named) == 1 and named[0][1] == 1:
            path = named[0][0]
            value = path if re.fullmatch(r"[A-Za-z0-9./_][\w./ -]*", path) else json.dumps(path)
        else:
            value = json.dumps(
                [{"path": path} | ({} if weight == 1 else {"weight": weight}) for path, weight in named]
            )
        made.append(shlex.quote(f"data.{split}={value}"))
    return made
