"""table: the logged steps of one or more runs as CSV or JSON, for another program."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.run import write_atomic
from tunesmith.verbs.plot import named, writable
from tunesmith.view.logged import logged
from tunesmith.view.sources import look_at


def table(names: Sequence[str], runs_dir: str | Path, form: str, out: Path | None) -> dict[str, Any]:
    """Writes the table to `out`, or to stdout. `form` is csv or json; every number reads back as the same number."""
    if out is not None:
        writable(out)
    with look_at(names, runs_dir) as sources:
        columns, rows = logged(named(sources))
    text = _csv(columns, rows) if form == "csv" else _json(columns, rows)
    if out is None:
        console.say(text.removesuffix("\n"))
    else:
        write_atomic(out, text.encode())
        console.say(f"{len(rows)} rows: {out}")
    return {"rows": len(rows), "columns": columns} | ({} if out is None else {"out": str(out)})


def _csv(columns: list[str], rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        [row.get(name) for name in columns] for row in rows
    )  # a float by its shortest exact form
    return buffer.getvalue()


def _json(columns: list[str], rows: list[dict[str, Any]]) -> str:
    lines = [json.dumps({name: row.get(name) for name in columns}, ensure_ascii=False) for row in rows]
    return "[" + ",".join(f"\n{line}" for line in lines) + "\n]\n"
