"""What `tunesmith check --gpu` foretells beside what a card does: memory and time of runs drawn by seed.

    python benchmarks/forecast_gpu.py [--seed 0] [--count 16] [--devices 0,1,2,3] [--card H200] [--out FILE]

Each configuration is a process of its own: a model of a real shape with random weights, engine and plan as `train`
chooses them, the real steps (loader, optimiser, clipping) that hold the largest micro-batches, two others, and a
validation. Predicted is the very forecast of `check --gpu`, made before the model is built, with `train.memory` as the
cap. Prints a JSON line for each and a table; exit code 1 where a peak was under- or more than a tenth overestimated.
`--dry-run` goes the whole way on tiny shapes without a card.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.base import Base
from tunesmith.contract import Encoded
from tunesmith.engine.cards import GIB, card_of
from tunesmith.engine.duration import Pace
from tunesmith.engine.forecast import Forecast, forecast
from tunesmith.engine.memory import Shape
from tunesmith.errors import OutOfRoom
from tunesmith.example import Example
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows, write_rows
from tunesmith.train.work import work_of

_NAMES = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size",
)  # fmt: skip
# model type, sizes, tied, and how often it is drawn
SHAPES: dict[str, tuple[str, tuple[int, ...], bool, int]] = {
    "llama-8b": ("llama", (32, 4096, 14336, 32, 8, 128256), False, 4),
    "llama-3b": ("llama", (28, 3072, 8192, 24, 8, 128256), True, 3),
    "llama-1b": ("llama", (16, 2048, 8192, 32, 8, 128256), True, 2),
    "mistral-7b": ("mistral", (32, 4096, 14336, 32, 8, 32768), False, 1),
    "qwen3-4b": ("qwen3", (36, 2560, 9728, 32, 8, 151936), True, 2),
    "qwen2-1.5b": ("qwen2", (28, 1536, 8960, 12, 2, 151936), True, 2),
}
TINY = {"tiny": ("llama", (2, 64, 128, 4, 2, 512), True, 1)}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TRAIN = ("batch", "micro_batch", "memory", "optimizer", "recompute", "engine")
BASE = "drawn"


def config_of(name: str) -> dict[str, Any]:
    kind, sizes, tied, _ = (SHAPES | TINY)[name]
    architecture = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    more: dict[str, Any] = {"head_dim": 128} if kind == "qwen3" else {}
    if kind == "mistral":
        more["sliding_window"] = None
    return {
        "model_type": kind, "architectures": [f"{architecture}ForCausalLM"], "hidden_act": "silu",
        "tie_word_embeddings": tied, "max_position_embeddings": 32768, "bos_token_id": 1, "eos_token_id": 2,
        **dict(zip(_NAMES, sizes, strict=True)), **more,
    }  # fmt: skip


def draw(seed: int, number: int, tiny: bool) -> dict[str, Any]:
    """A configuration whose longest row fits; others are drawn again."""
    generator = random.Random(f"{seed} {number}")
    while True:
        shapes = TINY if tiny else SHAPES
        shape = generator.choices(list(shapes), [weight for *_, weight in shapes.values()])[0]
        found = {
            "number": number,
            "shape": shape,
            "rows": generator.choice(["full", "full", "ragged", "ragged", "short", "long"]),
            "count": generator.randint(150, 600) if not tiny else 40,
            "seed": generator.randrange(1 << 30),
            "quantize": "none" if tiny else generator.choice(["nf4", "nf4", "nf4", "none", "int8"]),
            "rank": generator.choice([8, 16, 32, 64, 128]),
            "targets": generator.choice(["all", "all", "all", ATTENTION, ["q_proj", "v_proj"]]),
            "dropout": generator.choice([0.0, 0.0, 0.05, 0.1]),
            "batch": generator.choice([4, 8, 16, 16, 32]),
            "micro_batch": generator.choice(["auto"] * 5 + [1, 4]),
            "memory": generator.choice(["auto", "auto", 12, 16, 22, 24, 40, 80]),
            "optimizer": "adamw" if tiny else generator.choice(["adamw", "adamw", "adamw_8bit"]),
            "recompute": generator.choice(["auto", "auto", "auto", "none", "full"]),
            "engine": generator.choice(["auto"] * 5 + ["reference"]),
        }
        if found["micro_batch"] != "auto":
            found["micro_batch"] = min(found["micro_batch"], found["batch"])
        try:
            foretold(found, "H200")
        except OutOfRoom:
            continue
        return found


def recipe_of(drawn: dict[str, Any]) -> Recipe:
    return Recipe.model_validate_json(
        json.dumps(
            {
                "name": "drawn",
                "seed": drawn["seed"] % 1000,
                "model": {"base": BASE, "quantize": drawn["quantize"]},
                "data": {"train": "x", "validation": "x"},
                "tune": {
                    "rank": drawn["rank"], "alpha": 32, "dropout": drawn["dropout"], "target_modules": drawn["targets"],
                },
                "train": {
                    "epochs": 2,
                    **{key: drawn[key] for key in TRAIN},
                },
            }
        )
    )  # fmt: skip


def lengths_of(drawn: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Tokens and learned tokens of training rows."""
    numbers = np.random.default_rng(drawn["seed"])
    n = drawn["count"] if drawn["rows"] != "long" else drawn["count"] // 4
    if drawn["shape"] == "tiny":
        lengths = numbers.integers(8, 60, n)
    elif drawn["rows"] == "full":
        return [2048] * n, [2047] * n
    else:
        centre, most = {"ragged": (5.6, 2048), "short": (4.6, 512), "long": (8.0, 8192)}[drawn["rows"]]
        lengths = np.clip(numbers.lognormal(centre, 0.5, n), 24, most).astype(int)
    share = numbers.uniform(0.2, 0.6)
    return lengths.tolist(), [max(2, int(length * share)) for length in lengths]


