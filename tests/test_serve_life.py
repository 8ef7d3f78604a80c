"""A server's beginning and end: addresses, options that can't be meant, SIGTERM, a second signal, a failed load."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from running_server import CHAT, Running, failed, request_bytes, running, until_closed
from serve_client import TOKEN
from test_serve_rows import LONG

from tunesmith.errors import SetupError
from tunesmith.serve.running.address import listen, url
from tunesmith.serve.running.lifecycle import LogLines


def token_file(folder: Path) -> Path:
    path = folder / "token"
    path.touch(0o600)
    path.write_text(TOKEN)
    return path


# ---- what is refused before a model is looked at


@pytest.mark.parametrize(
    "options, said",
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--host", "::"], "token_hex"),
        (["--host", "no.such.host.invalid"], "no address"),
        (["--host", "192.0.2.1", "--token-file", "TOKEN"], "can't listen"),
        (["--port", "70000"], "is no port"),
        (["--limit", "nothing=1"], "is no limit"),
        (["--limit", "body=many"], "no number"),
        (["--limit", "requests=0"], "no number"),
        (["--adapter", "x"], "NAME=PATH"),
        (["--allow-host", "models.example.org:443"], "the name alone"),
        (["--allow-host", "models.example.org."], "the name alone"),
        (["--allow-host", "https://models.example.org"], "the name alone"),
        (["--adapter", "x=a", "--adapter", "x=b"], "twice"),
        (["--token-file", "NONE"], "no token file"),
        (["--token-file", "SHORT"], "guessed"),
    ],
)
def test_options_that_cannot_be_meant(options: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "short").touch(0o600)
    (tmp_path / "short").write_text("x")
    files = {
        "TOKEN": str(token_file(tmp_path)),
        "NONE": str(tmp_path / "none"),
        "SHORT": str(tmp_path / "short"),
    }
    code, words = failed("--port", "0", *[files.get(one, one) for one in options])
    assert code == 2 and said in words and "fix:" in words and "Traceback" not in words


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = failed("--port", str(port))
        assert code == 2 and f"port {port} is in use" in said and "--port" in said
    bound = socket.socket()  # bound, and not listening yet
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    with bound, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(bound.getsockname())
        other.listen()
        with pytest.raises(SetupError, match="in use"):
            listen("127.0.0.1", bound.getsockname()[1], guarded=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.3.4.5"])
def test_loopback_by_any_name_needs_no_token(host: str) -> None:
    sock, loopback = listen(host, 0, guarded=False)
    with sock:
        assert loopback and url(sock).endswith(f":{sock.getsockname()[1]}")


def test_beyond_loopback_the_url_is_one_that_can_be_typed() -> None:
    sock, loopback = listen("0.0.0.0", 0, guarded=True)
    with sock:
        assert not loopback and url(sock).startswith("http://127.0.0.1:")


def test_log_lines_of_a_reader_that_does_not_read_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, seen = threading.Event(), []

    def note(line: str) -> None:
        stuck.wait(100)
        seen.append(line)

    monkeypatch.setattr("tunesmith.console.note", note)
    lines = LogLines(most=5)
    begin = time.monotonic()
    for number in range(1000):
        lines.put(str(number))
    assert time.monotonic() - begin < 50
    stuck.set()
    while not lines._queue.empty():
        time.sleep(0.01)
    lines.close()
    assert seen[0] == "0" and len(seen) <= 7


# ---- a real one


def test_what_it_prints_and_asks_for(tmp_path: Path) -> None:
    with running("--token-file", str(token_file(tmp_path)), "--host", "0.0.0.0") as server:
        assert server.get("/health").status_code == 200
        assert server.get("/ready").status_code == 401
        server.ready()
        first = json.loads(server.stdout.splitlines()[0])
        assert first == {"url": server.url, "models": ["starter"], "ready": True}
        own = {"authorization": f"Bearer {TOKEN}"}
        assert server.get("/ready", headers=own).json()["ready"]
        assert server.get("/v1/models", headers=own).json()["data"][0]["id"] == "starter"
        for path in ("/", "/runs", "/web/playground.js", "/metrics", "/v1/models", "/api/tags", "/nothing"):
            assert server.get(path).status_code == 401
            assert server.get(f"{path}?token={TOKEN}").status_code == 401
        upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-key": "x" * 24}
        assert server.get("/nothing", headers=upgrade).status_code == 401
        with server.connect() as sock:  # a body is not read for those who may not come in
            sock.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
            )
            assert b" 401 " in sock.recv(65536)[:20]
        server.signal()
        assert server.ended() == 0
        last = json.loads(server.stdout.splitlines()[-1])
        assert last["exit"] == 0 and last["url"] == server.url
        assert TOKEN not in server.stdout + server.stderr


# more than all buffers on the way hold: it isn't over before its client has read it
MUCH = LONG | {"stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}


def streaming(server: Running) -> socket.socket:
    """A long answer that has begun."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.settimeout(60)
    sock.connect(server.address)
    sock.sendall(request_bytes("/v1/chat/completions", MUCH | {"n": 4}, ["Connection: close"]))
    came = b""
    while came.count(b"data:") < 3:
        more = sock.recv(65536)
        assert more, came
        came += more
    return sock


