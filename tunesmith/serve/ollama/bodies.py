"""What Ollama's clients send. What would change an answer is done or refused by name.

Clients often send Ollama's own sampling options with every request (`top_k: 40`): they are taken where the likeliest
token is written, which they can't change, and refused where tokens are drawn. Ignored: `keep_alive` (models stay as
long as the server does), and the options that say how an engine uses its machine (`num_gpu`, `num_thread`, …), which
is not a client's business here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.example import Message
from tunesmith.serve.protocol import Unservable
from tunesmith.serve.schemas import Body, Listed, Seed, Temperature, TopP, refuse_others

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
    "repeat_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "mirostat": (0,),
}
_OF_DRAWS = frozenset({"top_k", "min_p", "typical_p", "tfs_z"})  # the likeliest token is left by each of them
_OF_OTHERS = frozenset(
    {"repeat_last_n", "penalize_newline", "mirostat_eta", "mirostat_tau"}
)  # say how penalties and Mirostat work, which are refused themselves


class Options(Body):
    """What of Ollama's options is done."""

    num_predict: Annotated[int, Field(ge=-2)] | None = None
    """-1 and -2: until there is no room."""
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    """-1: another one every time."""
    stop: str | Listed[str] | None = None


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
        if self.top_logprobs and not self.logprobs:
            raise Unservable("top_logprobs needs logprobs: true", where="top_logprobs")

    def require_options(self, temperature: float) -> None:
        """Unservable for an option that would change an answer of this temperature and can't be done."""
        ignored = _MACHINE | _OF_OTHERS | (_OF_DRAWS if temperature == 0 else frozenset())
        refuse_others(self.how.model_extra, ignored, _OPTIONS, "options.")

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

    messages: Listed[Turn] | None = None


class ShowAsked(Body):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None
    """What older clients call it."""
    verbose: bool | None = None
