"""What extraction says beyond its scores: values stated and inferred, confusions, faults, confidences of fields.

A gold item is stated where all its words stand in the input, in any order, else inferred (or reworded): a model may
copy well and conclude badly. Words can stand there by chance ("IV" for intravenous), so stated is the looser word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import exp
from typing import Any, NamedTuple

from tunesmith.tasks import calibration
from tunesmith.tasks.answered import Answered
from tunesmith.tasks.json_places import value_spans
from tunesmith.tasks.normalise import items, normal, words
from tunesmith.tasks.protocol import Detail, Fault, Table
from tunesmith.tasks.sums import Metric, Sums, ratio

_FEW_VALUES = 12  # of a field that is shown as a whole matrix
_COMMONEST = 12  # wrong pairs of another field


def stated_counts(
    gold: frozenset[str], given: frozenset[str], exact: bool, source: Collection[str]
) -> dict[str, int]:
    """Of one field: its gold and answered items, whether both are equal JSON, and the words of the input."""
    stated = frozenset(item for item in gold if all(word in source for word in _words(item)))
    whole = bool(gold) and stated == gold
    return {
        "stated": int(whole),
        "stated_exact": int(whole and exact),
        "stated_items": len(stated),
        "stated_hits": len(stated & given),
    }


def _words(item: str) -> list[str]:
    """Words of a normalised item; of an object's parts (key=value) the values alone."""
    return [part.rpartition("=")[2] for part in item.split()]


def stated_metrics(fields: Sequence[str]) -> dict[str, Metric]:
    """Recall of items and exact values, of stated and of inferred ones apart; then recall by field."""
    pairs = {
        "recall": ("hits", "gold_items", "stated_hits", "stated_items"),
        "exact": ("exact", "gold", "stated_exact", "stated"),
    }
    made: dict[str, Metric] = {}
    for name, counts in pairs.items():
        made[f"{name}_stated"] = _of_stated(fields, *counts[2:])
        made[f"{name}_inferred"] = _of_inferred(fields, *counts)
    for field in fields:
        made[f"recall_stated:{field}"] = _of_stated([field], *pairs["recall"][2:])
        made[f"recall_inferred:{field}"] = _of_inferred([field], *pairs["recall"])
    return made


STATED_MEANING = {
    "recall_stated": "share of gold items predicted, of those whose words all stand in the input",
    "recall_inferred": "the same of the others, which are concluded or reworded",
    "exact_stated": "share of gold values answered by equal JSON, of those whose words all stand in the input",
    "exact_inferred": "the same of the others, which are concluded or reworded",
}


def _of_stated(fields: Sequence[str], over: str, under: str) -> Metric:
    return lambda sums: ratio(_total(fields, sums, over), _total(fields, sums, under))


def _of_inferred(fields: Sequence[str], over: str, under: str, less_over: str, less_under: str) -> Metric:
    def rest(sums: Sums) -> Any:
        return ratio(
            _total(fields, sums, over) - _total(fields, sums, less_over),
            _total(fields, sums, under) - _total(fields, sums, less_under),
        )

    return rest


def _total(fields: Sequence[str], sums: Sums, name: str) -> Any:
    return sum(sums[f"{name}:{field}"] for field in fields)


def stated_table(fields: Sequence[str], sums: Mapping[str, float]) -> Table:
    """Per field: items stated and inferred, and the share of each that was found."""
    rows: list[tuple[str | float | int | None, ...]] = []
    for field in (*fields, ""):
        total = {
            name: int(_total([field] if field else fields, sums, name))  # type: ignore[arg-type]
            for name in ("gold_items", "hits", "stated_items", "stated_hits")
        }
        inferred = total["gold_items"] - total["stated_items"]
        found = total["hits"] - total["stated_hits"]
        rows.append(
            (
                field or "all fields",
                total["stated_items"],
                total["stated_hits"] / total["stated_items"] if total["stated_items"] else None,
                inferred,
                found / inferred if inferred else None,
            )
        )
    note = (
        "Stated: all words of a gold item stand in the input, in any order (by chance too: IV may be intravenous). "
        "Inferred: the others, which were concluded or reworded. Found: share of them among the answered items."
    )
    columns = ("field", "stated items", "stated found", "inferred items", "inferred found")
    return Table("Stated and inferred", columns, tuple(rows), note)


def grounding(texts: Sequence[str], source: Sequence[str]) -> dict[str, int]:
    """How many values stand in the source as a whole, and how many of their words stand in it at all."""
    known, flat = set(source), f" {' '.join(source)} "
    split = [words(text) for text in texts]
    return {
        "values": len(split),
        "values_found": sum(f" {' '.join(one)} " in flat for one in split if one),
        "words": sum(map(len, split)),
        "words_found": sum(word in known for one in split for word in one),
    }


# ---- what is wrong with one answer


