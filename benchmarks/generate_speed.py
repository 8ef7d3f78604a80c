"""Generation: our slots beside transformers' `generate`, on the same model in one process, rounds in turn.

    python benchmarks/generate_speed.py cpu [--rows 512] [--rounds 2]
    python benchmarks/generate_speed.py gpu --base DIR [--rows 512] [--rounds 2]     # DIR: train_gpu.py make
    python benchmarks/generate_speed.py gpu --shape llama-3.1-8b --plain-layers --only-ours              # no files

512 prompts, 64 new tokens each; nothing ends an answer earlier, so that all ways write equally many.
cpu: the starter in fp32 on its own reports; greedy answers have to be equal. gpu: a base of true shape with random
weights in bf16 on prompts of log-normal length; there near ties fall either way, so the share of equal tokens is
compared with that of `generate` at its best batch size.

Ways: `arrival 16`: generate in the order of the rows, 16 at a time; `sorted N`: generate, longest rows first, N at a
time (the best N is what counts); `ours`: SlotGenerator as evaluate calls it; `plain layers` (--plain-layers): the same
without the lean pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_inputs import shape_config
from step_speed import layers_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunesmith.generate.protocol import Decoding
from tunesmith.generate.slots import SlotGenerator
from tunesmith.model.attention import ATTENTION, register

NEW = 64
Answers = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("device", choices=("cpu", "gpu"))
    parser.add_argument("--base", type=Path, help="folder of a model, gpu")
    parser.add_argument("--shape", help="random weights of this shape instead of a folder, gpu")
    parser.add_argument("--plain-layers", action="store_true", help="ours also without the lean pass")
    parser.add_argument("--only-ours", action="store_true", help="without transformers' generate")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="*", default=(64, 128, 256, 512))
    parser.add_argument("--slots", default="auto", help="of ours: auto, or a number")
    parser.add_argument("--median", type=float, default=190, help="tokens of a prompt, gpu")
    parser.add_argument("--out", type=Path, help="a JSON line is added")
    chosen = parser.parse_args()
    slots = chosen.slots if chosen.slots == "auto" else int(chosen.slots)
    model, prompts = (_starter if chosen.device == "cpu" else _shape)(chosen)
    batches = [size for size in chosen.batches if size <= chosen.rows] or [chosen.rows]
    ways: dict[str, Callable[[], Answers]] = {"ours": lambda: ours(model, prompts, slots)}
    if chosen.plain_layers:
        ways["plain layers"] = lambda: plain(model, prompts, slots)
    if chosen.only_ours:
        seconds, _ = measure(ways, chosen.rounds, model)
        print(json.dumps({"device": _device(), "rows": len(prompts), "slots": slots, "seconds": seconds}))
        return
    ways["arrival 16"] = lambda: theirs(model, prompts, range(len(prompts)), 16)
    by_length = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    for size in batches:
        ways[f"sorted {size}"] = lambda size=size: theirs(model, prompts, by_length, size)
    theirs(model, prompts, range(16), 16)
    seconds, answers = measure(ways, chosen.rounds, model)
    best = min(
        (name for name in ways if name.startswith("sorted")),
        key=lambda name: statistics.median(seconds[name]),
    )
    found = {
        "device": _device(), "torch": torch.__version__, "rows": len(prompts), "new_tokens": NEW, "slots": slots,
        "prompt_tokens": {"mean": float(np.mean([len(p) for p in prompts])), "most": max(map(len, prompts))},
        "dtype": str(model.dtype), "seconds": seconds, "best": best,
        "over_arrival": ratio(seconds, "arrival 16"), "over_best": ratio(seconds, best),
        "agreement": agreement(answers["ours"], answers[best], answers["arrival 16"]),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if chosen.out:
        with chosen.out.open("a") as file:
            file.write(json.dumps(found) + "\n")
    if chosen.device == "cpu" and answers["ours"] != answers["arrival 16"]:
        sys.exit("greedy answers in fp32 differ")


def measure(
    ways: dict[str, Callable[[], Answers]], rounds: int, model: PreTrainedModel
) -> tuple[dict[str, list[float]], dict[str, Answers]]:
    """Seconds of each way in each round, ways in turn, and the last answers. Our first round isn't counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, Answers] = {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            is_own = name in ("ours", "plain layers")
            if (turn == 0 and not is_own) or (turn > 1 and name == "arrival 16"):  # slow: once is enough
                continue
            begin = time.perf_counter()
            answers[name] = way()
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            took = time.perf_counter() - begin
            peak = torch.cuda.max_memory_allocated() / 2**30 if model.device.type == "cuda" else 0.0
            print(
                f"{name}: {took:.2f} s{'' if turn else ' (warm-up)'}, peak {peak:.1f} GiB",
                file=sys.stderr,
                flush=True,
            )
            if turn:
                seconds[name].append(took)
            if model.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    return seconds, answers


