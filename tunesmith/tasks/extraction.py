"""Extraction: the answer is a JSON object of fields, each a text, a list or null.

Two matchings stand side by side: strict (equal JSON) and by items (tasks/normalise.py). null against null is right but
never a hit: otherwise a model that answers null everywhere looks good. What can't be parsed counts as all missed, and
its gold nulls as neither right nor wrong: otherwise a model that never answers made nothing up.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import TunesmithError
from tunesmith.tasks.answered import Answered
from tunesmith.tasks.extraction_study import (
    STATED_MEANING,
    confidences,
    confusions,
    field_faults,
    grounding,
    stated_counts,
    stated_metrics,
    stated_table,
    sureness,
)
from tunesmith.tasks.json_answer import opened_only, read_object
from tunesmith.tasks.normalise import is_null, items, leaves, split_items, words
from tunesmith.tasks.protocol import Detail, Fault, Golds, Parsed, Table
from tunesmith.tasks.schema import SchemaChecker, fields_of, infer_schema
from tunesmith.tasks.sums import Metric, Share, Sums, mean, ratio

# Counts of a field in a row. gold, given: 1 where there is a value; both together are match, partly or wrong.
# gold_read: gold, of an answer that could be parsed; unparsed: a gold null of one that could not.
_PER_FIELD = (
    "gold", "given", "exact", "match", "partly", "wrong", "missed", "hallucinated", "null",
    "unparsed", "gold_read", "gold_items", "given_items", "hits",
)  # fmt: skip


class ExtractionTask:
    """Made by `make` from a schema, or from the training answers where none is given."""

    name = "extraction"
    headline = "item_f1"
    by_token = True

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema = schema
        self.fields = tuple(fields_of(schema))
        if not self.fields:
            raise TunesmithError(
                "the schema names no fields to score",
                where="data.schema",
                fix="list them under properties, or leave data.schema out to infer them from the training answers",
            )
        self._checker = SchemaChecker(schema)

    @classmethod
    def make(cls, schema: Mapping[str, Any] | None, golds: Golds) -> ExtractionTask:
        """From `schema`, else inferred from `golds`: the answers of training rows."""
        if schema is not None:
            return cls(schema)
        read = [(gold, read_object(gold)) for gold in golds]
        if not read:
            raise TunesmithError(
                "extraction needs a schema or labelled training rows",
                where="data.schema",
                fix="give data.schema a JSON schema file",
            )
        for gold, parsed in read:
            if parsed.value is None:
                raise TunesmithError(
                    f"a training answer is no JSON object: {gold[:80]!r}",
                    where="evaluate.task: extraction",
                    fix="mend the row, give data.schema, or score with evaluate.task: text",
                )
        return cls(infer_schema(parsed.value for _, parsed in read if parsed.value is not None))

    def parse(self, answer: str) -> Parsed:
        """The object, with `wrapped`, `unparsable` and `schema` problems."""
        parsed = read_object(answer)
        if parsed.value is None:
            return parsed
        return Parsed(parsed.value, (*parsed.problems, *self._checker.problems(parsed.value)))

    def counts(self, prompt: str, gold: Parsed, predicted: Parsed) -> dict[str, float]:
        """Counts of one row; `prompt` is what values are looked for in (grounding)."""
        read = predicted.value is not None
        made: dict[str, float] = {
            "rows": 1,
            "parsed_bare": read and not predicted.has("wrapped"),
            "parsed": read,
            "schema_valid": read and not predicted.has("schema"),
            "row_exact": self.correct(gold, predicted),
            "row_match": read,
        }
        source = words(prompt)
        known = frozenset(source)
        for field in self.fields:
            found = self._field_counts(field, gold, predicted, known)
            made["row_match"] = made["row_match"] and found["match"] + found["null"] == 1
            made |= {f"{name}:{field}": count for name, count in found.items()}
        for side, parsed in (("given", predicted), ("gold", gold)):
            made |= {
                f"{name}_{side}": count for name, count in grounding(self._texts(parsed), source).items()
            }
        return {name: float(count) for name, count in made.items()}

    def correct(self, gold: Parsed, predicted: Parsed) -> bool:
        """Every field equals the gold one as JSON, null for null."""
        if predicted.value is None:
            return False
        return all(_same(_at(gold.value, field), _at(predicted.value, field)) for field in self.fields)

    def metrics(self) -> dict[str, Metric]:
        """Overall metrics, then `metric:field` for each field."""
        total = partial(_total, self.fields)
        made: dict[str, Metric] = {
            "item_f1": lambda s: _f1(total(s, "hits"), total(s, "gold_items"), total(s, "given_items")),
            "item_precision": lambda s: ratio(total(s, "hits"), total(s, "given_items")),
            "item_recall": lambda s: ratio(total(s, "hits"), total(s, "gold_items")),
            "item_f1_macro": self._macro(_field_f1),
            "field_exact": lambda s: ratio(total(s, "exact"), total(s, "gold")),
            "field_exact_macro": self._macro(_field_exact),
            "row_exact": mean("row_exact"),
            "row_match": mean("row_match"),
            "schema_valid": mean("schema_valid"),
            "parse_rate": mean("parsed"),
            "parse_rate_bare": mean("parsed_bare"),
            "missed": lambda s: ratio(total(s, "missed"), total(s, "gold")),
            "wrong": lambda s: ratio(total(s, "wrong") + total(s, "partly"), total(s, "gold_read")),
            "hallucinated": lambda s: ratio(
                total(s, "hallucinated"), total(s, "hallucinated") + total(s, "null")
            ),
            "grounded_words": lambda s: ratio(s["words_found_given"], s["words_given"]),
            "grounded_values": lambda s: ratio(s["values_found_given"], s["values_given"]),
            "gold_grounded_words": lambda s: ratio(s["words_found_gold"], s["words_gold"]),
            "gold_grounded_values": lambda s: ratio(s["values_found_gold"], s["values_gold"]),
        }
        for field in self.fields:
            made[f"item_f1:{field}"] = partial(_field_f1, field)
            made[f"exact:{field}"] = partial(_field_exact, field)
        made |= stated_metrics(self.fields)
        return {name: Share(metric) for name, metric in made.items()}

    def explain(self) -> dict[str, str]:
        """What each metric means."""
        return _MEANING

    def tables(self, sums: Mapping[str, float]) -> list[Table]:
        """Per field: what became of gold values and gold nulls."""
        rows: list[tuple[str | float | int | None, ...]] = []
        for field in (*self.fields, ""):
            names = [field] if field else list(self.fields)
            count = {name: int(sum(sums[f"{name}:{one}"] for one in names)) for name in _PER_FIELD}
            rows.append(
                (
                    field or "all fields",
                    count["gold"], count["exact"], count["match"], count["partly"], count["wrong"], count["missed"],
                    count["null"] + count["hallucinated"] + count["unparsed"], count["hallucinated"], count["unparsed"],
                    _plain_ratio(count["hits"], count["given_items"]),
                    _plain_ratio(count["hits"], count["gold_items"]),
                    _plain_ratio(2 * count["hits"], count["gold_items"] + count["given_items"]),
                )
            )  # fmt: skip
        columns = ("field", "gold values", "exact", "match", "partly", "wrong", "missed", "gold nulls", "hallucinated",
                   "unparsed", "precision", "recall", "F1")  # fmt: skip
        note = (
            "Gold values = match + partly + wrong + missed; exact is among match. Hallucinated: a value where the gold "
            "is null; null answered by null is right, but no hit. Unparsed: gold nulls of answers that can't "
            "be parsed, neither right nor hallucinated. Precision, recall and F1 are of normalised items."
        )
        return [Table("Fields", columns, tuple(rows), note), stated_table(self.fields, sums)]

    def details(self, gold: Parsed, predicted: Parsed) -> list[Detail]:
        """Gold beside prediction for each field."""
        verdicts = self._verdicts(gold, predicted)
        return [
            Detail(field, _text(_at(gold.value, field)), _text(_at(predicted.value, field)), verdict)
            for field, verdict in zip(self.fields, verdicts, strict=True)
        ]

    def faults(self, row: Answered) -> list[Fault]:
        """By field; cut, where the line doesn't say whether it stopped and the object never ends."""
        if row.predicted.value is None:
            cut = row.line.get("stopped") is None and opened_only(row.line["answer"])
            return [Fault("truncated", "")] if cut else []
        found = self.details(row.gold, row.predicted)
        return field_faults(found, self._values(row.gold), self._values(row.predicted))

    def study(self, rows: Sequence[Answered]) -> list[Table]:
        """Confusions by field; calibration where the lines hold log-probabilities by token."""
        found = [self.details(row.gold, row.predicted) for row in rows]
        return [*confusions(found), *confidences(sureness(rows, found))]

    def common_answer(self, golds: Sequence[Parsed]) -> str:
        """Each field's most common value that is not null (null would never hit anything)."""
        made: dict[str, Any] = {}
        for field in self.fields:
            values = [
                json.dumps(_at(gold.value, field), ensure_ascii=False, sort_keys=True) for gold in golds
            ]
            common = Counter(value for value in values if not is_null(json.loads(value))).most_common(1)
            *outer, last = self._path(field)
            place = made
            for key in outer:
                place = place.setdefault(key, {})
            place[last] = json.loads(common[0][0]) if common else None
        return json.dumps(made, ensure_ascii=False)

    def unscored(self, gold: Parsed) -> list[str]:
        """Fields with a value that the schema does not name."""
        return sorted(_all_fields(gold.value or {}, set(self.fields)) - set(self.fields))

    def _path(self, field: str) -> list[str]:
        return field.split(".") if field not in self.schema.get("properties", {}) else [field]

    def _values(self, parsed: Parsed) -> dict[str, Any]:
        return {field: _at(parsed.value, field) for field in self.fields}

    def _texts(self, parsed: Parsed) -> list[str]:
        found = [leaf for field in self.fields for leaf in leaves(_at(parsed.value, field))]
        return [item for leaf in found for item in split_items(leaf)]

    def _verdicts(self, gold: Parsed, predicted: Parsed) -> list[str]:
        found = [
            _verdict(items(_at(gold.value, field)), items(_at(predicted.value, field)))
            for field in self.fields
        ]
        return found if predicted.value is not None else [_of_unparsed(verdict) for verdict in found]

    def _field_counts(
        self, field: str, gold: Parsed, predicted: Parsed, source: frozenset[str]
    ) -> dict[str, int]:
        right, given = _at(gold.value, field), _at(predicted.value, field)
        right_items, given_items = items(right), items(given)
        made = dict.fromkeys(_PER_FIELD, 0)
        verdict = _verdict(right_items, given_items)
        made[verdict if predicted.value is not None else _of_unparsed(verdict)] = 1
        made["gold"], made["given"] = int(bool(right_items)), int(bool(given_items))
        made["gold_read"] = int(bool(right_items) and predicted.value is not None)
        made["exact"] = int(bool(right_items) and _same(right, given))
        made["gold_items"], made["given_items"] = len(right_items), len(given_items)
        made["hits"] = len(right_items & given_items)
        return made | stated_counts(right_items, given_items, bool(made["exact"]), source)

    def _macro(self, of_field: Callable[[str, Sums], NDArray[np.float64]]) -> Metric:
        def mean_of_fields(sums: Sums) -> NDArray[np.float64]:
            each = np.array([of_field(field, sums) for field in self.fields])
            known = ~np.isnan(each)
            return ratio(np.where(known, each, 0.0).sum(axis=0), known.sum(axis=0))

        return mean_of_fields


