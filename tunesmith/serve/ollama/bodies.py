"""What Ollama's clients send. What would change an answer is done or refused by name.

Ignored: `keep_alive` (models stay as long as the server does), and the options that say how an engine uses its
machine (`num_gpu`, `num_thread`, …), which is not a client's business here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.example import Message
from tunesmith.serve.protocol import Unservable
from tunesmith.serve.schemas import Body, Seed, Temperature, TopP, refuse_others

_IGNORED = frozenset({"keep_alive"})
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "images": ([],),
    "template": ("",),
    "context": ([],),
    "tools": ([],),
    "think": (False,),
}
_MACHINE = frozenset(
    "numa num_batch num_gpu main_gpu low_vram vocab_only use_mmap use_mlock num_thread num_keep f16_kv".split()
)  # num_keep: of a prompt that is cut, which none is here
_OPTIONS: dict[str, tuple[Any, ...]] = {
    "top_k": (0,),
    "min_p": (0,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "repeat_last_n": (0,),
    "repeat_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "penalize_newline": (False,),
    "mirostat": (0,),
    "mirostat_eta": (),
    "mirostat_tau": (),
}


class Options(Body):
    """What of Ollama's options is done."""

    num_predict: Annotated[int, Field(ge=-2)] | None = None
    """-1 and -2: until there is no room."""
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    """-1: another one every time."""
    stop: str | list[str] | None = None


class Turn(Body):
    """A message."""

    role: Literal["system", "user", "assistant"]
    content: str

    def message(self, where: str) -> Message:
        """As the Contract takes it."""
        refuse_others(
            self.model_extra,
            frozenset(),
            {"images": ([],), "tool_calls": ([],), "thinking": ("",)},
            f"{where}.",
        )
        return Message(self.role, self.content)


class Asked(Body):
    """What both routes know."""

    model: str
    stream: bool | None = None
    """Unless it is false."""
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: Options | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None

    def require_known(self) -> None:
        """Unservable for a key that can't be done, or that nobody knows."""
        refuse_others(self.model_extra, _IGNORED, _HARMLESS)
        if self.options is not None:
            refuse_others(self.options.model_extra, _MACHINE, _OPTIONS, "options.")
        if self.top_logprobs and not self.logprobs:
            raise Unservable("top_logprobs needs logprobs: true", where="top_logprobs")

    @property
    def how(self) -> Options:
        """The options, given or not."""
        return self.options or Options()

    @property
    def stops(self) -> tuple[str, ...]:
        """As a list."""
        stop = self.how.stop
        return (stop,) if isinstance(stop, str) else tuple(stop or ())


class GenerateAsked(Asked):
    """POST /api/generate. Without a prompt: the model is only loaded."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None


class ChatAsked(Asked):
    """POST /api/chat. Without messages: the model is only loaded."""

    messages: list[Turn] | None = None


class ShowAsked(Body):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None
    """What older clients call it."""
    verbose: bool | None = None