def foretold(drawn: dict[str, Any], card: str) -> Forecast:
    lengths, learned = (np.array(part) for part in lengths_of(drawn))
    recipe = recipe_of(drawn)
    work = work_of(recipe, lengths, learned, lengths[:16])
    return forecast(recipe, config_of(drawn["shape"]), card_of(card), work)


def rows_in(folder: Path, drawn: dict[str, Any], split: str, count: int | None = None) -> Rows:
    lengths, learned = (part[:count] for part in lengths_of(drawn))
    vocabulary = config_of(drawn["shape"])["vocab_size"]
    ids = np.random.default_rng(1)

    def rows() -> Iterator[tuple[Example, Encoded]]:
        for i, (length, own) in enumerate(zip(lengths, learned, strict=True)):
            mask = [t >= length - own for t in range(length)]
            yield (
                Example.make("x", "y", id=str(i)),
                Encoded(ids.integers(1, vocabulary, length).tolist(), mask),
            )

    write_rows(folder, split, rows())
    return Rows.open(folder, split)


def measure(drawn: dict[str, Any], card: str) -> dict[str, Any]:
    """One configuration on the one device that this process sees."""
    told = foretold(drawn, card)
    import torch

    from tunesmith.model.load import noise_model
    from tunesmith.model.lora import add_lora
    from tunesmith.train import environment
    from tunesmith.train.build import choose_engine, steps_of
    from tunesmith.train.optimizer import Optimizer
    from tunesmith.train.order import Order
    from tunesmith.train.schedule import Schedule
    from tunesmith.train.state import State
    from tunesmith.train.step import Stepper
    from tunesmith.train.validate import validation_loss

    recipe, train, begin = recipe_of(drawn), recipe_of(drawn).train, time.perf_counter()
    device = environment.choose_device()
    environment.set_up(deterministic=False, threads=None)
    environment.hold_to(train.memory, device)
    cuda = device.type == "cuda"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config_of(drawn["shape"])))
        base = Base(BASE, folder, None, config_of(drawn["shape"]), folder)
        model = noise_model(base, dtype=torch.bfloat16, quantize=recipe.model.quantize, device=device)
        add_lora(model, recipe.tune, recipe.seed)
        rows, validation = rows_in(folder, drawn, "train"), rows_in(folder, drawn, "validation", 16)
        order = Order(len(rows), batch=train.batch, seed=recipe.seed, epochs=train.epochs, max_steps=None)
        engine = choose_engine(recipe, model)
        kind = "fused" if type(engine).__name__ == "FusedEngine" else "reference"
        steps = steps_of(order, rows, 1)
        plan = engine.plan(rows.lengths, steps)
        engine.use(plan)
        optimizer = Optimizer(train.optimizer, engine.parameters, weight_decay=train.weight_decay)
        schedule = Schedule.of(train.schedule, train.learning_rate, train.warmup, order.steps)
        state = State()
        stepper = Stepper(
            engine=engine, plan=plan, rows=rows, order=order, schedule=schedule, optimizer=optimizer, clip=train.clip,
            state=state, scaled=False, last_good=lambda: None,
        )  # fmt: skip
        setup = time.perf_counter() - begin
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        assert steps is not None
        chosen = _chosen(plan, steps)
        seconds = []
        for number in [chosen[0], *chosen]:  # the first compiles kernels; its time is not counted
            state.step = number - 1
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            stepper.step()
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        stepper.settle()
        validation_loss(engine, validation, plan)
        peak = torch.cuda.max_memory_allocated() if cuda else 0
        reserved = torch.cuda.max_memory_reserved() if cuda else 0
    pace = Pace(
        told.card, kind, Shape.of(config_of(drawn["shape"]), recipe), plan, recipe.tune.dropout > 0, train.fp8
    )
    return {
        **drawn,
        "engine_chosen": kind,
        "same_plan": plan == told.plan,
        "plan": plan.note,
        "predicted_gib": round(told.peak / GIB, 3),
        "allocated_gib": round(peak / GIB, 3),
        "reserved_gib": round(reserved / GIB, 3),
        "predicted_card_gib": plan.gib,
        "predicted_seconds": [round(pace.step(steps[number - 1]), 4) for number in chosen],
        "seconds": [round(one, 4) for one in seconds[1:]],
        "first_seconds": round(seconds[0], 2),
        "setup_seconds": round(setup, 1),
    }