def test_row_51_a_stream_is_finished_after_sigterm() -> None:
    """First /health says 503, nothing new is begun, what was begun comes whole, then it ends with 0."""
    with running("--context", "1024", "--limit", "drain_seconds=400") as server:
        server.ready()
        with streaming(server) as sock:
            server.signal()
            server.wait_for("SIGTERM: 1 answers in progress")
            assert server.get("/health").status_code == 503
            refused = server.chat(max_tokens=2)
            assert refused.status_code == 503 and refused.headers["retry-after"]
            assert server.process.poll() is None
            came = until_closed(sock)
        assert came.rstrip().endswith(b"0") and b"data: [DONE]" in came
        assert came.count(b'"finish_reason": "length"') == 4
        assert server.ended() == 0
        assert "Traceback" not in server.stderr and "cut off" not in server.stderr


def test_a_stream_that_takes_too_long_is_cut_at_the_deadline() -> None:
    with running("--context", "1024", "--limit", "drain_seconds=0.5") as server:
        server.ready()
        with streaming(server) as sock:
            server.signal(signal.SIGINT)
            server.wait_for("1 answers were cut off", seconds=25)  # without the limit it would be 30
            came = until_closed(sock)
            assert b"[DONE]" not in came
            assert server.ended() == 0
        assert "Traceback" not in server.stderr


def test_a_second_signal_ends_it_at_once() -> None:
    with running("--context", "1024", "--limit", "drain_seconds=150") as server:
        server.ready()
        with streaming(server) as sock:
            server.signal()
            server.wait_for("SIGTERM")
            time.sleep(0.5)
            begin = time.monotonic()
            server.signal()
            until_closed(sock)
            server.wait_for(r'"exit": 75', stream="stdout")
            assert time.monotonic() - begin < 60
            assert server.ended() == 75
        assert "Traceback" not in server.stderr
        assert json.loads(server.stdout.splitlines()[-1])["exit"] == 75


def test_a_signal_while_the_model_loads() -> None:
    for _ in range(5):  # one that loads faster than a test can speak was not asked in time
        with running() as server:
            server.signal()
            assert server.ended() == 0 and "Traceback" not in server.stderr
            if '"ready"' not in server.stdout:
                return
    raise AssertionError("it was always loaded before it ended")


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama"}')
    code, said = failed("--port", "0", model=str(broken))
    assert code == 2 and "Traceback" not in said and said.count("no weights") == 1
    code, said = failed("--port", "0", model=str(tmp_path / "none"))
    assert code == 2 and "Traceback" not in said


def test_a_client_that_does_not_read_is_let_go() -> None:
    with running("--limit", "unread_seconds=1", "--limit", "top_logprobs=20") as server:
        server.ready()
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.connect(server.address)
        with sock:
            sock.sendall(request_bytes("/v1/chat/completions", MUCH))
            end = time.monotonic() + 200
            while not server.metric("tunesmith_answer_tokens_total"):
                assert time.monotonic() < end
            while server.metric("tunesmith_requests_in_progress"):
                assert time.monotonic() < end
                time.sleep(0.1)
            sent = server.metric("tunesmith_answer_tokens_total")
            assert sent < 8 * 900, "it was written to its end"
        assert (
            httpx.post(
                f"{server.url}/v1/chat/completions", json=CHAT | {"max_tokens": 2}, timeout=100
            ).status_code
            == 200
        )
