"""The clients of `serve_speed.py` over HTTP, in a process of their own: python serve_clients.py REQUESTS.json PORT."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NEW = 64  # tokens of an answer
Requests = list[list[list[int]]]  # of each client, its prompts
Figures = dict[str, Any]


def main() -> None:
    """argv holds the file of requests and the port. Prints its figures."""
    requests: Requests = json.loads(Path(sys.argv[1]).read_text())
    port = int(sys.argv[2])
    ready = [[_request(port, prompt) for prompt in prompts] for prompts in requests]
    waits: list[float] = []

    async def everybody() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        made = [loop.create_connection(lambda: _Client(waits), "127.0.0.1", port) for _ in ready]
        each = [client for _, client in await asyncio.gather(*made)]
        begin = time.perf_counter()
        for client, own in zip(each, ready, strict=True):
            client.ask(own)
        return sum(await asyncio.gather(*(client.done for client in each))), time.perf_counter() - begin

    cpu = time.process_time()
    tokens, took = asyncio.run(everybody())
    print(json.dumps(figures(tokens, took, waits, time.process_time() - cpu)))


def _request(port: int, prompt: list[int]) -> bytes:
    body = json.dumps({
        "model": "bench", "prompt": prompt, "max_tokens": NEW, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    })  # fmt: skip
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


class _Client(asyncio.Protocol):
    """One connection, which is kept: the next request goes out when the last byte of an answer has come.

    `waits` gets the seconds to each first token, `done` the number of tokens. It computes as little as it can: what is
    measured is the server.
    """

    def __init__(self, waits: list[float]) -> None:
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waits, self._tokens = waits, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"no answer: {bytes(self._come[:200])!r} {exc}"))

    def ask(self, requests: list[bytes]) -> None:
        """All of them, one after the other."""
        self._left = iter(requests)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._come += data
        if not self._first and b"data: {" in self._come:
            self._first = time.perf_counter()
            self._waits.append(self._first - self._asked)
        if not self._come.endswith(b"\r\n0\r\n\r\n"):  # the last chunk of a body
            return
        count = re.search(rb'"completion_tokens": (\d+)', self._come)
        if not self._come.startswith(b"HTTP/1.1 200 ") or b"data: [DONE]" not in self._come or count is None:
            self._transport.close()
            return
        self._tokens += int(count[1])
        self._next()

    def _next(self) -> None:
        request = next(self._left, None)
        if request is None:
            self.done.set_result(self._tokens)
            self._transport.close()
            return
        self._come, self._first, self._asked = bytearray(), 0.0, time.perf_counter()
        self._transport.write(request)


def figures(tokens: int, seconds: float, waits: Sequence[float], cpu: float | None = None) -> Figures:
    """cpu: seconds that this process computed, on a machine with other work."""
    made: Figures = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
    if cpu is not None:
        made["cpu_seconds"] = cpu
    if waits:
        cuts = statistics.quantiles(waits, n=100, method="inclusive")
        made |= {"first_token_p50": cuts[49], "first_token_p99": cuts[98]}
    return made


if __name__ == "__main__":
    main()
