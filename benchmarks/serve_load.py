"""A server under load: memory by time, lost and crossed answers, time to the first token and to the last.

    python benchmarks/serve_load.py [--model starter] [--clients 200] [--seconds 120] [--leave 0.1] [--slots auto]

`tunesmith serve` runs in a process of its own. Each client asks again and again for a streamed greedy answer to one of
the prompts; a share of them goes away in the middle of a stream. What a whole stream says must be, to the letter, what
the batch generator wrote to that prompt beforehand: another prompt's answer is a crossed one, none at all a lost one.
The starter is served in fp32: in bf16, as it is stored, two tokens that are one step of rounding apart fall either way
with the number of rows in a batch, and so do the batch generator's own answers. A model whose answers with one slot are
not those with sixteen is refused.
Prints one JSON line; exit code 1 where an answer was lost or crossed, or memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

GROWTH = 0.05  # of the memory at a quarter of the time: more is no longer flat


def in_fp32(folder: Path) -> str:
    """The starter, to be computed in fp32."""
    from tunesmith.starter import base_folder

    shutil.copytree(base_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return str(folder)


def known_answers(model: str, prompts: int, max_tokens: int) -> dict[str, str]:
    """Prompt → what the batch generator answers to it, greedily."""
    from tunesmith.example import Message
    from tunesmith.generate.protocol import Decoding
    from tunesmith.generate.slots import SlotGenerator
    from tunesmith.opened.model import open_model
    from tunesmith.opened.place import find_model
    from tunesmith.starter.reports import rows

    place = find_model(model, Path("runs"))
    assert place is not None
    opened = open_model(place)
    # beginnings of reports: the starter goes on with each in its own way
    texts = [f"{number}: {row['input'][:200]}" for number, row in enumerate(rows("train", prompts))]
    ids = [opened.contract.prompt_ids([Message("user", text)]) for text in texts]
    generator = opened.generator(16, max(map(len, ids)) + max_tokens)
    assert isinstance(generator, SlotGenerator)

    def answers(slots: int) -> dict[str, str]:
        generator.slots = slots
        done = generator.generate(ids, Decoding(max_tokens), opened.contract.stop_ids)
        return {texts[one.index]: opened.contract.decode(one.ids) for one in done}

    known = answers(16)
    for slots in (1, 2):
        differ = [text for text, answer in answers(slots).items() if answer != known[text]]
        if differ:
            sys.exit(f"{len(differ)} answers hang on the shape of a batch: serve this model in float32")
    assert len(set(known.values())) > prompts // 2, "answers that are alike would hide crossed ones"
    return known


class Load:
    """All clients, and what they met."""

    def __init__(self, url: str, known: dict[str, str], options: argparse.Namespace) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.host, self.port, self.known, self.options = host, int(port), known, options
        self.model = ""
        self.met: Counter[str] = Counter()
        self.first: list[float] = []
        self.whole: list[float] = []
        self.rss: list[tuple[float, float]] = []  # seconds, MB
        self.wrong: list[str] = []

    async def run(self, pid: int) -> None:
        """Until the time is up."""
        end = time.perf_counter() + self.options.seconds
        watch = asyncio.create_task(self._watch(pid))
        await asyncio.gather(*(self._client(number, end) for number in range(self.options.clients)))
        watch.cancel()

    async def _watch(self, pid: int) -> None:
        begin = time.perf_counter()
        while True:
            self.rss.append((time.perf_counter() - begin, resident(pid)))
            await asyncio.sleep(1)

    async def _client(self, number: int, end: float) -> None:
        rng = random.Random(number)
        while time.perf_counter() < end:
            prompt = rng.choice(list(self.known))
            leaves = rng.randint(1, 8) if rng.random() < self.options.leave else 0
            try:
                self.met[await self._ask(prompt, leaves)] += 1
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self.met["lost"] += 1
                self.wrong.append(f"{type(error).__name__}: {error}")

    async def _ask(self, prompt: str, leaves: int) -> str:
        body = json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": self.options.max_tokens,
                "temperature": 0,
                "stream": True,
            }
        ).encode()
        begin = time.perf_counter()
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            writer.write(
                f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            status = int((await reader.readline()).split()[1])
            headers = await reader.readuntil(b"\r\n\r\n")
            if status == 429:
                wait = next(
                    line for line in headers.decode().lower().split("\r\n") if line.startswith("retry-after")
                )
                await asyncio.sleep(min(float(wait.split(":")[1]), 5))
                return "busy"
            if status != 200:
                self.wrong.append(f"status {status}")
                return "lost"
            return await self._read(reader, prompt, leaves, begin)
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, prompt: str, leaves: int, begin: float) -> str:
        text, pieces, first = "", 0, 0.0
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue  # lengths of chunks, blank lines
            if line.startswith(b"data: [DONE]"):
                break
            said = json.loads(line[6:])
            if "error" in said:
                self.wrong.append(str(said["error"]))
                return "lost"
            piece = said["choices"][0]["delta"].get("content") or ""
            if piece:
                text, pieces = text + piece, pieces + 1
                first = first or time.perf_counter()
            if leaves and pieces >= leaves:
                return "left"
        else:
            self.wrong.append("a stream broke off")
            return "lost"
        if leaves:
            return "left"  # its answer was shorter
        if text != self.known[prompt]:
            other = "crossed" if text in set(self.known.values()) else "different"
            self.wrong.append(f"{other}: {text[:80]!r} for {self.known[prompt][:80]!r}")
            return other
        self.first.append((first or time.perf_counter()) - begin)
        self.whole.append(time.perf_counter() - begin)
        return "right"


def resident(pid: int) -> float:
    """MB of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS: this needs Linux")