def field_faults(details: Sequence[Detail], gold: Mapping[str, Any], given: Mapping[str, Any]) -> list[Fault]:
    """Faults of a parsed answer. `gold`, `given`: field → value. An item beside right ones that shares no word with
    the gold is made up, not partly right."""
    made = []
    for one in details:
        if one.verdict != "partly":
            if one.verdict in ("hallucinated", "wrong", "missed"):
                made.append(Fault(one.verdict, one.field, one.gold, one.predicted))
            continue
        right, said = items(gold[one.field]), items(given[one.field])
        known = {word for item in right for word in item.split()}
        alien = sorted(item for item in said - right if not known & set(item.split()))
        if alien:
            made.append(Fault("hallucinated", one.field, one.gold, "; ".join(alien)))
        if right - said or not alien:
            made.append(Fault("partly", one.field, one.gold, one.predicted))
    return made


# ---- one system's answers as a whole


def confusions(details: Sequence[Sequence[Detail]]) -> list[Table]:
    """A table a field: which gold value was answered how, and how often. `details`: of each row."""
    by_field: dict[str, list[Detail]] = {}
    for row in details:
        for one in row:
            by_field.setdefault(one.field, []).append(one)
    made = [_confusion(field, found) for field, found in by_field.items()]
    return [table for table in made if table.rows]


def _confusion(field: str, found: Sequence[Detail]) -> Table:
    shown: dict[str, str] = {}
    pairs: Counter[tuple[str, str]] = Counter()
    for one in found:
        if one.verdict != "unparsed":
            right = one.verdict in ("match", "null")  # in whatever spelling and order
            pairs[_key(one.gold, shown), _key(one.gold if right else one.predicted, shown)] += 1
    golds = Counter(gold for gold, _ in pairs.elements())
    whole = len(golds) <= _FEW_VALUES
    wrong = Counter({pair: times for pair, times in pairs.items() if pair[0] != pair[1]})
    kept = pairs.most_common(_FEW_VALUES**2) if whole else wrong.most_common(_COMMONEST)
    if not wrong:
        kept = []
    note = (
        f"All {len(golds)} gold values of this field, right answers too."
        if whole
        else f"The commonest of {wrong.total():,} wrong answers ({len(golds):,} gold values in all)."
    )
    rows = tuple((shown[gold], shown[given], times) for (gold, given), times in kept)
    return Table(
        f"Confusions: {field}", ("gold", "answered", "times"), rows, note, kind="confusion", quotes=True
    )


def _key(text: str | None, shown: dict[str, str]) -> str:
    """A value's spelling aside, its first spelling kept in `shown`."""
    key = "" if text is None else normal(text)
    shown.setdefault(key, "null" if text is None else text)
    return key


class Sure(NamedTuple):
    """A field of a row, how sure the model was of it, and whether it was right."""

    field: str
    confidence: float
    right: bool


def sureness(rows: Sequence[Answered], details: Sequence[Sequence[Detail]]) -> list[list[Sure]]:
    """Fields of every row whose line holds log-probabilities by token (`by_token`).

    A field's confidence is exp of the mean log-probability of the tokens that wrote its value, null and quotes
    included. A field without tokens of its own (left out, or in an answer that can't be parsed, where all is wrong) has
    that of the whole answer: leaving them out would flatter.
    """
    made = []
    for row, found in zip(rows, details, strict=True):
        logprobs, ends = row.line.get("token_logprobs"), row.line.get("token_ends")
        if not logprobs or not ends:
            continue
        spans = value_spans(row.line["answer"], row.predicted.value)
        whole = exp(sum(logprobs) / len(logprobs))
        one_row = []
        for one in found:
            own = (
                calibration.span_confidence(logprobs, ends, *spans[one.field]) if one.field in spans else None
            )
            one_row.append(Sure(one.field, whole if own is None else own, one.verdict in ("match", "null")))
        made.append(one_row)
    return made


def confidences(rows: Sequence[Sequence[Sure]]) -> list[Table]:
    """Figures of each field and of whole rows, then calibration and risk by coverage of both. Empty for no rows."""
    if not rows:
        return []
    flat = [one for row in rows for one in row]
    by_field: dict[str, list[Sure]] = {}
    for one in flat:
        by_field.setdefault(one.field, []).append(one)
    whole = [_whole(row) for row in rows]
    figures = []
    for name, found in [*by_field.items(), ("all fields", flat), ("whole rows", whole)]:
        got = calibration.measure([one.confidence for one in found], [one.right for one in found])
        figures.append(
            (name, got.n, got.right, got.confidence, got.ece, got.ece_by_chance, got.brier, got.aurc)
        )
    note = (
        "Confidence of a field: exp of the mean log-probability of its value's tokens; of a row: the product of its "
        "fields'. Right: equal by items, null for null. ECE has 10 bins with equally many answers, and is biased "
        "upwards on few: beside it what a perfectly calibrated model would show on as many. Brier: mean square of "
        "confidence minus right. AURC: share wrong, mean over how many of the surest are kept."
    )
    columns = ("confidence of", "n", "right", "mean confidence", "ECE", "ECE by chance", "Brier", "AURC")
    made = [Table("Confidence", columns, tuple(figures), note)]
    for name, found in (("field values", flat), ("whole rows", whole)):
        made += calibration.tables(name, [one.confidence for one in found], [one.right for one in found])
    return made


def _whole(row: Sequence[Sure]) -> Sure:
    product = 1.0
    for one in row:
        product *= one.confidence
    return Sure("", product, all(one.right for one in row))
