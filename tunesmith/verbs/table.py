"""table: the logged steps of one or more runs as CSV or JSON, for another program."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.run import require_writable, write_atomic
from tunesmith.verbs.plot import named, require_steps
from tunesmith.view.logged import logged
from tunesmith.view.sources import look_at


def table(names: Sequence[str], runs_dir: str | Path, form: str | None, out: Path | None) -> dict[str, Any]:
    """Writes the table to `out`, or to stdout; every number reads back as the same number.

    `form`: csv or json; None: json into a file that ends so, csv elsewhere.
    """
    form = form or ("json" if out is not None and out.suffix.lower() == ".json" else "csv")
    with look_at(names, runs_dir) as sources:
        runs = named(sources)
        columns, rows = logged(runs)
    with_steps = {row["run"] for row in rows}
    require_steps({name: name in with_steps for name in runs})
    if out is not None:
        require_writable(out)
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
