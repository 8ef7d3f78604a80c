"""The two pages and their files. Plain files of the package: nothing is built, nothing comes from elsewhere."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tunesmith.serve.web import judge_routes, run_routes, try_routes
from tunesmith.serve.web.told import state_of

router = APIRouter()
router.include_router(try_routes.router)
router.include_router(judge_routes.router)
router.include_router(run_routes.router)

# stands in a page where the server asks for a token
_LOG_OUT = (
    b"<!--log out-->",
    b'<form class="out" method="post" action="/logout"><button>Log out</button></form>',
)
# no inline script or style, nothing from another host, no string ever becomes HTML
POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@cache
def page_files() -> dict[str, tuple[bytes, str, str]]:
    """Name → content, kind, hash of the files below static/; the only ones that a request can name."""
    made = {}
    for file in files("tunesmith.serve.web").joinpath("static").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _KINDS:
            content = file.read_bytes()
            made[file.name] = (content, _KINDS[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return made


@router.api_route(
    "/", methods=["GET", "HEAD"], include_in_schema=False
)  # HEAD: Ollama's program asks so first
def playground(request: Request) -> Response:
    """The playground."""
    return _file(request, "playground.html")


@router.get("/runs", include_in_schema=False)
def runs(request: Request) -> Response:
    """The runs."""
    return _file(request, "runs.html")


@router.get("/web/{name}", include_in_schema=False)
def file(request: Request, name: str) -> Response:
    """A style sheet, script or picture of the pages."""
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    found = page_files().get(name)
    if found is None:
        return Response("not found", 404, media_type="text/plain")
    content, kind, tag = found
    guarded = state_of(request).access is not None and name.endswith(".html")
    if guarded:
        content, tag = content.replace(*_LOG_OUT), f'{tag[:-1]}-out"'
    headers = {
        "ETag": tag,
        "Cache-Control": "no-store" if guarded else "no-cache",  # back after Log out shows no page
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)