_MEANING = {
    "item_f1": "F1 of normalised items over all fields (micro); headline",
    "item_precision": "share of predicted items that the gold has",
    "item_recall": "share of gold items that were predicted",
    "item_f1_macro": "mean over fields of their item F1",
    "field_exact": "share of gold values answered by equal JSON",
    "field_exact_macro": "mean over fields of that share",
    "row_exact": "share of rows with every field equal as JSON, nulls included",
    "row_match": "share of rows with every field equal by items, nulls included",
    "schema_valid": "share of answers that are a JSON object which fits the schema",
    "parse_rate": "share of answers with a JSON object, alone or behind a fence or a few words",
    "parse_rate_bare": "share of answers that are a JSON object and nothing else",
    "missed": "share of gold values answered by null, or by an answer that can't be parsed; lower is better",
    "wrong": "share of gold values answered by another value or a part of it, where answers parse; lower is better",
    "hallucinated": "share of gold nulls answered by a value, where answers can be parsed; lower is better",
    "grounded_words": "share of words of predicted items that stand in the input",
    "grounded_values": "share of predicted items that stand in the input as a whole",
    "gold_grounded_words": "the same for the gold answers: what a perfect model reaches",
    "gold_grounded_values": "the same for the gold answers: what a perfect model reaches",
    "exact": "share of the field's gold values answered by equal JSON",
    **STATED_MEANING,
}


