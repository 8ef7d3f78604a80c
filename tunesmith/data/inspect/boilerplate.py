"""Phrases that a fifth of all answers hold: they cost tokens, flatter word scores and teach nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

OFTEN = 0.2  # share of answers
MOSTLY = 0.5  # share of an answer's characters
LEAST = 50  # answers to know a habit by
_LOOKED_AT = 2000
_WORDS = 6
_MOST_PHRASES = 30


@dataclass(frozen=True)
class BoilerplateNorms:
    """Phrases of at least six words, longest first. Picklable."""

    phrases: tuple[str, ...] = ()

    @classmethod
    def learn(cls, answers: Sequence[str]) -> BoilerplateNorms:
        """From training answers that are free text."""
        answers = answers[:: max(1, len(answers) // _LOOKED_AT)]
        if len(answers) < LEAST:
            return cls()
        split = [answer.split(" ") for answer in answers]
        counts: Counter[tuple[str, ...]] = Counter()
        for words in split:
            counts.update({tuple(words[i : i + _WORDS]) for i in range(len(words) - _WORDS + 1)})
        often = {gram for gram, times in counts.items() if times > OFTEN * len(answers)}
        if not often:
            return cls()
        runs: Counter[str] = Counter()
        for words in split:
            runs.update(set(_runs(words, often)))
        return cls(_covering([run for run, times in runs.items() if times > OFTEN * len(answers)]))

    def shares(self, answer: str) -> tuple[int, list[str]]:
        """Characters of the answer that are boilerplate, and the phrases that it holds."""
        held = [phrase for phrase in self.phrases if phrase in answer]
        return min(sum(map(len, held)), len(answer)), held

    def finding(self, answer: str, characters: int) -> str | None:
        """What to look at, where most of the answer is boilerplate."""
        if not characters or characters < MOSTLY * len(answer):
            return None
        return f"{characters / len(answer):.0%} of the answer stands in many others too"


def _runs(words: list[str], often: set[tuple[str, ...]]) -> list[str]:
    """Longest stretches of an answer whose every six words are frequent."""
    found: list[str] = []
    begin: int | None = None
    for place in range(len(words) - _WORDS + 2):
        inside = tuple(words[place : place + _WORDS]) in often
        if inside and begin is None:
            begin = place
        elif not inside and begin is not None:
            found.append(" ".join(words[begin : place + _WORDS - 1]))
            begin = None
    return found


def _covering(runs: list[str]) -> tuple[str, ...]:
    """No phrase inside another: characters are counted once."""
    kept: list[str] = []
    for run in sorted(runs, key=lambda run: (-len(run), run)):
        if not any(run in longer for longer in kept):
            kept.append(run)
    return tuple(kept[:_MOST_PHRASES])
