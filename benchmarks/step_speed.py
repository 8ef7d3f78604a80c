"""A decoding step and a prefill by themselves: the lean pass beside transformers' own layers, in turn, on one model.

    python benchmarks/step_speed.py [--shape llama-3.1-8b] [--slots 16 512] [--profile] [--out FILE]     # one GPU
    python benchmarks/step_speed.py --shape … --tiny                                               # CPU: it runs

Random weights in bf16. Every slot holds a prompt of --prompt tokens; then 64 greedy tokens are written for all slots, a
CUDA graph a step, as evaluate and serve do (warmed up and captured before), by the clock from one synchronisation to
the next. `prefill`: the same prompts, by 8,192 tokens a pass.

A JSON line for each measurement. --profile: how many kernels a step launches, and the 16 that take longest, each with
ms and launches a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STEPS = 64
PASS = 8192  # tokens of a prefill
WAYS = ("lean", "transformers")


@contextmanager
def layers_of(way: str) -> Iterator[None]:
    """Within, generators that are made walk the layers in one way: `lean` where that can be, or `transformers`."""
    from tunesmith.generate import decoder, lean

    before = decoder.forward_of
    if way == "transformers":
        decoder.forward_of = lean.their_forward
    try:
        yield
    finally:
        decoder.forward_of = before


def teller(out: Path | None) -> Callable[..., None]:
    """What prints a JSON line of figures, and adds it to `out`."""

    def say(what: str, **figures: Any) -> None:
        line = json.dumps({"what": what} | figures)
        print(line, flush=True)
        if out:
            with out.open("a") as file:
                file.write(line + "\n")

    return say


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers of it, to see that it runs")
    parser.add_argument("--slots", type=int, nargs="*", default=(16, 512))
    parser.add_argument("--prompt", type=int, default=207, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON lines are added")
    chosen = parser.parse_args()

    say = teller(chosen.out)

    from tunesmith.generate.lean import why_not_lean

    model = _model(chosen)
    why = why_not_lean(model)
    say("setting", shape=chosen.shape, device=str(model.device), not_lean=why)
    if why and not chosen.tiny:
        sys.exit("there is nothing to compare")
    for slots in chosen.slots:
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(chosen.rounds):
            for way in WAYS:
                with layers_of(way):
                    found[way].append(_measure(model, slots, chosen.prompt))
        for way in WAYS:
            steps, prefills = zip(*found[way], strict=True)
            say("step", slots=slots, layers=way, ms=1000 * statistics.median(steps), each=[1000 * s for s in steps],
                prefill_tokens_per_second=slots * chosen.prompt / statistics.median(prefills))  # fmt: skip
        for way in WAYS if chosen.profile else ():
            with layers_of(way):
                say("kernels", slots=slots, layers=way, **_profile(model, slots, chosen.prompt))


def _model(chosen: argparse.Namespace) -> Any:
    import torch
    from gpu_inputs import shape_config
    from transformers import AutoModelForCausalLM

    from tunesmith.model.attention import register

    torch.manual_seed(0)
    config = shape_config(chosen.shape)
    if chosen.tiny:
        config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.vocab_size = (
            2,
            256,
            512,
            512,
        )
        config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 64
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=register())
    return model.eval()


def _filled(model: Any, slots: int, prompt: int) -> tuple[Any, float]:
    """A session whose slots all hold a prompt and a first token, and the seconds that took."""
    import torch

    from tunesmith.generate.decoder import Decoder
    from tunesmith.generate.protocol import Decoding
    from tunesmith.generate.session import Session

    torch.manual_seed(1)
    prompts = torch.randint(4, model.config.vocab_size, (slots, prompt)).tolist()
    decoding = Decoding(max_tokens=STEPS + 16)
    decoder = Decoder(model, slots, prompt + decoding.max_tokens, decoding, frozenset(), None)
    session: Session[Any, int] = Session(decoder)
    together = max(1, PASS // prompt)
    took = 0.0
    for begin in range(0, slots, together):
        some = prompts[begin : begin + together]
        _wait(model)
        start = time.perf_counter()
        logits = session.prefill(some)
        _wait(model)
        took += time.perf_counter() - start
        rows = session.begin(list(range(len(some))), [prompt] * len(some), list(range(len(some))))
        with torch.no_grad():
            decoder.choose(logits, rows.start, rows.stop)
    return session, took


def _measure(model: Any, slots: int, prompt: int) -> tuple[float, float]:
    """(seconds of a step, seconds of the prefill)."""
    session, prefill = _filled(model, slots, prompt)
    for _ in range(8):  # a graph is captured
        session.decoder.step(slots, session.step())
    _wait(model)
    begin = time.perf_counter()
    for _ in range(STEPS):
        session.decoder.step(slots, session.step())
    _wait(model)
    return (time.perf_counter() - begin) / STEPS, prefill


def _profile(model: Any, slots: int, prompt: int) -> dict[str, Any]:
    """Kernels of a step: (ms, launches, name) of the dearest, ms and launches of all."""
    from torch.profiler import ProfilerActivity, profile

    session, _ = _filled(model, slots, prompt)
    for _ in range(8):
        session.decoder.step(slots, session.step())
    _wait(model)
    on_card = model.device.type == "cuda"
    count = 4
    with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as seen:
        for _ in range(count):
            session.decoder.step(slots, session.step())
        _wait(model)
    events = sorted(seen.key_averages(), key=lambda one: -_time(one, on_card))
    dearest = [[_time(one, on_card) / 1e3 / count, one.count / count, one.key[:90]] for one in events[:16]]
    return {
        "ms": sum(_time(one, on_card) for one in events) / 1e3 / count,
        "launches": sum(one.count for one in events) / count,
        "dearest": dearest,
    }


def _time(event: Any, on_card: bool) -> float:
    return float(event.self_device_time_total if on_card else event.self_cpu_time_total)


def _wait(model: Any) -> None:
    import torch

    if model.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
