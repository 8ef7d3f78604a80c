"""Where a training step's time goes on a GPU: kernels by time, the host's share, memory.

    python benchmarks/profile_gpu.py --base DIR [--rows full:8 | --rows ragged:3000] [--engine fused] [--images 32] ...

Random ids in rows of 2,048 tokens (`full:N`) or log-normal ones (`ragged:TOKENS`, about 190 + 90 tokens a row).
The base is loaded once; `--also` repeats the measurement with other settings, e.g.
--also "engine=reference" --also "dropout=0.1 rows=ragged:3000". One line each, then (with --table) kernels by time.
"""

from __future__ import annotations

import argparse
import statistics
import time
import traceback
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from tunesmith.base import resolve
from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.protocol import MicroBatchPlan, PackedBatch, pack_sequences
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.model.lora import adapters
from tunesmith.recipe import Data, Model, Recipe, Train, Tune
from tunesmith.train.build import build_model
from tunesmith.train.environment import choose_device, set_up


def rows(kind: str, vocabulary: int, length: int) -> PackedBatch:
    """`full:N` rows of `length`, all learned but the first token; or `ragged:TOKENS`."""
    generator = np.random.default_rng(0)
    what, _, amount = kind.partition(":")
    pairs = []
    if what == "full":
        pairs = [(1, length - 1)] * int(amount)
    while what == "ragged" and sum(map(sum, pairs)) < int(amount):
        prompt, answer = generator.lognormal(np.log(170), 0.5), generator.lognormal(np.log(80), 0.5)
        pairs.append((max(8, int(prompt)), max(4, int(answer))))
    ids = [generator.integers(1, vocabulary, p + a) for p, a in pairs]
    learned = [np.arange(p + a) >= p for p, a in pairs]
    return pack_sequences(ids, learned, range(len(ids)), 1)


def recipe(arguments: argparse.Namespace) -> Recipe:
    return Recipe(
        name="profile",
        model=Model(base=arguments.base, quantize=arguments.quantize),
        data=Data(train="unused"),
        tune=Tune(dropout=arguments.dropout),
        train=Train(fp8=arguments.fp8),
    )


def measure(model: PreTrainedModel, arguments: argparse.Namespace) -> torch.Tensor:
    """Times steps under these settings; returns the gradient, so that engines can be compared."""
    for adapter in adapters(model):
        adapter.dropout.p = arguments.dropout
        adapter.dropout.threshold = round(arguments.dropout * 2**32) - 2**31
    wanted = recipe(arguments)
    kind = FusedEngine if arguments.engine == "fused" else ReferenceEngine
    engine = kind(model, wanted)
    dense = arguments.length if arguments.rows.startswith("full") else None
    layers = model.config.num_hidden_layers
    levels, away = (arguments.recompute,) * layers, arguments.away
    engine.use(
        MicroBatchPlan(1 << 20, None, levels, images=arguments.images, dense=dense, outer_on_host=away)
    )
    batch = rows(arguments.rows, model.config.vocab_size, arguments.length)

    def step() -> Any:
        engine.parameters.zero_grad()
        return engine.step(batch, 1.0 / batch.learned_tokens)

    cuda = torch.cuda.is_available()

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    for _ in range(2):
        loss = step().loss.item() / batch.learned_tokens
    wait()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    hosts, wholes = [], []
    for _ in range(arguments.steps):
        begin = time.perf_counter()
        step()
        hosts.append(time.perf_counter() - begin)
        wait()
        wholes.append(time.perf_counter() - begin)
    whole, host = statistics.median(wholes), statistics.median(hosts)
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    print(
        f"RESULT {arguments.label}: {batch.tokens} tokens ({batch.learned_tokens} learned), {whole * 1e3:.1f} ms "
        f"({min(wholes) * 1e3:.1f} to {max(wholes) * 1e3:.1f}), host {host * 1e3:.1f} ms, "
        f"{batch.tokens / whole:.0f} tokens/s, peak {peak:.2f} GiB allocated, loss {loss:.7f}",
        flush=True,
    )
    if isinstance(engine, FusedEngine):
        print(
            f"  apart from autograd: hidden {engine.hidden_apart:.3g}, gradient {engine.gradient_apart:.3g}"
        )
    if arguments.table:
        table(step)
    step()
    wait()
    found = engine.parameters.grad.clone()
    engine.use(MicroBatchPlan(1 << 20, None, levels))  # what lay on the host goes back
    return found


def table(step: Any) -> None:
    """Kernels of one step by time."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    waits = ("Command Buffer Full", "cuLaunchKernelEx", "cudaLaunchKernel")  # the host's, not kernels
    events = [
        e
        for e in found.key_averages()
        if e.self_device_time_total > 0 and "::" not in e.key[:12] and e.key not in waits
    ]
    total = sum(e.self_device_time_total for e in events)
    print(f"  kernels {total / 1e3:.1f} ms")
    for event in sorted(events, key=lambda e: -e.self_device_time_total)[:28]:
        print(f"  {event.self_device_time_total / 1e3:9.2f} ms {event.count:6d} x  {event.key[:100]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True)
    parser.add_argument("--rows", default="full:8")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--engine", choices=("fused", "reference"), default="fused")
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--recompute", default="none")
    parser.add_argument("--away", action="store_true", help="embedding and head in host memory")
    parser.add_argument("--quantize", choices=("none", "nf4", "int8"), default="nf4")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--also", action="append", default=[])
    parser.add_argument("--deterministic", action="store_true", help="sums in one order")
    arguments = parser.parse_args()
    set_up(deterministic=arguments.deterministic, threads=None)
    wanted = recipe(arguments)
    model = build_model(wanted, resolve(wanted.model), choose_device())
    told = None
    for words in ["", *arguments.also]:
        own = argparse.Namespace(**vars(arguments))
        for pair in words.split():
            name, _, text = pair.partition("=")
            kind = type(getattr(arguments, name))
            setattr(own, name, text == "True" if kind is bool else kind(text))
        own.label = (
            f"{own.engine} {own.rows} dropout {own.dropout} images {own.images} recompute {own.recompute}"
            f"{' away' if own.away else ''}"
        )
        own.label += " fp8" * own.fp8
        torch.manual_seed(0)
        for adapter in adapters(model):
            adapter.B.data.normal_(0, 0.02)
        try:
            found = measure(model, own)
        except Exception as error:  # one setting that fails leaves the others to measure
            print(f"FAILED {own.label}: {type(error).__name__}: {error}", flush=True)
            traceback.print_exc(limit=-3)
            continue
        key = (own.rows, own.dropout)
        if told is not None and told[0] == key:
            cosine = torch.cosine_similarity(found.double(), told[1].double(), dim=0).item()
            equal = torch.equal(found, told[1])
            print(f"  cosine to the gradient before: {cosine:.6f}{', equal bits' if equal else ''}")
        told = (key, found)


if __name__ == "__main__":
    main()
