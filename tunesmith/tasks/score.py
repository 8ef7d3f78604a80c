"""From a predictions file and its rows to counts: what evaluate and export both score with. No model, no torch.

It refuses to score quietly less than it was given: rows ≠ predictions, an answer to another gold, gold that does not
parse and rows without a single gold value are errors that name their rows (exit code 3).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import RowCheckFailed, TunesmithError
from tunesmith.example import Example, Message
from tunesmith.tasks.answered import answers_headline, for_answers, gold_of
from tunesmith.tasks.own_task import blamed
from tunesmith.tasks.protocol import Parsed, Task

_NAMED = 5  # rows that a message lists


@dataclass(frozen=True)
class Scored:
    """One system on all rows, in row order. Several samples of a row are averaged in its counts."""

    ids: tuple[str, ...]
    documents: tuple[str, ...]
    counts: Mapping[str, NDArray[np.float64]]
    """Name → [rows]."""
    correct: NDArray[np.bool_]
    """[rows]: all right (in more than half of the samples)."""
    predictions: tuple[tuple[Mapping[str, Any], ...], ...]
    """Lines of the file for each row, one a sample."""

    def take(self, kept: NDArray[np.bool_]) -> Scored:
        """Some of the rows."""
        numbers = np.flatnonzero(kept)
        return Scored(
            tuple(self.ids[i] for i in numbers),
            tuple(self.documents[i] for i in numbers),
            {name: values[kept] for name, values in self.counts.items()},
            self.correct[kept],
            tuple(self.predictions[i] for i in numbers),
        )


def check_golds(task: Task, examples: Sequence[Example]) -> list[Parsed]:
    """The parsed gold answers. RowCheckFailed where one is missing, can't be parsed or has keys unknown to the task."""
    if not examples:
        raise RowCheckFailed("there are no rows to score", fix="give data.test or data.validation rows")
    repeated = _repeated([example.id for example in examples])
    if repeated:
        raise RowCheckFailed(f"row ids are not unique: {_names(repeated)}", fix="give each row its own id")
    without = [example for example in examples if example.answer is None]
    if without:
        raise RowCheckFailed(
            f"{len(without)} of {len(examples)} rows have no gold answer",
            where=_where(without),
            fix="label them",
        )
    golds = [_gold(task, example) for example in examples]
    broken = [example for example, gold in zip(examples, golds, strict=True) if gold.value is None]
    if broken:
        raise RowCheckFailed(
            f"{len(broken)} of {len(examples)} gold answers can't be parsed by the {task.name} task: "
            f"{_gold(task, broken[0]).problems[0]}",
            where=_where(broken),
            fix="mend the answers, or name another evaluate.task",
        )
    with blamed(task):
        unscored = [(example, task.unscored(gold)) for example, gold in zip(examples, golds, strict=True)]
    odd = [example for example, keys in unscored if keys]
    if odd:
        raise RowCheckFailed(
            f"{len(odd)} gold answers have keys that neither the schema nor a training answer has: "
            f"{_names(sorted({key for _, keys in unscored for key in keys}))}",
            where=_where(odd),
            fix="give data.schema a JSON schema with all keys, or remove these",
        )
    return golds


def _gold(task: Task, example: Example) -> Parsed:
    with blamed(task, example.id):
        return gold_of(task, example)


def score_predictions(path: Path, examples: Sequence[Example], task: Task) -> Scored:
    """Counts of every row of `examples` from the JSON lines in `path` (id, answer, …); answers are parsed anew."""
    return score_answers(read_predictions(path), examples, task, where=str(path))


