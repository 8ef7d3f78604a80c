"""A server's app in this process, and a client of it; models that answer nothing, for tests of what stands before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fastapi.routing
import httpx
from fastapi import FastAPI, Request
from starlette.routing import Mount

from tunesmith.serve.app import create_app
from tunesmith.serve.guard.access import Access
from tunesmith.serve.protocol import ModelStatus, Served, UnknownModel
from tunesmith.serve.state import ServeState

TOKEN = "0123456789abcdef0123456789abcdef-one"
OTHER = "fedcba9876543210fedcba9876543210-two"
BEARER = {"authorization": f"Bearer {TOKEN}"}


class NoModels:
    """Models that are still loaded."""

    state = "loading"

    def names(self) -> tuple[str, ...]:
        return ("tiny",)

    def status(self) -> tuple[ModelStatus, ...]:
        return (ModelStatus("tiny", self.state, "weights", 0.5),)  # type: ignore[arg-type]

    async def get(self, name: str) -> Served:
        raise UnknownModel(name)

    def close(self) -> None:
        pass


@dataclass
class Probe:
    """What reached the app behind the guards."""

    bodies: list[bytes] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    error: Exception | None = None
    wait: asyncio.Event | None = None


def app_of(tokens: Sequence[str] = (), **state: Any) -> tuple[FastAPI, ServeState, Probe]:
    """An app with one route more, /probe: it takes what comes, and answers 200."""
    made = ServeState(NoModels(), access=Access(tuple(tokens)) if tokens else None, **state)
    app, probe = create_app(made), Probe()

    async def route(request: Request) -> Any:
        probe.bodies.append(await request.body())
        if probe.wait is not None:
            await probe.wait.wait()
        if probe.error is not None:
            raise probe.error
        return fastapi.Response("{}", headers=probe.headers, media_type="application/json")

    app.add_api_route("/probe", route, methods=["GET", "POST", "PUT", "OPTIONS"])
    return app, made, probe


def ask(
    app: FastAPI,
    path: str = "/probe",
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    base: str = "http://127.0.0.1:8000",
    client: str = "127.0.0.1",
    **rest: Any,
) -> httpx.Response:
    """One request, in a loop of its own."""

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url=base) as one:
            return await one.request(method, path, headers=headers, **rest)

    return asyncio.run(go())


async def raw(
    app: Any, scope: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] = (), drip: float = 0.0
) -> list[dict[str, Any]]:
    """What an app sends for a scope and the messages that come, each `drip` seconds after the one before."""
    sent: list[dict[str, Any]] = []
    left = list(messages)

    async def receive() -> Any:
        await asyncio.sleep(drip)
        if not left:
            await asyncio.sleep(3600)
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(dict(message))

    await app(dict(scope), receive, send)
    return sent


def scope_of(
    path: str = "/probe", method: str = "POST", kind: str = "http", **headers: str
) -> dict[str, Any]:
    """A scope as servers make them; header names with _ for -."""
    given = {"host": "127.0.0.1:8000"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope: dict[str, Any] = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http" if kind == "http" else "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    return scope | ({"method": method} if kind == "http" else {"subprotocols": []})


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every (method, path) of the app's table, those of routers and mounted apps too."""
    walk = getattr(fastapi.routing, "iter_route_contexts", iter)  # newer versions keep included routers whole
    for route in walk(app.routes):
        path = str(route.path)
        if isinstance(getattr(route, "original_route", route), Mount):
            path += "/x"
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            yield method, path


def error_of(response: httpx.Response) -> str:
    """The message of a refusal in OpenAI's shape; fails where it has another."""
    body = json.loads(response.content)
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, body
    return str(body["error"]["message"])
