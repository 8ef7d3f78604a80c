"""The notice when a run ends: real HTTP servers that take it, hang, dribble, refuse and send elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_cli import RECIPE, place, tunesmith  # noqa: F401  (a fixture)
from tiny_project import hurts_itself, make_project

from tunesmith import notify
from tunesmith.errors import NotFinite, OutOfRoom, SetupError, Stopped
from tunesmith.run import Run

TOKEN = "T0PSECRET"
HEADLINE = {"metric": "field_f1", "base": 0.1, "tuned": 0.9, "n": 30, "difference": {}}


class Hook(BaseHTTPRequestHandler):
    """Keeps what it is sent; its path says how it behaves."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
        if "hang" in self.path:
            server.over.wait(120)
            return
        code = 500 if "broken" in self.path else 302 if "moved" in self.path else 200
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "900" if "dribble" in self.path else "0")
        self.end_headers()
        while "dribble" in self.path and not server.over.wait(0.05):
            self.wfile.write(b".")

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server with `got`, and `use(path)` that puts its address into HOOK."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    server.got, server.over, server.daemon_threads = [], threading.Event(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    server.use = lambda path: monkeypatch.setenv("HOOK", f"{server.address}/{path}?{TOKEN}")
    server.use("fine")
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "cancer")
    run.path.mkdir()
    run.write_state(phase="evaluate")
    return run


def test_finished(run: Run, hook: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run.write_json(run.report / "report.json", {"headline": HEADLINE})
    with notify.told(run, "HOOK"):
        run.write_state(phase="export done")
    ((path, kind, message),) = hook.got
    assert path == f"/fine?{TOKEN}" and kind == "application/json"
    assert message == {
        "text": "cancer: finished (export, exit 0). field_f1: base 0.100, tuned 0.900 (n = 30)",
        "run": "cancer",
        "phase": "export",
        "exit": 0,
        "headline": HEADLINE,
    }
    assert capsys.readouterr().err == "" and run.read_json(run.state_file)["ended"] is None


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (NotFinite("the loss", where="row of Mrs Miller"), 3, "failed (evaluate, exit 3, NotFinite)"),
        (Stopped("SIGTERM"), 75, "stopped; the same command goes on (evaluate, exit 75, Stopped)"),
        (KeyboardInterrupt(), 75, "stopped; the same command goes on"),
        (OutOfRoom("no room", resumable=True), 75, "stopped; the same command goes on"),
        (MemoryError(), 2, "failed (evaluate, exit 2, MemoryError)"),
        (RuntimeError("Mrs Miller, row 3"), 1, "failed (evaluate, exit 1, RuntimeError)"),
    ],
)
def test_failed_and_stopped(run: Run, hook: Any, error: BaseException, code: int, words: str) -> None:
    with pytest.raises(type(error)), notify.told(run, "HOOK"):
        raise error
    ((_, _, message),) = hook.got
    assert words in message["text"] and message["exit"] == code
    assert "Miller" not in json.dumps(message) and str(run.path) not in json.dumps(message)
    ended = run.read_json(run.state_file)["ended"]
    assert ended["exit"] == code and ended["phase"] == "evaluate" and ended["error"]


def test_a_new_start_forgets_the_last_end(run: Run) -> None:
    with pytest.raises(RuntimeError), notify.told(run, None):
        raise RuntimeError
    with notify.told(run, None):
        assert run.read_json(run.state_file)["ended"] is None


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("hang", "the webhook doesn't answer"),
        ("dribble", "the webhook doesn't answer"),
        ("broken", "the webhook answers 500"),
        ("moved", "the webhook answers 302"),
    ],
)
def test_a_bad_webhook_costs_a_warning_and_little_time(
    run: Run, hook: Any, path: str, words: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(notify, "PATIENCE", 2.0 if "doesn't" in words else 60.0)
    hook.use(path)
    begin = time.monotonic()
    with notify.told(run, "HOOK"):
        pass
    assert time.monotonic() - begin < 60
    said = capsys.readouterr().err
    assert said == f"warning: nobody was told: {words} (HOOK)\n"
    assert len(hook.got) == 1  # a moved one is not followed


def test_patience_is_ten_seconds() -> None:
    assert notify.PATIENCE == 10.0


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9/T0PSECRET", "http://nobody.invalid/T0PSECRET", "http://127.0.0.1:1/T0P SECRET"],
)
def test_an_address_is_never_printed(
    run: Run, address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", address)
    monkeypatch.setattr(notify, "PATIENCE", 100.0)  # a name that nobody knows is looked for a while
    with notify.told(run, "HOOK"):
        pass
    said = capsys.readouterr().err
    assert "nobody was told: the webhook can't be reached" in said
    assert "SECRET" not in said and "127.0.0.1" not in said and "nobody.invalid" not in said


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "ftp://host/x", "T0PSECRET", "http://", "http://[T0PSECRET"]
)
def test_only_http(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", address)
    with pytest.raises(SetupError, match=r"HOOK holds no http\(s\) address") as told:
        notify.require("HOOK")
    assert "SECRET" not in str(told.value) and "passwd" not in str(told.value)


def test_a_missing_variable_is_told_before_anything_is_done(place: Path) -> None:  # noqa: F811
    (place / "recipe.yaml").write_text(RECIPE.replace("max_steps: 2", "max_steps: 2, notify: NO_SUCH_HOOK"))
    code, said = tunesmith(place, "run", "recipe.yaml")
    assert code == 2 and "the environment variable NO_SUCH_HOOK is not set" in said and ".env" in said
    assert not (place / "runs").exists()


def test_a_training_stopped_by_a_signal_and_one_that_ends(hook: Any, tmp_path: Path) -> None:
    """`tunesmith train` itself, its address in .env: SIGTERM, then the same command to the end."""
    made = make_project(tmp_path, rows=40, name="tiny", train={"notify": "FROM_DOTENV", "log_every": 1})
    (tmp_path / ".env").write_text(f"FROM_DOTENV={hook.address}/fine?{TOKEN}\n")
    command = [sys.executable, "-m", "tunesmith.cli", "train", str(made)]
    hurt = os.environ | hurts_itself(tmp_path, "at step 1", signal.SIGTERM)
    stopped = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=hurt)
    said = stopped.stderr
    assert stopped.returncode == 75, said
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [(message["phase"], message["exit"]) for _, _, message in hook.got] == [
        ("train", 75),
        ("train", 0),
    ]
    assert "tiny: finished (train, exit 0)" in hook.got[1][2]["text"]
    said += done.stderr + done.stdout
    kept = "".join(
        path.read_text(errors="replace") for path in (tmp_path / "runs").rglob("*") if path.is_file()
    )
    assert TOKEN not in said + kept and hook.address not in said + kept
