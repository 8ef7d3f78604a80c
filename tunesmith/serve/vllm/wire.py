"""What is said between tunesmith and vLLM: the fields of its /v1/completions (vLLM 0.12 and later).

Token ids go in and come out (`prompt` as ids, `return_token_ids`); only our stop ids end an answer (`ignore_eos`).
`structured_outputs` holds an answer to a JSON schema. A stream tells no ln p of the prompt: these are asked for first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.generate.protocol import LiveRequest, LiveToken, TokenEvent
from tunesmith.generate.sampling import stream_key
from tunesmith.serve.vllm.child import BASE

_TOKEN = "token_id:"  # how vLLM names tokens under return_tokens_as_token_ids


def answer_body(request: LiveRequest) -> dict[str, Any]:
    """The request that streams the answer. Every sampling field is said: no default of vLLM's has a say."""
    body: dict[str, Any] = {
        "model": request.adapter or BASE,
        "prompt": list(request.prompt),
        "stream": True,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": max(request.top_p, 1e-6),  # vLLM refuses 0; so little is the likeliest token alone
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": stream_key(request.seed, 0, request.sample),
        "logprobs": request.top,
        "stop_token_ids": sorted(request.stop_ids),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "add_special_tokens": False,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if request.schema is not None:
        body["structured_outputs"] = {"json": dict(request.schema)}
    return body


def prompt_body(request: LiveRequest) -> dict[str, Any]:
    """The request that tells the ln p of the prompt's tokens; the token that it writes is thrown away."""
    return {
        "model": request.adapter or BASE,
        "prompt": list(request.prompt),
        "stream": False,
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": request.top,
        "add_special_tokens": False,
    }


def prompt_tokens(request: LiveRequest, reply: Mapping[str, Any]) -> tuple[LiveToken, ...]:
    """The prompt's tokens with their ln p. ModelError where vLLM tells something else."""
    told = reply["choices"][0].get("prompt_logprobs")
    if not isinstance(told, Sequence) or len(told) != len(request.prompt):
        raise strange("it does not tell the prompt's log-probabilities")
    made = [LiveToken(int(request.prompt[0]), math.nan)]
    for token, each in zip(request.prompt[1:], told[1:], strict=True):
        found = {int(one): float(entry["logprob"]) for one, entry in each.items()}
        made.append(LiveToken(int(token), found[int(token)], _likeliest(found, request.top)))
    return tuple(made)


def events_of(ticket: int, request: LiveRequest, chunk: Mapping[str, Any]) -> list[TokenEvent]:
    """The events of one part of the stream; the last has its `end` where the answer has ended."""
    if "error" in chunk:
        raise ModelError(f"vLLM: {_message(chunk)}", where="--engine vllm")
    events: list[TokenEvent] = []
    for choice in chunk.get("choices", []):
        ids, told = choice.get("token_ids") or [], choice.get("logprobs") or {}
        each, tops = told.get("token_logprobs") or [], told.get("top_logprobs") or []
        if not len(ids) == len(each) == len(tops):
            raise strange("it does not tell each token's id and log-probability")
        for token, logprob, top in zip(ids, each, tops, strict=True):
            found = {int(name.removeprefix(_TOKEN)): float(value) for name, value in (top or {}).items()}
            events.append(
                TokenEvent(ticket, LiveToken(int(token), float(logprob), _likeliest(found, request.top)))
            )
        if reason := choice.get("finish_reason"):
            if reason not in ("stop", "length"):
                raise ModelError(f"vLLM ended the answer: {reason}", where="--engine vllm")
            last = events.pop() if events else TokenEvent(ticket)
            events.append(TokenEvent(ticket, last.token, end=reason))
    return events


def refusal(status: int, reply: Mapping[str, Any]) -> ModelError:
    """vLLM's answer to a request that it did not take."""
    return ModelError(f"vLLM refuses the request ({status}): {_message(reply)}", where="--engine vllm")


def strange(what: str) -> ModelError:
    """vLLM speaks otherwise than it did when this was written."""
    return ModelError(
        f"vLLM answers otherwise than expected: {what}",
        where="--engine vllm",
        fix="use vLLM 0.12 or later, or --engine transformers",
    )


def _message(reply: Mapping[str, Any]) -> str:
    inner = reply.get("error", reply)
    said = inner.get("message", inner) if isinstance(inner, Mapping) else inner
    return str(said)[:500]


def _likeliest(found: Mapping[int, float], count: int) -> tuple[tuple[int, float], ...]:
    """vLLM tells the chosen token too, wherever it ranks."""
    return tuple(sorted(found.items(), key=lambda one: (-one[1], one[0]))[:count])