def serve(options: argparse.Namespace, known: dict[str, str]) -> dict[str, Any]:
    """The load on a server of its own, and the figures."""
    command = [sys.executable, "-m", "tunesmith.cli", "serve", options.model, "--port", "0", "--json"]
    command += ["--slots", options.slots, "--context", str(options.context)]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as server,
    ):
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            load = Load(ready["url"], known, options)
            load.model = ready["models"][0]
            asyncio.run(load.run(server.pid))
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
        finally:
            server.kill()
        log.seek(0)
        bugs = log.read().count(b"Traceback")
    quarter = [mb for at, mb in load.rss if at >= options.seconds / 4]
    tenths = [load.rss[min(len(load.rss) - 1, len(load.rss) * n // 10)] for n in range(11)]

    def percentiles(seconds: list[float]) -> dict[str, float]:
        cuts = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else [0.0] * 99
        return {"p50": round(cuts[49], 3), "p99": round(cuts[98], 3)}

    return {
        "clients": options.clients,
        "seconds": options.seconds,
        "cores": os.cpu_count(),
        "answers": dict(load.met),
        "first_token_seconds": percentiles(load.first),
        "answer_seconds": percentiles(load.whole),
        "answers_a_second": round(load.met["right"] / options.seconds, 2),
        "memory_mb": [[round(at), round(mb)] for at, mb in tenths],
        "memory_growth_mb": round(quarter[-1] - quarter[0], 1),
        "memory_growth": round(quarter[-1] / quarter[0] - 1, 4),
        "exit": code,
        "bugs": bugs,
        "wrong": load.wrong[:5],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--leave", type=float, default=0.1, help="share that goes away in mid-stream")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--slots", default="16")
    parser.add_argument("--context", type=int, default=1024)
    options = parser.parse_args()
    asked = options.model
    with tempfile.TemporaryDirectory() as folder:
        if asked == "starter":
            options.model = in_fp32(Path(folder) / "starter-fp32")
        known = known_answers(options.model, options.prompts, options.max_tokens)
        result = {"model": asked} | serve(options, known) | {"prompts": len(known)}
    print(json.dumps(result))
    bad = sum(result["answers"].get(name, 0) for name in ("lost", "crossed", "different"))
    return int(bad > 0 or result["memory_growth"] > GROWTH or result["bugs"] > 0 or result["exit"] != 0)


if __name__ == "__main__":
    sys.exit(main())
