"""What the app knows of its models: names that answer, loaded when they are first asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from tunesmith.contract import Contract
from tunesmith.errors import TunesmithError
from tunesmith.generate.protocol import LiveGenerator
from tunesmith.run import Run


class UnknownModel(TunesmithError):
    """A name that no model has: 404."""


class Busy(TunesmithError):
    """No room for another request now: 429, to be tried again after `seconds`."""

    seconds: int = 1


class Unservable(TunesmithError):
    """A request that can never be answered as it stands: 400. `where` names the field."""


@dataclass(frozen=True)
class Served:
    """A model that answers."""

    name: str
    contract: Contract
    live: LiveGenerator
    engine: str
    """transformers, llama.cpp or vllm."""
    adapter: str = ""
    """`LiveRequest.adapter` of its requests."""
    max_tokens: int = 512
    """Longest answer where a request names none; this and the next two are what was measured, where a run tells."""
    temperature: float = 0.0
    top_p: float = 1.0
    schema: Mapping[str, Any] | None = None
    """The task's JSON schema."""
    run: Run | None = None
    """The run that it was trained in."""
    created: int = 0
    """Seconds since 1970, for /v1/models."""


@dataclass(frozen=True)
class ModelStatus:
    """How far a model is."""

    name: str
    state: Literal["waiting", "loading", "ready", "failed"]
    detail: str = ""
    """In words: what is loaded now, or why it failed."""
    done: float = 0.0
    """Share of the bytes that are there, 0 to 1."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For /v1/models and the pages: engine, base, adapter, run, where these are known."""


class Models(Protocol):
    """The models that a server answers with."""

    def names(self) -> tuple[str, ...]:
        """As requests say them; the first one answers where the playground asks for the tuned model."""
        ...

    def status(self) -> tuple[ModelStatus, ...]:
        """Of each, in the order of `names`."""
        ...

    async def get(self, name: str) -> Served:
        """Loads it where it is not there yet. UnknownModel; TunesmithError where it can't be loaded."""
        ...

    def close(self) -> None:
        """Ends all engines."""
        ...
