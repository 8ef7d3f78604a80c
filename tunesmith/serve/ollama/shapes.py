"""What Ollama's clients get: a line of JSON for what came, and counts and durations in the last one."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tunesmith.serve.errors import refusal
from tunesmith.serve.openai.shapes import chat_token
from tunesmith.serve.protocol import Served
from tunesmith.serve.writing.choice import Part, Told
from tunesmith.serve.writing.detokenise import Pieces
from tunesmith.serve.writing.writing import Writing


@dataclass(frozen=True)
class Lines:
    """Of one request. `loaded`: seconds, by `time.perf_counter`, when the model was there; `asked`: when it came."""

    chat: bool
    writing: Writing
    asked: float
    loaded: float
    media_type: str = "application/x-ndjson"

    def of(self, parts: Sequence[Part]) -> bytes:
        """What the answer went on with; where it ended, the last line."""
        made = []
        for part in parts:
            if part.text or part.told:
                made.append(self._line(part.text, part.told, {"done": False}))
            if part.end:
                made.append(self._line("", (), {"done": True, "done_reason": part.end} | self.counts()))
        return "".join([json.dumps(line) + "\n" for line in made]).encode()

    def end(self) -> bytes:
        """Nothing: the last line has come."""
        return b""

    def failed(self, error: Exception) -> bytes:
        """A line that clients raise as an error."""
        return json.dumps(refusal(error).body("/api/")).encode() + b"\n"

    async def whole(self) -> dict[str, Any]:
        """The answer to a request that doesn't stream."""
        (answer,) = await self.writing.whole()
        return self._line(answer.text, answer.told, {"done": True, "done_reason": answer.end} | self.counts())

    def counts(self) -> dict[str, int]:
        """Tokens, and nanoseconds. `eval_count`: with the token that ended the answer."""
        writing, (choice,) = self.writing, self.writing.choices
        first = choice.first or choice.last
        return {
            "total_duration": _nanoseconds(time.perf_counter() - self.asked),
            "load_duration": _nanoseconds(self.loaded - self.asked),
            "prompt_eval_count": writing.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(first - writing.begun),
            "eval_count": writing.answer_tokens,
            "eval_duration": _nanoseconds(choice.last - first),
        }

    def _line(self, text: str, told: Sequence[Told], about: dict[str, Any]) -> dict[str, Any]:
        line = head(self.writing.served.name) | answer(self.chat, text)
        if self.writing.ask.top is not None and told:
            pieces = Pieces.of(self.writing.served.contract)
            line["logprobs"] = [chat_token(pieces, one.token) for one in told]
        return line | about


def head(name: str) -> dict[str, Any]:
    """What every line begins with."""
    return {"model": name, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def answer(chat: bool, text: str) -> dict[str, Any]:
    """Text where the client looks for it."""
    return {"message": {"role": "assistant", "content": text}} if chat else {"response": text}


def shown(served: Served) -> dict[str, Any]:
    """What is known of a model: its template is Jinja, as it is where the model comes from."""
    contract = served.contract
    parameters = [
        f"num_predict {served.max_tokens}",
        f"temperature {served.temperature:g}",
        f"top_p {served.top_p:g}",
        f"num_ctx {served.live.room}",
    ]
    parameters += [f'stop "{contract.tokenizer.id_to_token(one)}"' for one in sorted(contract.stop_ids)]
    return {
        "template": contract.template,
        "system": contract.system or "",
        "parameters": "\n".join(parameters),
        "details": details(served.engine),
        "model_info": {
            "general.name": served.name,
            "tokenizer.chat_template": contract.template,
            "tunesmith.engine": served.engine,
            "tunesmith.room": served.live.room,
            "tunesmith.slots": served.live.slots,
        },
        "capabilities": ["completion"],
    }


def details(engine: str) -> dict[str, Any]:
    """Ollama's fields, as far as they are known."""
    form = {"llama.cpp": "gguf", "transformers": "safetensors"}.get(engine, "")
    return {
        "parent_model": "",
        "format": form,
        "family": "",
        "families": None,
        "parameter_size": "",
        "quantization_level": "",
    }


def _nanoseconds(seconds: float) -> int:
    return max(0, int(seconds * 1e9))
