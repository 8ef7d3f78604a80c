"""The routes of Ollama's API."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tunesmith import __version__
from tunesmith.example import Message
from tunesmith.serve.ollama.bodies import Asked, ChatAsked, GenerateAsked, ShowAsked
from tunesmith.serve.ollama.shapes import Lines, answer, details, head, shown
from tunesmith.serve.protocol import Models, Served, Unservable
from tunesmith.serve.schemas import read
from tunesmith.serve.state import ServeState
from tunesmith.serve.writing.prompt import answer_schema, chat_prompt, raw_prompt
from tunesmith.serve.writing.stream import Streamed, while_connected
from tunesmith.serve.writing.writing import Ask, Names, begin

router = APIRouter(prefix="/api")

_CHAT = Names(max_tokens="options.num_predict", stop="options.stop", schema="format")
_GENERATE = Names("prompt", max_tokens="options.num_predict", stop="options.stop", schema="format")


@router.post("/chat", response_model=None)
async def chat(request: Request) -> Response:
    """A conversation's next turn."""
    came, asked = time.perf_counter(), await read(request, ChatAsked)
    asked.require_known()
    served = await _served(request, asked.model)
    if not asked.messages:
        return _loaded(asked, served, chat=True)
    turns = [turn.message(f"messages.{number}") for number, turn in enumerate(asked.messages)]
    prompt = await chat_prompt(served.contract, turns, "messages")
    return await _answered(request, asked, served, prompt, came, chat=True)


@router.post("/generate", response_model=None)
async def generate(request: Request) -> Response:
    """The answer to one prompt; `raw`: plain text goes on."""
    came, asked = time.perf_counter(), await read(request, GenerateAsked)
    asked.require_known()
    if asked.raw and asked.system:
        raise Unservable("raw takes the prompt as it stands, without any system prompt", where="system")
    served = await _served(request, asked.model)
    if not asked.prompt:
        return _loaded(asked, served, chat=False)
    if asked.raw:
        prompt, _ = await raw_prompt(served.contract, asked.prompt, "prompt")
    else:
        turns = [Message("system", asked.system)] if asked.system else []
        prompt = await chat_prompt(served.contract, [*turns, Message("user", asked.prompt)], "prompt")
    return await _answered(request, asked, served, prompt, came, chat=False)


@router.api_route("/tags", methods=["GET", "HEAD"], response_model=None)
async def tags(request: Request) -> JSONResponse:
    """All models that answer, loaded or not."""
    made = []
    for one in _state(request).models.status():
        about = details(str(one.facts.get("engine", "")))
        made.append({"name": one.name, "model": one.name, "details": about})
    return JSONResponse({"models": made})


@router.post("/show", response_model=None)
async def show(request: Request) -> JSONResponse:
    """What is known of a model; it is loaded for that."""
    asked = await read(request, ShowAsked)
    name = asked.model or asked.name
    if not name:
        raise Unservable("model: a name is needed", where="model")
    return JSONResponse(shown(await _served(request, name)))


@router.api_route("/version", methods=["GET", "HEAD"], response_model=None)
async def version() -> JSONResponse:
    """Of tunesmith."""
    return JSONResponse({"version": __version__})


def _state(request: Request) -> ServeState:
    state: ServeState = request.app.state.serve
    return state


async def _served(request: Request, name: str) -> Served:
    return await _state(request).models.get(_known(_state(request).models, name))


def _known(models: Models, name: str) -> str:
    """Ollama's clients may call NAME NAME:latest."""
    plain = name.removesuffix(":latest")
    return plain if name not in models.names() and plain in models.names() else name


async def _schema(wanted: str | Mapping[str, Any] | None, most: int) -> Mapping[str, Any] | None:
    if not wanted:
        return None
    return {"type": "object"} if isinstance(wanted, str) else await answer_schema(wanted, most, "format")


async def _answered(
    request: Request, asked: Asked, served: Served, prompt: list[int], came: float, *, chat: bool
) -> Response:
    loaded, how = time.perf_counter(), asked.how
    asked.require_options(served.temperature if how.temperature is None else how.temperature)
    room = min(served.live.room, how.num_ctx or served.live.room)
    if how.num_ctx is not None and how.num_ctx > served.live.room:
        raise Unservable(f"options.num_ctx: the model has room for {room} tokens", where="options.num_ctx")
    ask = Ask(
        prompts=[prompt],
        max_tokens=room if how.num_predict is not None and how.num_predict < 0 else how.num_predict,
        temperature=how.temperature,
        top_p=how.top_p,
        seed=None if how.seed == -1 else how.seed,
        stops=asked.stops,
        top=(asked.top_logprobs or 0) if asked.logprobs else None,
        schema=await _schema(asked.format, _state(request).limits.schema_bytes),
        room=room,
        cut=True,
        names=_CHAT if chat else _GENERATE,
    )
    writing = await begin(_state(request), served, ask)
    lines = Lines(chat, writing, came, loaded)
    if asked.stream is not False:
        return Streamed(writing, lines)
    try:
        return JSONResponse(await while_connected(request, lines.whole()))
    finally:
        writing.close()


def _loaded(asked: Asked, served: Served, *, chat: bool) -> Response:
    line = head(served.name) | answer(chat, "") | {"done": True, "done_reason": "load"}
    if asked.stream is False:
        return JSONResponse(line)
    return Response(json.dumps(line) + "\n", media_type=Lines.media_type)
