"""What OpenAI's clients send. Everything that would change an answer is done or refused by name.

Tolerated, because official clients and lm-eval send it: null for any key; answers of this server sent back as turns
(`refusal`, `annotations`, `audio`, `function_call`, `tool_calls`, all null or empty); `type: text` on a turn; empty
`tools`, `functions` and `logit_bias`; penalties of 0; `best_of` 1. Ignored as OpenAI says: `user`, `metadata`,
`safety_identifier`, and hints for its caches.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.example import Message
from tunesmith.serve.protocol import Unservable
from tunesmith.serve.schemas import Body, Listed, Seed, Temperature, TopP, refuse_others

_IGNORED = frozenset(
    "user metadata safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options "
    "parallel_tool_calls".split()  # the last says nothing where there are no tools
)
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "audio": (),
    "moderation": (),
    "prediction": (),
    "verbosity": (),
    "web_search_options": (),
}
_CHAT_ONLY = frozenset(
    "tools tool_choice functions function_call modalities reasoning_effort audio prediction verbosity "
    "web_search_options moderation store service_tier".split()
)
_TURN: dict[str, tuple[Any, ...]] = {
    "type": ("text", "message"),
    "name": (),
    "refusal": (),
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "tool_calls": ([],),
    "tool_call_id": (),
}

Count = Annotated[int, Field(ge=0)]
Answers = Annotated[int, Field(ge=1)]
Ids = list[int]


class StreamOptions(Body):
    """`include_obfuscation` pads chunks against listeners; there is nothing to do where it is false."""

    include_usage: bool | None = None


class JsonSchema(Body):
    """Of `response_format`. `strict` or not: answers are always held to it."""

    name: str = ""
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(Body):
    """What form the answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Turn(Body):
    """A message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Listed[dict[str, Any]] | None = None

    def message(self, where: str) -> Message:
        """As the Contract takes it; parts of text follow each other as they stand."""
        refuse_others(self.model_extra, frozenset(), _TURN, f"{where}.")
        role = "system" if self.role == "developer" else self.role
        if self.content is None:
            raise Unservable(f"{where}.content: a turn needs text", where=f"{where}.content")
        if isinstance(self.content, str):
            return Message(role, self.content)
        return Message(
            role, "".join(_text(part, f"{where}.content.{n}") for n, part in enumerate(self.content))
        )


class Asked(Body):
    """What both routes know."""

    model: str
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    n: Answers | None = None
    seed: Seed | None = None
    stop: str | Listed[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    def require_known(self) -> None:
        """Unservable for a key that can't be done, or that nobody knows."""
        refuse_others(self.model_extra, _IGNORED, self._harmless())
        if self.stream_options is not None:
            if not self.stream:
                raise Unservable("stream_options needs stream: true", where="stream_options")
            refuse_others(
                self.stream_options.model_extra,
                frozenset(),
                {"include_obfuscation": (False,)},
                "stream_options.",
            )

        if (form := self.response_format) is not None:
            refuse_others(form.model_extra, frozenset(), {}, "response_format.")
            if form.json_schema is not None:
                refuse_others(form.json_schema.model_extra, frozenset(), {}, "response_format.json_schema.")

    def _harmless(self) -> dict[str, tuple[Any, ...]]:
        return {key: value for key, value in _HARMLESS.items() if key not in _CHAT_ONLY}

    @property
    def stops(self) -> tuple[str, ...]:
        """As a list."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_in_stream(self) -> bool:
        """Whether the last chunk tells the counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatAsked(Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[Listed[Turn], Field(min_length=1)]
    max_tokens: Answers | None = None
    max_completion_tokens: Answers | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None

    def _harmless(self) -> dict[str, tuple[Any, ...]]:
        return {key: value for key, value in _HARMLESS.items() if key not in ("best_of", "suffix")}

    def require_known(self) -> None:
        """See `Asked`; and what two keys say has to agree."""
        super().require_known()
        most = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(most) > 1:
            raise Unservable(
                "max_tokens and max_completion_tokens say different things", where="max_completion_tokens"
            )
        if self.top_logprobs and not self.logprobs:
            raise Unservable("top_logprobs needs logprobs: true", where="top_logprobs")


class CompletionAsked(Asked):
    """POST /v1/completions."""

    prompt: str | Listed[str] | Listed[int] | Listed[Listed[int]]
    logprobs: Count | None = None
    echo: bool | None = None


def _text(part: dict[str, Any], where: str) -> str:
    if part.get("type") != "text":
        raise Unservable(f"{where}: only parts of type text are supported", where=where)
    text = part.get("text")
    if not isinstance(text, str) or part.keys() > {"type", "text"}:
        raise Unservable(f"{where}: a part of type text has text, a string, and nothing else", where=where)
    return text
