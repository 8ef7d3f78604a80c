"""Where a training step's time goes on a GPU: kernels by time, and the host's share.

    python benchmarks/profile_gpu.py --base DIR --work DIR [--tokens 4096] [--recompute none] [--quantize nf4]

Runs the engine on the prepared rows of benchmarks/train_gpu.py (`prepare`), three steps of warm-up, one profiled.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from tunesmith.base import resolve
from tunesmith.engine.protocol import MicroBatchPlan, pack
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.recipe import Data, Model, Recipe, Train, Tune
from tunesmith.rows import Rows
from tunesmith.train.build import build_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--recompute", choices=("none", "full"), default="none")
    parser.add_argument("--quantize", choices=("none", "nf4", "int8"), default="nf4")
    parser.add_argument("--dropout", type=float, default=0.0)
    arguments = parser.parse_args()
    recipe = Recipe(
        name="profile",
        model=Model(base=arguments.base, quantize=arguments.quantize),
        data=Data(train="unused"),
        tune=Tune(dropout=arguments.dropout),
        train=Train(recompute=arguments.recompute),
    )
    engine = ReferenceEngine(build_model(recipe, resolve(recipe.model), torch.device("cuda")), recipe)
    layers = engine.model.config.num_hidden_layers
    engine.use(MicroBatchPlan(arguments.tokens, None, (arguments.recompute,) * layers))
    rows = Rows.open(arguments.work / "prepared" / "data", "train")
    numbers, total = [], 0
    while total + rows.lengths[len(numbers)] <= arguments.tokens:
        total += int(rows.lengths[len(numbers)])
        numbers.append(len(numbers))
    batch = pack(rows, numbers, step=1)

    def step() -> None:
        engine.parameters.zero_grad()
        engine.step(batch, 1.0 / batch.learned_tokens)

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    step()
    host = time.perf_counter() - begin
    torch.cuda.synchronize()
    device = time.perf_counter() - begin
    print(
        f"{len(numbers)} rows, {total} tokens: {device * 1e3:.1f} ms, host {host * 1e3:.1f} ms, "
        f"{total / device:.0f} tokens/s"
    )
    print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB allocated")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=22, max_name_column_width=70))


if __name__ == "__main__":
    main()
