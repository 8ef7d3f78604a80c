"""Serving: concurrent clients against one-at-a-time `generate`, and the HTTP server against the engine alone.

    python benchmarks/serve_speed.py [--base starter|DIR] [--clients 16] [--requests 6] [--out FILE]       # CPU
    python benchmarks/serve_speed.py --shape llama-3.1-8b [--plain-layers] [--out FILE]                 # one GPU

Each of the clients asks again as soon as its answer has ended. Answers have 64 tokens.

`engine`: the transformers engine (LiveSlots) under those clients, in this process. `one at a time`: transformers'
`generate` on the first --alone of the same prompts, attention by sdpa. `server`: the same requests to the same engine
over HTTP, /v1/completions, streamed, by the real server (uvicorn, guards and all) in this process and the clients in
another, each on a connection that it keeps; its `cpu_seconds` are the clients'. `engine with stops` is what it is
compared with, because over HTTP the Contract's stop ids end an answer. On a CPU the model is fp32 and all answers have
to be equal. --shape: random weights in bf16, prompts of log-normal length (median 190). --plain-layers: `engine, plain
layers` is the engine without the lean pass, beside it in every round.

A JSON line for each measurement, then the ratios: `speed-up` (engine over one at a time, tokens/s) and `overhead`
(server over engine with stops, seconds per token; 0.05 is 5 %).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serve_clients import NEW, Figures, Requests, figures
from step_speed import layers_of, teller

# rounds over HTTP that don't count: requests come singly there, and graphs of more sizes are captured
WARM = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base", default="starter", help="starter, or a folder with a model and its tokenizer"
    )
    parser.add_argument("--shape", help="random weights of this shape instead, on a GPU")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=6, help="of each client")
    parser.add_argument(
        "--alone", type=int, help="prompts for one-at-a-time generate; default: all, 12 on a GPU"
    )
    parser.add_argument("--rounds", type=int, default=2, help="of each measurement, in turn")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--plain-layers", action="store_true", help="also without the lean pass")
    parser.add_argument("--without-server", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON lines are added")
    chosen = parser.parse_args()
    model, contract, prompts = (_shape if chosen.shape else _base)(chosen)
    requests = [prompts[n :: chosen.clients] for n in range(chosen.clients)]
    on_card = model.device.type == "cuda"
    count = chosen.alone or (min(12, len(prompts)) if on_card else len(prompts))
    from tunesmith.generate.lean import why_not_lean
    from tunesmith.generate.live.engine import LiveSlots
    from tunesmith.model.attention import ATTENTION

    say = teller(chosen.out)

    say("setting", device=_device(model), base=chosen.shape or chosen.base, clients=chosen.clients,
        prompts=len(prompts), prompt_tokens=statistics.mean(map(len, prompts)), new_tokens=NEW)  # fmt: skip
    found: dict[str, list[Figures]] = {
        "engine": [],
        "engine with stops": [],
        "engine, plain layers": [],
        "one at a time": [],
        "server": [],
    }
    answers: dict[str, dict[int, list[int]]] = {}

    def told(what: str, figures: Figures) -> None:
        found[what].append(figures)
        say(what, **figures)

    for turn in range(chosen.rounds):
        model.set_attn_implementation(ATTENTION)
        live = LiveSlots(model, contract, slots=chosen.clients, context=chosen.context)
        Driver(live, requests, frozenset()).run()  # kernels and graphs are made
        driver = Driver(live, requests, frozenset())
        told("engine", driver.run())
        told("engine with stops", Driver(live, requests, contract.stop_ids).run())
        live.close()
        answers["engine"] = driver.answers
        if chosen.plain_layers:
            with layers_of("transformers"):
                live = LiveSlots(model, contract, slots=chosen.clients, context=chosen.context)
            Driver(live, requests, frozenset()).run()
            told("engine, plain layers", Driver(live, requests, frozenset()).run())
            live.close()
        if not turn or not on_card:
            figures, answers["one at a time"] = one_at_a_time(model, prompts[:count])
            told("one at a time", figures)
    each = [_rate(a) / _rate(b) for a, b in zip(found["engine"], found["one at a time"], strict=False)]
    say(
        "speed-up",
        ratio=_median(found["engine"], _rate) / _median(found["one at a time"], _rate),
        rounds=each,
    )
    if plain := found["engine, plain layers"]:
        say("lean pass", ratio=_median(found["engine"], _rate) / _median(plain, _rate), not_lean=why_not_lean(model),
            turn_ms=[1000 * chosen.clients / _median(one, _rate) for one in (found["engine"], plain)])  # fmt: skip
    # clients take prompts in turn, so that a request's ticket is its prompt's number
    differ = [n for n in range(count) if answers["engine"][n] != answers["one at a time"][n]]
    say("equal answers", share=1 - len(differ) / count)
    if not on_card and differ:
        sys.exit(f"greedy answers in fp32 differ: {differ}")
    if chosen.without_server:
        return
    model.set_attn_implementation(ATTENTION)
    live = LiveSlots(model, contract, slots=chosen.clients, context=chosen.context)
    serve(live, contract, requests, chosen.rounds, lambda figures: told("server", figures))
    alone, served = found["engine with stops"], found["server"]
    say("overhead", per_token=_median(alone, _rate) / _median(served, _rate) - 1,
        first_token=_median(served, _first) / _median(alone, _first) - 1)  # fmt: skip


class Driver:
    """Clients of an engine in this process, each asking again when its answer has ended."""

    def __init__(self, live: Any, requests: Requests, stop_ids: frozenset[int]) -> None:
        self.live, self.requests, self.stop_ids = live, requests, stop_ids
        self.answers: dict[int, list[int]] = {}
        self._asked: dict[int, float] = {}
        self._first: dict[int, float] = {}
        self._left = sum(map(len, requests))
        self._done = threading.Event()
        self._base = 0

    def run(self) -> Figures:
        """All requests; the engine goes on working afterwards."""
        if self.live._thread is None:
            self.live.start(lambda events: self.live.driver.hear(events))
        self.live.driver = self
        begin, cpu = time.perf_counter(), time.process_time()
        for client in range(len(self.requests)):
            self._ask(client)
        self._done.wait()
        took = time.perf_counter() - begin
        waits = [self._first[ticket] - asked for ticket, asked in self._asked.items()]
        return figures(sum(map(len, self.answers.values())), took, waits, time.process_time() - cpu)

    def _ask(self, ticket: int) -> None:
        """Ticket t is request t // clients of client t % clients."""
        from tunesmith.generate.protocol import LiveRequest

        clients = len(self.requests)
        own = self.requests[ticket % clients]
        if ticket // clients < len(own):
            self.answers[ticket], self._asked[ticket] = [], time.perf_counter()
            self.live.submit(ticket, LiveRequest(own[ticket // clients], NEW, self.stop_ids))

    def hear(self, events: Sequence[Any]) -> None:
        now = time.perf_counter()
        for event in events:
            if event.token is not None:
                self._first.setdefault(event.ticket, now)
                self.answers[event.ticket].append(event.token.id)
            if event.end:
                if event.error is not None:
                    raise event.error
                self._left -= 1
                self._ask(event.ticket + len(self.requests))
        if not self._left:
            self._done.set()


def one_at_a_time(model: Any, prompts: Sequence[list[int]]) -> tuple[Figures, dict[int, list[int]]]:
    """transformers' generate, one prompt after the other."""
    import torch

    model.set_attn_implementation("sdpa")
    answers: dict[int, list[int]] = {}
    with torch.no_grad():
        for turn in (prompts[:1], prompts):  # the first one warms up
            begin, cpu = time.perf_counter(), time.process_time()
            for number, prompt in enumerate(turn):
                ids = torch.tensor([prompt], device=model.device)
                whole = model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW,
                    eos_token_id=None, pad_token_id=0,
                )  # fmt: skip
                answers[number] = whole[0, len(prompt) :].tolist()
    took = time.perf_counter() - begin
    cpu = time.process_time() - cpu
    return figures(sum(map(len, answers.values())), took, [], cpu), answers


# ---- over HTTP


def serve(live: Any, contract: Any, requests: Requests, rounds: int, told: Callable[[Figures], None]) -> None:
    """The real server on a free port, until the clients' process has asked everything, WARM times and `rounds` more."""
    from tunesmith.serve.protocol import ModelStatus, Served
    from tunesmith.serve.running.lifecycle import run
    from tunesmith.serve.state import ServeState

    class One:
        """A model that is there already."""

        served = Served("bench", contract, live, "transformers", max_tokens=NEW)

        def names(self) -> tuple[str, ...]:
            return ("bench",)

        def status(self) -> tuple[ModelStatus, ...]:
            return (ModelStatus("bench", "ready", done=1.0),)

        async def get(self, name: str) -> Served:
            return self.served

        def close(self) -> None:
            live.close()

    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    failed: list[str] = []

    def ask() -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "requests.json"
                file.write_text(json.dumps(requests))
                command = [sys.executable, "serve_clients.py", str(file), str(port)]
                for turn in range(WARM + rounds):
                    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
                    if done.returncode:
                        failed.append(done.stderr)
                        return
                    if turn >= WARM:
                        told(json.loads(done.stdout))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    state = ServeState(One())
    asking = threading.Thread(target=ask)
    run(state, sock, asking.start)
    asking.join()
    if failed:
        sys.exit(failed[0])


# ---- models, and figures


def _base(chosen: argparse.Namespace) -> tuple[Any, Any, list[list[int]]]:
    import torch
    from transformers import AutoModelForCausalLM

    from tunesmith.base import resolve
    from tunesmith.contract import Contract
    from tunesmith.example import Message
    from tunesmith.model.attention import register
    from tunesmith.recipe import Model
    from tunesmith.starter.reports import rows as generated

    base = resolve(Model(base=chosen.base))
    model = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=torch.float32, attn_implementation=register()
    )
    contract = Contract.make(base.tokenizer_folder)
    count = chosen.clients * chosen.requests
    rows = [f"{row['instruction']}\n\n{row['input']}" for row in generated("test", count, seed=11)]
    return model.eval(), contract, [list(contract.prompt_ids((Message("user", text),))) for text in rows]


def _shape(chosen: argparse.Namespace) -> tuple[Any, Any, list[list[int]]]:
    import numpy as np
    import torch
    from gpu_inputs import shape_config, word_tokenizer
    from transformers import AutoModelForCausalLM

    from tunesmith.contract import Contract
    from tunesmith.model.attention import register

    torch.manual_seed(0)
    config = shape_config(chosen.shape)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=register())
    with tempfile.TemporaryDirectory() as folder:
        word_tokenizer(Path(folder), config.vocab_size)
        contract = Contract.make(Path(folder))
    draw = np.random.Generator(np.random.PCG64(5))
    lengths = np.clip(draw.lognormal(np.log(190), 0.45, chosen.clients * chosen.requests), 20, 1024)
    prompts = [draw.integers(4, config.vocab_size, int(n)).tolist() for n in lengths]
    return model.eval(), contract, prompts


def _rate(figures: Figures) -> float:
    return float(figures["tokens_per_second"])


def _first(figures: Figures) -> float:
    return float(figures["first_token_p50"])


def _median(some: Sequence[Figures], of: Callable[[Figures], float]) -> float:
    return statistics.median(map(of, some))


def _device(model: Any) -> str:
    import torch

    on_card = model.device.type == "cuda"
    return torch.cuda.get_device_name() if on_card else f"cpu, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
