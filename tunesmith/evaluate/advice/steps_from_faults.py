"""Next steps from kinds of faults: each rule reads the faults of one system's answers."""

from __future__ import annotations

import re

from tunesmith.evaluate.advice.step import Rule, Seen, Step, most, mostly_in, total, worth_saying
from tunesmith.tasks.protocol import Fault

MANY = 0.1  # share of answers lost to their form, from which on nothing else matters as much


# ---- values


def hallucinated(seen: Seen) -> Step | None:
    """Values where the gold has none."""
    nulls = total(seen.sums, "hallucinated:") + total(seen.sums, "null:")
    found = [fault for fault in seen.of_kind("hallucinated") if fault.gold is None]
    if not nulls:
        rows, answers = seen.rows_with("hallucinated"), len(seen.rows)
        every = seen.of_kind("hallucinated")
        say = (
            f"Something made up in {rows:,} of {answers:,} answers ({len(every):,} times{mostly_in(every)}): "
            "look at these rows "
            "first; add training rows whose answers leave it out."
        )
        return worth_saying(say, rows, answers, 4)
    say = (
        f"Hallucinated values in {len(found):,} of {nulls:,} null fields{mostly_in(found)}: add training "
        "rows where "
        f"{most(found)[0] or 'the field'} is absent."
    )
    return worth_saying(say, len(found), nulls, 4)


def invented_beside(seen: Seen) -> Step | None:
    """Items made up beside right ones."""
    found = [fault for fault in seen.of_kind("hallucinated") if fault.gold is not None]
    given = total(seen.sums, "given:")
    if not given:
        return None
    say = (
        f"Items that the gold does not have beside right ones in {len(found):,} of {given:,} answered "
        "values"
        f"{mostly_in(found)}: see whether the input names them at all (grounded_words), and whether "
        "training answers add any."
    )
    return worth_saying(say, len(found), given, 4)


def sub_stage(seen: Seen) -> Step | None:
    """Wrong values that differ from the gold only in the letter behind the number."""
    by_place: dict[str, list[Fault]] = {}
    for fault in seen.of_kind("wrong"):
        by_place.setdefault(fault.where, []).append(fault)
    best: Step | None = None
    for place, faults in by_place.items():
        close = sum(_other_letter(fault.gold, fault.predicted) for fault in faults)
        if close < 0.25 * len(faults):
            continue
        part = "sub-stage" if "stage" in place.casefold() else "part behind the number"
        say = (
            f"{100 * close / len(faults):.0f} % of {place} errors are in the {part} ({close:,} of "
            f"{len(faults):,}: the same "
            "number with another letter): write it alike in all training answers, or leave it out of "
            "the schema."
        )
        step = worth_saying(say, close, len(faults), 3)
        best = step if step and (best is None or step.count > best.count) else best
    return best


_NUMBERED = re.compile(r"(?P<head>.*?\b(?:[ivx]+|[tnm]?\d+))\s*(?P<tail>[a-e]\d*)?$", re.IGNORECASE)


def _other_letter(gold: str | None, given: str | None) -> bool:
    one, other = _NUMBERED.fullmatch((gold or "").strip()), _NUMBERED.fullmatch((given or "").strip())
    if one is None or other is None:
        return False
    same = one["head"].casefold() == other["head"].casefold()
    return same and (one["tail"] or "").casefold() != (other["tail"] or "").casefold()


def wrong_place(seen: Seen) -> Step | None:
    """A field with most of the wrong values."""
    found = seen.of_kind("wrong")
    place, times = most(found)
    if len({fault.where for fault in found}) < 2 or times < 0.4 * len(found):
        return None
    say = (
        f"{times:,} of {len(found):,} wrong values are in {place}: read its confusions; if its values "
        "can be listed, list "
        "them in data.schema (enum)."
    )
    return worth_saying(say, times, len(found), 3)


def _gold(seen: Seen) -> int:
    """Gold values, forms of entities or pairs of all rows; rows where the task counts none of these."""
    listed = round(sum(seen.sums.get(name, 0.0) for name in ("string_gold", "relation_gold")))
    return total(seen.sums, "gold:") or listed or len(seen.rows)


def missed(seen: Seen) -> Step | None:
    """Gold values that were left out."""
    found = seen.of_kind("missed")
    gold = _gold(seen)
    place = most(found)[0]
    if len(found) < MANY * gold:
        return None
    say = (
        f"{len(found):,} of {gold:,} gold values were left out{mostly_in(found)}: see whether all training "
        "answers give "
        f"{place or 'them'} where the input does (check: unlabelled values)."
    )
    return worth_saying(say, len(found), gold, 2) if gold >= len(found) else None


# ---- entities, relations, sections, records


def reversed_pairs(seen: Seen) -> Step | None:
    """Pairs with their sides exchanged."""
    found = seen.of_kind("reversed")
    say = (
        f"{len(found):,} pairs are the wrong way round in {seen.rows_with('reversed'):,} of "
        f"{len(seen.rows):,} answers: name "
        "both sides in the prompt and in the answers (drug | disease), and check the training answers' "
        "order."
    )
    return worth_saying(say, seen.rows_with("reversed"), len(seen.rows), 4)


def upstream(seen: Seen) -> Step | None:
    """Pairs lost because an entity was not found."""
    lost = seen.of_kind("missed_upstream")
    total = len(lost) + len(seen.of_kind("missed"))
    say = (
        f"{len(lost):,} of {total:,} missing pairs and entities lack an entity that was not found: mend "
        "entities before relations."
    )
    return worth_saying(say, len(lost), total, 2)


