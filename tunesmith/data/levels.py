"""What findings mean: the recipe's level of each check, and the errors that end check and run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.data.inspect.finding import levels
from tunesmith.errors import RowCheckFailed, RowError
from tunesmith.recipe import Data, Recipe


def relevelled(report: Mapping[str, Any], data: Data) -> dict[str, Any]:
    """The report with this recipe's levels: a preparation may have been made for a recipe with others."""
    inspection = report["inspection"]
    level = levels(data.checks, inspection["chat"])
    checks = [check | {"level": level[check["name"]]} for check in inspection["checks"]]
    overlong = report["overlong"] | {"stops": bool(report["overlong"]["rows"]) and data.overlong != "drop"}
    return {**report, "overlong": overlong, "inspection": {**inspection, "checks": checks}}


def verdict(recipe: Recipe, report: Mapping[str, Any], findings: Path, listed: bool = False) -> None:
    """RowError (exit 2) where rows can't be read or are too long, RowCheckFailed (exit 3) where a check of level error
    found rows or the scored rows can't be scored; warns where rows were left out or cut.

    `findings`: the file that lists every row; `listed`: what was found stands on the screen already.
    """
    _refused(report)
    if report["left_out"]:
        rows = sum(source["rows"] for source in report["sources"])
        console.warn(f"{recipe.data.processor} left out {report['left_out']} of {rows} rows")
    _overlong(recipe.data, report)
    _found(report, findings, listed)
    if unscorable := report.get("unscorable"):
        raise RowCheckFailed(unscorable["what"], where=unscorable["where"], fix=unscorable["fix"])
    empty = [name for name, counts in report["splits"].items() if not counts["rows"]]
    if empty:
        raise RowError(f"no {empty[0]} rows are left", where=f"data.{empty[0]}", fix="raise data.max_length")


def _refused(report: Mapping[str, Any]) -> None:
    if refused := report["refused"]:
        raise RowError(
            "\n".join(one["what"] for one in refused),
            where=refused[0]["where"],
            fix=refused[0]["fix"] + "; `tunesmith check RECIPE --reject-to rejected.jsonl` sets them aside",
        )


def _overlong(data: Data, report: Mapping[str, Any]) -> None:
    long = report["overlong"]
    if cut := report["trimmed"]["rows"]:
        console.warn(
            f"the context of {cut:,} rows was cut at its front to fit data.max_length: {data.max_length:,} "
            f"({report['trimmed']['tokens']:,} tokens)"
        )
    if not long["rows"]:
        return
    if data.overlong == "drop":
        place, tokens = max(long["first"], key=lambda one: one[1])
        console.warn(
            f"{long['rows']:,} of {long['of']:,} rows are left out: over {data.max_length:,} tokens, "
            f"as {place} with {tokens:,}"
        )
        return
    listing = "\n".join(f"  {place}: {tokens} tokens" for place, tokens in long["first"])
    more = f"\n  … and {long['rows'] - len(long['first'])} more" if long["rows"] > len(long["first"]) else ""
    beyond = (
        " and have no context that could be cut, or hardly any would be left"
        if data.overlong == "trim_context"
        else ""
    )
    raise RowError(
        f"{long['rows']} of {long['of']} rows are longer than data.max_length: {data.max_length}{beyond}\n"
        f"{listing}{more}",
        where="data.max_length",
        fix=f"data.max_length: {long['longest']} takes them all; data.overlong: drop leaves them out",
    )


def _found(report: Mapping[str, Any], findings: Path, listed: bool) -> None:
    failed = [one for one in report["inspection"]["checks"] if one["level"] == "error" and one["rows"]]
    if not failed:
        return
    lines = []
    for check in () if listed else failed:
        lines.append(f"  {check['name']}: {check['rows']} of {check['of']} rows. {check['meaning']}")
        lines += [f"    {one['source']}: {one['detail']}" for one in check["examples"][:3]]
    names, levels = (", ".join(f"{check['name']}{level}" for check in failed) for level in ("", ": warn"))
    raise RowCheckFailed(
        "\n".join([f"data checks of level error found rows: {names}", *lines]),
        where=f"every row is in {findings}",
        fix="mend these rows; or set them aside: tunesmith check RECIPE --reject-to rejected.jsonl; "
        f"or let them pass: data.checks: {{{levels}}}",
    )
