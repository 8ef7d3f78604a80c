"""A real server: `tunesmith serve` in a process of its own, and clients that behave badly on plain sockets."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

CHAT = {"model": "starter", "messages": [{"role": "user", "content": "Write a report."}], "temperature": 1.0}


class Running:
    """One server. `url` once it listens; its words are in `stdout` and `stderr`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process, self._folder, self.url = process, folder, ""

    @property
    def stdout(self) -> str:
        return (self._folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self._folder / "stderr").read_text()

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def wait_for(self, pattern: str, *, stream: str = "stderr", seconds: float = 300.0) -> re.Match[str]:
        """Until the server says so; fails where it ends without."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := re.search(pattern, getattr(self, stream)):
                return found
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.stderr}"
            time.sleep(0.05)
        raise AssertionError(f"never said {pattern!r}: {self.stdout} {self.stderr}")

    def ready(self) -> Running:
        """Once the model is loaded."""
        self.wait_for(r'"ready": true', stream="stdout")
        return self

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self, seconds: float = 200.0) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def get(self, path: str, **rest: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **rest)

    def chat(self, seconds: float = 300.0, **asked: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=CHAT | asked, timeout=seconds)

    def metric(self, name: str) -> float:
        """A figure of /metrics without labels, or the sum over its labels."""
        lines = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return sum(map(float, lines))

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=60)


@contextmanager
def running(*options: str, model: str = "starter", wait: bool = True) -> Iterator[Running]:
    """`tunesmith serve MODEL --port 0 --json …`; ended at the end, whatever happened."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                serve_command("--port", "0", "--json", *options, model=model), stdout=out, stderr=err
            )
        server = Running(process, folder)
        try:
            if wait:
                server.url = server.wait_for(r"(http://\S+) answers as")[1]
            yield server
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def serve_command(*options: str, model: str = "starter") -> list[str]:
    return [sys.executable, "-m", "tunesmith.cli", "serve", model, *options]


def failed(*options: str, model: str = "starter") -> tuple[int, str]:
    """Exit code and stderr of a server that doesn't come up."""
    done = subprocess.run(
        serve_command(*options, model=model),
        capture_output=True,
        text=True,
        timeout=300,
        env=dict(os.environ),
        check=False,
    )
    return done.returncode, done.stderr


def request_bytes(path: str, body: Any = None, headers: Sequence[str] = ()) -> bytes:
    """A POST as it goes over the wire."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data


def until_closed(sock: socket.socket) -> bytes:
    """All that comes until the other side ends it."""
    parts = []
    try:
        while data := sock.recv(65536):
            parts.append(data)
    except ConnectionResetError:
        pass
    return b"".join(parts)
