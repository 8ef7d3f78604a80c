"""One answer while it is written: tokens come, text that can be shown goes."""

from __future__ import annotations

from typing import Literal, NamedTuple

from tunesmith.generate.protocol import LiveToken, TokenEvent
from tunesmith.serve.writing.detokenise import Detokeniser, Pieces
from tunesmith.serve.writing.stops import StopFinder


class Told(NamedTuple):
    """A token whose probability is told, and the character at which it begins."""

    token: LiveToken
    begin: int


class Part(NamedTuple):
    """What one answer went on with."""

    choice: int
    text: str
    told: tuple[Told, ...]
    """Tokens of this text, where their probabilities were asked for; the id that ended it is one of them."""
    prompt: tuple[LiveToken, ...]
    """The prompt's own, once, where they were asked for."""
    end: Literal["", "stop", "length"]


class Choice:
    """Of one request to the engine. `telling`: tokens are told beside the text."""

    def __init__(
        self, number: int, pieces: Pieces, stop_ids: frozenset[int], stops: tuple[str, ...], telling: bool
    ) -> None:
        self.number, self.tokens = number, 0
        """`tokens`: all that were written, the one that ended it too."""
        self.first = self.last = 0.0
        """Seconds, by the writer's clock: when its first and its last token came; 0 before."""
        self.end: Literal["", "stop", "length"] = ""
        self._stop_ids, self._telling = stop_ids, telling
        self._detokeniser, self._finder = Detokeniser(pieces), StopFinder(stops)
        self._read = self._shown = 0  # characters that came, and that went out
        self._text = ""
        self._told: list[Told] = []
        self._prompt: tuple[LiveToken, ...] = ()
        self._by_string = False

    def feed(self, event: TokenEvent) -> bool:
        """Takes what a step did. True where a stop string has ended the answer: the engine need not go on."""
        self._prompt += event.prompt
        if event.token is not None:
            self._take(event.token)
        if event.end in ("stop", "length") and not self.end:
            self._show(self._detokeniser.finish())
            if not self.end:
                self._add(self._finder.finish())
                self.end = event.end
        return self._by_string

    def part(self) -> Part | None:
        """What can be shown since the last part; None where there is nothing."""
        told = self._ready()
        if not (self._text or told or self._prompt or self.end):
            return None
        made = Part(self.number, self._text, told, self._prompt, self.end)
        self._text, self._prompt = "", ()
        return made

    def _take(self, token: LiveToken) -> None:
        self.tokens += 1
        text = "" if token.id in self._stop_ids else self._detokeniser.push(token.id)
        if self._telling:
            self._told.append(Told(token, self._read))
        self._read += len(text)
        self._show(text)

    def _show(self, text: str) -> None:
        shown, self._by_string = self._finder.push(text)
        self._add(shown)
        if self._by_string:
            self.end = "stop"

    def _add(self, text: str) -> None:
        self._text += text
        self._shown += len(text)

    def _ready(self) -> tuple[Told, ...]:
        """Tokens of which something is shown; at the end all others too, but those of a stop string."""
        if not self._told:
            return ()
        all_of_them = self.end and not self._by_string
        count = sum(all_of_them or one.begin < self._shown for one in self._told)  # they begin in order
        ready, self._told = tuple(self._told[:count]), self._told[count:]
        return ready
