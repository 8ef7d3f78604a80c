"""Refusals and failures as the two APIs tell them; the handlers that make every error of a route one of these.

OpenAI: {"error": {"message", "type", "param", "code"}}, Ollama (under /api/): {"error": "message"}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from tunesmith.errors import TunesmithError
from tunesmith.serve.protocol import Busy, UnknownModel, Unservable

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
GONE = 499  # nobody reads it: the client has closed the connection


class TooLong(Unservable):
    """Prompt and answer have no room together."""


class Ended(TunesmithError):
    """An answer that broke off. `status`: 503 the server closes, 500 the engine failed."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(what)
        self.status = status


@dataclass(frozen=True)
class Refusal:
    """What a client is told."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, path: str) -> dict[str, Any]:
        """In the shape of the API that was asked."""
        if path.startswith("/api/"):
            return {"error": self.message}
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, path: str) -> JSONResponse:
        """As a whole answer."""
        return JSONResponse(self.body(path), self.status, dict(self.headers))


def refusal(error: Exception) -> Refusal:
    """What a client is told of an error; of a bug nothing but that there is one."""
    if isinstance(error, UnknownModel):
        return Refusal(404, _said(error), "model", "model_not_found")
    if isinstance(error, Busy):
        return Refusal(429, _said(error), code="server_busy", headers={"Retry-After": str(error.seconds)})
    if isinstance(error, TooLong):
        return Refusal(400, _said(error), error.where, "context_length_exceeded")
    if isinstance(error, Unservable):
        return Refusal(400, _said(error), error.where)
    if isinstance(error, Ended):
        return Refusal(error.status, error.what)
    if isinstance(error, TunesmithError):  # a model that can't be loaded; paths are not the client's business
        return Refusal(503, error.what, code="model_not_ready")
    return Refusal(500, "the server failed on this request; its log says why")


def _said(error: TunesmithError) -> str:
    return f"{error.what}: {error.fix}" if error.fix else error.what


def add_handlers(app: FastAPI) -> None:
    """Every error of a route, and of a path that there is none for, in the API's own shape."""

    async def of_error(request: Request, error: Exception) -> Response:
        return refusal(error).response(request.url.path)

    async def of_status(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path, status = request.url.path, error.status_code
        message = error.detail or HTTPStatus(status).phrase
        if status == 404 and message == "Not Found":
            message = f"there is nothing at {path}"
        elif status == 405:
            message = f"{path} does not answer {request.method}"
        return Refusal(status, message, headers=error.headers or {}).response(path)

    async def of_values(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return Refusal(422, f"{where}: {first['msg']}", where).response(request.url.path)

    async def of_gone(request: Request, error: Exception) -> Response:
        return Response(status_code=GONE)

    app.add_exception_handler(TunesmithError, of_error)
    app.add_exception_handler(HTTPException, of_status)
    app.add_exception_handler(RequestValidationError, of_values)
    app.add_exception_handler(ClientDisconnect, of_gone)
    app.add_exception_handler(Exception, of_error)  # answered, then raised on: the traceback goes to the log