def _chosen(plan: Any, steps: Any) -> list[int]:
    """Steps with the most tokens, and the most learned ones, in a micro-batch; and two others."""
    most = [plan.most([step]) for step in steps]
    by_tokens = max(range(len(steps)), key=lambda i: most[i].tokens)
    by_learned = max(range(len(steps)), key=lambda i: most[i].learned)
    return list(dict.fromkeys(i + 1 for i in (by_tokens, by_learned, 0, len(steps) // 2)))


def run_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A queue for all devices; a process a configuration."""
    waiting = [draw(arguments.seed, number, arguments.dry_run) for number in range(arguments.count)]
    waiting.sort(key=lambda one: -Shape.of(config_of(one["shape"]), recipe_of(one)).layer_weights)
    lock, found = threading.Lock(), list[dict[str, Any]]()

    def work(device: str) -> None:
        while True:
            with lock:
                if not waiting:
                    return
                drawn = waiting.pop(0)
            command = [sys.executable, __file__, "--one", json.dumps(drawn), "--card", arguments.card]
            own = {"CUDA_VISIBLE_DEVICES": device, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
            done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            result = json.loads(lines[-1][7:]) if lines else drawn | {"failed": done.stderr[-1500:]}
            with lock:
                found.append(result)
                print(json.dumps(result), flush=True)

    threads = [threading.Thread(target=work, args=(device,)) for device in arguments.devices.split(",")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found, key=lambda one: int(one["number"]))


def table(results: list[dict[str, Any]]) -> bool:
    """Prints it; whether every peak was foretold: not under, at most a tenth over."""
    heads = ("GiB", "told", "ratio", "reserved", "s/step", "told", "ratio")
    print(f"\n{'configuration':96}" + "".join(f"{head:>9}" for head in heads))
    good, ratios = True, []
    for one in results:
        targets = one["targets"] if one["targets"] == "all" else "+".join(t[0] for t in one["targets"])
        words = [
            one["number"],
            one["shape"],
            one["quantize"],
            f"r{one['rank']}",
            targets,
            f"drop {one['dropout']}",
        ]
        words += [
            one["rows"],
            f"batch {one['batch']}/{one['micro_batch']}",
            f"cap {one['memory']}",
            one["optimizer"],
        ]
        name = " ".join(map(str, [*words, one["recompute"], one.get("engine_chosen", "")]))
        if "failed" in one:
            print(f"{name:96} FAILED {one['failed'].splitlines()[-1:]}")
            good = False
            continue
        mean, told = statistics.mean(one["seconds"]), statistics.mean(one["predicted_seconds"])
        ratio = one["predicted_gib"] / one["allocated_gib"] if one["allocated_gib"] else 1.0
        good = good and 1.0 <= ratio <= 1.10
        ratios.append(told / mean)
        figures = (
            one["allocated_gib"],
            one["predicted_gib"],
            ratio,
            one["reserved_gib"],
            mean,
            told,
            told / mean,
        )
        other = "" if one["same_plan"] else "  other plan"
        print(f"{name:96}" + "".join(f"{figure:9.3f}" for figure in figures) + other)
    if ratios:
        print(
            f"time: told / measured {min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}"
        )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--devices", default="0")
    parser.add_argument("--card", default="H200", help="as check --gpu names it")
    parser.add_argument("--out", type=Path, help="JSON lines, too")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on a CPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print("RESULT", json.dumps(measure(json.loads(arguments.one), arguments.card)), flush=True)
        return 0
    results = run_all(arguments)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("".join(json.dumps(one) + "\n" for one in results))
    return 0 if table(results) else 1


if __name__ == "__main__":
    sys.exit(main())
