"""The base model's training text, as token ids: extraction, question answering and copying over random vocabulary.

A row is a conversation in the chat template whose answer is learned, or plain text that is learned as a whole. Values
are drawn from words, codes, numbers and, so that every token of the vocabulary is copied somewhere, raw token
sequences. Nothing here knows the fields, sentences or values of the synthetic cancer reports.

Fixed sentence parts and values are tokenised once and rows put together from ids; the tokenizer is built so that
this gives the ids that it would give for the whole text (tests/test_starter.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from starter_words import (
    ADJECTIVES,
    CLINICAL,
    KINDS,
    NOUNS,
    PREPOSITIONS,
    VERBS,
    allowed,
    code,
    invented,
    medical,
    value,
)
from tokenizers import Tokenizer

from tunesmith.starter.reports import TEMPLATES

LONGEST = 1024
# sentences of the cancer reports, which chance must not make again
REPORT_SENTENCES = frozenset(
    t.format("{v}", who=who)
    for group in TEMPLATES.values()
    for t in group
    for who in ("She", "He", "The patient")
)

CLAUSES = (
    "{K}: {v}.", "The {k} is {v}.", "{K} {v}.", "{v} was recorded as the {k}.", "For the {k} we have {v}.",
    "{k} = {v}", "The {k}, as far as known, is {v}.", "Its {k} was given as {v} by the {n}.", "{K} - {v}",
    "With {v} as {k}, the {n} {x}.", "The {n} {x} {v} for {k}.", "{K} ({v}) was {x} by the {n}.",
    "They set the {k} to {v} after the {n}.", "{K} remains {v}, {a} as ever.", "We {x} {v} under {k}.",
    "On {k}, the {n} says {v}.", "{K} according to the {n}: {v}, then {a} {m}.", "The {n} has {v} ({k}).",
    "{K} changed and is now {v}.", "The {k} that {x} was {v}, not the {a} {m}.",
)  # fmt: skip
FILLERS = (
    "The {a} {n} {x} the {m}.", "{N} and {m} {x} {p} the {o}.", "It was a {a} {n}.", "Nobody {x} the {n} that day.",
    "The {n} {x} {p} {v}.", "{P} {x} a {a} {n} {p} the {m}.", "After the {n}, {P} {x}.", "All {m} were {a}.",
    "The {n} has {z} {m} and no {o}.", "{A} {n} was {x} {p} a {m}.", "There is no {n} here.", "{v} is not meant.",
    "She {x} the {n} before {z} {m} had {x}.", "He {x} and {y}.", "{N}, {m} and {o} were {x}.", "So it {x}.",
    "The {n} of {P} was {a}, the {m} {b}.", "No {n} was {x}.", "Then the {n} {x} again, {a} and {b}.",
    "A {c} was {x} {p} the {d}.", "{C} and {d} were {a}.", "The {c} showed no {d}.", "{z} {c} in all.",
)  # fmt: skip
_ASK_NAMED = (
    "Extract {keys} as JSON.", "Return a JSON object with the keys {keys}.", "Give {keys} as a JSON object.",
    "Fill in these keys: {keys}.", "Read the text and write JSON with {keys}.", "JSON keys: {keys}.",
    "Which {keys} does the text give? Answer in JSON.",
)  # fmt: skip
_ASK_DOMAIN = (
    "Extract the {d} entries.", "Fill the {d} form from this text.", "Write the {d} record as JSON.",
    "Read this {d} text and list what it says.", "{d}: extract.", "Turn this {d} note into JSON.",
)  # fmt: skip
_ASK_SPAN = (
    "What is the {k}?", "Which {k} is given?", "Name the {k}.", "{K}?", "Tell me the {k} that the text gives.",
)  # fmt: skip
_JOINTS = (" and ", ", ", "; ", " plus ", " with ", " then ", " or ", " / ", " as well as ", ", then ")
# sentences of a domain's field, {v} being the value; words are put in once, when the domains are made
_FRAMES = (
    "{S} {x} {p} {v}.", "{S} {x} {v}.", "{N}: {v}.", "{A} {n}: {v}.", "{N} {x} {v}.", "{S} was {x} {p} {v}.",
    "The {n} {x} {v} {p} the {m}.", "{A} {n} was {v}.", "We {x} {v} without {n}.", "{S} {x} {v} {p} {z} {m}.",
    "{A} {n} of {v} was {x}.", "{A} {n} {v} was {x}.", "{S} has a {n} of {v} and {x} the {m}.", "{N} was {v}.",
    "At the {n}, {v} was {x}.", "The {n} was {a}: {v}, {x} {z} times.", "{N} {x} as {v}.", "{v} {x} {p} the {n}.",
    "After {z} {n} there was {v}.", "There was {a} {n} of the {v}.", "{A} {m} {x} the {v}.", "{N} of {v} {x}.",
    "It was {n} {v} when {x}.", "The {n} was {x} {p} {v}.", "{N} {x} {p} {n} {v} at {m}.", "The {n} {x} {p} {n} {v}.",
)  # fmt: skip
_CLINIC = {
    "pulse": ("Pulse {v}.", "Heart rate of {v} at the bedside.", "The pulse was counted at {v}.", "HR {v}, regular."),
    "blood_pressure": ("BP {v}.", "The cuff read {v}.", "Pressure: {v} sitting."),
    "temperature": ("Temp {v}.", "The thermometer gave {v}.", "Running a temperature of {v} overnight."),
    "ward": ("Admitted to {v}.", "Bed on {v}.", "Moved over to {v} by the porter."),
    "clinician": ("Examined by Dr {v}.", "Dr {v} wrote this note.", "Under the care of {v}."),
    "allergy": ("Allergic to {v}.", "Allergies: {v}.", "A rash appeared after {v} was taken.", "Avoid {v}."),
    "complaint": ("Complains of {v}.", "Came in because of {v}.", "{v} for two days.", "Main trouble is {v}."),
    "dose": ("Dose {v}.", "Takes {v} with meals.", "Dosing was set to {v} daily."),
    "next_visit": ("Come back on {v}.", "Appointment booked for {v}.", "To be seen again {v}."),
    "device": ("Has a {v} in place.", "A {v} was fitted.", "Walks with a {v}."),
    "medicine": ("On {v} at home.", "Prescribed {v}.", "Drug chart: {v}.", "Was switched to {v} yesterday."),
    "finding": ("Examination: {v}.", "The scan of the knee showed {v}.", "There is {v} on both sides."),
    "operation": ("Had {v} as a child.", "Surgery: {v}.", "Scheduled for {v}.", "Recovering from {v}."),
    "laboratory": ("Lab: {v}.", "Bloods came back with {v}.", "Serum {v}."),
}  # fmt: skip
_CLINIC_KINDS = {
    "pulse": ["number"], "blood_pressure": ["number"], "temperature": ["number"], "ward": ["name", "staged", "words"],
    "clinician": ["name"], "dose": ["number"], "next_visit": ["number", "phrase"], "laboratory": ["marked", "coded"],
}  # fmt: skip


class Text(NamedTuple):
    """Ids of one text at the start of a word, and after a space."""

    bare: Sequence[int]
    spaced: Sequence[int]


class Frame(NamedTuple):
    """A sentence with slots: fixed ids between them."""

    start: Text
    parts: tuple[tuple[str, bool, Sequence[int]], ...]  # slot, a space before it, ids after it
    first_spaced: bool


class Key(NamedTuple):
    form: Text  # delivery_site
    phrase: Text  # delivery site
    title: Text  # Delivery site


class Field(NamedTuple):
    key: Key
    frames: Sequence[Frame]
    kinds: Sequence[str]
    most: int  # items
    joint: str


class Row(NamedTuple):
    ids: list[int]
    start: int  # the first learned token


class Writer:
    """Writes rows with one tokenizer; `shard(n)` gives the n-th lot, the same on every machine."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self._frames: dict[str, Frame] = {}
        special = tokenizer.token_to_id
        self.bos, self.eos, self.eot = (
            special(f"<|{n}|>") for n in ("begin_of_text", "end_of_text", "eot_id")
        )
        begin, end = special("<|start_header_id|>"), special("<|end_header_id|>")
        self.heads = {
            role: [begin, *self.ids(role), end, *self.ids("\n\n")] for role in ("system", "user", "assistant")
        }
        self.space, self.line = self.ids(" ")[0], self.ids("\n")[0]
        self.count = tokenizer.get_vocab_size()
        texts = [tokenizer.decode([i]) for i in range(self.count)]
        self.special = {i for i, t in tokenizer.get_added_tokens_decoder().items()}
        self.any = [i for i in range(self.count) if i not in self.special]
        # what may stand in a JSON string as it is; halves of a character decode to U+FFFD and may too
        self.quotable = [
            i for i in self.any if texts[i] == "\ufffd" or re.fullmatch(r'[^"\\\x00-\x1f\x7f]+', texts[i])
        ]
        self.fixed = random.Random("domains")
        self.domains = [self._domain() for _ in range(96)]
        self.domains += [self._clinic() for _ in range(12)]

    # ---- ids

    def ids(self, text: str) -> list[int]:
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def text(self, text: str) -> Text:
        return Text(self.ids(text), self.ids(" " + text))

    def texts(self, texts: Sequence[str]) -> list[Text]:
        bare = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        spaced = self.tokenizer.encode_batch([" " + t for t in texts], add_special_tokens=False)
        return [Text(a.ids, b.ids) for a, b in zip(bare, spaced, strict=True)]

    def frame(self, template: str) -> Frame:
        found = self._frames.get(template)
        if found is None:
            head, *rest = re.split(r"\{(\w+)\}", template)
            after_space = head.endswith(" ")
            start = self.text(head.removesuffix(" ")) if head.strip() else Text((), ())
            parts = []
            for slot, after in zip(rest[::2], rest[1::2], strict=True):
                parts.append((slot, after_space, self.ids(after.removesuffix(" ")) if after.strip() else ()))
                after_space = after.endswith(" ")
            found = Frame(start, tuple(parts), bool(head))
            if len(self._frames) < 20_000:
                self._frames[template] = found
        return found

    def fill(self, frame: Frame, slots: Mapping[str, Text], spaced: bool, out: list[int]) -> None:
        out += frame.start.spaced if spaced else frame.start.bare
        after_space = spaced
        first = not frame.first_spaced
        for slot, space, after in frame.parts:
            one = slots[slot] if slot in slots else self._word(slot)
            out += one.spaced if (after_space if first else space) else one.bare
            out += after
            first = False

    # ---- words and values of a shard

    def _pools(self, rng: random.Random) -> None:
        self.rng = rng
        self.values = {kind: self.texts([value(kind, rng) for _ in range(2500)]) for kind in KINDS}
        titled = [w.capitalize() for w in NOUNS]
        numbers = [str(rng.randrange(2, 60)) for _ in range(60)]
        self.words = {
            "n": self.texts(NOUNS), "a": self.texts(ADJECTIVES), "x": self.texts(VERBS), "p": self.texts(PREPOSITIONS),
            "N": self.texts(titled), "A": self.texts([w.capitalize() for w in ADJECTIVES]), "z": self.texts(numbers),
            "c": self.texts(CLINICAL), "C": self.texts([w.capitalize() for w in CLINICAL]), "P": self.values["name"],
        }  # fmt: skip
        for same, as_ in (("m", "n"), ("o", "n"), ("b", "a"), ("y", "x"), ("d", "c")):
            self.words[same] = self.words[as_]
        self.keys = [self._key(rng) for _ in range(3000)]
        self.mixed = list(KINDS)

    def _word(self, slot: str) -> Text:
        if slot in "vw":
            return self._value(self.mixed)
        pool = self.words[slot]
        return pool[int(self.rng.random() * len(pool))]

    def _value(self, kinds: Sequence[str]) -> Text:
        """One item: of a kind, or raw tokens, or both in a row."""
        rng = self.rng
        roll = rng.random()
        if roll < 0.22:
            return self._raw(rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 8)), self.quotable)
        pool = self.values[kinds[int(rng.random() * len(kinds))]]
        one = pool[int(rng.random() * len(pool))]
        if roll < 0.28:
            more = self._raw(rng.choice((1, 2, 3)), self.quotable)
            return Text([*one.bare, *more.spaced], [*one.spaced, *more.spaced])
        return one

    def _raw(self, length: int, among: Sequence[int]) -> Text:
        rng = self.rng
        while True:
            ids = [among[int(rng.random() * len(among))] for _ in range(length)]
            if allowed(self.tokenizer.decode(ids)):
                return Text(ids, [self.space, *ids])

    def _key(self, rng: random.Random) -> Key:
        while True:
            count = rng.choice((1, 1, 2, 2, 2, 3))
            words = [
                rng.choice((invented, medical))(rng)
                if rng.random() < 0.25
                else rng.choice(rng.choice((NOUNS, ADJECTIVES)))
                for _ in range(count)
            ]
            if rng.random() < 0.08:
                words[-1] = code(rng)
            if allowed(" ".join(words)):
                break
        form = rng.choice(("_", "_", "_", " ", "-")).join(words)
        if rng.random() < 0.1:
            form = words[0] + "".join(w.capitalize() for w in words[1:])
        phrase = " ".join(words)
        return Key(self.text(form), self.text(phrase), self.text(phrase[0].upper() + phrase[1:]))

    # ---- domains: sets of fields that the model has to know by heart, as it later has to know the tuned ones

    def _sentence(self, rng: random.Random) -> str:
        while True:
            sentence = self._any_sentence(rng)
            if sentence not in REPORT_SENTENCES:
                return sentence

    @staticmethod
    def _any_sentence(rng: random.Random) -> str:
        def word(match: re.Match[str]) -> str:
            slot = match[1]
            if slot == "v":
                return "{v}"
            if slot == "S":
                return rng.choice(("It", "She", "He", "They", "The " + rng.choice(NOUNS)))
            if slot == "z":
                return str(rng.randrange(2, 30))
            nouns = (*NOUNS, *CLINICAL)
            pool = {"n": nouns, "m": nouns, "a": ADJECTIVES, "x": VERBS, "p": PREPOSITIONS}[slot.lower()]
            drawn = rng.choice(pool)
            return drawn.capitalize() if slot.isupper() else drawn

        return re.sub(r"\{(\w)\}", word, rng.choice(_FRAMES))

    def _field(self, rng: random.Random, sentences: int) -> Field:
        kinds = rng.sample(list(KINDS), rng.choice((1, 2, 2, 3)))
        frames = [self.frame(self._sentence(rng)) for _ in range(sentences)]
        return Field(self._key(rng), frames, kinds, rng.choice((1, 1, 2, 3)), rng.choice(_JOINTS))

    def _domain(self) -> tuple[Text, list[Field]]:
        rng = self.fixed
        name = f"{rng.choice(NOUNS)} {rng.choice(NOUNS)}"
        return self.text(name), [self._field(rng, rng.randrange(4, 9)) for _ in range(rng.randrange(4, 9))]

    def _clinic(self) -> tuple[Text, list[Field]]:
        rng = self.fixed
        fields = []
        for name in rng.sample(list(_CLINIC), rng.randrange(4, 9)):
            form = rng.choice((name, name.replace("_", " "), name.split("_")[0]))
            key = Key(self.text(form), self.text(form.replace("_", " ")), self.text(form.capitalize()))
            kinds = _CLINIC_KINDS.get(name, ["medical", "pair", "phrase", "words", "hyphened"])
            frames = [self.frame(s) for s in _CLINIC[name]]
            most = 3 if name in ("medicine", "allergy", "finding") else 1
            fields.append(Field(key, frames, kinds, most, rng.choice(_JOINTS)))
        return self.text(f"{rng.choice(('ward', 'bedside', 'clinic', 'nurse'))} {rng.choice(NOUNS)}"), fields

    # ---- pieces of rows

    def _items(self, kinds: Sequence[str], most: int) -> list[Text]:
        count = 1 if most == 1 else self.rng.choice((1, 1, 2, most))
        return [self._value(kinds) for _ in range(count)]

    def _joined(self, items: Sequence[Text], joint: str) -> Text:
        """Items in prose, as one text."""
        bare, spaced = list(items[0].bare), list(items[0].spaced)
        for item in items[1:]:
            more = [*self.ids(joint.removesuffix(" ")), *item.spaced]
            bare += more
            spaced += more
        return Text(bare, spaced)

    def _note(self, sentences: list[tuple[Frame, dict[str, Text]]], fillers: int, out: list[int]) -> None:
        rng = self.rng
        for _ in range(fillers if sentences else max(fillers, 1)):
            sentences.insert(int(rng.random() * (len(sentences) + 1)), (self.frame(rng.choice(FILLERS)), {}))
        lines = rng.random() < 0.12
        for i, (frame, slots) in enumerate(sentences):
            if i and lines:
                out.append(self.line)
            self.fill(frame, slots, bool(i) and not lines, out)

    def _json(self, pairs: Sequence[tuple[Text, Sequence[Text]]], arrays: bool) -> list[int]:
        ids, out = self.ids, list(self.ids('{"'))
        for i, (key, items) in enumerate(pairs):
            last = i == len(pairs) - 1
            out += key.bare
            out += ids('":')
            if not items:
                out += ids(" null")
                out += ids("}") if last else ids(",")
            elif arrays:
                out += ids(' ["')
                for j, item in enumerate(items):
                    out += item.bare
                    self.copied += item.bare
                    out += ids('",') + ids(' "') if j < len(items) - 1 else ids('"]}') if last else ids('"],')
            else:
                out += ids(' "')
                for j, item in enumerate(items):
                    one = item.spaced if j else item.bare
                    out += ids(";") if j else ()
                    out += one
                    self.copied += one
                out += ids('"}') if last else ids('",')
            if not last:
                out += ids(' "')
        return out

    def _row(self, ask: list[int], note: list[int], answer: list[int]) -> Row:
        rng = self.rng
        gap = self.ids("\n\n")
        roll = rng.random()
        out = [self.bos]
        if roll < 0.15:
            out += [*self.heads["system"], *ask, self.eot, *self.heads["user"], *note]
        elif roll < 0.27:
            out += [*self.heads["user"], *note, *gap, *ask]
        else:
            out += [*self.heads["user"], *ask, *gap, *note]
        out.append(self.eot)
        out += self.heads["assistant"]
        return Row([*out, *answer, self.eot], len(out))

    def _length(self) -> int:
        """Filler sentences: few as a rule, up to several hundred tokens now and then."""
        rng = self.rng
        return rng.randrange(8, 60) if rng.random() < 0.05 else rng.choice((0, 0, 1, 1, 2, 2, 3, 4))

    # ---- tasks

    def named(self) -> Row:
        """Random keys, named in the instruction by themselves, by a phrase, or by the words around the value."""
        rng = self.rng
        manner = rng.choice(("named", "named", "named", "phrase", "cue"))
        count = rng.choice((1, 2, 3, 4, 5, 6, 7, 8)) if manner != "cue" else rng.choice((1, 2, 3, 4))
        arrays, sentences, pairs = rng.random() < 0.15, [], []
        ask = (
            list(self.ids(rng.choice(("Give JSON with", "Extract as JSON:", "Keys:"))))
            if manner != "named"
            else []
        )
        listed: list[int] = []
        for i in range(count):
            key, other = (self.keys[int(rng.random() * len(self.keys))] for _ in range(2))
            told, items = rng.random() < 0.82, self._items(self.mixed, rng.choice((1, 1, 1, 3)))
            cue = self.frame(self._sentence(rng)) if manner == "cue" else self.frame(rng.choice(CLAUSES))
            joint = rng.choice(_JOINTS)
            slots = {"k": key.phrase, "K": key.title, "v": self._joined(items, joint)}
            if told:
                sentences.append((cue, slots))
            if manner == "named":
                listed += self.ids(",") if i else ()
                listed += key.form.spaced
                pairs.append((key.form, items if told else ()))
                continue
            pairs.append((other.form, items if told else ()))
            ask += self.ids(",") if i else ()
            ask += other.form.spaced
            ask += self.ids(" for the") if manner == "phrase" else self.ids(" as in")
            if manner == "phrase":
                ask += key.phrase.spaced
            else:
                self.fill(cue, {"v": self.text("...")}, True, ask)
        if manner == "named":
            self.fill(self.frame(rng.choice(_ASK_NAMED)), {"keys": Text(listed[1:], listed)}, False, ask)
        for _ in range(rng.choice((0, 0, 1, 2))):  # what nobody asked for
            key = self.keys[int(rng.random() * len(self.keys))]
            sentences.append((self.frame(rng.choice(CLAUSES)), {"k": key.phrase, "K": key.title}))
        rng.shuffle(sentences)
        note: list[int] = []
        self._note(sentences, self._length(), note)
        return self._row(ask, note, self._json(pairs, arrays))

    def _told(
        self, fields: Sequence[Field]
    ) -> tuple[list[tuple[Frame, dict[str, Text]]], list[Sequence[Text]]]:
        rng = self.rng
        sentences, values = [], []
        for field in fields:
            items: Sequence[Text] = self._items(field.kinds, field.most) if rng.random() < 0.82 else ()
            values.append(items)
            if items:
                joint = field.joint if rng.random() < 0.5 else rng.choice(_JOINTS)
                sentences.append((rng.choice(field.frames), {"v": self._joined(items, joint)}))
        rng.shuffle(sentences)
        return sentences, values

    def domain(self) -> Row:
        """Fields known by heart: the instruction names the domain, not the keys."""
        rng = self.rng
        name, fields = self.domains[int(rng.random() * len(self.domains))]
        sentences, values = self._told(fields)
        note: list[int] = []
        self._note(sentences, self._length(), note)
        ask: list[int] = []
        self.fill(self.frame(rng.choice(_ASK_DOMAIN)), {"d": name}, False, ask)
        return self._row(
            ask, note, self._json([(f.key.form, v) for f, v in zip(fields, values, strict=True)], False)
        )

    def shown(self) -> Row:
        """A worked example in the prompt, then another note with the same fields."""
        rng = self.rng
        fields = [self._field(rng, 2) for _ in range(rng.choice((1, 2, 3, 4)))]
        note: list[int] = []
        answers = []
        for i in range(rng.choice((2, 2, 3))):
            sentences, values = self._told(fields)
            if i:
                note += [*answers[-1], *self.ids("\n\n")]
            self._note(sentences, rng.choice((0, 1, 1, 2)), note)
            note += self.ids("\n")
            answers.append(self._json([(f.key.form, v) for f, v in zip(fields, values, strict=True)], False))
        return self._row(
            self.ids(rng.choice(("As shown.", "Go on like this.", "Same again."))), note, answers[-1]
        )

    def span(self) -> Row:
        """One question, the answer being a span of the text, or "not stated"."""
        rng = self.rng
        sentences = []
        keys = [self.keys[int(rng.random() * len(self.keys))] for _ in range(rng.choice((1, 2, 3, 4)))]
        asked, answer = keys[0], self.ids("not stated")
        for key in keys:
            if key is asked and rng.random() < 0.15:
                continue
            one = self._value(self.mixed)
            if key is asked:
                answer = list(one.bare)
                self.copied += answer
            sentences.append((self.frame(rng.choice(CLAUSES)), {"k": key.phrase, "K": key.title, "v": one}))
        rng.shuffle(sentences)
        note: list[int] = []
        self._note(sentences, self._length(), note)
        ask: list[int] = []
        self.fill(self.frame(rng.choice(_ASK_SPAN)), {"k": asked.phrase, "K": asked.title}, False, ask)
        return self._row(ask, note, answer)

    def copy(self) -> Row:
        """Any tokens at all, once more."""
        rng = self.rng
        ids = list(self._raw(rng.randrange(1, 40), self.any).bare)
        self.copied += ids
        return self._row(
            self.ids(rng.choice(("Repeat this exactly.", "Copy.", "Write the same text again."))), ids, ids
        )

    def follows(self) -> Row:
        """What comes after a given item of a list."""
        rng = self.rng
        items = [self._value(self.mixed) for _ in range(rng.randrange(3, 15))]
        i = rng.randrange(len(items) - 1)
        note = list(self._joined(items, rng.choice((", ", "; ", " then "))).bare)
        self.copied += items[i + 1].bare
        return self._row(
            [*self.ids("What follows"), *items[i].spaced, *self.ids("?")], note, list(items[i + 1].bare)
        )

    def prose(self) -> Row:
        """Plain text and clinical-looking notes, learned as a whole."""
        rng = self.rng
        out = [self.bos]
        sentences, _ = self._told(self.domains[-1 - rng.randrange(12)][1])
        self._note(sentences, rng.randrange(1, 8), out)
        return Row([*out, self.eos], 1)

    TASKS: tuple[tuple[Callable[[Writer], Row], float], ...] = (
        (named, 0.34), (domain, 0.38), (shown, 0.07), (span, 0.10), (copy, 0.03), (follows, 0.05), (prose, 0.03)
    )  # fmt: skip

    def rows(self, number: int, count: int) -> list[Row]:
        """`count` rows of shard `number`, none longer than LONGEST."""
        self._pools(random.Random(f"base/{number}"))
        self.copied: list[int] = []
        tasks = self.rng.choices([t for t, _ in self.TASKS], [w for _, w in self.TASKS], k=count)
        made = (task(self) for task in tasks)
        return [row for row in made if len(row.ids) <= LONGEST]

    def shard(self, number: int, count: int) -> dict[str, NDArray[np.generic]]:
        """The rows as flat arrays: ids [N], offsets [R+1], first learned token [R], copies of each id [V]."""
        rows = self.rows(number, count)
        lengths = np.fromiter((len(r.ids) for r in rows), np.int64, len(rows))
        flat = np.empty(lengths.sum(), np.uint16)
        offsets = np.concatenate([[0], lengths.cumsum()])
        for row, begin, end in zip(rows, offsets[:-1], offsets[1:], strict=True):
            flat[begin:end] = row.ids
        starts = np.fromiter((r.start for r in rows), np.int64, len(rows))
        copies = np.bincount(np.asarray(self.copied), minlength=self.count)
        return {"ids": flat, "offsets": offsets, "starts": starts, "copies": copies}
