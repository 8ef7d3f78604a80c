#!/usr/bin/env python
"""Stands in for the program `vllm`: a real server process that speaks the part of vLLM's API that tunesmith uses.

Strict: an option or a field that it does not know ends it or is refused, as is a missing key. Its tokens are a function
of prompt, place, adapter and seed. STANDIN_MODE makes it misbehave; STANDIN_JOURNAL is a file that it writes to.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

VOCABULARY = 512
FIELDS = {
    "model", "prompt", "stream", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "logprobs", "prompt_logprobs", "stop_token_ids", "ignore_eos",
    "skip_special_tokens", "add_special_tokens", "return_token_ids", "return_tokens_as_token_ids", "structured_outputs",
}  # fmt: skip
SCHEMA_ANSWER = [123, 34, 125]  # what it writes where it is held to a schema
MODE = os.environ.get("STANDIN_MODE", "")
WAIT = float(os.environ.get("STANDIN_WAIT", "0.002"))


def logits_of(prompt: list[int], place: int, model: str, seed: int, temperature: float) -> dict[int, float]:
    """ln p of a few tokens at a place of the answer."""
    mixed = sum((i + 1) * token for i, token in enumerate(prompt)) + 31 * place + 7 * len(model)
    mixed += 0 if temperature == 0 else seed % 97
    likely = [(mixed * factor) % VOCABULARY for factor in (3, 5, 7, 11, 13)]
    return {token: math.log(0.5) - 0.5 * rank for rank, token in reversed(list(enumerate(likely)))}


def journal(event: dict[str, Any]) -> None:
    if path := os.environ.get("STANDIN_JOURNAL"):
        with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123
            file.write(json.dumps(event) + "\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    options: argparse.Namespace

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(200, {})
        elif self.path == "/v1/models" and self.allowed():
            self.reply(200, {"data": [{"id": name} for name in self.names()]})
        elif self.path == "/v1/models":
            self.reply(401, {"error": "Unauthorized"})
        else:
            self.reply(404, {})

    def names(self) -> list[str]:
        return [self.options.served_model_name, *(one["name"] for one in self.options.lora_modules)]

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/completions":
            return self.reply(404, {})
        if not self.allowed():
            return self.reply(401, {"error": "Unauthorized"})
        body = json.loads(raw)
        journal({"asked": body})
        if wrong := self.problem(body):
            return self.reply(400, {"error": {"message": wrong, "type": "BadRequestError", "code": 400}})
        if body["stream"]:
            return self.stream(body)
        return self.reply(200, {"choices": [self.prompt_choice(body)]})

    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {os.environ['VLLM_API_KEY']}"

    def problem(self, body: dict[str, Any]) -> str:
        if strange := set(body) - FIELDS:
            return f"unknown fields {sorted(strange)}"
        if body["model"] not in self.names():
            return f"The model `{body['model']}` does not exist."
        if not body["prompt"] or not all(isinstance(one, int) for one in body["prompt"]):
            return "prompt must be token ids"
        if max(body["prompt"]) >= VOCABULARY:
            return f"Token id {max(body['prompt'])} is out of vocabulary"
        if len(body["prompt"]) + body["max_tokens"] > self.options.max_model_len:
            return "This model's maximum context length is exceeded"
        if body["stream"] and body.get("prompt_logprobs"):
            return "`prompt_logprobs` are not available when `stream=True`."
        if max(body.get("logprobs", 0), body.get("prompt_logprobs", 0)) > self.options.max_logprobs:
            return "too many logprobs"
        if not 0 < body.get("top_p", 1) <= 1:
            return "top_p must be in (0, 1]"
        if (held := body.get("structured_outputs")) is not None and set(held) != {"json"}:
            return "structured_outputs must be {'json': …}"
        return ""

    def prompt_choice(self, body: dict[str, Any]) -> dict[str, Any]:
        told: list[Any] = [None]
        prompt = body["prompt"]
        for place, token in enumerate(prompt[1:], 1):
            found = logits_of(prompt[:place], 0, body["model"], 0, 0)
            kept = dict(sorted(found.items(), key=lambda one: -one[1])[: body["prompt_logprobs"]])
            kept.setdefault(token, found.get(token, -9.0))
            told.append(
                {str(one): {"logprob": value, "rank": 1, "decoded_token": "x"} for one, value in kept.items()}
            )
        return {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": told}

    def stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for place in range(body["max_tokens"]):
                if MODE == "dies" and place == 3:
                    os._exit(9)
                if MODE == "error" and place == 3:
                    self.part({"error": {"message": "CUDA out of memory", "code": 500}})
                    break
                found = logits_of(body["prompt"], place, body["model"], body["seed"], body["temperature"])
                token = max(found, key=lambda one: found[one])
                if body.get("structured_outputs"):
                    token = SCHEMA_ANSWER[min(place, 2)]
                    found.setdefault(token, -3.0)
                end = "stop" if token in body["stop_token_ids"] else None
                end = end or ("length" if place + 1 == body["max_tokens"] else None)
                if MODE == "cut" and place == 3:
                    break
                self.part({"choices": [self.choice(body, token, found, end)]})
                if end:
                    break
                time.sleep(WAIT)
            self.chunk(b"data: [DONE]\n\n")
            self.chunk(b"")
        except OSError:
            journal({"disconnected": body["prompt"], "place": place})
            self.close_connection = True

    def choice(
        self, body: dict[str, Any], token: int, found: dict[int, float], end: str | None
    ) -> dict[str, Any]:
        ranked = sorted(found, key=lambda one: -found[one])[: body["logprobs"]]
        named = {f"token_id:{one}": found[one] for one in (token, *ranked)}
        logprobs = {
            "tokens": [f"token_id:{token}"],
            "token_logprobs": [found[token]],
            "top_logprobs": [named],
        }
        made = {"index": 0, "text": "x", "logprobs": logprobs, "finish_reason": end, "token_ids": [token]}
        return (
            made
            if body["return_token_ids"] and body["return_tokens_as_token_ids"]
            else {"index": 0, "text": "x"}
        )

    def part(self, data: dict[str, Any]) -> None:
        self.chunk(f"data: {json.dumps(data)}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def reply(self, status: int, data: dict[str, Any]) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, form: str, *args: Any) -> None:
        pass


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("model")
    for name in ("--uds", "--served-model-name", "--dtype"):
        parser.add_argument(name, required=True)
    for name in ("--max-model-len", "--max-num-seqs", "--max-logprobs"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--generation-config", choices=["vllm"], required=True)
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-loras", type=int)
    parser.add_argument("--max-lora-rank", type=int, choices=[1, 8, 16, 32, 64, 128, 256, 320, 512])
    parser.add_argument("--lora-modules", nargs="+", type=json.loads, default=[])
    Handler.options = options = parser.parse_args()
    assert bool(options.lora_modules) == options.enable_lora
    journal({"started": os.getpid(), "argv": sys.argv, "key": os.environ["VLLM_API_KEY"]})
    if MODE == "fails":
        print("INFO loading", flush=True)
        print("ValueError: the card has 0 bytes left", flush=True)
        print("(bye)", flush=True)
        sys.exit(3)
    if MODE == "grandchild":
        loop = "import time\nwhile True: time.sleep(1)"
        other = subprocess.Popen([sys.executable, "-c", loop], start_new_session=True)
        journal({"grandchild": other.pid})
    start = os.environ.get("STANDIN_START")  # a file that gets a byte for each line that was told
    for told, step in enumerate(("loading weights", "compiling", "almost there"), 1):
        print(step, flush=True)
        while start and (not Path(start).exists() or Path(start).stat().st_size < told):
            time.sleep(0.01)
    if MODE == "never":
        threading.Event().wait()
    if MODE == "nameless":
        options.lora_modules = []
    Server(options.uds, Handler).serve_forever()


if __name__ == "__main__":
    main()
