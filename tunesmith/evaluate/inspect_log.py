"""Scored rows as a log of inspect_ai, so that its viewer and its tools can read what was answered here.

One log is one system on the run's rows: a sample for each answer (an epoch for each further answer of a row), with the
row's own metrics as scores, and the report's metrics with their intervals as results. The library is not installed with
tunesmith; nothing is imported before it is asked for.
(inspect_ai 0.3, https://inspect.aisi.org.uk/eval-logs.html)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import AccessError, SetupError, TunesmithError
from tunesmith.evaluate.score import Systems
from tunesmith.example import Example
from tunesmith.run import beside, require_writable
from tunesmith.tasks import Task
from tunesmith.tasks.answered import Answered, answered, faults_of, for_answers

REDACTED = "(left out: redacted)"
FORMATS = {".eval": "eval", ".json": "json"}


def require_inspect() -> None:
    """SetupError, with the line that mends it, where inspect_ai is not installed."""
    try:
        import inspect_ai.log  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"a log for inspect_ai needs the library: {error}", fix="pip install 'tunesmith[inspect]'"
        ) from None


def write_inspect_log(
    content: Mapping[str, Any], systems: Systems, name: str, out: Path, redact: bool = False
) -> int:
    """Writes the log of system `name` to `out` (.eval or .json), whole or not at all; returns how many samples it has.

    `content`: the run's report.json. `redact`: no text of rows or answers; ids, slices, scores and kinds of
    faults stay.
    """
    if out.suffix not in FORMATS:
        raise TunesmithError(
            "an inspect_ai log ends in .eval or .json", where=str(out), fix="rename --inspect-log's file"
        )
    require_inspect()
    from inspect_ai.log import write_eval_log

    log = _log(content, systems, name, redact)
    require_writable(out)
    made = beside(out)
    try:
        write_eval_log(log, str(made), format="eval" if out.suffix == ".eval" else "json")
        made.replace(out)
    except OSError as error:
        raise AccessError(f"the log can't be written: {error.strerror}", where=str(out)) from error
    finally:
        made.unlink(missing_ok=True)
    return len(log.samples)


def _log(content: Mapping[str, Any], systems: Systems, name: str, redact: bool) -> Any:
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalPlan,
        EvalResults,
        EvalScore,
        EvalSpec,
        EvalStats,
    )

    samples = list(_samples(systems, name, redact))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    spec = EvalSpec(
        created=now,
        task=f"{content['run']}: {content['task']}",
        task_id=f"tunesmith-{content['run']}-{content['task']}",
        run_id=f"tunesmith-{content['run']}",
        eval_id=f"tunesmith-{content['run']}-{name}",
        dataset=EvalDataset(
            name=f"{content['run']} {content['split']} rows",
            samples=len(systems.examples),
            sample_ids=[example.id for example in systems.examples],
            shuffled=False,
        ),
        model=f"tunesmith/{content['run']}/{name}",
        config=EvalConfig(epochs=len(systems.scored[name].predictions[0])),
        packages={key: str(one) for key, one in content.get("versions", {}).items()},
        metadata={
            key: content.get(key) for key in ("adapter_sha256", "recipe_sha256", "base", "decoding", "data")
        }
        | {"redacted": redact},
    )
    scores = [
        EvalScore(
            name=metric,
            scorer=metric,
            scored_samples=found["n"],
            metrics={
                key: EvalMetric(name=key, value=found[key])
                for key in ("value", "low", "high")
                if found[key] is not None
            },
            metadata={
                "meaning": content["meaning"].get(metric, ""),
                "interval": content["bootstrap"]["interval"],
            },
        )
        for metric, found in content["scores"][name].items()
    ]
    results = EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=scores)
    return EvalLog(
        status="success",
        eval=spec,
        plan=EvalPlan(name="tunesmith"),
        results=results,
        stats=EvalStats(started_at=now, completed_at=now),
        samples=samples,
    )


def _samples(systems: Systems, name: str, redact: bool) -> Iterator[Any]:
    lines = systems.scored[name].predictions
    task = for_answers(systems.task, [line["answer"] for row in lines for line in row])
    for example, said in zip(systems.examples, lines, strict=True):
        for epoch, line in enumerate(said, start=1):
            yield _sample(task, answered(task, example, line), epoch, name, redact)


def _sample(task: Task, row: Answered, epoch: int, name: str, redact: bool) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ModelOutput
    from inspect_ai.scorer import Score

    example, line = row.example, row.line
    answer = REDACTED if redact else str(line["answer"])
    asked = REDACTED if redact else _asked(example)
    found = [f"{fault.kind} {fault.where}".strip() for fault in faults_of(task, row)]
    metadata: dict[str, Any] = {
        "document": example.document or example.id,
        "slices": dict(example.slices),
        "faults": found,
        **{
            key: line[key] for key in ("tokens", "logprob", "stopped", "made_by") if line.get(key) is not None
        },
    }
    if not redact:
        metadata |= {
            "facts": dict(example.facts),
            "parsed": row.predicted.value,
            "problems": list(row.predicted.problems),
        }
    stopped = line.get("stopped", True)
    said = ModelOutput.from_content(name, answer, stop_reason="stop" if stopped else "max_tokens")
    turns = asked if isinstance(asked, list) else []
    return EvalSample(
        id=example.id,
        epoch=epoch,
        input=asked,
        target=REDACTED if redact else example.answer or "",
        messages=[*turns, ChatMessageAssistant(content=answer)],
        output=said,
        scores={
            metric: Score(value=value, answer=answer, explanation="; ".join(found) or None)
            for metric, value in _row_metrics(task, row).items()
        },
        metadata=metadata,
    )


def _asked(example: Example) -> Any:
    """The prompt as chat messages."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    return [kinds[turn.role](content=turn.content) for turn in example.prompt]


def _row_metrics(task: Task, row: Answered) -> dict[str, float]:
    """The task's metrics of this answer alone, those of single fields left out, and those with nothing to divide by."""
    counts = task.counts(row.example.asked, row.gold, row.predicted)
    sums = {name: np.array([float(count)]) for name, count in counts.items()}
    made: dict[str, float] = {}
    for name, metric in task.metrics().items():
        if ":" in name:
            continue
        try:
            value = float(metric(sums)[0])
        except KeyError:  # of counts that were measured elsewhere: likelihoods
            continue
        if math.isfinite(value):
            made[name] = value
    return made