def _at(value: Any, field: str) -> Any:
    """The value of `field` in an answer; nested objects by `outer.inner`. None where it is not there."""
    if not isinstance(value, Mapping):
        return None
    if field in value or "." not in field:
        return value.get(field)
    outer, _, inner = field.partition(".")
    return _at(value.get(outer), inner)


def _all_fields(value: Mapping[str, Any], known: set[str], before: str = "") -> set[str]:
    found: set[str] = set()
    for key, inner in value.items():
        name = f"{before}{key}"
        if isinstance(inner, Mapping) and name not in known:
            found |= _all_fields(inner, known, f"{name}.")
        elif not is_null(inner):
            found.add(name)
    return found


def _same(one: Any, other: Any) -> bool:
    """Equal JSON: 1, 1.0 and true are three things; a missing key is null."""
    if isinstance(one, str | None) and isinstance(other, str | None):
        return one == other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _verdict(gold: frozenset[str], given: frozenset[str]) -> str:
    if not gold:
        return "hallucinated" if given else "null"
    if not given:
        return "missed"
    if gold == given:
        return "match"
    return "partly" if gold & given else "wrong"


def _text(value: Any) -> str | None:
    if is_null(value):
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _of_unparsed(verdict: str) -> str:
    """No answer is no null: it is not right about what isn't there."""
    return "unparsed" if verdict == "null" else verdict


def _total(fields: Sequence[str], sums: Sums, name: str) -> NDArray[np.float64]:
    return np.asarray(sum(sums[f"{name}:{field}"] for field in fields))


def _plain_ratio(over: float, under: float) -> float | None:
    return over / under if under else None


def _f1(
    hits: NDArray[np.float64], gold: NDArray[np.float64], given: NDArray[np.float64]
) -> NDArray[np.float64]:
    return ratio(2 * hits, gold + given)


def _field_f1(field: str, sums: Sums) -> NDArray[np.float64]:
    return _f1(sums[f"hits:{field}"], sums[f"gold_items:{field}"], sums[f"given_items:{field}"])


def _field_exact(field: str, sums: Sums) -> NDArray[np.float64]:
    return ratio(sums[f"exact:{field}"], sums[f"gold:{field}"])
