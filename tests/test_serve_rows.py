"""Faults of servers, a test each (rows 41 to 52 of the list that the server was built against), on a real one.

Row 51 is in test_serve_life.py, with all that ends a server.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from half_bucket import bucket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_server import CHAT, Running, failed, request_bytes, running, until_closed

import tunesmith
from tunesmith.errors import RecipeError
from tunesmith.recipe_file import load_recipe

SLOTS, CONTEXT, FULLS = 4, 1024, 2
# an answer that can't end before its longest: no token but these numbers may come
NUMBERS = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "integer"}, "minItems": 2000}},
}
LONG = CHAT | {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": NUMBERS | {"required": ["a"]}},
    },
    "max_tokens": 900,
}
LIMITS = {
    "cache_fulls": FULLS,
    "header_seconds": 4,
    "body_seconds": 4,
    "connections": 60,
    "body": 100_000,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    limits = [word for name, value in LIMITS.items() for word in ("--limit", f"{name}={value}")]
    with running("--slots", str(SLOTS), "--context", str(CONTEXT), *limits) as one:
        yield one.ready()


@pytest.fixture(autouse=True)
def still_well(server: Running) -> Iterator[None]:
    """After each fault the server answers, holds nothing, and has met no bug."""
    yield
    assert server.chat(max_tokens=3).status_code == 200
    idle(server)
    assert "Traceback" not in server.stderr and server.metric("tunesmith_requests_total") > 0
    assert 'status="500"' not in server.get("/metrics").text


def idle(server: Running, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while server.metric("tunesmith_requests_in_progress") or server.metric("tunesmith_engine_active"):
        assert time.monotonic() < end, "something is still written for nobody"
        time.sleep(0.05)


def refused(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, (response.status_code, response.text)
    return str(response.json()["error"]["message"])


def test_row_41_bombs_in_yaml(tmp_path: Path) -> None:
    def levels(last: str) -> str:
        lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
        return "\n".join(["name: x", "a0: &a0 [x]", *lines, last])

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "stages.json").write_text("{}")
    for text in (
        levels(""),
        levels("model: *a11"),
        "# x\n" * 300_000,
        "a: " + "{a: " * 3000,
        "a: " + "[" * 50_000,
        "a: [" + "x," * 300_000 + "]",
        "name: &a [*a]",
    ):
        (folder / "recipe.yaml").write_text(text)
        begin = time.monotonic()
        with pytest.raises(RecipeError):
            load_recipe(folder / "recipe.yaml")
        assert time.monotonic() - begin < 60
    (folder / "recipe.yaml").write_text(levels(""))
    code, said = failed(model=str(folder))
    assert code == 2 and "Traceback" not in said


def test_row_42_paths_that_lead_out(server: Running, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("SECRET-WORDS")
    up = "../" * 12 + str(secret).lstrip("/")
    ways = [
        up,
        up.replace("/", "%2f"),
        up.replace("..", "%2e%2e"),
        "/" + up,
        "....//" * 12 + up,
        f"file://{secret}",
    ]
    for way in ways:
        for path in (
            f"/web/{way}",
            f"/{way}",
            f"/v1/models/{way}",
            f"/ui/run?run={way}",
            f"/ui/report?run={way}",
        ):
            with server.connect() as sock:  # as it stands: clients would tidy it up
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                answer = until_closed(sock)
            assert b"SECRET" not in answer and b" 200 " not in answer.split(b"\r\n")[0], (path, answer[:300])
        assert server.chat(model=way).status_code == 404
        assert server.chat(model=str(secret)).status_code == 404
    for name in ("../x", "a/b", "..", "x\n", ""):
        code, said = failed("--port", "0", "--adapter", f"{name}={tmp_path}")
        assert code == 2 and "Traceback" not in said, (name, said)


def test_row_43_large_deep_and_slow(server: Running) -> None:
    refused(server.chat(messages=[{"role": "user", "content": "x" * 100_000}]), 413)
    deep = "[" * 50_000 + "]" * 0
    refused(httpx.post(server.url + "/v1/chat/completions", content=deep, timeout=100), 400)
    with server.connect() as sock:  # says much, sends more, in chunks without an end
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        try:
            for _ in range(40):
                sock.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        except OSError:
            pass
        assert b" 413 " in until_closed(sock)[:20]
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000)
        assert b" 400 " in until_closed(sock)[:20]

    def drips(first: bytes) -> float:
        """Seconds until the server has had enough of a client that sends a byte now and then."""
        begin = time.monotonic()
        with server.connect() as sock:
            sock.sendall(first)
            while time.monotonic() - begin < 60:
                try:
                    sock.sendall(b"a")
                    sock.settimeout(0.1)
                    if not sock.recv(65536):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
        return time.monotonic() - begin

    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
    # from connecting on: headers that never end, the same behind an answered request, a body that never ends, and one
    # that is refused unread
    with ThreadPoolExecutor(4) as pool:
        ways = [head + b"X: ", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /h", head + b"\r\n"]
        ways.append(ways[-1].replace(b"localhost", b"evil.example"))
        for way, seconds in zip(ways, pool.map(drips, ways), strict=True):
            assert 1 < seconds < 60, (way, seconds)
    said = []
    with ExitStack() as kept:
        for _ in range(80):  # more than it keeps open
            sock = kept.enter_context(server.connect())
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            said.append(sock.recv(65536)[:20])
        assert b" 200 " in said[0] and b" 503 " in said[-1], said
    end = time.monotonic() + 60
    while server.get("/health").status_code != 200:
        assert time.monotonic() < end


def test_row_44_more_than_is_given(server: Running) -> None:
    for asked in (
        {"max_tokens": 10**9},
        {"max_tokens": CONTEXT + 1},
        {"max_tokens": -1},
        {"n": 10**6},
        {"n": 17, "max_tokens": 1},
        {"logprobs": True, "top_logprobs": 10**6},
        {"stop": ["x"] * 17},
        {"stop": "x" * 201},
        {"temperature": 1e308},
        {"seed": 10**400},
    ):
        assert server.chat(**asked).status_code in (400, 422), asked
    body = {"model": "starter", "prompt": ["x"] * 5000, "max_tokens": 1}
    assert httpx.post(server.url + "/v1/completions", json=body, timeout=100).status_code == 400


def test_row_45_more_than_the_cache_holds(server: Running) -> None:
    """Those let in are answered whole; the others are told at once when to come back."""
    most = FULLS * SLOTS * CONTEXT // (900 + 40)

    def one(number: int) -> httpx.Response:
        return httpx.post(server.url + "/v1/chat/completions", json=LONG | {"seed": number}, timeout=1000)

    with ThreadPoolExecutor(most + 8) as pool:
        answers = list(pool.map(one, range(most + 8)))
    let_in = [one for one in answers if one.status_code == 200]
    others = [one for one in answers if one.status_code != 200]
    assert len(let_in) == most, [one.status_code for one in answers]
    for answer in let_in:
        assert answer.json()["usage"]["completion_tokens"] == 900
    for answer in others:
        assert "busy" in refused(answer, 429) and 1 <= int(answer.headers["retry-after"]) <= 120
        assert answer.elapsed.total_seconds() < 100


def test_row_46_clients_that_go_away(server: Running) -> None:
    def tokens() -> float:
        return server.metric("tunesmith_answer_tokens_total")

    def written(stream: bool) -> float:
        """Tokens of four long answers whose client leaves at their first."""
        before = tokens()
        with server.connect() as sock:
            sock.sendall(request_bytes("/v1/chat/completions", LONG | {"stream": stream, "n": 4}))
            while not server.metric("tunesmith_engine_active") and tokens() == before:
                time.sleep(0.01)
        idle(server)
        return tokens() - before

    for stream in (True, False):
        # a machine that stands still just here writes more meanwhile: not five times
        assert any(written(stream) < 3000 for _ in range(5)), "it was written to its end"
    server.wait_for(r"POST /v1/chat/completions 499 ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = "model messages prompt max_tokens temperature top_p n stop stream seed logprobs top_logprobs response_format"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(
        st.binary(max_size=200),
        JSON.map(lambda value: json.dumps(value).encode()),
        st.dictionaries(st.sampled_from(FIELDS.split()), JSON, max_size=5).map(
            lambda some: json.dumps({"model": "starter", "max_tokens": 1} | some).encode(
                "utf-8", "surrogatepass"
            )
        ),
    ),
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate"]),
)
def test_row_47_bodies_of_any_kind(server: Running, body: bytes, path: str) -> None:
    response = httpx.post(
        server.url + path, content=body, headers={"content-type": "application/json"}, timeout=60
    )
    assert response.status_code < 500, (body, response.text)
    if response.status_code >= 400:
        error = response.json()["error"]
        assert (
            isinstance(error, str)
            if path.startswith("/api")
            else set(error) == {"message", "type", "param", "code"}
        )
        assert "Traceback" not in response.text and ".py" not in response.text


def test_row_48_what_a_model_says_is_text(server: Running) -> None:
    for page in ("/", "/runs"):
        answer = server.get(page, headers={"accept": "text/html"})
        text = answer.text.lower()
        assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
        assert (
            "style=" not in text
            and "<style" not in text
            and " onclick" not in text
            and "javascript:" not in text
        )
        assert "http://" not in text and "https://" not in text, "nothing comes from elsewhere"
        assert all(" src=" in part.split(">")[0] for part in text.split("<script")[1:])
    said = server.chat(messages=[{"role": "user", "content": "<img src=x onerror=alert(1)>"}], max_tokens=5)
    assert (
        said.headers["content-type"] == "application/json"
        and said.headers["x-content-type-options"] == "nosniff"
    )


def test_row_49_pages_of_other_sites(server: Running) -> None:
    evil = "http://evil.example"
    for headers in (
        {"host": "evil.example"},
        {"origin": evil},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ):
        for method in ("GET", "POST", "OPTIONS"):
            asked = headers | {"access-control-request-method": "POST"}
            response = httpx.request(
                method, server.url + "/v1/chat/completions", headers=asked, content=b"", timeout=100
            )
            refused(response, 403)
            assert not [name for name in response.headers if name.startswith("access-control")]


def test_row_50_nothing_is_fetched_for_a_prompt(server: Running) -> None:
    """No tools and no addresses: what a prompt injects can only be said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/latest/meta-data"
        parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": address}}]
        refused(server.chat(messages=[{"role": "user", "content": parts}]), 400)
        server.chat(messages=[{"role": "user", "content": address}], max_tokens=5)
        server.chat(tools=[{"type": "function", "function": {"name": "get", "parameters": {}}}], max_tokens=5)
        server.chat(model=address)
        images = {"model": "starter", "prompt": "x", "images": [address], "options": {"num_predict": 2}}
        httpx.post(server.url + "/api/generate", json=images | {"stream": False}, timeout=100)
        listener.settimeout(0.5)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_row_52_a_model_half_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of a download: the next server is not ready before every byte is there, and answers well."""
    source = Path(tunesmith.__file__).parent / "starter" / "base"
    half, go_on = threading.Event(), threading.Event()
    with bucket(source, half, go_on) as url:
        for name, value in {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "HF_HOME": str(tmp_path / "hf"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path),
            "AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        with running(model="s3://models/base") as first:
            assert half.wait(60)
            ready = first.get("/ready")
            assert ready.status_code == 503 and ready.json()["models"][0]["state"] == "loading"
            assert first.get("/health").status_code == 200
            first.signal(9)
            first.ended()
        go_on.set()
        with running(model="s3://models/base") as second:
            second.ready()
            assert second.get("/ready").json()["ready"]
            answer = second.chat(model="base", max_tokens=5, temperature=0)
            assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] >= 1