def score_answers(
    lines: Sequence[Mapping[str, Any]], examples: Sequence[Example], task: Task, where: str = "predictions"
) -> Scored:
    """As `score_predictions`, from lines in memory."""
    golds = check_golds(task, examples)
    by_row = _by_row(lines, examples, where)
    task = for_answers(task, [line["answer"] for line in lines])
    counts: dict[str, NDArray[np.float64]] = {}
    correct = np.zeros(len(examples), dtype=bool)
    for number, (example, gold) in enumerate(zip(examples, golds, strict=True)):
        source, said = example.asked, by_row[example.id]
        with blamed(task, example.id):
            parsed = [task.parse(line["answer"]) for line in said]
            for one in parsed:
                for name, count in task.counts(source, gold, one).items():
                    if name not in counts:
                        counts[name] = np.zeros(len(examples))
                    counts[name][number] += count
            correct[number] = 2 * sum(task.correct(gold, one) for one in parsed) > len(parsed)
    samples = len(by_row[examples[0].id])
    if samples > 1:
        counts = {name: values / samples for name, values in counts.items()}
    with blamed(task):
        _refuse_empty_gold(task, golds, examples)
    return Scored(
        tuple(example.id for example in examples),
        tuple(example.document or example.id for example in examples),
        counts,
        correct,
        tuple(tuple(by_row[example.id]) for example in examples),
    )


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The lines of a predictions file."""
    lines: list[dict[str, Any]] = []
    try:
        with path.open("rb") as file:  # a line at a time, and only "\n" ends one: answers may hold U+2028
            for number, line in enumerate(file, start=1):
                if line.strip(b"\n"):
                    lines.append(_prediction(line, f"{path}:{number}"))
    except OSError as error:
        raise TunesmithError(f"predictions can't be read: {error.strerror}", where=str(path)) from error
    return lines


def _prediction(line: bytes, where: str) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line.decode("utf-8"))
        row = {intern(key): value for key, value in row.items()}  # each line has the same keys
        if not (isinstance(row["id"], str) and isinstance(row["answer"], str)):
            raise TypeError("id and answer must be texts")
        for key in ("slices", "facts"):
            if not isinstance(row.get(key) or {}, dict):
                raise TypeError(f"{key} must be an object")
    except UnicodeDecodeError as error:
        raise TunesmithError(
            f"predictions are not UTF-8 text (byte {error.start} of the line)",
            where=where,
            fix="save the file as UTF-8",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TunesmithError(
            f"this line is no prediction: {error}", where=where, fix='each line needs "id" and "answer"'
        ) from error
    return row


def examples_in(lines: Sequence[Mapping[str, Any]], where: str) -> list[Example]:
    """The rows that a predictions file itself tells of (id, prompt, gold, document): for scoring without a Run."""
    lacking = [str(line["id"]) for line in lines if not isinstance(line.get("gold"), str)]
    if lacking:
        raise RowCheckFailed(
            f"{len(lacking)} predictions have no gold answer: {_names(lacking)}",
            where=where,
            fix='give each line "gold", or set the file beside a run: tunesmith evaluate RUN --from FILE',
        )
    first = {line["id"]: line for line in reversed(lines)}  # samples of a row share its prompt and gold
    order = dict.fromkeys(line["id"] for line in lines)
    return [
        Example(
            id,
            (
                Message("user", _prompt_text(first[id].get("prompt"))),
                Message("assistant", first[id]["gold"], True),
            ),
            document=str(document if (document := first[id].get("document")) not in (None, "") else id),
            slices={
                name: str(value)
                for name, value in (first[id].get("slices") or {}).items()
                if value is not None
            },
            source=where,
            rejected=first[id].get("rejected"),
            facts=first[id].get("facts") or {},
        )
        for id in order
    ]


def _prompt_text(prompt: Any) -> str:
    """A prompt as a text, or as chat turns."""
    if isinstance(prompt, list):
        turns = [turn for turn in prompt if isinstance(turn, dict) and turn.get("role") == "user"]
        return "\n".join(str(turn.get("content", "")) for turn in turns)
    return prompt if isinstance(prompt, str) else ""


def _by_row(
    lines: Sequence[Mapping[str, Any]], examples: Sequence[Example], where: str
) -> dict[str, list[Mapping[str, Any]]]:
    by_row: dict[str, list[Mapping[str, Any]]] = {example.id: [] for example in examples}
    extra = [line["id"] for line in lines if line["id"] not in by_row]
    for line in lines:
        if line["id"] in by_row:
            by_row[line["id"]].append(line)
    missing = [id for id, found in by_row.items() if not found]
    if missing or extra:
        raise RowCheckFailed(
            f"scored rows differ from rows: {len(examples)} rows, {len(missing)} without a prediction"
            + (f" ({_names(missing)})" if missing else "")
            + f", {len(extra)} predictions for other rows"
            + (f" ({_names(extra)})" if extra else ""),
            where=where,
            fix="predict these rows again",
        )
    sizes = Counter(len(found) for found in by_row.values())
    if len(sizes) > 1:
        usual = max(sizes, key=lambda size: (sizes[size], -size))
        odd = [id for id, found in by_row.items() if len(found) != usual]
        what = (
            f"{len(odd)} ids stand more than once"
            if usual == 1
            else f"{len(odd)} rows have not {usual} answers as the others"
        )
        raise RowCheckFailed(
            f"{what}: {_names(odd)}",
            where=where,
            fix="one line a row; of several samples as many for each row",
        )
    stale = [e.id for e in examples for line in by_row[e.id] if line.get("gold") not in (None, e.answer)]
    if stale:
        raise RowCheckFailed(
            f"{len(stale)} predictions were made for another gold answer: {_names(stale)}",
            where=where,
            fix="predict these rows again, or score them on the rows that they were made for",
        )
    return by_row


def _refuse_empty_gold(task: Task, golds: Sequence[Parsed], examples: Sequence[Example]) -> None:
    """A perfect answer must score something: gold against itself, up to the first row where it does."""
    summed: dict[str, NDArray[np.float64]] = {}
    name = answers_headline(task)
    metric = task.metrics()[name]
    for gold, example in zip(golds, examples, strict=True):
        for count, found in task.counts(example.asked, gold, gold).items():
            summed[count] = summed.get(count, np.zeros(1)) + found
        if float(metric(summed)[0]) > 0:
            return
    if float(summed.get("answered", np.zeros(1))[0]) > 0:
        return  # generated records may all be unsound: their golds were read, and the report shows both figures
    raise RowCheckFailed(
        f"gold count is 0: no gold value in {len(examples)} rows, so {name} has nothing to find",
        where=_where(examples),
        fix="check that the answers are read as they are meant (data.columns, data.schema)",
    )


def _repeated(ids: Sequence[str]) -> list[str]:
    return [id for id, times in Counter(ids).items() if times > 1]


def _where(examples: Sequence[Example]) -> str:
    sources = [example.source or example.id for example in examples]
    if len(set(sources)) < len(sources):  # rows of a predictions file have its name: their ids tell more
        sources = [f"{source}, row {example.id}" for source, example in zip(sources, examples, strict=True)]
    return _names(sources)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