def ours(model: PreTrainedModel, prompts: Sequence[list[int]], slots: Any) -> Answers:
    """As evaluate generates."""
    model.set_attn_implementation(ATTENTION)
    made: Answers = [[] for _ in prompts]
    for one in SlotGenerator(model, slots=slots).generate(prompts, Decoding(max_tokens=NEW), frozenset()):
        made[one.index] = one.ids
    return made


def plain(model: PreTrainedModel, prompts: Sequence[list[int]], slots: Any) -> Answers:
    """The same by transformers' own layers."""
    with layers_of("transformers"):
        return ours(model, prompts, slots)


@torch.no_grad()
def theirs(model: PreTrainedModel, prompts: Sequence[list[int]], order: Sequence[int], size: int) -> Answers:
    """transformers' generate, padded on the left, `size` rows at a time."""
    model.set_attn_implementation("sdpa")
    made: Answers = [[] for _ in prompts]
    order = list(order)
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        longest = max(len(prompts[row]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, longest - len(prompts[row]) :] = torch.tensor(prompts[row])
            mask[place, longest - len(prompts[row]) :] = 1
        whole = model.generate(
            ids.to(model.device), attention_mask=mask.to(model.device), do_sample=False, max_new_tokens=NEW,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        for row, answer in zip(rows, whole[:, longest:].tolist(), strict=True):
            made[row] = answer
    return made


def ratio(seconds: dict[str, list[float]], over: str) -> dict[str, float]:
    """How many times faster we are than `over`: medians, and the least and most of the rounds."""
    each = [theirs / own for theirs, own in zip(seconds[over], seconds["ours"], strict=False)]
    middle = statistics.median(seconds[over]) / statistics.median(seconds["ours"])
    return {"median": middle, "least": min(each), "most": max(each)}


def agreement(ours: Answers, best: Answers, told: Answers) -> dict[str, Any]:
    """Share of tokens equal to `arrival 16`'s, ours and the best batch's, and the difference with its 95 % interval."""
    own, other = ((np.array(answers) == np.array(told)).mean(axis=1) for answers in (ours, best))
    draws = np.random.Generator(np.random.PCG64(0)).integers(len(own), size=(2000, len(own)))
    low, high = np.percentile((own - other)[draws].mean(axis=1), [2.5, 97.5])
    return {"ours": own.mean(), "best": other.mean(), "difference": [float(low), float(high)]}


def _starter(chosen: argparse.Namespace) -> tuple[PreTrainedModel, list[list[int]]]:
    from tunesmith.base import resolve
    from tunesmith.contract import Contract
    from tunesmith.example import Message
    from tunesmith.recipe import Model
    from tunesmith.starter.reports import rows as generated

    base = resolve(Model(base="starter"))
    model = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=torch.float32, attn_implementation=register()
    )
    contract = Contract.make(base.tokenizer_folder)
    rows = [f"{row['instruction']}\n\n{row['input']}" for row in generated("test", chosen.rows, seed=11)]
    return model.eval(), [list(contract.prompt_ids((Message("user", text),))) for text in rows]


def _shape(chosen: argparse.Namespace) -> tuple[PreTrainedModel, list[list[int]]]:
    if chosen.shape:
        torch.manual_seed(0)
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(
                shape_config(chosen.shape), dtype=torch.bfloat16, attn_implementation=register()
            )
    else:
        model = AutoModelForCausalLM.from_pretrained(
            chosen.base, dtype=torch.bfloat16, attn_implementation=register(), device_map={"": 0}
        )
    random = np.random.Generator(np.random.PCG64(5))
    lengths = np.clip(random.lognormal(np.log(chosen.median), 0.45, chosen.rows), 20, 1024).astype(int)
    return model.eval(), [random.integers(4, model.config.vocab_size, n).tolist() for n in lengths]


def _device() -> str:
    return (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
