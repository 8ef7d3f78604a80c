"""What stands before all routes; each guard taken away fails the check that is its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from serve_client import BEARER, OTHER, TOKEN, app_of, ask, error_of, raw, routes, scope_of

from tunesmith.serve import app as app_module
from tunesmith.serve.guard import origin as guard_origin
from tunesmith.serve.guard import token as guard_token
from tunesmith.serve.guard.body import BodyGuard, too_deep
from tunesmith.serve.guard.headers import HeaderGuard
from tunesmith.serve.guard.origin import OriginGuard
from tunesmith.serve.guard.record import RecordGuard
from tunesmith.serve.guard.token import TokenGuard
from tunesmith.serve.limits import Limits

ALL = "GET HEAD POST PUT PATCH DELETE OPTIONS".split()
ELSEWHERE = "http://evil.example"


def the_token_is_asked_for_everywhere() -> None:
    app, _, probe = app_of([TOKEN])
    walked = [(method, re.sub(r"{[^}]*}", "x", path)) for method, path in routes(app)]
    assert ("GET", "/v1/models") in walked and ("GET", "/metrics") in walked and ("GET", "/") in walked
    paths = {path for _, path in walked} | {
        "/nothing",
        "/v1/nothing",
        "/health/",
        "/health/x",
        "//health",
        "/login",
    }
    for path in sorted(paths):
        for method in ALL:
            if (path == "/health" and method in ("GET", "HEAD")) or (path, method) == ("/login", "POST"):
                continue  # the second: wrong logins are slowed, test_serve_access.py
            for headers in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": f"Basic {TOKEN}"},
                {"cookie": f"tunesmith_8000={TOKEN}"},
            ):
                response = ask(app, path, method, headers, content=b"")
                assert response.status_code == 401, (method, path, headers, response.status_code)
            assert ask(app, f"{path}?token={TOKEN}&key={TOKEN}", method, content=b"").status_code == 401
            assert "bearer" in response.headers["www-authenticate"].lower()
    assert probe.bodies == []
    for kind in ("/probe", "/v1/chat/completions"):
        sent = asyncio.run(raw(app, scope_of(kind, kind="websocket"), [{"type": "websocket.connect"}]))
        assert [one["type"] for one in sent] == ["websocket.close"]
    assert ask(app, "/health").status_code == 200 and ask(app, "/health", "HEAD").status_code == 200
    assert ask(app, "/probe", headers=BEARER).status_code == 200
    assert ask(app, "/probe", headers={"authorization": f"bearer  {TOKEN}"}).status_code == 200


def other_names_and_other_sites_are_refused() -> None:
    app, _, probe = app_of()
    for host in (
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "10.0.0.1",
    ):
        response = ask(app, headers={"host": host})
        assert response.status_code == 403 and "name" in error_of(response), host
    for origin in (
        ELSEWHERE,
        "null",
        "http://127.0.0.1:9999",
        "http://127.0.0.1:8000.evil.example",
        "file://",
        "http://[",
        "http://]",
    ):
        for method in ("GET", "POST", "OPTIONS"):
            response = ask(app, method=method, headers={"origin": origin}, content=b"")
            assert response.status_code == 403, (origin, method)
            assert not any(name.startswith("access-control") for name in response.headers)
    for site in ("cross-site", "same-site"):
        assert ask(app, headers={"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}).status_code == 403
    assert probe.bodies == []


def browsers_are_told_what_is_safe() -> None:
    app, _, probe = app_of([TOKEN])
    probe.headers = {"content-security-policy": "default-src *", "access-control-allow-origin": "*"}
    for path, headers in (
        ("/probe", BEARER),
        ("/nothing", BEARER),
        ("/probe", {}),
        ("/health", {"host": "evil.example"}),
    ):
        got = ask(app, path, headers=headers).headers
        policy = dict(part.strip().split(" ", 1) for part in got["content-security-policy"].split(";"))
        assert (
            policy["default-src"]
            == policy["img-src"]
            == policy["script-src"]
            == policy["style-src"]
            == "'self'"
        )
        assert policy["frame-ancestors"] == policy["object-src"] == "'none'"
        assert "unsafe" not in got["content-security-policy"] and "*" not in got["content-security-policy"]
        assert got["x-content-type-options"] == "nosniff" and got["referrer-policy"] == "same-origin"
        assert got["cache-control"] == "no-store" and "access-control-allow-origin" not in got
        assert "server" not in got


def bodies_are_small_quick_and_flat() -> None:
    app, _, probe = app_of(limits=Limits(body=1000))
    assert ask(app, method="POST", content=b"x" * 1000).status_code == 200
    large = ask(app, method="POST", content=b"x" * 1001)
    assert large.status_code == 413 and "1,000" in error_of(large)

    async def chunks() -> Any:
        for _ in range(2000):
            yield b"x"

    assert ask(app, method="POST", content=chunks()).status_code == 413
    part = {"type": "http.request", "body": b"x", "more_body": True}
    impatient, _, _ = app_of(limits=Limits(body=1000, body_seconds=0.2))
    sent = asyncio.run(raw(impatient, scope_of(transfer_encoding="chunked"), [part] * 50, drip=0.05))
    assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]
    end = {"type": "http.request", "body": b"", "more_body": False}
    assert asyncio.run(raw(app, scope_of(), [end]))[0]["status"] == 411
    assert asyncio.run(raw(app, scope_of(content_length="-1"), [end]))[0]["status"] == 400
    assert asyncio.run(raw(app, scope_of(content_length="9" * 30), [end]))[0]["status"] == 413
    assert len(probe.bodies) == 1
    app, _, probe = app_of()
    for deep in (
        b"[" * 100_000,
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b'"\\"[' + b"x" * 70_000 + b'"' + b"[" * 65,
    ):
        response = ask(app, method="POST", content=deep)
        assert response.status_code == 400 and "deep" in error_of(response)
    assert ask(app, method="POST", content='{"a": 1}'.encode("utf-16")).status_code == 400
    assert ask(app, method="POST", content=b"x", headers={"content-encoding": "gzip"}).status_code == 415
    assert probe.bodies == []


def a_bug_is_told_by_number_and_no_prompt_is_logged() -> None:
    lines: list[str] = []
    app, state, probe = app_of(log=lines.append)
    probe.error = ValueError("SECRET-WORDS")
    response = ask(app, "/probe?q=SECRET-WORDS", "POST", json={"prompt": "SECRET-WORDS"})
    number = response.headers["x-request-id"]
    assert response.status_code == 500 and number in error_of(response) and "SECRET" not in response.text
    assert "Traceback" not in response.text and "probe" not in response.text
    text = "\n".join(lines)
    assert number in text and "serve_client.py" in text and "ValueError" in text and "SECRET" not in text
    probe.error = None
    lines.clear()
    assert ask(app, "/probe/SECRET%0A%1b[31m").status_code == 404
    assert ask(app, "/v1/models/SECRET%0Arequest%20forged").status_code == 404
    assert len(lines) == 2 and "SECRET" not in "".join(lines) and "forged" not in "".join(lines)
    for line in lines:
        assert re.fullmatch(r"request [0-9a-f]{16} 127\.0\.0\.1 GET [-/\w{}:]+ 404 \d+ ms", line), line
    assert state.in_progress == 0


CHECKS: dict[type, Callable[[], None]] = {
    TokenGuard: the_token_is_asked_for_everywhere,
    OriginGuard: other_names_and_other_sites_are_refused,
    HeaderGuard: browsers_are_told_what_is_safe,
    BodyGuard: bodies_are_small_quick_and_flat,
    RecordGuard: a_bug_is_told_by_number_and_no_prompt_is_logged,
}


def test_each_guard_has_a_check() -> None:
    assert set(CHECKS) == set(app_module.GUARDS)


@pytest.mark.parametrize("guard", CHECKS, ids=lambda guard: guard.__name__)
def test_guard(guard: type) -> None:
    CHECKS[guard]()


@pytest.mark.parametrize("guard", CHECKS, ids=lambda guard: guard.__name__)
def test_without_the_guard_its_check_fails(guard: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "GUARDS", tuple(one for one in app_module.GUARDS if one is not guard))
    with pytest.raises((AssertionError, KeyError, RecursionError, ValueError)):
        CHECKS[guard]()


MUTANTS: dict[str, tuple[Any, str, Any, Callable[[], None]]] = {
    "all of /v1 is open": (guard_token, "_is_open", lambda s: s["path"][:3] in ("/v1", "/he"), CHECKS[TokenGuard]),
    "health is a prefix": (guard_token, "_is_open", lambda s: s["path"].startswith("/health"), CHECKS[TokenGuard]),
    "OPTIONS is open": (guard_token, "_is_open", lambda s: s.get("method") == "OPTIONS", CHECKS[TokenGuard]),
    "a name's beginning is enough": (
        guard_origin, "allowed_host", lambda host, state: host.startswith("127.0.0.1"), CHECKS[OriginGuard],
    ),
    "the origin's port doesn't matter": (
        guard_origin, "_same", lambda origin, host: origin.startswith("http://127.0.0.1:"), CHECKS[OriginGuard],
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_fail(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, wrong, check = MUTANTS[mutant]
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError):
        check()


def test_an_answer_that_takes_too_long_ends() -> None:
    app, state, probe = app_of(limits=Limits(request_seconds=0.2))

    async def never() -> None:
        await asyncio.sleep(3600)

    probe.wait = type("never", (), {"wait": staticmethod(never)})()
    response = ask(app)
    assert response.status_code == 504 and "0.2" in error_of(response) and state.in_progress == 0


def test_a_bug_that_times_out_is_still_a_bug() -> None:
    app, _, probe = app_of()
    probe.error = TimeoutError("of something else")
    assert ask(app).status_code == 500


def test_routes_that_come_later_are_behind_the_token_too() -> None:
    app, _, _ = app_of([TOKEN])
    app.add_api_route("/later", lambda: {"secret": 1})
    assert ask(app, "/later").status_code == 401
    assert ask(app, "/later", headers=BEARER).json() == {"secret": 1}


def test_headers_are_small_however_they_come() -> None:
    """h11 counts only what it has to wait for: headers that come in one piece are counted here."""
    app, _, probe = app_of([TOKEN])
    for path, headers in (("/probe", {"x": "a" * 40_000}), ("/probe?" + "a" * 40_000, {})):
        response = ask(app, path, headers=headers)
        assert response.status_code == 400 and "too large" in error_of(response)
    assert probe.bodies == [] and ask(app, headers={"x": "a" * 30_000} | BEARER).status_code == 200


def test_two_authorization_headers_are_none() -> None:
    app, _, _ = app_of([TOKEN, OTHER])
    scope = scope_of("/probe", "GET")
    end = {"type": "http.request", "body": b"", "more_body": False}
    for tokens, status in ((["wrong", TOKEN], 401), ([TOKEN, "wrong"], 401), ([OTHER], 200)):
        given = [(b"authorization", f"Bearer {token}".encode()) for token in tokens]
        sent = asyncio.run(raw(app, scope | {"headers": [*scope["headers"], *given]}, [end]))
        assert sent[0]["status"] == status


def test_a_proxy_may_name_the_port_that_browsers_leave_out() -> None:
    app, _, _ = app_of([TOKEN], hosts=frozenset({"models.example"}))
    for origin, port, status in (
        ("https", 443, 200),
        ("http", 80, 200),
        ("https", 80, 403),
        ("http", 443, 403),
    ):
        headers = BEARER | {"host": f"models.example:{port}", "origin": f"{origin}://models.example"}
        assert ask(app, headers=headers).status_code == status, (origin, port)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:9000", "[::1]:8000", "127.8.8.8"]
)
def test_this_server_goes_by_these_names(host: str) -> None:
    app, _, _ = app_of()
    assert ask(app, headers={"host": host}).status_code == 200
    assert ask(app, headers={"host": host, "origin": f"http://{host}".lower()}).status_code == 200
    assert ask(app, headers={"host": host, "origin": f"https://{host}".lower()}).status_code == 200


def test_beyond_loopback_addresses_and_given_names_are_known() -> None:
    app, _, _ = app_of([TOKEN], loopback=False, hosts=frozenset({"localhost", "models.example"}))
    for host, status in (
        ("10.1.2.3:80", 200),
        ("[fe80::1]", 200),
        ("models.example", 200),
        ("evil.example", 403),
    ):
        assert ask(app, headers=BEARER | {"host": host}).status_code == status, host
    no_host = asyncio.run(raw(app, scope_of("/health", "GET") | {"headers": []}))
    assert no_host[0]["status"] == 403


def test_a_link_from_elsewhere_may_be_followed() -> None:
    app, _, _ = app_of()
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert ask(app, headers=link).status_code == 200
    assert ask(app, method="POST", headers=link, content=b"").status_code == 403
    assert ask(app, headers=link | {"sec-fetch-dest": "iframe"}).status_code == 403


def test_refusals_are_in_the_shape_of_the_api() -> None:
    app, _, _ = app_of([TOKEN])
    assert isinstance(ask(app, "/api/chat", "POST", content=b"").json()["error"], str)
    assert ask(app, "/v1/models").json()["error"]["type"] == "authentication_error"


def test_depth_counts_brackets_outside_of_strings_alone() -> None:
    assert not too_deep(b'{"a": "' + b"[" * 1000 + b'"}', 64)
    assert not too_deep(b"[]," * 100_000, 64)
    assert not too_deep(b'"' + b"[" * 500, 64)  # a string that never ends
    assert too_deep(b'["\\\\"' + b"[" * 64, 64)
    assert not too_deep(b"[" * 64 + b"]" * 64, 64)
    assert too_deep(b"[" * 65, 64)


def test_looking_through_a_body_takes_time_by_its_length() -> None:
    """Escaped quotes in a string without an end: a pattern that goes back would look at each byte many times."""
    import time

    def seconds(size: int) -> float:
        body = b"[" * 30 + b"{" * 40 + b'"' + b'\\"' * size
        begin = time.process_time()
        too_deep(body.replace(b"[", b"[]").replace(b"{", b"{}"), 64)
        return time.process_time() - begin

    seconds(1000)
    small, large = min(seconds(50_000) for _ in range(3)), min(seconds(500_000) for _ in range(3))
    assert large < 40 * small + 0.05
