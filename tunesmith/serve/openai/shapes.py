"""What OpenAI's clients get: whole answers, and chunks of them as server-sent events.

Tokens are told with the id that ended an answer as the last one (spelled, without bytes), so there are as many as
`completion_tokens` counts, but for those of a stop string.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.generate.protocol import LiveToken
from tunesmith.serve.errors import refusal
from tunesmith.serve.writing.choice import Part, Told
from tunesmith.serve.writing.detokenise import Detokeniser, Pieces
from tunesmith.serve.writing.writing import Writing

_LEAST = -9999.0  # stands for ln 0, which JSON has no word for; first in `max`, so that NaN becomes it too


@dataclass(frozen=True)
class Echo:
    """A prompt that goes before its answers. `unseen`: tokens at its head that the text doesn't hold (BOS)."""

    text: str
    ids: Sequence[int]
    unseen: int = 0


@dataclass(frozen=True)
class Shape:
    """Of one request. `echoes`: of each prompt, for completions alone."""

    chat: bool
    writing: Writing
    echoes: Sequence[Echo] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, chunk: bool) -> dict[str, Any]:
        """What every chunk and every answer begins with."""
        kind = ("chat.completion" + ".chunk" * chunk) if self.chat else "text_completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.writing.served.name}

    def usage(self) -> dict[str, int]:
        """Counts of tokens; the one that ends an answer is one of its."""
        prompt, answer = self.writing.prompt_tokens, self.writing.answer_tokens
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    async def whole(self) -> dict[str, Any]:
        """The answer to a request that doesn't stream."""
        choices = []
        for index, answer in enumerate(await self.writing.whole()):
            told = self.told(index, answer.told, answer.prompt)
            about: dict[str, Any] = {"index": index, "logprobs": told, "finish_reason": answer.end}
            if self.chat:
                message = {"role": "assistant", "content": answer.text, "refusal": None}
                choices.append({"index": index, "message": message} | about)
            else:
                choices.append({"text": self.echo(index) + answer.text} | about)
        return self.head(False) | {"choices": choices, "usage": self.usage(), "system_fingerprint": None}

    def echo(self, index: int) -> str:
        """The prompt before an answer, where it was asked for."""
        return self.echoes[index // self.writing.ask.n].text if self.echoes else ""

    def told(self, index: int, told: Sequence[Told], prompt: Sequence[LiveToken]) -> dict[str, Any] | None:
        """Tokens with their probabilities, where they were asked for."""
        if self.writing.ask.top is None:
            return None
        pieces = Pieces.of(self.writing.served.contract)
        if self.chat:
            return {"content": [chat_token(pieces, one.token) for one in told], "refusal": None}
        before = len(self.echo(index))
        places = [(one.token, before + one.begin) for one in told]
        if prompt:
            echo = self.echoes[index // self.writing.ask.n]
            places = [*zip(prompt, _begins(pieces, echo), strict=True), *places]
        return _completion_tokens(pieces, places)


class Chunks:
    """The same answers as server-sent events. `usage`: whether the last chunk tells the counts."""

    media_type: str = "text/event-stream"

    def __init__(self, shape: Shape, usage: bool) -> None:
        self._shape, self._usage = shape, usage
        opened = json.dumps(shape.head(True))[:-1]
        self._before = f'data: {opened}, "system_fingerprint": null, "choices": [{{"index": '
        self._behind = '}], "usage": null}\n\n' if usage else "}]}\n\n"
        self._begun: set[int] = set()

    def of(self, parts: Sequence[Part]) -> bytes:
        """The events of what the answers went on with."""
        one = self._chat if self._shape.chat else self._completion
        return "".join([one(part) for part in parts]).encode()

    def end(self) -> bytes:
        """The last events."""
        last = ""
        if self._usage:
            last = f"data: {json.dumps(self._shape.head(True) | {'choices': [], 'usage': self._shape.usage()})}\n\n"
        return f"{last}data: [DONE]\n\n".encode()

    def failed(self, error: Exception) -> bytes:
        """An event that the official client raises as an error."""
        return f"data: {json.dumps(refusal(error).body('/v1/'))}\n\n".encode()

    def _chat(self, part: Part) -> str:
        made = ""
        if part.choice not in self._begun:
            self._begun.add(part.choice)
            made = self._event(part.choice, '"delta": {"role": "assistant", "content": ""}', "null", "null")
        if part.text or part.told:
            told = self._shape.told(part.choice, part.told, ())
            told_text = "null" if told is None else json.dumps(told)
            made += self._event(
                part.choice, f'"delta": {{"content": {json.dumps(part.text)}}}', told_text, "null"
            )
        if part.end:
            made += self._event(part.choice, '"delta": {}', "null", f'"{part.end}"')
        return made

    def _completion(self, part: Part) -> str:
        text = part.text
        if part.choice not in self._begun:
            self._begun.add(part.choice)
            text = self._shape.echo(part.choice) + text
        told = self._shape.told(part.choice, part.told, part.prompt)
        told_text = "null" if told is None else json.dumps(told)
        end = f'"{part.end}"' if part.end else "null"
        return self._event(part.choice, f'"text": {json.dumps(text)}', told_text, end)

    def _event(self, choice: int, what: str, told: str, end: str) -> str:
        return f'{self._before}{choice}, {what}, "logprobs": {told}, "finish_reason": {end}{self._behind}'


def chat_token(pieces: Pieces, token: LiveToken) -> dict[str, Any]:
    """A token as chat completions and Ollama tell it."""
    top = [_likely(pieces, one, logprob) for one, logprob in token.top]
    return _likely(pieces, token.id, token.logprob) | {"top_logprobs": top}


def _likely(pieces: Pieces, one: int, logprob: float) -> dict[str, Any]:
    raw = pieces.bytes_of(one)
    there = None if one in pieces.control else list(raw)
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(_LEAST, logprob), "bytes": there}


def _completion_tokens(pieces: Pieces, places: Sequence[tuple[LiveToken, int]]) -> dict[str, Any]:
    tokens = [token for token, _ in places]
    return {
        "tokens": [_name(pieces, token.id) for token in tokens],
        "token_logprobs": [_or_null(token.logprob) for token in tokens],
        "top_logprobs": [_top(pieces, token) for token in tokens],
        "text_offset": [begin for _, begin in places],
    }


def _top(pieces: Pieces, token: LiveToken) -> dict[str, float] | None:
    """The likeliest by name, and the chosen one where it is none of these."""
    if token.logprob != token.logprob:
        return None  # a prompt's first token
    likely = {_name(pieces, one): max(_LEAST, logprob) for one, logprob in reversed(token.top)}
    return dict(reversed(likely.items())) | {_name(pieces, token.id): max(_LEAST, token.logprob)}


def _name(pieces: Pieces, one: int) -> str:
    """The token's text; where it is a part of a character, its bytes, which no other token has."""
    raw = pieces.bytes_of(one)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _or_null(logprob: float) -> float | None:
    return None if logprob != logprob else max(_LEAST, logprob)


def _begins(pieces: Pieces, echo: Echo) -> list[int]:
    """The character of its text at which each token of a prompt begins."""
    detokeniser, begins, at = Detokeniser(pieces, control=True), [], 0
    for number, one in enumerate(echo.ids):
        begins.append(at)
        if number >= echo.unseen:
            at += len(detokeniser.push(one))
    return begins
