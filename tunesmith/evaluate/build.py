"""Counts of several systems → the part of report.json that comes from scores alone. Pure: no model, no torch.

One draw of documents serves every system, metric and difference of a set of rows: the whole, and each slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.evaluate.analysis import analyse
from tunesmith.evaluate.score import FIRST, LIKELIHOOD_MEANING, Systems, headline_of, metrics_of
from tunesmith.evaluate.slices import slices
from tunesmith.statistics import DRAWS, Drawn, mcnemar, sign_test
from tunesmith.tasks.answered import lower_is_better, scale_of
from tunesmith.tasks.own_task import blamed
from tunesmith.tasks.score import Scored
from tunesmith.tasks.sums import Metric

_INTERVAL = (
    "95 %, expanded percentile (tails of Student's t for the effective number of documents); "
    "Clopper-Pearson over documents where a share is 0 (or 1) in every one"
)


def build(systems: Systems, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """The keys: task, rows, documents, bootstrap, systems, headline, scores, differences, slices, tables, …"""
    with blamed(systems.task):
        return _built(systems, draws, seed)


def _built(systems: Systems, draws: int, seed: int) -> dict[str, Any]:
    task = systems.task
    content: dict[str, Any] = {
        "task": task.name,
        "rows": len(systems.documents),
        "documents": len(set(systems.documents)),
        "bootstrap": {"draws": draws, "seed": seed, "unit": "document", "interval": _INTERVAL, "n": "rows"},
        "systems": {name: systems.about(name).to_json() for name in systems.scored},
    }
    content |= _drawn(systems, systems.draw(draws, seed))  # not kept any longer: it is as large as the counts
    content["slices"] = slices(systems, draws, seed)
    content["tables"] = {
        name: [table._asdict() for table in task.tables(_sums(systems.scored[name]))]
        for name in systems.no_floors
    }
    content |= analyse(systems, content)
    content["meaning"] = {**task.explain(), **LIKELIHOOD_MEANING}
    return content


def _drawn(systems: Systems, drawn: Drawn) -> dict[str, Any]:
    """What has an interval over all rows."""
    made: dict[str, Any] = {
        "headline": _headline(systems, drawn),
        "scores": {
            name: {
                metric: drawn.interval(name, of).to_json()
                for metric, of in metrics_of(systems.task, one).items()
            }
            for name, one in systems.scored.items()
        },
    }
    if all(name in systems.scored for name in FIRST):
        others = [name for name in systems.scored if name != "base"]
        made["differences"] = {name: _differences(systems, drawn, name) for name in others}
        made["over_floors"] = _over(systems, drawn, "floor")
        made["over_prompts"] = _over(systems, drawn, "prompt")
        made["exported"] = _over(systems, drawn, "exported", turned=True)
        made["over_others"] = _over(systems, drawn, "other")
        made |= _all_right(systems)
    return made


def _headline(systems: Systems, drawn: Drawn) -> dict[str, Any]:
    name = headline_of(systems)
    main = [system for system in FIRST if system in systems.scored]
    metric = metrics_of(systems.task, systems.scored[(main or list(systems.scored))[0]])[name]
    better = "lower" if name in lower_is_better(systems.task) else "higher"
    made: dict[str, Any] = {
        "metric": name,
        "better": better,
        "scale": scale_of(systems.task, name),
        "n": drawn.rows,
    }
    if name == systems.task.headline and getattr(systems.task, "headline_from", "") == "likelihood":
        made["from"] = "likelihood"
    made |= {system: drawn.value(system, metric) for system in main}
    if len(main) == len(FIRST):
        found = drawn.difference("base", "tuned", metric).to_json()
        made["difference"] = {key: found[key] for key in ("value", "low", "high")}
    elif not main:
        made["value"] = drawn.value(next(iter(systems.scored)), metric)
    return made


def _over(systems: Systems, drawn: Drawn, kind: str, turned: bool = False) -> dict[str, Any]:
    """The headline of tuned less that of each system of a kind; `turned`: that of each less tuned's."""
    name, made = headline_of(systems), {}
    for system in systems.of_kind(kind):
        metric = metrics_of(systems.task, systems.scored[system]).get(name)
        if metric is not None:
            pair = ("tuned", system) if turned else (system, "tuned")
            made[system] = drawn.difference(*pair, metric).to_json()
    return made


def _differences(systems: Systems, drawn: Drawn, name: str) -> dict[str, Any]:
    """A system against the base, in all metrics that both have."""
    known: Mapping[str, Metric] = metrics_of(systems.task, systems.scored["base"])
    shared = (metric for metric in metrics_of(systems.task, systems.scored[name]) if metric in known)
    return {metric: drawn.difference("base", name, known[metric]).to_json() for metric in shared}


def _all_right(systems: Systems) -> dict[str, Any]:
    """Rows all right with and without tuning. McNemar's test wants rows that know nothing of each other."""
    base, tuned = (systems.scored[name].correct for name in ("base", "tuned"))
    if len(set(systems.documents)) == len(systems.documents):
        test = mcnemar(base, tuned)
        return {"mcnemar": {"only_base": test.only_first, "only_tuned": test.only_second, "p": test.p}}
    signs = sign_test(base, tuned, systems.documents)
    return {
        "sign_test": {
            "base_better": signs.first_better,
            "tuned_better": signs.second_better,
            "equal": signs.equal,
            "unit": "document",
            "p": signs.p,
        }
    }


def _sums(scored: Scored) -> dict[str, float]:
    return {name: float(values.sum()) for name, values in scored.counts.items()}
