"""A model from a hub, by its id: the real client against a real server that speaks the hub's API; bytes are told."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tunesmith.starter import base_folder

COMMIT = "c" * 40
SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from tunesmith.errors import TunesmithError
from tunesmith.serve.models import ServedModels
models = ServedModels(sys.argv[1], {}, "auto", Path("runs"), slots=2, context=64)
seen = []
async def watch():
    asked = asyncio.ensure_future(models.get(models.names()[0]))
    while not asked.done():
        seen.extend([one.state, one.done, one.detail] for one in models.status())
        await asyncio.sleep(0.02)
    return await asked
try:
    served = asyncio.run(watch())
    told = {"name": served.name, "facts": models.status()[0].facts}
except TunesmithError as error:
    told = {"error": str(error)}
models.close()
print(json.dumps(told | {"seen": seen}))
"""


class Hub(BaseHTTPRequestHandler):
    """One open model, o/small: the starter, and a large file that comes slowly (the client writes 10 MB at once)."""

    files: dict[str, bytes]
    pause = 0.012

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if "/o/small" not in path:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/"):
            sizes = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            listed = {"id": "o/small", "sha": COMMIT, "siblings": sizes}
            tree = [
                {"type": "file", "path": one["rfilename"], "size": one["size"], "oid": "0" * 40}
                for one in sizes
            ]
            told = tree if "/tree/" in path else listed
            self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})
        else:
            content = self.files[path.rpartition("/")[2]]
            etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            self._send(200, content if body else b"", headers, len(content))

    def _send(self, code: int, content: bytes, headers: dict[str, str], size: int | None = None) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if size is None else size))
        self.end_headers()
        for begin in range(0, len(content), 1 << 18):
            self.wfile.write(content[begin : begin + (1 << 18)])
            time.sleep(self.pause if len(content) > 1 << 24 else 0)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    files = {path.name: path.read_bytes() for path in base_folder().iterdir() if path.is_file()}
    files["notes.json"] = b" " * (48 << 20)
    handler = type("Handler", (Hub,), {"files": files})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()


def served(endpoint: str, home: Path, name: str) -> dict[str, Any]:
    more = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": ""}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name], env=os.environ | more, capture_output=True, text=True, cwd=home
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_served_by_its_id(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, _ = hub
    told = served(endpoint, tmp_path, "o/small")
    assert told["name"] == "o/small"
    assert (told["facts"]["base"], told["facts"]["revision"]) == ("o/small", COMMIT)
    fetching = [(done, detail) for _, done, detail in told["seen"] if detail.startswith("fetching")]
    shares = [done for done, _ in fetching]
    assert len(set(shares)) > 2 and shares == sorted(shares) and 0 <= shares[0] < shares[-1] <= 1


def test_unknown_and_code_of_its_own(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, handler = hub
    assert "no folder and no hub model 'o/tiny'" in served(endpoint, tmp_path, "o/tiny")["error"]
    config = json.loads(handler.files["config.json"])
    handler.files["config.json"] = json.dumps(config | {"auto_map": {"AutoModel": "m.M"}}).encode()
    assert "brings its own Python code" in served(endpoint, tmp_path, "o/small")["error"]