def boundaries(seen: Seen) -> Step | None:
    """Entities cut short or drawn too wide."""
    found = seen.of_kind("boundary")
    total = len(seen.of_kind("boundary", "missed", "hallucinated", "type"))
    if len(found) < MANY * total:
        return None
    say = (
        f"{len(found):,} of {total:,} entity errors are boundaries{mostly_in(found)}: agree on what "
        "belongs to a name "
        "(adjectives, dosages), and label all training rows so."
    )
    return worth_saying(say, len(found), total, 2)


def copied(seen: Seen) -> Step | None:
    """Training rows repeated."""
    rows = seen.rows_with("copied")
    say = (
        f"{rows:,} of {len(seen.rows):,} answers repeat training rows: don't publish this model; train "
        "fewer epochs, remove "
        "near-duplicates (check names them), look at the canaries' exposure."
    )
    return worth_saying(say, rows, len(seen.rows), 4)


def contradicted(seen: Seen) -> Step | None:
    """Answers that contradict their request or themselves."""
    found, rows = seen.of_kind("contradicted"), seen.rows_with("contradicted")
    say = (
        f"{rows:,} of {len(seen.rows):,} answers contradict their request or themselves{mostly_in(found)}: "
        "look for the same "
        "in the training answers; they teach it."
    )
    return worth_saying(say, rows, len(seen.rows), 3)


def dropped(seen: Seen) -> Step | None:
    """Sections left out."""
    found, rows = seen.of_kind("dropped_section"), seen.rows_with("dropped_section")
    say = (
        f"{rows:,} of {len(seen.rows):,} answers lack a section{mostly_in(found)}: see whether "
        "data.max_length cut it off the "
        "training answers, and whether all of them have it."
    )
    return worth_saying(say, rows, len(seen.rows), 2)


# ---- form


def cut(seen: Seen) -> Step | None:
    """Answers that ended at the limit; of those that had grown far beyond the gold, another cause."""
    rows = [
        row
        for row, faults in zip(seen.rows, seen.faults, strict=True)
        if any(f.kind == "truncated" for f in faults)
    ]
    if not rows:
        return None
    rambling = sum(len(row.line["answer"]) > 2 * len(row.example.answer or "") for row in rows)
    advice = (
        "most had grown to twice their gold answer's length: train longer, so that the model learns to stop"
        if 2 * rambling > len(rows)
        else "raise evaluate.decoding.max_tokens"
    )
    say = f"{len(rows):,} of {len(seen.rows):,} answers were cut: {advice}."
    return worth_saying(say, len(rows), len(seen.rows), _form(len(rows), seen))


def unparsable(seen: Seen) -> Step | None:
    """Answers in another form, that were not cut."""
    count = sum(
        {"unparsable"} <= (kinds := {fault.kind for fault in row}) and "truncated" not in kinds
        for row in seen.faults
    )
    if "schema_valid" in seen.content["scores"][seen.system]:
        advice = (
            f"{_held(seen, 'set evaluate.constrained: true to see what form alone costs')}, and train longer"
        )
    else:  # nothing holds an answer to a form that no schema says
        advice = "say in the prompt what form an answer has, and train longer"
    lost = seen.rows_with("unparsable") - count
    said = f", and {lost:,} more because they were cut" if lost else ""
    say = f"{count:,} of {len(seen.rows):,} answers can't be read{said}: {advice}."
    return worth_saying(say, count, len(seen.rows), _form(count, seen))


def _held(seen: Seen, otherwise: str) -> str:
    """What to do about form: nothing new where answers were held to the schema already."""
    if f"{seen.system}-constrained" in seen.content["scores"]:
        return f"see what “{seen.system}, constrained” scores"
    return otherwise


def malformed(seen: Seen) -> Step | None:
    """Answers that can be read but break their schema, or hold numbers and dates that are none."""
    found, rows = seen.of_kind("malformed"), seen.rows_with("malformed")
    if any(fault.where for fault in found):
        advice = f"look at these{mostly_in(found)}, and whether training answers write them in one form"
    else:
        held = _held(seen, "evaluate.constrained: true holds answers to the schema")
        advice = f"keys are missing, unknown or of another type: {held}"
    say = f"{rows:,} of {len(seen.rows):,} answers are malformed: {advice}."
    return worth_saying(say, rows, len(seen.rows), _form(rows, seen))


def empty(seen: Seen) -> Step | None:
    """No answer."""
    count = seen.rows_with("empty")
    say = (
        f"{count:,} of {len(seen.rows):,} answers are empty: look for empty answers in the training "
        "rows (check names them)."
    )
    return worth_saying(say, count, len(seen.rows), _form(count, seen) + 1)


def other_script(seen: Seen) -> Step | None:
    """Written in another script than the gold."""
    count = seen.rows_with("wrong_script")
    say = (
        f"{count:,} of {len(seen.rows):,} answers are in another script than the gold: say the language "
        "in data.system, and "
        "check the training answers' script."
    )
    return worth_saying(say, count, len(seen.rows), _form(count, seen))


def _form(count: int, seen: Seen) -> int:
    return 3 if count >= MANY * len(seen.rows) else 1


FAULT_RULES: tuple[Rule, ...] = (
    hallucinated, invented_beside, copied, reversed_pairs, sub_stage, wrong_place, contradicted, missed, upstream,
    boundaries, dropped, cut, unparsable, malformed, empty, other_script,
)  # fmt: skip
