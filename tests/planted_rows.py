"""Generated rows with faults planted in them: what the inspection has to find, by the name of its check."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tunesmith.example import Example, Message
from tunesmith.starter import reports
from tunesmith.starter.values import FIELDS, draw

EACH = 80  # rows planted of each kind
CUES = ("List of extracted chemicals:", "List of extracted diseases:", "List of extracted influences:")
_ROOTS = (
    "tor mel bra cin lus vet dor pra sil nom gar fen tis wol kar bel dun ras pim lek jor hast verin calo distu "
    "renta molit serva opten circa balun"
).split()
_KANNADA = [chr(point) for point in (*range(0x0C85, 0x0C8D), *range(0x0C95, 0x0CA9), *range(0x0CAA, 0x0CB4))]
_SIGNS = ["", "\u0cbe", "\u0cbf", "\u0cc1", "\u0cc6", "\u0ccd"]


@dataclass
class Planted:
    """Rows, the split that each is given for (0 train, 1 validation), and the rows that each kind of fault names."""

    rows: list[Example] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    faults: dict[str, set[int]] = field(default_factory=dict)
    touched: set[int] = field(default_factory=set)
    """Rows that have a part in a fault: no clean rows, even where the fault is not theirs."""

    def add(self, example: Example, given: int = 0) -> int:
        """A row, under a name of its own; returns its number."""
        number = len(self.rows)
        name = f"row-{number:05d}"
        document = example.document or name
        self.rows.append(replace(example, id=name, source=f"rows.jsonl:{number + 1}", document=document))
        self.given.append(given)
        return number

    def plant(
        self, kind: str, example: Example, *, named: tuple[int, ...] = (), partners: tuple[int, ...] = ()
    ) -> None:
        """One more training row, which the check should name, with `named`."""
        number = self.add(example)
        self.faults.setdefault(kind, set()).update({number, *named})
        self.touched.update({number, *named, *partners})


def extraction(rng: random.Random) -> Planted:
    """Cancer reports with seven fields as JSON."""
    stream = [_report(row) for row in reports.rows("train", 1500 + 13 * EACH, seed=rng.randrange(2**32))]
    rows = Planted()
    for _ in range(1300):
        rows.add(stream.pop())
    held = [rows.add(_report(row), 1) for row in reports.rows("validation", 300, seed=rng.randrange(2**32))]
    rng.shuffle(held)
    for _ in range(EACH):
        victim = held.pop()
        rows.plant("leaked row", rows.rows[victim], partners=(victim,))
        victim = held.pop()
        rows.plant("near-duplicate leak", _one_word_other(rows.rows[victim], rng), partners=(victim,))
        victim = held.pop()
        rows.plant(
            "group leak", replace(stream.pop(), document=rows.rows[victim].document), partners=(victim,)
        )
    trained = rng.sample(range(1300), 3 * EACH)
    for _ in range(EACH):
        twin = trained.pop()
        rows.plant("duplicate", replace(rows.rows[twin], document=""), partners=(twin,))
        twin = trained.pop()
        rows.plant(
            "near-duplicate", replace(_one_word_other(rows.rows[twin], rng), document=""), partners=(twin,)
        )
        twin, other = trained.pop(), stream.pop()
        liar = _answered(rows.rows[twin], other.answer or "")
        rows.plant("contradictory pair", replace(liar, document=""), named=(twin,))
    for kind, spoil in _SPOILT.items():
        for _ in range(EACH):
            rows.plant(kind, spoil(stream.pop(), rng))
    return rows


def prompts(rng: random.Random) -> Planted:
    """Free text with one of three cues at its end; a list of words as the answer."""
    rows = Planted()
    for _ in range(1500):
        rows.add(_asked(*_article(rng)))
    for _ in range(EACH):
        text, cue, answer = _article(rng)
        rows.plant("missing cue", _asked(text, "", answer))
        # the cut comes before the cue is put behind the text
        text, cue, answer = _article(rng)
        rows.plant("cut prompt", _asked(text[: rng.randrange(60, len(text) - 12)].rstrip(" .?"), cue, answer))
    for _ in range(EACH):  # a limit in characters on whole prompts: where it falls hangs on no sentence
        text, cue, answer = _article(rng, sentences=30)
        rows.plant("prompt of a limit's length", _asked((text + "\n\n" + cue)[:1024], "", answer))
    return rows


def translations(rng: random.Random) -> Planted:
    """English questions, answers of Kannada letters; some answers stayed English, some are the same few sentences."""
    rows = Planted()
    standard = " ".join(_kannada(rng) for _ in range(25)) + "."
    for _ in range(1200):
        own = " ".join(_kannada(rng) for _ in range(rng.randrange(60, 90))) + "."
        often = f" {standard}" if rng.random() < 0.3 else ""
        rows.add(_asked(_sentence(rng), "", own + often))
    for _ in range(EACH):
        rows.plant("wrong script", _asked(_sentence(rng), "", _sentence(rng)))
        rows.plant("boilerplate", _asked(_sentence(rng), "", f"{_kannada(rng)} {standard}"))
    return rows


def _empty(row: Example, rng: random.Random) -> Example:
    return _answered(row, rng.choice(("", " ", "\n")))


def _unparsable(row: Example, rng: random.Random) -> Example:
    answer = row.answer or ""
    return _answered(row, rng.choice((answer[:-2], answer.replace('":', '"', 1), "The report says nothing.")))


def _schema(row: Example, rng: random.Random) -> Example:
    value = json.loads(row.answer or "")
    name = rng.choice(FIELDS)
    spoilt = rng.choice(
        (
            {key: inner for key, inner in value.items() if key != name},
            {(f"{key}s" if key == name else key): inner for key, inner in value.items()},
            value | {name: rng.choice((7, True, {"value": "IV"}))},
            value | {"comment": "see above"},
        )
    )
    return _answered(row, json.dumps(spoilt, ensure_ascii=False))


def _swapped(row: Example, rng: random.Random) -> Example:
    value = json.loads(row.answer or "")
    told = [name for name in FIELDS if value[name]]
    if len(told) < 2:
        return _misplaced(row, rng)
    one, other = rng.sample(told, 2)
    value[one], value[other] = value[other], value[one]
    return _answered(row, json.dumps(value, ensure_ascii=False))


def _misplaced(row: Example, rng: random.Random) -> Example:
    """A value of another field instead of the field's own; it stands in the text, so that it is not ungrounded too."""
    value = json.loads(row.answer or "")
    one, other = rng.sample(FIELDS, 2)
    value[one] = draw(other, "seen", rng)
    text = f"{row.prompt[-1].content} Noted: {value[one]}."
    return _answered(_prompted(row, text), json.dumps(value, ensure_ascii=False))


