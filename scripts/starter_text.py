"""The base model's training text, as token ids: extraction, question answering and copying over random vocabulary.

A row is a conversation in the chat template whose answer is learned, or plain text that is learned as a whole. Values
are drawn from words, codes, numbers and, so that every token of the vocabulary is copied somewhere, raw token
sequences. Nothing here knows the fields, sentences or values of the synthetic cancer reports.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from starter_pieces import Field, Frame, Pieces, Row, Text
from starter_sentences import ASK_DOMAIN, ASK_NAMED, ASK_SPAN, CLAUSES, JOINTS

LONGEST = 1024


class Writer(Pieces):
    """Writes rows with one tokenizer; `shard(n)` gives the n-th lot, the same on every machine."""

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
            joint = rng.choice(JOINTS)
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
            self.fill(self.frame(rng.choice(ASK_NAMED)), {"keys": Text(listed[1:], listed)}, False, ask)
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
                joint = field.joint if rng.random() < 0.5 else rng.choice(JOINTS)
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
        self.fill(self.frame(rng.choice(ASK_DOMAIN)), {"d": name}, False, ask)
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
        self.fill(self.frame(rng.choice(ASK_SPAN)), {"k": asked.phrase, "K": asked.title}, False, ask)
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
        self.copied = []
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
