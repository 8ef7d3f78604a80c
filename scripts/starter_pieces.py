"""Pieces of the base model's training rows, as token ids: words, values, keys, sentences, notes, JSON.

Fixed parts and values are tokenised once and put together as ids; the tokenizer is built so that this gives the ids
that it would give for the whole text (tests/test_starter.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from starter_sentences import CLINIC, CLINIC_KINDS, FILLERS, FRAMES, JOINTS, REPORT_SENTENCES
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


class Pieces:
    """What rows are put together from; `_pools` draws the words and values of one shard."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.copied: list[int] = []  # ids of values in answers, for the count of copies
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

        return re.sub(r"\{(\w)\}", word, rng.choice(FRAMES))

    def _field(self, rng: random.Random, sentences: int) -> Field:
        kinds = rng.sample(list(KINDS), rng.choice((1, 2, 2, 3)))
        frames = [self.frame(self._sentence(rng)) for _ in range(sentences)]
        return Field(self._key(rng), frames, kinds, rng.choice((1, 1, 2, 3)), rng.choice(JOINTS))

    def _domain(self) -> tuple[Text, list[Field]]:
        rng = self.fixed
        name = f"{rng.choice(NOUNS)} {rng.choice(NOUNS)}"
        return self.text(name), [self._field(rng, rng.randrange(4, 9)) for _ in range(rng.randrange(4, 9))]

    def _clinic(self) -> tuple[Text, list[Field]]:
        rng = self.fixed
        fields = []
        for name in rng.sample(list(CLINIC), rng.randrange(4, 9)):
            form = rng.choice((name, name.replace("_", " "), name.split("_")[0]))
            key = Key(self.text(form), self.text(form.replace("_", " ")), self.text(form.capitalize()))
            kinds = CLINIC_KINDS.get(name, ["medical", "pair", "phrase", "words", "hyphened"])
            frames = [self.frame(s) for s in CLINIC[name]]
            most = 3 if name in ("medicine", "allergy", "finding") else 1
            fields.append(Field(key, frames, kinds, most, rng.choice(JOINTS)))
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