def _invented(row: Example, rng: random.Random) -> Example:
    """A value of which the report has no word."""
    value = json.loads(row.answer or "")
    text = row.prompt[-1].content.lower()
    name = rng.choice([name for name in FIELDS if value[name]])
    while any(word in text for word in re.findall(r"\w+", value[name].lower())):
        value[name] = draw(name, rng.choice(("seen", "unseen")), rng)
    return _answered(row, json.dumps(value, ensure_ascii=False))


def _phone(row: Example, rng: random.Random) -> Example:
    area, office, line = rng.randrange(201, 990), rng.randrange(200, 1000), rng.randrange(10000)
    number = rng.choice(
        (
            f"({area}) {office}-{line:04d}", f"{area}-{office}-{line:04d}", f"+1 {area} {office} {line:04d}",
            f"1-800-{office}-{line:04d}", f"+91 9{rng.randrange(1000, 10000)} {rng.randrange(10000, 100000)}",
            f"{area}.{office}.{line:04d}",
        )
    )  # fmt: skip
    sentences = row.prompt[-1].content.split(". ")
    sentences.insert(
        rng.randrange(1, len(sentences) + 1),
        rng.choice(("Call {}", "Reached at {}", "Daughter: {}")).format(number),
    )
    text = ". ".join(sentence.rstrip(".") for sentence in sentences) + "."
    return _prompted(row, text)


_SPOILT: dict[str, Callable[[Example, random.Random], Example]] = {
    "empty answer": _empty,
    "unparsable": _unparsable,
    "schema": _schema,
    "swapped field": _swapped,
    "misplaced value": _misplaced,
    "invented value": _invented,
    "phone number": _phone,
}


def _report(row: dict[str, object]) -> Example:
    head = f"{row['instruction']}\n\n"
    answer = json.dumps(row["output"], ensure_ascii=False)
    turns = Message("user", f"{head}{row['input']}", context=len(head)), Message("assistant", answer, True)
    return Example("", turns)


def _answered(row: Example, answer: str) -> Example:
    return replace(row, messages=(*row.messages[:-1], replace(row.messages[-1], content=answer)))


def _prompted(row: Example, prompt: str) -> Example:
    return replace(row, messages=(replace(row.messages[0], content=prompt), row.messages[1]))


def _one_word_other(row: Example, rng: random.Random) -> Example:
    """The same report with its first or last word changed: at most one 3-gram of words is another."""
    turn = row.messages[0]
    head, words = turn.content[: turn.context], turn.content[turn.context :].split(" ")
    if rng.random() < 0.5:
        words[0] = rng.choice(("Also:", "Note:", "Re:")) + f" {words[0]}"
    else:
        words[-1] = f"{words[-1]} {rng.choice(('Seen', 'Signed', 'Done'))}."
    return replace(_prompted(row, head + " ".join(words)), document="")


def _asked(text: str, cue: str, answer: str) -> Example:
    prompt = f"{text}\n\n{cue}" if cue else text
    return Example("", (Message("user", prompt), Message("assistant", answer, True)))


def _article(rng: random.Random, sentences: int = 0) -> tuple[str, str, str]:
    told = [_sentence(rng) for _ in range(sentences or rng.randrange(3, 12))]
    answer = "\n".join(f"- {_word(rng)}" for _ in range(rng.randrange(1, 5)))
    return " ".join(told), rng.choice(CUES), answer


def _sentence(rng: random.Random) -> str:
    words = [
        _word(rng) if rng.random() < 0.7 else rng.choice("the of and in with to".split())
        for _ in range(rng.randrange(6, 15))
    ]
    return " ".join([*words, _word(rng)]).capitalize() + rng.choice("...?")


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(_ROOTS) for _ in range(rng.choice((1, 2, 2, 3))))


def _kannada(rng: random.Random) -> str:
    return "".join(rng.choice(_KANNADA) + rng.choice(_SIGNS) for _ in range(rng.randrange(2, 6)))
