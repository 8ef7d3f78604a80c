"""S3 for tests: moto's server, a bucket, a model's folder, and a slow proxy in front of the server."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tunesmith.contract import Contract
from tunesmith.starter import base_folder

RUNS = Path("no-runs")


@contextmanager
def moto_server() -> Iterator[str]:
    """Its address."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        moto.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with moto_server() as address:
        yield address


@pytest.fixture
def aws(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A client with a bucket of its own, and an environment in which tunesmith finds the server: nothing of this
    machine's own AWS files, the cache in tmp_path/cache."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    bucket = f"b-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]}"
    client.create_bucket(Bucket=bucket)
    client.bucket = bucket
    return client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The starter's base as `export` writes a merged folder: contract and checksums beside it."""
    made = tmp_path / "made"
    made.mkdir()
    Contract.make(base_folder()).save(made)
    for name in ("config.json", "model.safetensors"):
        (made / name).write_bytes((base_folder() / name).read_bytes())
    sum_up(made)
    return made


def sum_up(folder: Path) -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def upload(aws: Any, folder: Path, prefix: str = "models/mine", without: str = "") -> str:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != without:
            aws.put_object(
                Bucket=aws.bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes()
            )
    return f"s3://{aws.bucket}/{prefix}"


def cached(tmp_path: Path) -> list[str]:
    """Names in the cache that anybody would read: hidden ones are at work."""
    return sorted(
        one.name for one in (tmp_path / "cache").glob("tunesmith/s3/*/*") if not one.name.startswith(".")
    )


class Slow(BaseHTTPRequestHandler):
    """In front of moto: large bodies come a little at a time, and can be counted."""

    moto: str
    sent = 0
    asked: list[tuple[str, str]]
    pause = 0.02
    most: int | None = None
    """Bytes after which it stands still, until `go` is set."""
    go: threading.Event

    def do_GET(self) -> None:
        self._pass("GET")

    def do_HEAD(self) -> None:
        self._pass("HEAD")

    def _pass(self, method: str) -> None:
        kept = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
        with urlopen(Request(self.moto + self.path, headers=kept, method=method)) as answer:
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in (
                    "connection",
                    "transfer-encoding",
                    "content-length",
                    "date",
                    "server",
                ):
                    self.send_header(name, value)
            self.send_header("Content-Length", answer.headers["Content-Length"] or str(len(body)))
            self.end_headers()
        self.asked.append((self.path.rpartition("/")[2], self.headers.get("Range", "")))
        for begin in range(0, len(body), 1 << 18):
            self.wfile.write(body[begin : begin + (1 << 18)])
            type(self).sent += len(body[begin : begin + (1 << 18)])
            if len(body) > 1 << 18:
                time.sleep(self.pause)
                if self.most is not None and self.sent >= self.most:
                    self.go.wait(120)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def slow(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Slow]]:
    handler = type("Handler", (Slow,), {"moto": server, "asked": [], "go": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads, http.handle_error = True, lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=http.serve_forever, daemon=True).start()
        handler.address = f"http://127.0.0.1:{http.server_address[1]}"  # type: ignore[attr-defined]
        yield handler
        http.shutdown()


FETCH = "import sys; from tunesmith.store.fetched import fetched; print(fetched(sys.argv[1]))"
