"""Training speed on a CPU: our loop beside a bare transformers + PEFT loop, on the starter and its own rows.

    python benchmarks/train_cpu.py [--pairs 5] [--steps 12] [--dropout 0.1]

Three ways take turns in one process, on the same rows in the same steps, rank, targets, dropout and optimiser:
    ours      the train stage's Stepper: packing, engine, clip, AdamW
    bare      LlamaForCausalLM + PEFT on the same padding-free stream (position_ids restart), CE on learned tokens
    padded    the same model on rows padded to the longest of the step
Prints tokens per second of each pair and the medians of the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from tunesmith.base import resolve
from tunesmith.data.prepare import prepare
from tunesmith.engine.protocol import PackedBatch, pack
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.recipe import Data, Model, Recipe, Train, Tune
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.train.build import build_model
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.order import Order
from tunesmith.train.schedule import Schedule
from tunesmith.train.state import State
from tunesmith.train.step import Stepper

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Bare:
    """What one writes by hand with transformers and PEFT."""

    def __init__(self, recipe: Recipe, padded: bool) -> None:
        base = AutoModelForCausalLM.from_pretrained(resolve(recipe.model).folder, dtype=torch.float32)
        base.config.use_cache = False
        tune = recipe.tune
        config = LoraConfig(
            r=tune.rank,
            lora_alpha=int(tune.alpha),
            lora_dropout=tune.dropout,
            target_modules=TARGETS,
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(base, config)
        self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.0, fused=True)
        self.forward = self._padded if padded else self._flat

    def step(self, batch: PackedBatch) -> None:
        self.optimizer.zero_grad()
        self.forward(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()

    def _flat(self, batch: PackedBatch) -> Tensor:
        hidden = self.model.base_model.model.model(
            input_ids=batch.ids[None], position_ids=batch.positions[None], use_cache=False
        ).last_hidden_state
        logits = self.model.base_model.model.lm_head(hidden[0, batch.targets - 1])
        return F.cross_entropy(logits, batch.ids[batch.targets])

    def _padded(self, batch: PackedBatch) -> Tensor:
        width = batch.max_length
        ids = torch.zeros(len(batch.lengths), width, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        mask = torch.zeros_like(ids)
        for row, length in enumerate(batch.lengths):
            here = slice(int(batch.cu_seqlens[row]), int(batch.cu_seqlens[row + 1]))
            ids[row, :length], mask[row, :length] = batch.ids[here], 1
            labels[row, :length] = torch.where(batch.learned[here], batch.ids[here], -100)
        loss: Tensor = self.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        return loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    recipe = Recipe(
        name="bench",
        model=Model(base="starter", dtype="float32"),
        data=Data(train="starter"),
        tune=Tune(dropout=arguments.dropout),
        train=Train(learning_rate=1e-4),
    )
    run = Run(folder / "bench")
    run.path.mkdir()
    prepare(recipe, run)
    rows = Rows.open(run.data, "train")
    order = Order(len(rows), batch=16, seed=0, epochs=1, max_steps=None)
    engine = ReferenceEngine(build_model(recipe, resolve(recipe.model), torch.device("cpu")), recipe)
    plan = engine.plan(rows.lengths)
    engine.use(plan)
    stepper = Stepper(
        engine=engine,
        plan=plan,
        rows=rows,
        order=order,
        schedule=Schedule.of("cosine", 1e-4, 0.03, order.steps),
        optimizer=Optimizer("adamw", engine.parameters, weight_decay=0.0),
        clip=1.0,
        state=State(),
        scaled=False,
        last_good=lambda: None,
    )
    bare, padded = Bare(recipe, padded=False), Bare(recipe, padded=True)

    def batches(start: int) -> list[PackedBatch]:
        return [
            pack(rows, order.numbers(step).tolist(), step) for step in range(start, start + arguments.steps)
        ]

    def ours(start: int) -> None:
        stepper.state.step = start - 1
        for _ in range(arguments.steps):
            stepper.step()

    def of(way: Bare) -> Callable[[int], None]:
        def go(start: int) -> None:
            for batch in batches(start):
                way.step(batch)

        return go

    ways = {"ours": ours, "bare": of(bare), "padded": of(padded)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for pair in range(arguments.pairs + 1):  # the first is a warm-up
        start = 1 + pair * arguments.steps
        tokens = sum(batch.tokens for batch in batches(start))
        for name in list(ways)[pair % 3 :] + list(ways)[: pair % 3]:
            begin = time.perf_counter()
            ways[name](start)
            if pair:
                speeds[name].append(tokens / (time.perf_counter() - begin))
    for name, figures in speeds.items():
        print(
            f"{name:7} {statistics.median(figures):8.0f} tokens/s  ({', '.join(f'{one:.0f}' for one in figures)})"
        )
    for other in ("bare", "padded"):
        ratios = [a / b for a, b in zip(speeds["ours"], speeds[other], strict=True)]
        print(
            f"ours / {other}: median {statistics.median(ratios):.3f}  ({', '.join(f'{one:.3f}' for one in ratios)})"
        )


if __name__ == "__main__":
    main()
