"""The parts of a card that tables and lists are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.export.card.facts import Facts
from tunesmith.view.words import clock

MOST_METRICS = 12
_FIRST = re.compile(r" \(the first: .*\)", re.DOTALL)  # ids of rows may be somebody's name


def scores(facts: Facts) -> str:
    """Every system's scores with intervals."""
    report = facts.report
    if not report.get("scores"):
        return ""
    scores: Mapping[str, Mapping[str, Any]] = report["scores"]
    first = report["headline"]["metric"] if report.get("headline") else next(iter(scores["tuned"]))
    metrics = [first, *(name for name in scores["tuned"] if name != first)][:MOST_METRICS]
    told = report["systems"]
    lines = [
        [str(told.get(name, {}).get("shown", name)), *(_score(scores[name].get(m)) for m in metrics)]
        for name in scores
    ]
    exported = report.get("exported", {})
    differences = [
        f"- {told.get(name, {}).get('shown', name)}: {_signed(one)} in {first} against the live adapter"
        for name, one in exported.items()
    ]
    bootstrap = (
        f"{report['rows']:,} {report['split']} rows of {report['documents']:,} documents; in brackets the 95 % "
        "interval (bootstrap by document)."
    )
    own = (
        " These rows also chose the checkpoint, so the scores are too kind."
        if report.get("selected_on_scored_rows")
        else ""
    )
    table = _table(["system", *metrics], lines)
    return "\n".join([f"{bootstrap}{own}\n", table, *differences, ""])


def _score(one: Mapping[str, Any] | None) -> str:
    if one is None or one.get("value") is None:
        return "–"
    low, high = one.get("low"), one.get("high")
    between = "" if low is None or high is None else f" ({_short(low)} to {_short(high)})"
    return f"{_short(one['value'])}{between}"


def _signed(one: Mapping[str, Any]) -> str:
    return f"{one['value']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})"


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def limits(facts: Facts) -> str:
    """What the figures do not show, and what the report says to do next."""
    report, points = facts.report, []
    if report:
        points.append(
            f"Measured on {report['rows']:,} rows of the run's own {report['split']} split and one seed; "
            "other rows may score otherwise."
        )
        stopped = report.get("answers_stop", {}).get("tuned")
        if stopped is not None:
            points.append(
                f"{stopped:.1%} of the tuned answers ended by themselves within {facts.max_tokens} tokens."
            )
        points += [str(step["say"]) for step in report.get("next", []) if not step.get("quotes")]
    else:
        points.append("Nothing was scored: how well it answers is not known.")
    points.append(
        "Answers may be wrong. Nothing here shows that the model is fit for decisions about people."
    )
    return "".join(f"- {point}\n" for point in points)


def data(facts: Facts) -> str:
    """Counts, hashes, sources, split, leaks and licence of the rows."""
    rows, report = facts.rows, facts.report
    lines = [
        [
            name,
            f"{split['rows']:,}",
            f"{split['documents']:,}",
            f"{split['tokens']:,}",
            f"{split['learned_tokens']:,}",
        ]
        for name, split in rows.get("splits", {}).items()
    ]
    text = _table(["split", "rows", "documents", "tokens", "of them learned"], lines)
    hashes = report.get("data", {})
    points = [
        f"source: {source['name']}, {source['rows']:,} rows"
        + (f", revision {source['revision']}" if source.get("revision") else "")
        for source in rows.get("sources", [])
    ]
    points += (
        [f"sha256 of the prepared training rows: {hashes['train_sha256']}"]
        if hashes.get("train_sha256")
        else []
    )
    points += [f"sha256 of the scored rows: {hashes['sha256']}"] if hashes.get("sha256") else []
    points += [f"split: {report['split_rule']}"] if report.get("split_rule") else []
    points += [f"leaks, {where}: {_leak(found)}" for where, found in report.get("leaks", {}).items()]
    points.append(_data_licence(facts))
    return text + "\n" + "".join(f"- {point}\n" for point in points)


def _leak(found: Mapping[str, Any]) -> str:
    kinds = [f"{name} {found[name]['rows']}" for name in ("exact", "near", "group") if name in found]
    return f"of {found['of']} rows: {', '.join(kinds)}"


def _data_licence(facts: Facts) -> str:
    given = [facts.recipe.data.train, facts.recipe.data.validation, facts.recipe.data.test]
    if all(one in (None, "starter") for one in given):
        return "licence of the rows: generated reports, of tunesmith (Apache-2.0); no patient is behind them"
    return "licence of the rows: the run does not know it; name it before you pass this model on"


def training(facts: Facts) -> str:
    """How, on what and for how long."""
    environment, versions = facts.environment, facts.lock.get("versions", {})
    tune, train = facts.recipe.tune, facts.recipe.train
    state = facts.run.read_json(facts.run.path / "state.json")
    listed = {
        "method": facts.report.get("method") or tune.method,
        "base held in": facts.recipe.model.quantize
        if facts.recipe.model.quantize != "none"
        else facts.recipe.model.dtype,
        "steps": state.get("steps"),
        "examples a step": train.batch,
        "learning rate": train.learning_rate,
        "seed": facts.recipe.seed,
        "hardware": _hardware(environment),
        "time of the training steps": clock(facts.seconds) if facts.seconds is not None else None,
        "peak memory": f"{facts.peak_gib:.1f} GiB" if facts.peak_gib is not None else None,
        "versions": ", ".join(
            f"{name} {version}" for name, version in versions.items() if version != "absent"
        ),
        "sha256 of the trained weights": facts.adapter_sha256,
        "sha256 of base, contract": f"{facts.lock.get('rows', {}).get('base', '–')}, {facts.contract.sha256}",
    }
    return "".join(f"- {name}: {value}\n" for name, value in listed.items() if value not in (None, ""))


def _hardware(environment: Mapping[str, Any]) -> str:
    if not environment:
        return ""
    ranks = int(environment.get("ranks", 1))
    return f"{f'{ranks} × ' if ranks > 1 else ''}{environment['device']}"


def proofs(facts: Facts) -> str:
    """Each with its figure and limit."""
    proofs = facts.run.proofs()
    failed = [one["name"] for one in proofs if not one["passed"]]
    said = f"{len(proofs) - len(failed)} of {len(proofs)} hold" + (
        f"; not: {', '.join(failed)}" if failed else ""
    )
    lines = [
        [
            "holds" if one["passed"] else "**fails**",
            one["name"],
            _figure(one["figure"]),
            _figure(one["limit"]),
            _FIRST.sub("", one["detail"]),
        ]
        for one in proofs
    ]
    return (
        f"{said}.\n\n{_table(['', 'proof', 'figure', 'limit', 'what was compared'], lines)}" if proofs else ""
    )


def _figure(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def licence(facts: Facts) -> str:
    """The base's."""
    licence = facts.licence
    if not licence.id and not licence.files:
        return (
            f"The licence of {facts.base_name} is not known here: its folder holds neither a README.md that names it "
            "nor a LICENSE. This model may only be passed on under it.\n"
        )
    told = licence.name or licence.id or licence.files[0].name
    text = f"The base's licence holds for this model: {told}{f' ({licence.link})' if licence.link else ''}.\n"
    if licence.files:
        text += f"\nFiles of the base: {', '.join(path.name for path in licence.files)}.\n"
    if licence.notice:
        text += f"\n{licence.notice}\n"
    if licence.prefix:
        text += f"\nModels made from it have to have a name that begins with {licence.prefix}.\n"
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
