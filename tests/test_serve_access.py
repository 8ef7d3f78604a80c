"""Token files, tokens, sessions of browsers, and how wrong logins are slowed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import random
import re
from pathlib import Path

import pytest
from serve_client import BEARER, OTHER, TOKEN, app_of, ask

from tunesmith.errors import TunesmithError
from tunesmith.serve.guard import access as guard_access
from tunesmith.serve.guard.access import SESSION_SECONDS, Access, Sessions, Slowed, Tokens, read_tokens

PAGE = {"accept": "text/html,application/xhtml+xml"}
HERE = {"origin": "http://127.0.0.1:8000"}


def token_file(folder: Path, text: bytes, mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_bytes(text)
    path.chmod(mode)
    return path


def test_tokens_are_read(tmp_path: Path) -> None:
    draw = random.Random(0)  # of 32 hex digits all are 0 to 9 once in three million: not here
    for make in (
        lambda: draw.randbytes(16).hex(),
        lambda: base64.urlsafe_b64encode(draw.randbytes(16)).decode().rstrip("="),
        lambda: base64.urlsafe_b64encode(draw.randbytes(64)).decode().rstrip("="),
    ):
        for _ in range(200):  # a random token of 128 bits is never called weak
            token = make()
            assert read_tokens(token_file(tmp_path, f"# mine\n\n{token}\r\n{TOKEN}".encode())) == (
                token,
                TOKEN,
            )
    assert read_tokens(token_file(tmp_path, TOKEN.encode(), 0o440)) == (TOKEN,)


BAD = {
    "one byte": (b"x", 0o600, "guessed"),
    "a password": (b"correct-horse-1", 0o600, "guessed"),
    "64 bits": (b"0123456789abcdef", 0o600, "guessed"),
    "one letter": (b"a" * 64, 0o600, "guessed"),
    "a second one that is short": (TOKEN.encode() + b"\nshort", 0o600, "line 2"),
    "a space inside": (TOKEN.encode() + b" " + TOKEN.encode(), 0o600, "guessed"),
    "empty": (b"", 0o600, "empty"),
    "white space": (b" \n\n", 0o600, "empty"),
    "others read it": (TOKEN.encode(), 0o644, "chmod 600"),
    "others write it": (TOKEN.encode(), 0o602, "chmod 600"),
    "its group writes it": (TOKEN.encode(), 0o620, "chmod 600"),
    "a large one": ((TOKEN.encode() + b"\n") * 2000, 0o600, "65,536 bytes"),
    "not text": (b"\xff\xfe" * 40, 0o600, "ASCII"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_token_files_are_refused(tmp_path: Path, what: str) -> None:
    text, mode, said = BAD[what]
    with pytest.raises(TunesmithError) as caught:
        read_tokens(token_file(tmp_path, text, mode))
    assert said in str(caught.value) and caught.value.fix and str(tmp_path) in str(caught.value)
    assert text.decode("latin-1").strip() not in str(caught.value) or len(text.strip()) < 2


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(TunesmithError, match="no") as caught:
            read_tokens(path)
        assert "token_hex" in str(caught.value.fix)


def test_what_to_type_makes_a_token_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "new token"
    with pytest.raises(TunesmithError) as caught:
        read_tokens(path)
    path = tmp_path / "token"
    assert caught.value.fix
    assert os.system(caught.value.fix.replace(str(tmp_path / "new token"), str(path))) == 0
    assert len(read_tokens(path)[0]) == 64


def compares_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def spy(a: bytes, b: bytes) -> bool:
        seen.append((a, b))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(guard_access, "hmac", type("spied", (), {"compare_digest": staticmethod(spy)}))
    tokens = Tokens((TOKEN, OTHER))
    for given, found in ((TOKEN, 0), (OTHER, 1), ("", None), (TOKEN[:-1], None), ("x" * 9999, None)):
        seen.clear()
        assert tokens.find(given.encode()) == found
        # every token is compared, whatever was found before, and all that is compared has one length
        assert len(seen) == 2 and {len(one) for pair in seen for one in pair} == {32}


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compares_in_constant_time(monkeypatch)


def _equal(self: Tokens, given: bytes) -> int | None:
    digest = guard_access._digest(given)
    return next((number for number, one in enumerate(self._digests) if one == digest), None)


def _early(self: Tokens, given: bytes) -> int | None:
    digest = guard_access._digest(given)
    compare = guard_access.hmac.compare_digest
    return next((number for number, one in enumerate(self._digests) if compare(digest, one)), None)


@pytest.mark.parametrize("mutant", [_equal, _early])
def test_other_comparisons_fail_that(mutant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokens, "find", mutant)
    with pytest.raises(AssertionError):
        compares_in_constant_time(monkeypatch)


def test_a_browser_logs_in_and_out() -> None:
    app, _, _ = app_of([TOKEN])
    form = ask(app, "/runs", headers=PAGE)
    assert form.status_code == 401 and form.headers["content-type"].startswith("text/html")
    assert '<form method="post" action="/login">' in form.text and 'value="/runs"' in form.text
    assert "<script" not in form.text and "style=" not in form.text and TOKEN not in form.text
    style = form.text.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = form.headers["content-security-policy"]  # this style by its hash, and nothing else
    assert (
        f"style-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy and "unsafe" not in policy
    )
    logged = ask(app, "/login", "POST", HERE, data={"token": TOKEN, "next": "/runs"})
    assert logged.status_code == 303 and logged.headers["location"] == "/runs"
    cookie = logged.headers["set-cookie"]
    assert TOKEN not in cookie
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    session = {"cookie": cookie.split(";")[0]}
    assert ask(app, "/probe", headers=session).status_code == 200
    assert ask(app, "/probe", "POST", session | HERE, content=b"").status_code == 200
    # what changes something has to say where it comes from
    assert ask(app, "/probe", "POST", session, content=b"").status_code == 401
    assert (
        ask(app, "/probe", "POST", session | {"sec-fetch-site": "same-origin"}, content=b"").status_code
        == 200
    )
    assert (
        ask(app, "/probe", "POST", session | {"origin": "http://127.0.0.1:9"}, content=b"").status_code == 403
    )
    assert ask(app, "/login", headers=session).status_code == 303
    # a wrong bearer token isn't mended by a cookie
    assert ask(app, "/probe", headers=session | {"authorization": "Bearer wrong"}).status_code == 401
    assert ask(app, "/logout", "POST", session | HERE, content=b"").status_code == 303
    assert ask(app, "/probe", headers=session).status_code == 401


def test_the_pages_have_a_way_out_where_there_is_a_token() -> None:
    guarded, _, _ = app_of([TOKEN])
    open_to_all, _, _ = app_of([])
    for path in ("/", "/runs"):
        page = ask(guarded, path, headers=BEARER)
        assert '<form class="out" method="post" action="/logout">' in page.text
        assert page.headers["cache-control"] == "no-store"
        assert "/logout" not in ask(open_to_all, path).text


def test_the_token_is_taken_from_the_body_alone() -> None:
    app, _, _ = app_of([TOKEN])
    for path in (f"/login?token={TOKEN}", f"/login?next=/&token={TOKEN}"):
        response = ask(app, path, "POST", HERE | PAGE, data={"next": "/"})
        assert response.status_code == 401 and "set-cookie" not in response.headers
        app, _, _ = app_of([TOKEN])


@pytest.mark.parametrize(
    "where", ["//evil.example", "/\\evil.example", "https://evil.example", "", "x", "/login"]
)
def test_a_login_leads_nowhere_else(where: str) -> None:
    app, _, _ = app_of([TOKEN])
    response = ask(app, "/login", "POST", HERE, data={"token": TOKEN, "next": where})
    assert response.status_code == 303 and response.headers["location"] == "/"


def test_what_a_form_repeats_is_text() -> None:
    app, _, _ = app_of([TOKEN])
    page = ask(app, '/"><script>alert(1)</script>', headers=PAGE).text
    assert "<script" not in page
    page = ask(app, "/login", "POST", HERE | PAGE, data={"token": "x", "next": '/"><script>'}).text
    assert "<script" not in page and "not the token" in page


def test_a_form_is_small() -> None:
    app, _, _ = app_of([TOKEN])
    assert ask(app, "/login", "POST", HERE, data={"token": "x" * 5000}).status_code == 413
    many = ask(app, "/login", "POST", HERE, content=b"a=1&" * 1000)
    assert many.status_code == 401


def test_wrong_logins_are_slowed_by_address() -> None:
    app, state, _ = app_of([TOKEN])
    wrong = {"token": "wrong"}
    assert ask(app, "/login", "POST", HERE, data=wrong).status_code == 401
    again = ask(app, "/login", "POST", HERE, data=wrong)
    assert again.status_code == 429 and again.headers["retry-after"] == "1"
    seen = ask(app, "/login", "POST", HERE | PAGE, data=wrong)  # a person gets the form again
    assert seen.status_code == 429 and "try again in 1 s" in seen.text and "<form" in seen.text
    assert ask(app, "/login", "POST", HERE, client="127.0.0.2", data=wrong).status_code == 401
    assert ask(app, "/probe", headers=BEARER).status_code == 200
    assert state.access is not None
    state.access.slowed = Slowed(lambda: 1e9)  # as after a long time
    assert ask(app, "/login", "POST", HERE, data=wrong).status_code == 401


def test_nobody_is_locked_out_by_the_wrong_tokens_of_others() -> None:
    """Behind a proxy all have one address."""
    app, _, _ = app_of([TOKEN])
    for _ in range(5):
        ask(app, "/login", "POST", HERE, data={"token": "wrong"})
    assert ask(app, "/login", "POST", HERE, data={"token": TOKEN}).status_code == 303


def test_the_wait_doubles_up_to_half_a_minute_and_ends_with_a_login() -> None:
    now = [0.0]
    slowed = Slowed(lambda: now[0])
    waits = []
    for _ in range(8):
        slowed.failed("a")
        waits.append(slowed.wait("a"))
        now[0] += waits[-1]
        assert slowed.wait("a") == 0
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert slowed.wait("b") == 0
    slowed.passed("a")
    slowed.failed("a")
    assert slowed.wait("a") == 1


def test_memory_of_addresses_and_sessions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_access, "_MOST", 10)
    access = Access((TOKEN,))
    for number in range(50):
        access.slowed.failed(str(number))
        access.sessions.begin(0)
    assert len(access.slowed._failed) == len(access.sessions._open) == 10
    assert access.slowed.wait("49") and not access.slowed.wait("3")


def test_sessions_end() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    value = sessions.begin(1)
    assert (
        re.fullmatch(r"[\w-]{43}", value) and sessions.find(value) == 1 and sessions.find(value + "x") is None
    )
    now[0] = SESSION_SECONDS - 1
    assert sessions.find(value) == 1
    now[0] += 2
    assert sessions.find(value) is None


def test_the_cookie_of_another_server_on_this_machine_is_another() -> None:
    app, _, _ = app_of([TOKEN])
    here = ask(app, "/login", "POST", HERE, data={"token": TOKEN}).headers["set-cookie"]
    there = {"origin": "http://127.0.0.1:8001"}
    other = ask(app, "/login", "POST", there, "http://127.0.0.1:8001", data={"token": TOKEN})
    assert here.split("=")[0] != other.headers["set-cookie"].split("=")[0]
