"""A model in S3 whose largest file stops in its middle: moto's server behind a proxy that waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from s3_models import moto_server


@contextmanager
def bucket(folder: Path, half: threading.Event, go_on: threading.Event) -> Iterator[str]:
    """A bucket `models` with the folder's files under base/; the largest stops in its middle until it may go on."""
    import boto3

    largest = max(folder.iterdir(), key=lambda path: path.stat().st_size).name

    class Through(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kept = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            answer = httpx.get(inner + self.path, headers=kept, timeout=100)
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            body, middle = answer.content, len(answer.content) // 2
            if largest in self.path and not go_on.is_set() and len(body) > 10_000:
                self.wfile.write(body[:middle])
                self.wfile.flush()
                half.set()
                go_on.wait(120)
                return  # the client is dead by now
            with suppress(OSError):
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *said: object) -> None:
            pass

    with moto_server() as inner, ThreadingHTTPServer(("127.0.0.1", 0), Through) as through:
        client = boto3.client(
            "s3",
            endpoint_url=inner,
            aws_access_key_id="k",
            aws_secret_access_key="s",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="models")
        for path in folder.iterdir():
            client.upload_file(str(path), "models", f"base/{path.name}")
        through.daemon_threads = True
        threading.Thread(target=through.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{through.server_address[1]}"
        finally:
            go_on.set()
            through.shutdown()
