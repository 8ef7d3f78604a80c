"""The routes of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tunesmith.serve.openai.bodies import Asked, ChatAsked, CompletionAsked, ResponseFormat
from tunesmith.serve.openai.shapes import Chunks, Echo, Shape
from tunesmith.serve.protocol import ModelStatus, Served, UnknownModel, Unservable
from tunesmith.serve.schemas import read
from tunesmith.serve.state import ServeState
from tunesmith.serve.writing.prompt import answer_schema, chat_prompt, given_prompt, raw_prompt
from tunesmith.serve.writing.stream import Streamed, while_connected
from tunesmith.serve.writing.writing import Ask, Names, begin

router = APIRouter(prefix="/v1")

_CHAT, _CHAT_COMPLETION = Names(), Names(max_tokens="max_completion_tokens")
_COMPLETION = Names(prompt="prompt", top="logprobs")


@router.post("/chat/completions", response_model=None)
async def chat_completions(request: Request) -> Response:
    """A conversation's next turn."""
    state, asked = _state(request), await read(request, ChatAsked)
    asked.require_known()
    served = await state.models.get(asked.model)
    turns = [turn.message(f"messages.{number}") for number, turn in enumerate(asked.messages)]
    prompt = await chat_prompt(served.contract, turns, "messages")
    names, most = _CHAT, asked.max_tokens
    if asked.max_completion_tokens is not None:
        names, most = _CHAT_COMPLETION, asked.max_completion_tokens
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    schema = await _schema(asked.response_format, state.limits.schema_bytes)
    writing = await begin(state, served, _ask(asked, names, [prompt], most, top, schema))
    return await _answered(request, asked, Shape(True, writing))


@router.post("/completions", response_model=None)
async def completions(request: Request) -> Response:
    """Plain text or token ids go on."""
    state, asked = _state(request), await read(request, CompletionAsked)
    asked.require_known()
    served = await state.models.get(asked.model)
    echo = bool(asked.echo)
    prompts = await _prompts(served, asked.prompt, state.limits.requests, echo)
    ask = _ask(
        asked,
        _COMPLETION,
        [prompt.ids for prompt in prompts],
        asked.max_tokens,
        asked.logprobs,
        await _schema(asked.response_format, state.limits.schema_bytes),
        prompt_logprobs=echo and asked.logprobs is not None,
    )
    return await _answered(
        request, asked, Shape(False, await begin(state, served, ask), prompts if echo else ())
    )


@router.get("/models", response_model=None)
async def models(request: Request) -> JSONResponse:
    """All models that answer, loaded or not."""
    return JSONResponse({"object": "list", "data": [_model(one) for one in _state(request).models.status()]})


@router.get("/models/{name:path}", response_model=None)
async def model(request: Request, name: str) -> JSONResponse:
    """One of them."""
    for one in _state(request).models.status():
        if one.name == name:
            return JSONResponse(_model(one))
    raise UnknownModel(f"there is no model {name!r}", fix="GET /v1/models lists them")


def _state(request: Request) -> ServeState:
    state: ServeState = request.app.state.serve
    return state


def _model(status: ModelStatus) -> dict[str, Any]:
    known = dict(status.facts)
    created = known.pop("created", 0)
    about = {"state": status.state, "detail": status.detail, "done": status.done}
    return {"id": status.name, "object": "model", "created": created, "owned_by": "tunesmith"} | about | known


def _ask(
    asked: Asked,
    names: Names,
    prompts: Sequence[Sequence[int]],
    most: int | None,
    top: int | None,
    schema: Mapping[str, Any] | None,
    prompt_logprobs: bool = False,
) -> Ask:
    return Ask(
        prompts,
        most,
        asked.temperature,
        asked.top_p,
        asked.seed,
        asked.n or 1,
        asked.stops,
        top,
        prompt_logprobs,
        schema,
        names=names,
    )


async def _schema(wanted: ResponseFormat | None, most: int) -> Mapping[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise Unservable("json_schema.schema is missing", where="response_format.json_schema.schema")
    return await answer_schema(wanted.json_schema.schema_, most, "response_format.json_schema.schema")


async def _prompts(served: Served, prompt: str | list[Any], most: int, echo: bool) -> list[Echo]:
    """Of one prompt or many, each as text or as ids. `echo`: whether their text is told."""
    several = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    if len(several) > most:
        raise Unservable(f"at most {most} prompts in one request", where="prompt")
    made = []
    for one in several:
        if isinstance(one, str):
            ids, added = await raw_prompt(served.contract, one, "prompt")
            made.append(Echo(one, ids, added))
        else:
            ids = given_prompt(served.contract, one, "prompt")
            text = served.contract.tokenizer.decode(ids, skip_special_tokens=False) if echo else ""
            made.append(Echo(str(text), ids))
    return made


async def _answered(request: Request, asked: Asked, shape: Shape) -> Response:
    writing = shape.writing
    if asked.stream:
        return Streamed(writing, Chunks(shape, asked.usage_in_stream))
    try:
        return JSONResponse(await while_connected(request, shape.whole()))
    finally:
        writing.close()
